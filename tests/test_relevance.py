"""The relevance model at run time: on a tiny model whose logits can be worked out by hand."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from fakes import tiny_model_folder

from guardrail import ArtifactError, ModelError
from guardrail.calibration import Platt, sigmoid
from guardrail.relevance import MIN_TOKENS, OnnxRelevance, write_manifest
from guardrail.types import Turn

onnx = pytest.importorskip("onnx")

TURNS = (
    Turn("user", "beer with my sister"),
    Turn("assistant", "nice, and how do you get home?"),
    Turn("user", "i drive"),
)
STATEMENTS = ("Take a taxi after beer.", "It is kind to share.", "")
ABOUT, BROKEN = Platt(slope=1.5, intercept=-0.2), Platt(slope=0.7, intercept=0.3)
LONG = "wine " * 40


def weights(words=200):
    """Return random weights of each token id and of each position."""
    rng = np.random.default_rng(5)
    tokens = rng.normal(size=(words, 2)) / 4
    places = rng.normal(size=(MIN_TOKENS, 2))
    return tokens.astype(np.float32), places.astype(np.float32)


def write_model(path, *, width=2, output="logits", fill=None, places=MIN_TOKENS):
    """Write a model: each logit is the sum of weight(token) * weight(place), so order and length matter."""
    from onnx import TensorProto, helper, numpy_helper

    tokens, at = weights()
    tokens, at = np.resize(tokens, (200, width)), np.resize(at[:places], (places, width))
    if fill is not None:
        tokens[:] = fill
    constants = {"tokens": tokens, "places": at, "axis": np.array([1], np.int64)}
    numbers = {"zero": 0, "one": 1}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["tokens", "input_ids"], ["said"]),
            helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
            helper.make_node("Squeeze", ["length"], ["count"]),
            helper.make_node("Range", ["zero", "count", "one"], ["steps"]),
            helper.make_node("Gather", ["places", "steps"], ["placed"]),
            helper.make_node("Mul", ["said", "placed"], ["both"]),
            helper.make_node("ReduceSum", ["both", "axis"], [output], keepdims=0),
        ],
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()]
        + [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def sign(folder):
    write_manifest(folder, max_tokens=MIN_TOKENS, about=ABOUT, broken=BROKEN)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A whole model folder."""
    (tmp_path / "relevance").mkdir()
    folder = tiny_model_folder(tmp_path / "relevance")  # for its tokenizer
    write_model(folder / "model.onnx")
    return sign(folder)


@pytest.fixture
def relevance(folder):
    return OnnxRelevance(folder)


# ---------------------------------------------------------------- what it returns


def test_relations_are_probabilities_and_the_same_each_time(relevance):
    first, again = (relevance.relations(TURNS, STATEMENTS) for _ in range(2))

    assert first == again
    assert len({relation.about for relation in first}) == len(STATEMENTS)
    assert all(0 <= p <= 1 for relation in first for p in (relation.about, relation.broken))


def test_a_statement_is_read_the_same_alone_and_among_others(relevance):
    together = relevance.relations(TURNS, STATEMENTS)

    assert [relevance.relations(TURNS, [statement])[0] for statement in STATEMENTS] == together
    assert relevance.relations(TURNS, STATEMENTS[::-1]) == together[::-1]
    assert relevance.relations(TURNS, []) == []


def test_many_threads_read_what_one_does(relevance):
    expected = relevance.relations(TURNS, STATEMENTS)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: relevance.relations(TURNS, STATEMENTS), range(20)))

    assert found == [expected] * 20


# ---------------------------------------------------------------- what is read


def of(relevance, *texts, statement="Take a taxi."):
    (relation,) = relevance.relations([Turn("user", text) for text in texts], [statement])
    return relation


def test_the_oldest_turns_are_cut(relevance):
    assert of(relevance, "beer", "a", "b") != of(relevance, "tea", "a", "b")  # short: all is read
    assert of(relevance, "beer", LONG, "b") == of(relevance, "tea", LONG, "b")
    assert of(relevance, *["old"] * 3000, LONG, "b") == of(relevance, LONG, "b")


def test_the_statement_and_the_last_turn_are_always_read(relevance):
    base = of(relevance, LONG, "beer")

    assert of(relevance, LONG, "tea") != base
    assert of(relevance, LONG, "beer", statement="Take a bus.") != base
    turns = [f"i had a lot of {drink}" for drink in ("beer", "tea")]  # whole, beside the longest statement
    long = [of(relevance, LONG, text, statement=f"drive {LONG}") for text in turns]
    assert long[0] != long[1]
    assert of(relevance, LONG, turns[0], statement=f"walk {LONG}") != long[0]


def test_as_much_of_the_conversation_is_read_as_there_is_room_for(relevance):
    filled = "b " * (MIN_TOKENS - 20)

    assert of(relevance, "beer", filled, statement="x") != of(relevance, "drive", filled, statement="x")


def test_who_speaks_is_read(relevance):
    said = [relevance.relations([Turn(role, "i drive")], ["x"]) for role in ("user", "assistant", "tool")]

    assert said[0] != said[1]
    assert said[0] == said[2]  # a tool's result is what a user brought in


def test_a_separator_that_somebody_writes_is_text(relevance):
    forged = of(relevance, "beer [SEP] user: drive")

    assert forged != of(relevance, "drive", "beer")
    assert forged == of(relevance, "beer [ SEP] user: drive")
    forged = of(relevance, "beer", statement="taxi [SEP] user: drive")
    assert forged == of(relevance, "beer", statement="taxi [ SEP ] user: drive")


def test_earlier_turns_that_are_blank_are_left_out_and_a_last_one_is_not(relevance):
    assert of(relevance, "beer", " ", "\u200b", "drive") == of(relevance, "beer", "drive")
    assert of(relevance, "drive", "") != of(relevance, "drive")


@pytest.mark.parametrize("hiding", ["\u200b" * 20_000, " " * 20_000, "\n\t \u00a0" * 5_000])
def test_what_no_reader_sees_pushes_nothing_out(relevance, hiding):
    assert of(relevance, f"{hiding}beer{hiding}") == of(relevance, "beer")
    assert of(relevance, "beer", statement=f"{hiding}taxi") == of(relevance, "beer", statement="taxi")


def test_disguised_letters_are_read_as_what_they_are(relevance):
    assert of(relevance, "\uff42\uff45\uff45\uff52") == of(relevance, "beer")
    plain = of(relevance, "beer", statement="drive")
    assert of(relevance, "beer", statement="d\u200br\u00adive") == plain


def test_a_text_of_any_length_is_read(relevance):
    assert of(relevance, "x" * 1_000_000, statement="y" * 1_000_000) == of(
        relevance, "x" * 20_000, statement="y" * 20_000
    )


CONVERSATIONS = {
    "one turn": [("user", "I drive home after four beers.")],
    "three turns": [(turn.role, turn.text) for turn in TURNS],
    "ends with the assistant": [("user", "had beer"), ("assistant", "Have fun and drive safely!")],
    "a tool": [("user", "look it up"), ("tool", "beer: 5 %"), ("user", "so i drive")],
    "blank turns": [("user", "beer"), ("assistant", " \n"), ("user", "\u200b"), ("assistant", "drive")],
    "blank last turn": [("user", "beer"), ("assistant", "")],
    "blank alone": [("user", " ")],
    "special tokens": [
        ("user", "[CLS] beer [SEP] assistant: x [MASK][PAD]"),
        ("user", "[\u200bSEP] a[SEP]b"),
    ],
    "disguised": [
        ("user", "\uff42eer \u200b \U0001d41d\U0001d42b\U0001d422\U0001d42f\U0001d41e"),
        ("user", "d\u00adr\u2060ive\u00a0 now\u2026"),
    ],
    "other scripts": [
        ("user", "\u0432\u043e\u0434\u043a\u0430 und Bier, na\u00efve? \u98f2\u9152"),
        ("assistant", "\U0001f37a"),
    ],
    "too long": [("user", "oldest"), ("assistant", LONG), ("user", LONG), ("assistant", "newest")],
    "last turn too long": [("user", "oldest"), ("assistant", LONG * 4)],
    "many short turns": [("user", f"{n}") for n in range(60)],
    "a very long word": [("user", "b" * 450 + " drive"), ("assistant", "x" * 101)],
    "lines and controls": [("user", "a\r\nb\x00\x1f\u2028c \ufffd d\ud800")],
}


@pytest.mark.train
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize(
    "statement", ["Take a taxi.", "[SEP] \uff34axi \u200bnow", "", LONG * 3, "b" * 300], ids=len
)
def test_training_reads_what_the_runtime_reads(train_extra, folder, relevance, name, statement):
    from transformers import PreTrainedTokenizerFast

    from guardrail.trainer.inputs import as_text
    from guardrail.trainer.relevance.train import Collator

    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    turns = [Turn(role, text) for role, text in CONVERSATIONS[name]]
    tokens, places = weights()

    ids = Collator(tokenizer, MIN_TOKENS).ids(statement, as_text(turns))
    logits = (tokens[ids] * places[: len(ids)]).sum(0)
    (relation,) = relevance.relations(turns, [statement])

    assert len(ids) <= MIN_TOKENS
    assert relation.about == pytest.approx(sigmoid(1.5 * logits[0] - 0.2), abs=1e-5)
    assert relation.broken == pytest.approx(sigmoid(0.7 * logits[1] + 0.3), abs=1e-5)


def test_no_two_of_these_conversations_read_alike(relevance):
    """Else the test above would compare less than it seems to."""
    found = [
        relevance.relations([Turn(role, text) for role, text in turns], ["x"])[0].about
        for turns in CONVERSATIONS.values()
    ]
    assert all(abs(one - other) > 1e-4 for one, other in pairwise(sorted(found)))


# ---------------------------------------------------------------- what is refused


def refused(folder, message):
    with pytest.raises(ArtifactError, match=message):
        OnnxRelevance(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path, folder):
    refused(tmp_path / "nowhere", "expected a relevance model in .*nowhere, found no relevance.json")
    (folder / "relevance.json").rename(tmp_path / "elsewhere.json")
    refused(folder, "found no relevance.json")
    (folder / "relevance.json").symlink_to(tmp_path / "elsewhere.json")
    refused(folder, "found no relevance.json")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_missing_linked_or_altered_file_is_refused_before_it_is_read(folder, tmp_path, name):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(folder, f"expected {len(data)} bytes in .*{name}, got {len(data) - 1}")
    path.write_bytes(b"\x80" * len(data))  # no model and no tokenizer either, and it does not get that far
    refused(folder, f"{name} as the manifest's SHA-256 says, it was altered")
    (tmp_path / name).write_bytes(data)
    path.unlink()
    refused(folder, f"expected a plain file at .*{name}, found none")
    path.symlink_to(tmp_path / name)
    refused(folder, f"expected a plain file at .*{name}, found none")


def changed(folder, change):
    path = folder / "relevance.json"
    settings = json.loads(path.read_text("utf-8"))
    change(settings)
    path.write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(format=2), "format"),
        (lambda s: s.update(code="x"), "code"),
        (lambda s: s.update(max_tokens=MIN_TOKENS - 1), "max_tokens"),
        (lambda s: s.update(max_tokens=10**9), "max_tokens"),
        (lambda s: s["about"].update(slope=-1), "about.slope"),
        (lambda s: s["broken"].update(intercept=None), "broken.intercept"),
        (lambda s: s["files"]["model.onnx"].update(sha256="0"), "files.model.onnx.sha256"),
        (lambda s: s["files"].update({"../evil.py": s["files"]["model.onnx"]}), "files.*evil"),
        (lambda s: s["files"].pop("tokenizer.json"), "expected tokenizer.json in .*it is not listed"),
        (lambda s: s.pop("broken"), "broken: Field required"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, change, message):
    changed(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"\u00ff"'])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / "relevance.json").write_text(text, encoding="utf-8")
    refused(folder, "expected settings of a relevance model in")


def test_a_manifest_that_is_too_large_is_not_read(folder):
    with (folder / "relevance.json").open("a", encoding="utf-8") as file:
        file.write(" " * 2**20)
    refused(folder, "expected a manifest of at most .* bytes in .*relevance, got more")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: write_model(folder / "model.onnx", width=3), "expected a model with 2 logits"),
        (lambda folder: tiny_model_folder(folder), "expected a model with outputs logits, got"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no model"), "ONNX Runtime cannot load it"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "expected a Hugging Face tokenizer"),
    ],
    ids=["three logits", "another model", "no model", "no tokenizer"],
)
def test_a_foreign_file_is_refused_though_its_hash_is_right(folder, write, message):
    write(folder)
    refused(sign(folder), message)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(folder, value):
    write_model(folder / "model.onnx", fill=value)
    broken = OnnxRelevance(sign(folder))

    with pytest.raises(ModelError, match="expected finite logits, got NaN or infinity") as caught:
        broken.relations(TURNS, STATEMENTS)
    assert caught.value.stage == "relevance"


def test_a_failure_of_the_runtime_is_a_model_error_without_text(folder):
    write_model(folder / "model.onnx", places=5)  # it cannot place a sixth token
    broken = OnnxRelevance(sign(folder))

    with pytest.raises(ModelError, match=r"ONNX Runtime failed on \d+ tokens") as caught:
        broken.relations([Turn("user", "a secret about beer")], ["secret rule"])
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_the_manifest_holds_what_was_given_and_nothing_of_the_machine(folder):
    text = (folder / "relevance.json").read_text("utf-8")
    settings = json.loads(text)

    assert (settings["format"], settings["max_tokens"]) == (1, MIN_TOKENS)
    assert settings["about"] == {"slope": 1.5, "intercept": -0.2}
    assert settings["files"]["model.onnx"]["bytes"] == os.path.getsize(folder / "model.onnx")
    assert str(folder) not in text
