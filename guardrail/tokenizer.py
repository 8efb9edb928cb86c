"""Text to token ids with offsets, the same for every encoder. Knows no model and no windows."""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Tokenizer

from .errors import ArtifactError
from .protocols import TokenizedText

# BERT's WordPiece gives up on words of more than 100 characters.
LONG_WORD = re.compile(r"\S{100,}")
WORD_PIECE = 50
# The tokenizer lets no other thread run while it reads: 200,000 characters at once take a tenth of a second.
MOST_AT_ONCE = 4096
BETWEEN_WORDS = re.compile(r"(?<=\S)\s")


class TextTokenizer:
    """A Hugging Face tokenizer that reads a user's text as text, whatever is written in it.

    Attributes:
        cls_id: id of the token that begins a window.
        sep_id: id of the token that ends a turn.
    """

    def __init__(self, path: Path) -> None:
        """Load a `tokenizer.json`.

        Raises:
            ArtifactError: the file is missing, is no tokenizer, or has no [CLS] or [SEP].
        """
        self._tokenizer = _load(path)
        self.cls_id, self.sep_id = (_special_id(self._tokenizer, token) for token in ("[CLS]", "[SEP]"))

    def tokenize(self, text: str) -> TokenizedText:
        """Return the tokens of a text; "[SEP]" written in the text stays ordinary text."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in _pieces(text):
            encoding = self._tokenizer.encode(text[start:end], add_special_tokens=False)
            ids += encoding.ids
            offsets += [(start + left, start + right) for left, right in encoding.offsets]
        return TokenizedText(ids, offsets)


def _pieces(text: str) -> list[tuple[int, int]]:
    """Cut a text where it changes no token that is worth keeping.

    Long texts are cut before a space, very long words anywhere: WordPiece would read one as a single unknown
    token, and so not at all.
    """
    cuts = {0}
    for match in LONG_WORD.finditer(text):
        cuts.update(range(match.start() + WORD_PIECE, match.end(), WORD_PIECE))
    for near in range(MOST_AT_ONCE, len(text), MOST_AT_ONCE):
        # A word that is longer than this has cuts of its own.
        if space := BETWEEN_WORDS.search(text, near, near + 100):
            cuts.add(space.start())
    starts = sorted(cuts)
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _load(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"expected a tokenizer at {path}: {error.strerror}") from error
    except Exception as error:  # tokenizers raises plain Exception
        raise ArtifactError(f"expected a Hugging Face tokenizer file at {path}, could not read it") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Without this a user could write "[SEP]" and forge a turn boundary.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ArtifactError(f"expected a tokenizer with the token {token}, got one without it")
    return index
