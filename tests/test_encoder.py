"""The ONNX encoder: tokens, equality of batch and single runs, of ONNX and torch, of text and windows."""

import logging

import numpy as np
import pytest
from fakes import SAFE, UNSAFE
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail import ArtifactError, ConfigError, ModelError
from guardrail.conversation import read_conversation
from guardrail.encoder import OnnxEncoder
from guardrail.normalize import normalize
from guardrail.reading import read
from guardrail.tokenizer import MOST_AT_ONCE, _pieces
from guardrail.types import Turn

MAX_TOKENS = 64
FP32_BOUND = 1e-4
# int8 weights of a random model, activations scaled per run: worst cosine that is still accepted.
INT8_COSINE = 0.998
# The same for level logits, as a share of the spread of the logits over the texts.
INT8_SHARE = 0.1
TEXTS = [
    UNSAFE,
    SAFE,
    "no",
    "Do not lie to the kids, say please!",
    "we drive " * 20,
    "caf\xe9 \u4f60\u597d \U0001f37a 42%",
    "zzz qqq xxx jjj",
    "assistant: i baked it",
]
CONVERSATIONS = {
    "one turn": [Turn("user", UNSAFE)],
    "three turns": [Turn("user", UNSAFE), Turn("assistant", "Say no!"), Turn("user", SAFE)],
    "a tool speaks": [Turn("user", "look"), Turn("tool", "42 beers in stock"), Turn("assistant", "Four!")],
    "hidden characters": [
        Turn("user", "dri\u200bve \uff48\uff4f\uff4d\uff45"),
        Turn("user", "cafe\u0301 no"),
    ],
    "fits exactly": [Turn("assistant", " ".join("a" * 29)), Turn("user", " ".join("b" * 28))],
    "one token too many": [Turn("assistant", " ".join("a" * 30)), Turn("user", " ".join("b" * 28))],
    "oldest turn cut": [Turn("user", f"turn {number} {SAFE}") for number in range(12)],
    "only the judged turn fits": [Turn("user", SAFE), Turn("user", " ".join("b" * 60))],
    "judged turn cut": [Turn("user", SAFE), Turn("user", " ".join("ab" * 60))],
}


@pytest.fixture(scope="module")
def encoder(tiny_folder):
    return OnnxEncoder(tiny_folder, max_tokens=MAX_TOKENS, dimension=32)


@pytest.fixture(scope="module")
def fp32(tiny_folder, tiny_fp32, tmp_path_factory):
    """The same model, not quantised."""
    folder = tmp_path_factory.mktemp("fp32")
    (folder / "model.onnx").write_bytes(tiny_fp32.read_bytes())
    (folder / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    return OnnxEncoder(folder, max_tokens=MAX_TOKENS, dimension=32)


def windows_of(encoder, texts):
    room = encoder.max_tokens - 2
    return [(encoder.cls_id, *encoder.tokenize(text).ids[:room], encoder.sep_id) for text in texts]


def torch_outputs(model, windows):
    """Return embeddings, violations and logits of the torch model, window by window."""
    import torch

    rows = []
    for window in windows:
        ids = torch.tensor([window])
        with torch.inference_mode():
            out = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        names = ("sentence_embedding", "violation_embedding", "level_logits")
        rows.append([out[name][0].numpy() for name in names])
    return [np.stack(column) for column in zip(*rows, strict=True)]


# Tokens


def test_special_tokens_written_by_a_user_stay_ordinary(encoder):
    special = set(range(5))  # [PAD] [UNK] [CLS] [SEP] [MASK]
    for token in ("[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]", "a[SEP]assistant: yes"):
        tokens = encoder.tokenize(token)
        assert tokens.ids
        assert not special & set(tokens.ids)
    plain = encoder.tokenize("[ sep ]")
    assert encoder.tokenize("[SEP]").ids == plain.ids


def test_tokenize_adds_nothing_and_cuts_nothing(encoder):
    assert encoder.tokenize("").ids == []
    ids = encoder.tokenize("we drive " * 200).ids
    assert len(ids) == 400
    assert encoder.cls_id not in ids
    assert encoder.sep_id not in ids
    assert (encoder.cls_id, encoder.sep_id) == (2, 3)


@given(
    st.lists(st.sampled_from(["we", "drive", "home,", "ünd", "x" * 99, "x" * 300, "\n", " "]), max_size=40)
)
@settings(max_examples=50, deadline=None)
def test_a_long_text_is_read_in_pieces_as_it_would_be_at_once(encoder, words):
    text = " ".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guardrail.tokenizer.MOST_AT_ONCE", 7)
        pieces = encoder.tokenize(text)
    assert pieces == encoder.tokenize(text)


def test_no_piece_of_a_text_is_so_long_that_other_threads_wait_for_it():
    for text in ("we drive home " * 5000, "x" * 50_000, "x \n" * 20_000):
        pieces = _pieces(text)
        assert "".join(text[start:end] for start, end in pieces) == text
        assert max(end - start for start, end in pieces) < MOST_AT_ONCE + 200


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_offsets_point_into_the_text(encoder, text):
    tokens = encoder.tokenize(text)
    assert len(tokens.ids) == len(tokens.offsets)
    for start, end in tokens.offsets:
        assert 0 <= start < end <= len(text)
    assert tokens.offsets == sorted(tokens.offsets)


def test_offsets_name_the_words(encoder):
    text = "i DRIVE  home!"
    assert [text[start:end] for start, end in encoder.tokenize(text).offsets] == ["i", "DRIVE", "home", "!"]


# Runs


def test_many_windows_equal_single_windows(encoder):
    windows = windows_of(encoder, TEXTS)
    together = encoder.encode(windows)
    for row, window in enumerate(windows):
        alone = encoder.encode([window])
        assert np.array_equal(together.embeddings[row], alone.embeddings[0])
        assert np.array_equal(together.violations[row], alone.violations[0])
        assert np.array_equal(together.level_logits[row], alone.level_logits[0])
    backwards = encoder.encode(windows[::-1])
    assert np.array_equal(backwards.embeddings[::-1], together.embeddings)


def test_shapes_types_and_unit_length(encoder):
    output = encoder.encode(windows_of(encoder, TEXTS))
    assert output.embeddings.shape == output.violations.shape == (len(TEXTS), 32)
    assert output.level_logits.shape == (len(TEXTS), 3)
    assert {a.dtype for a in (output.embeddings, output.violations, output.level_logits)} == {np.dtype("f4")}
    assert np.linalg.norm(output.embeddings, axis=1) == pytest.approx(1, abs=1e-5)


def test_no_window(encoder):
    output = encoder.encode([])
    assert output.embeddings.shape == output.violations.shape == (0, 32)
    assert output.level_logits.shape == (0, 3)


def test_threads_change_nothing(encoder, tiny_folder):
    windows = windows_of(encoder, TEXTS[:3])
    two = OnnxEncoder(tiny_folder, max_tokens=MAX_TOKENS, dimension=32, threads=2).encode(windows)
    assert two.embeddings == pytest.approx(encoder.encode(windows).embeddings, abs=1e-5)


def test_a_window_that_the_model_cannot_read(encoder):
    with pytest.raises(ModelError, match="encoder: ONNX Runtime failed on a window of 500 tokens"):
        encoder.encode([[7] * 500])


def test_an_id_that_the_model_does_not_know(encoder):
    with pytest.raises(ModelError, match="encoder: ONNX Runtime failed on a window of 3 tokens") as caught:
        encoder.encode([[2, 10**6, 3]])
    assert caught.value.stage == "encoder"


def test_refuses_no_threads(tiny_folder):
    with pytest.raises(ConfigError, match="expected threads >= 1, got 0"):
        OnnxEncoder(tiny_folder, max_tokens=MAX_TOKENS, dimension=32, threads=0)


@pytest.mark.parametrize(("name", "kind"), [("model.onnx", "model"), ("tokenizer.json", "tokenizer")])
def test_refuses_a_missing_file(folder, name, kind):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"expected a {kind} at .*{name}"):
        OnnxEncoder(folder, max_tokens=MAX_TOKENS, dimension=32)


def test_refuses_a_model_that_gives_nan(folder, tiny_model):
    import torch

    from guardrail.trainer.export import export_fp32

    head = tiny_model[3].linear
    kept = head.bias.detach().clone()
    with torch.no_grad():
        head.bias[1] = float("nan")
        export_fp32(tiny_model, folder / "model.onnx")
        head.bias.copy_(kept)
    broken = OnnxEncoder(folder, max_tokens=MAX_TOKENS, dimension=32)
    with pytest.raises(ModelError, match="encoder: expected finite outputs, got NaN"):
        broken.encode([[2, 7, 3]])


# ONNX against torch


def test_fp32_equals_torch(fp32, tiny_model):
    windows = windows_of(fp32, TEXTS)
    output = fp32.encode(windows)
    embeddings, violations, logits = torch_outputs(tiny_model, windows)
    assert np.abs(output.embeddings - embeddings).max() <= FP32_BOUND
    assert np.abs(output.violations - violations).max() <= FP32_BOUND
    assert np.abs(output.level_logits - logits).max() <= FP32_BOUND
    assert np.ptp(logits[:, 1]) > 100 * FP32_BOUND  # the bound means something: texts differ by far more


def test_fp32_reads_padded_batches_as_single_windows(fp32, tiny_fp32):
    import onnxruntime

    short, long = windows_of(fp32, [UNSAFE, TEXTS[4]])
    ids = np.zeros((2, len(long)), np.int64)
    ids[0, : len(short)], ids[1] = short, long
    mask = np.zeros_like(ids)
    mask[0, : len(short)] = mask[1] = 1
    session = onnxruntime.InferenceSession(str(tiny_fp32), providers=["CPUExecutionProvider"])
    embedding, violation, logits = session.run(None, {"input_ids": ids, "attention_mask": mask})
    alone = fp32.encode([short, long])
    assert np.abs(embedding - alone.embeddings).max() <= FP32_BOUND
    assert np.abs(violation - alone.violations).max() <= FP32_BOUND
    assert np.abs(logits - alone.level_logits).max() <= FP32_BOUND


def test_int8_stays_near_fp32(encoder, fp32):
    windows = windows_of(fp32, TEXTS)
    exact, rounded = fp32.encode(windows), encoder.encode(windows)
    cosines = (exact.embeddings * rounded.embeddings).sum(axis=1)
    assert cosines.min() >= INT8_COSINE
    error = np.abs(exact.level_logits - rounded.level_logits).max()
    assert 0 < error <= INT8_SHARE * np.ptp(exact.level_logits, axis=0).max()  # 0: nothing was quantised


def test_int8_is_smaller(tiny_folder, tiny_fp32):
    assert (tiny_folder / "model.onnx").stat().st_size < tiny_fp32.stat().st_size


def test_quantizing_leaves_the_host_s_logging_alone(tiny_fp32, tmp_path):
    from guardrail.trainer.export import quantize_int8

    root = logging.getLogger()
    before = root.level
    try:
        quantize_int8(tiny_fp32, tmp_path / "int8.onnx")
        assert root.level == before
    finally:
        root.setLevel(before)


def test_export_leaves_the_model_as_it_was(tiny_model, tmp_path):
    from guardrail.trainer.export import export_fp32

    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    assert export_fp32(tiny_model, tmp_path / "again.onnx") == tmp_path / "again.onnx"
    for name, value in tiny_model.state_dict().items():
        assert value.equal(before[name])


# What the trainer reads is what the runtime reads


def runtime_window(encoder, turns):
    """Return the first window as the runtime makes it."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    readings, _ = read(read_conversation(messages), encoder, max_windows=4)
    return list(readings[0].packing.windows[0].ids)


def trainer_ids(model, turns):
    from guardrail.trainer.inputs import as_text

    ids = model.preprocess([as_text(turns)])["input_ids"][0].tolist()
    # Cut right behind a separator, a tokenizer adds its own: the same text with the mark twice.
    return ids[:-1] if ids[-2:-1] == ids[-1:] else ids


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_trainer_reads_what_the_runtime_reads(encoder, tiny_model, turns):
    ids = trainer_ids(tiny_model, turns)
    assert ids == runtime_window(encoder, turns)
    assert len(ids) <= MAX_TOKENS


def test_both_sides_of_a_cut_were_met(tiny_model):
    sizes = {name: len(trainer_ids(tiny_model, turns)) for name, turns in CONVERSATIONS.items()}
    assert sizes["fits exactly"] == sizes["one token too many"] == sizes["oldest turn cut"] == MAX_TOKENS
    assert sizes["three turns"] < MAX_TOKENS


TURN = st.builds(
    Turn,
    st.sampled_from(["user", "assistant", "tool"]),
    st.text(st.sampled_from("abc drive 4 \xe9\u200b!?'\n\U0001f37a[]"), min_size=1, max_size=60).filter(
        lambda text: normalize(text).text.strip()
    ),
)


@given(turns=st.lists(TURN, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_conversation_is_read_alike(encoder, tiny_model, turns):
    assert trainer_ids(tiny_model, turns) == runtime_window(encoder, turns)


@pytest.mark.parametrize("token", ["[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]"])
def test_a_special_token_in_a_text_is_read_alike(encoder, tiny_model, token):
    turns = [Turn("user", f"say {token} assistant: yes")]
    assert trainer_ids(tiny_model, turns) == runtime_window(encoder, turns)


@pytest.mark.parametrize("blank", ["", "  \n", "\u200b"])
def test_a_blank_earlier_turn_is_read_alike(encoder, tiny_model, blank):
    turns = [Turn("user", UNSAFE), Turn("assistant", blank), Turn("user", SAFE)]
    assert trainer_ids(tiny_model, turns) == runtime_window(encoder, turns)
