"""The rewrite model in torch: loading, decoding, and the encoder-decoder that is made of a BERT.

Imported only when a rewrite model is loaded or trained. Knows tokens, not conversations.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ArtifactError, MissingDependencyError
from .rewrite_tokens import Kind, end_id

try:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        BertModel,
        EncoderDecoderConfig,
        EncoderDecoderModel,
        LogitsProcessor,
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        StoppingCriteria,
        StoppingCriteriaList,
    )
    from transformers.modeling_outputs import BaseModelOutput

    from .torch_tools import device_of, no_progress_bar
except ImportError as error:
    raise MissingDependencyError("transformers", "rewrite") from error

NGRAM = 3
TOP_K = 64  # the nucleus is looked for among so many: to sort a vocabulary takes as long as to decode
_BLOCKS = r"encoder\.layer\.\d+\.(attention|intermediate|output)\."


class WarmStartedBert(EncoderDecoderModel):  # type: ignore[misc]  # untyped library
    """An encoder and a decoder that began as the same BERT-like encoder (Rothe et al. 2020, 1907.12461).

    With `config.tie_word_embeddings` the decoder *is* the encoder with a causal mask: it uses the same
    embeddings, self-attention and feed-forward blocks, and owns its cross-attention and output layer alone.
    """

    # What the decoder takes from the encoder; matched name by name in sorted order.
    _tied_weights_keys = {
        r"decoder\.bert\.embeddings\.\w+\.": r"encoder\.embeddings\.\w+\.",
        rf"decoder\.bert\.{_BLOCKS}": rf"encoder\.{_BLOCKS}",
    }

    def __init__(self, config: EncoderDecoderConfig, encoder: Any = None, decoder: Any = None) -> None:
        super().__init__(config, encoder or BertModel(config.encoder, add_pooling_layer=False), decoder)


def load(folder: Path, kind: Kind, device: str | None, *, int8: bool = False) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder whose files have been checked.

    Args:
        folder: of the model.
        kind: how it is said to read.
        device: a device of torch; None takes a GPU if there is one.
        int8: quantise the linear layers; on a CPU only.

    Raises:
        ArtifactError: there is no such model in it.
        ConfigError: the device does not exist here.
    """
    target = device_of(device)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        with no_progress_bar():
            config = AutoConfig.from_pretrained(folder, **options)
            if config.is_encoder_decoder is not (kind == "seq2seq"):
                raise ValueError("the config is of the other kind")
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = model_class(config.model_type, kind).from_pretrained(
                folder, use_safetensors=True, dtype="auto", **options
            )
    except Exception as error:  # json, safetensors and torch errors alike
        raise ArtifactError(f"expected a {kind} model of transformers in {folder}, cannot load it") from error
    model = model.to(target)
    return (_int8(model) if int8 and target.type == "cpu" else model), tokenizer


def _int8(model: Any) -> Any:
    """Return a model whose linear layers multiply in int8: one scale per output, activations as they come."""
    from torch.ao import quantization

    with warnings.catch_warnings():  # it is to move to a package of its own
        warnings.simplefilter("ignore")
        scheme = {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
        return quantization.quantize_dynamic(model.float().eval(), scheme)  # type: ignore[no-untyped-call]


def model_class(model_type: str, kind: Kind) -> Any:
    """Return the class that reads a model, by the type that its config gives."""
    if model_type == EncoderDecoderConfig.model_type:
        return WarmStartedBert
    return AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM


def sample(
    model: Any,
    tokenizer: Any,
    kind: Kind,
    source: Sequence[int],
    *,
    count: int,
    seed: int,
    top_p: float,
    temperature: float,
    max_new_tokens: int,
    moment: float | None = None,
    threads: int | None = None,
) -> list[list[int]]:
    """Return the tokens of `count` replies to one source: the first greedy, the others by nucleus sampling.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        kind: how it reads.
        source: tokens to read.
        count: replies.
        seed: of the draws.
        top_p: probability mass of the tokens that are drawn from, (0, 1].
        temperature: > 0.
        max_new_tokens: longest reply.
        moment: of `time.monotonic()` to stop at.
        threads: of torch while it runs; None leaves them as they are.
    """
    nucleus = Nucleus(seed, top_p=top_p, temperature=temperature, device=model.device)
    with _torch_threads(threads):
        return write(
            model,
            tokenizer,
            kind,
            [source],
            copies=count,
            max_new_tokens=max_new_tokens,
            processors=[nucleus],
            moment=moment,
        )


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


class Nucleus(LogitsProcessor):  # type: ignore[misc]  # untyped library
    """Makes greedy decoding sample: the first row stays greedy, Gumbel noise draws the others.

    They are drawn from the likeliest tokens that together reach `top_p`, at most 64.

    The argmax of logits plus Gumbel noise is a draw from their softmax, so the draws come from a
    generator of our own and the host program's random state is left alone.
    """

    def __init__(self, seed: int, *, top_p: float, temperature: float, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._top_p = top_p
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (rows, vocabulary) whose argmax is the next token."""
        likely, tokens = (scores[1:].float() / self._temperature).topk(min(TOP_K, scores.shape[-1]))
        p = likely.softmax(-1)  # (rows - 1, k), falling
        likely = likely.masked_fill(p.cumsum(-1) - p >= self._top_p, -torch.inf)
        noise = torch.empty_like(likely).exponential_(generator=self._generator).log().neg()
        drawn = torch.full_like(scores[1:], -torch.inf, dtype=torch.float32)
        return torch.cat([scores[:1].float(), drawn.scatter(-1, tokens, likely + noise)])


class Deadline(StoppingCriteria):  # type: ignore[misc]  # untyped library
    """Stops all rows once a moment has passed."""

    def __init__(self, moment: float) -> None:
        self._moment = moment

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return for each row whether it is to stop."""
        late = time.monotonic() >= self._moment
        return torch.full((len(input_ids),), late, dtype=torch.bool, device=input_ids.device)


class NoRepeat(NoRepeatNGramLogitsProcessor):  # type: ignore[misc]  # untyped library
    """Forbids to write the same three tokens twice; to repeat three that were read is allowed."""

    def __init__(self, read: int) -> None:
        super().__init__(NGRAM)
        self._read = read

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores without what would repeat."""
        changed: torch.Tensor = super().__call__(input_ids[:, self._read :], scores)
        return changed


@torch.inference_mode()
def write(
    model: Any,
    tokenizer: Any,
    kind: Kind,
    sources: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    beams: int = 1,
    copies: int = 1,
    processors: Sequence[LogitsProcessor] = (),
    moment: float | None = None,
) -> list[list[int]]:
    """Return the tokens of replies, each with the token that ends it if it came to an end.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        kind: how it reads.
        sources: n lists of tokens to read.
        max_new_tokens: longest reply.
        beams: replies to each source, by beam search; 1 is greedy decoding.
        copies: rows for each source, which the processors may tell apart; each source is read once.
        processors: change the scores of the next token.
        moment: of `time.monotonic()` to stop at.

    Returns:
        n * copies * beams replies, those to one source together.
    """
    longest = max(map(len, sources))
    pad, end = int(tokenizer.pad_token_id), end_id(tokenizer)
    causal = kind == "causal"
    ids, mask = [], []
    for source in sources:
        fill = longest - len(source)
        # On the left for a causal model: what it writes follows on the right.
        ids.append([*[pad] * fill, *source] if causal else [*source, *[pad] * fill])
        mask.append([*[0] * fill, *[1] * len(source)] if causal else [*[1] * len(source), *[0] * fill])
    read = longest if causal else 1  # of a decoder, its start token
    given = {
        "input_ids": torch.tensor(ids, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }
    if not causal:
        hidden = model.get_encoder()(**given).last_hidden_state
        del given["input_ids"]
        given["encoder_outputs"] = BaseModelOutput(hidden.repeat_interleave(copies, 0))
        given["attention_mask"] = given["attention_mask"].repeat_interleave(copies, 0)
    else:
        given = {name: value.repeat_interleave(copies, 0) for name, value in given.items()}
    written = model.generate(
        **given,
        do_sample=False,
        num_beams=beams,
        num_return_sequences=beams,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=end,
        suppress_tokens=[int(n) for n in tokenizer.all_special_ids if n != end] or None,
        logits_processor=LogitsProcessorList([NoRepeat(read), *processors]),
        stopping_criteria=StoppingCriteriaList([] if moment is None else [Deadline(moment)]),
    )
    return [_ended(row, end) for row in written[:, read:].tolist()]


def _ended(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
