"""Packing token ids into windows: what goes where, and that nothing is lost without being counted."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from guardrail.conversation import read_conversation
from guardrail.protocols import TokenizedText
from guardrail.reading import read
from guardrail.windows import PIECE_OVERLAP, pack

CLS, SEP = 1, 2


def packed(judged, context, max_tokens=32, max_windows=4):
    return pack(judged, context, cls_id=CLS, sep_id=SEP, max_tokens=max_tokens, max_windows=max_windows)


def numbered(judged_length, lengths):
    """Return a judged turn and context turns in which every token is a different one."""
    ids = iter(range(10, 100_000))
    return [next(ids) for _ in range(judged_length)], [[next(ids) for _ in range(n)] for n in lengths]


@st.composite
def conversations(draw):
    judged, context = numbered(draw(st.integers(0, 150)), draw(st.lists(st.integers(0, 60), max_size=12)))
    return judged, context, draw(st.integers(16, 64)), draw(st.integers(1, 8))


def content(window):
    return [token for token in window.ids if token not in (CLS, SEP)]


@given(conversations())
def test_every_token_is_read_or_counted_as_unread(case):
    judged, context, max_tokens, max_windows = case
    result = packed(*case)
    given_ids = {*judged, *(token for turn in context for token in turn)}
    read_ids = {token for window in result.windows for token in content(window)}

    assert read_ids <= given_ids
    assert result.tokens_read == len(read_ids)
    assert result.judged_read is (set(judged) <= read_ids)
    assert result.turns_read == 1 + sum(not read_ids.isdisjoint(turn) for turn in context)


@given(conversations())
def test_windows_keep_to_their_bounds(case):
    _, _, max_tokens, max_windows = case
    result = packed(*case)

    assert 1 <= len(result.windows) <= max_windows
    for window in result.windows:
        assert len(window.ids) <= max_tokens
        assert (window.ids[0], window.ids[-1]) == (CLS, SEP)


@given(conversations())
def test_something_is_left_out_only_if_all_windows_are_used(case):
    judged, context, _, max_windows = case
    result = packed(*case)

    if result.tokens_read < len(judged) + sum(map(len, context)):
        assert len(result.windows) == max_windows


@given(conversations())
def test_every_window_begins_with_its_part_of_the_judged_turn(case):
    judged, _, _, _ = case
    for window in packed(*case).windows:
        size = window.end - window.start
        assert list(window.ids[1 : 1 + size]) == judged[window.start : window.end]
        assert window.ids[1 + size] == SEP


@given(conversations())
def test_a_judged_turn_that_fits_is_whole_in_the_first_window(case):
    judged, _, max_tokens, _ = case
    result = packed(*case)

    if len(judged) <= max_tokens - 2:
        assert (result.windows[0].start, result.windows[0].end) == (0, len(judged))
        assert result.judged_read
        assert sum(window.recent for window in result.windows) == 1


@given(conversations())
def test_pieces_of_a_long_judged_turn_overlap_and_leave_no_gap(case):
    judged, _, max_tokens, _ = case
    pieces = [window for window in packed(*case).windows if window.recent]

    assert pieces[0].start == 0
    for before, after in zip(pieces, pieces[1:], strict=False):
        assert after.start == before.end - min(PIECE_OVERLAP, (max_tokens - 2) // 4)
        assert after.end > before.end


@given(conversations())
def test_context_is_read_newest_first_and_each_token_once(case):
    judged, context, _, _ = case
    newest_first = [token for turn in context for token in turn]
    own = set(judged)
    in_windows = [t for window in packed(*case).windows for t in content(window) if t not in own]

    assert in_windows == newest_first[: len(in_windows)]


@given(conversations())
def test_a_turn_ends_with_a_separator_before_the_next_begins(case):
    judged, context, _, _ = case
    owner = {token: number for number, turn in enumerate([judged, *context]) for token in turn}
    for window in packed(*case).windows:
        for left, right in zip(window.ids, window.ids[1:], strict=False):
            if left in owner and right in owner:
                assert owner[left] == owner[right]


@given(conversations())
def test_packing_is_deterministic(case):
    assert packed(*case) == packed(*case)


def test_a_short_conversation_is_one_window():
    result = packed([10, 11], [[20], [30, 31]])

    assert [window.ids for window in result.windows] == [(CLS, 10, 11, SEP, 20, SEP, 30, 31, SEP)]
    assert (result.turns_read, result.tokens_read, result.judged_read) == (3, 5, True)


def test_older_turns_come_in_further_windows_beside_the_judged_turn():
    judged, context = numbered(4, [10, 10])
    result = packed(judged, context, max_tokens=16)

    assert [(window.recent, window.start, window.end) for window in result.windows] == [
        (True, 0, 4),
        (False, 0, 4),
        (False, 0, 4),
    ]
    assert result.windows[0].ids == (CLS, *judged, SEP, *context[0][:9], SEP)
    assert result.windows[1].ids == (CLS, *judged, SEP, *context[0][9:], SEP, *context[1][:7], SEP)
    assert result.windows[2].ids == (CLS, *judged, SEP, *context[1][7:], SEP)


def test_with_one_window_the_oldest_is_left_out():
    judged, context = numbered(4, [5, 10, 3])
    result = packed(judged, context, max_tokens=16, max_windows=1)

    assert result.windows[0].ids == (CLS, *judged, SEP, *context[0], SEP, *context[1][:3], SEP)
    assert (result.turns_read, result.tokens_read) == (3, 12)


def test_beside_older_turns_a_long_judged_turn_takes_half_the_window_at_most():
    judged, context = numbered(14, [10])
    result = packed(judged, context, max_tokens=16)

    assert result.windows[0].ids == (CLS, *judged, SEP)
    assert result.windows[1].ids == (CLS, *judged[7:], SEP, *context[0][:6], SEP)
    assert (result.windows[1].start, result.windows[1].end) == (7, 14)


@pytest.mark.parametrize("context", [[], [[20]]])
def test_an_empty_judged_turn_gives_a_window(context):
    result = packed([], context)

    assert result.windows[0].ids[:2] == (CLS, SEP)
    assert result.judged_read


# ---------------------------------------------------------------- the training side reads the same


class WordPieceEncoder:
    """A real WordPiece tokenizer, as the shipped encoder uses one, without a model."""

    dimension = 4

    def __init__(self, max_tokens):
        letters = "abcdefghijklmnopqrstuvwxyz0123456789:.,!?'"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "user", "assistant", "the", "beer", "drive", "##ing"]
        vocabulary = {word: n for n, word in enumerate([*words, *letters, *(f"##{c}" for c in letters)])}
        self.tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        self.tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
        self.tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self.tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
        self.cls_id, self.sep_id = vocabulary["[CLS]"], vocabulary["[SEP]"]
        self.tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)]
        )
        self.max_tokens = max_tokens

    def tokenize(self, text):
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return TokenizedText(encoding.ids, encoding.offsets)

    def as_trained(self, text):
        self.tokenizer.encode_special_tokens = False
        self.tokenizer.enable_truncation(self.max_tokens)
        return self.tokenizer.encode(text).ids


def both(turns, max_tokens):
    from guardrail.trainer.inputs import as_text

    encoder = WordPieceEncoder(max_tokens)
    conversation = read_conversation(turns)
    readings, _ = read(conversation, encoder, 4)
    return list(readings[0].packing.windows[0].ids), encoder.as_trained(as_text(conversation.turns))


@pytest.mark.parametrize(
    "turns",
    [
        ["hello"],
        ["the beer", "enjoy!", "now i drive"],
        ["caf\xe9 \u200bbeer", "\uff42\uff45\uff45\uff52?", "driving   home"],
        [("user", "a"), ("tool", "b"), ("assistant", "c")],
        ["one", "two", "three", "four", "five"],
    ],
)
def test_the_first_window_is_what_training_reads(turns):
    window, trained = both(turns, 256)

    assert window == trained


@pytest.mark.parametrize("turns", [["a", " ", "b"], ["a", "\u200b", "b", "c"], ["", "b"]])
def test_training_leaves_out_blank_turns_as_the_runtime_does(turns):
    window, trained = both(turns, 256)

    assert window == trained


@given(st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=1, max_size=6), st.integers(16, 40))
def test_cut_on_the_right_training_still_reads_the_first_window(turns, max_tokens):
    window, trained = both(turns, max_tokens)

    # Where a turn ends one token before the window, the cut text ends with two separators.
    assert trained in (window, [*window, window[-1]])
