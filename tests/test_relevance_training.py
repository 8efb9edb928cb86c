"""Training the relevance model: loss, rows, export, resume, and the command from data to a model folder."""

import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")

import torch  # noqa: E402
from fakes import SAFE, SAFE_REPLY, UNSAFE, UNSAFE_REPLY, WORD  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import guardrail.trainer  # noqa: E402
from guardrail import ConfigError  # noqa: E402
from guardrail.cli import app  # noqa: E402
from guardrail.encoder import load_session  # noqa: E402
from guardrail.relevance import MIN_TOKENS, OUTPUT, OnnxRelevance  # noqa: E402
from guardrail.trainer.data import DataSplit  # noqa: E402
from guardrail.trainer.examples import Example, Twin  # noqa: E402
from guardrail.trainer.export import quantize_int8  # noqa: E402
from guardrail.trainer.mix import Norm  # noqa: E402
from guardrail.trainer.relevance.config import RelevanceConfig  # noqa: E402
from guardrail.trainer.relevance.export import export_fp32, export_relevance  # noqa: E402
from guardrail.trainer.relevance.rows import (  # noqa: E402
    NEAR_FROM,
    NEGATIVES,
    About,
    about_replies,
    about_rules,
    kept_by,
    with_negatives,
)
from guardrail.trainer.relevance.train import (  # noqa: E402
    ABOUT,
    BROKEN,
    UNKNOWN,
    Collator,
    load,
    relevance_loss,
    train_relevance,
)
from guardrail.trainer.replies import ReplyExample  # noqa: E402
from guardrail.types import Turn  # noqa: E402

pytestmark = pytest.mark.train


# ---------------------------------------------------------------- loss


def slow_loss(logits, broken, group):
    """Conversation by conversation, number by number."""
    sigmoid = [[1 / (1 + math.exp(-value)) for value in row] for row in logits]
    listwise = pointwise = stance = known = 0.0
    for number, state in enumerate(broken):
        rows = range(number * group, (number + 1) * group)
        total = sum(math.exp(logits[row][ABOUT]) for row in rows)
        listwise -= math.log(math.exp(logits[rows[0]][ABOUT]) / total) / len(broken)
        # The right statement weighs as much as all the wrong ones together.
        terms = [(group - 1) * -math.log(sigmoid[rows[0]][ABOUT])]
        terms += [-math.log(1 - sigmoid[row][ABOUT]) for row in rows[1:]]
        pointwise += sum(terms) / len(terms) / 2 / len(broken)
        if state != UNKNOWN:
            p = sigmoid[rows[0]][BROKEN]
            stance -= math.log(p if state else 1 - p)
            known += 1
    return listwise, pointwise, stance / known if known else 0.0


def random_logits(seed, group, broken):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(len(broken) * group, 2, dtype=torch.double)
    return logits, torch.tensor(broken, dtype=torch.double)


@pytest.mark.parametrize("group", [2, 3, 5])
@pytest.mark.parametrize("broken", [[1, 0, UNKNOWN, 1], [0], [UNKNOWN, UNKNOWN]], ids=str)
def test_the_loss_is_its_slow_reference(group, broken):
    logits, states = random_logits(group, group, broken)
    expected = slow_loss(logits.tolist(), broken, group)

    assert [float(term) for term in relevance_loss(logits, states, group)] == pytest.approx(expected)


@pytest.mark.parametrize("broken", [[1, UNKNOWN, 0], [UNKNOWN]], ids=str)
def test_its_gradients_are_those_of_finite_differences(broken):
    logits, states = random_logits(1, 3, broken)

    assert torch.autograd.gradcheck(lambda x: relevance_loss(x, states, 3), logits.requires_grad_())


def test_where_no_stance_is_known_its_term_is_0_with_0_gradients():
    logits, states = random_logits(2, 2, [UNKNOWN] * 3)
    listwise, pointwise, stance = relevance_loss(logits.requires_grad_(), states, 2)
    (listwise + pointwise + stance).backward()

    assert stance == 0
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, BROKEN].any()
    assert logits.grad[:, ABOUT].all()


def test_what_is_right_with_room_costs_nothing_and_what_is_wrong_does():
    right = torch.tensor([[30.0, 30.0], [-30.0, -30.0]])

    assert sum(relevance_loss(right, torch.ones(1), 2)) < 1e-6
    assert all(term > 10 for term in relevance_loss(-right, torch.ones(1), 2))


# ---------------------------------------------------------------- rows


def word_embedding(texts):
    """Texts that share words are near."""
    vectors = np.full((len(texts), 64), 1e-3, np.float32)
    for row, text in enumerate(texts):
        for word in WORD.findall(text.lower()):
            vectors[row, zlib.crc32(word.encode()) % 64] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def about(count, statements):
    """Conversations with a statement each, whose words are not theirs: anything may be near to anything."""
    return [
        About(f"user: talk {n % 41} of thing{n}", f"mind {n % statements} well", "x") for n in range(count)
    ]


@pytest.mark.parametrize("statements", [4, 5, 12, 100])
@pytest.mark.parametrize("seed", range(3))
def test_negatives_are_never_what_the_conversation_is_about_and_all_different(statements, seed):
    items = about(60, statements)
    own = {item.text: {item.statement} for item in items}
    for item, other in zip(items[:30], items[1:31], strict=True):  # half of them are about two
        items.append(About(item.text, other.statement, "x"))
        own[item.text].add(other.statement)

    found = with_negatives(items, word_embedding, seed)

    assert len(found) == len(items)
    for item, wrong in zip(items, found, strict=True):
        assert len(set(wrong)) == len(wrong) == NEGATIVES
        assert own[item.text].isdisjoint(wrong)


def test_negatives_depend_on_the_seed_alone():
    items = about(60, 30)

    assert with_negatives(items, word_embedding, 3) == with_negatives(items, word_embedding, 3)
    assert with_negatives(items, word_embedding, 3) != with_negatives(items, word_embedding, 4)


def test_the_very_nearest_statements_are_no_negatives_nor_are_far_ones():
    near = [f"alpha beta {letter}" for letter in "abcdefgh"]
    far = [f"{word} {word} unrelated" for word in map(str, range(100))]
    talk = About("user: alpha beta", "own", "x")
    items = [talk, *(About(f"user: {text}", text, "x") for text in near + far)]
    cosines = word_embedding(near + far) @ word_embedding([talk.text])[0]
    nearest = {(near + far)[place] for place in np.argsort(-cosines, kind="stable")[:NEAR_FROM]}

    drawn = {text for seed in range(40) for text in with_negatives(items, word_embedding, seed)[0]}

    assert len(drawn) > 10
    assert drawn.isdisjoint(nearest)
    assert drawn & set(near)
    assert not set(far) <= drawn


@pytest.mark.parametrize(("statements", "expected"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_few_statements_give_as_many_negatives_as_there_are(statements, expected):
    found = with_negatives(about(statements, statements), word_embedding, 0)

    assert {len(wrong) for wrong in found} == {expected}


def turn(text, role="user"):
    return (Turn(role, text),)


def test_rules_come_with_what_is_known_of_their_keeping():
    def twin(source):
        return Twin(turn(UNSAFE), turn(SAFE), f"rule of {source}", source, source)

    data = DataSplit(
        [],
        [twin(source) for source in ("pairs", "situations", "moral_stories", "bank")],
        [Norm(f"user: norm {n}", f"rule {n}", 1.0, "", "social_chem_101") for n in range(20)],
        [Example(turn("i drive home"), True, "driving-001", "bank", rule="rule of the bank")],
    )

    found = about_rules(data, 5, seed=0)
    own = [(item.source, item.unsafe) for item in found[:5]]

    assert own == [
        ("bank", True),
        ("pairs", True),
        ("pairs", False),
        ("situations", True),
        ("situations", False),
    ]
    assert {item.source for item in found[5:]} <= {"social_chem_101", "moral_stories"}
    assert len(found[5:]) == 5
    assert found == about_rules(data, 5, seed=0)
    assert found != about_rules(data, 5, seed=1)
    public = about_rules(data, 100, seed=0)[5:]
    assert len(public) == 22
    assert {item.unsafe for item in public if item.source == "social_chem_101"} == {None}


def test_a_good_reply_is_about_its_conversation_and_keeps_the_rule():
    item = ReplyExample(turn(UNSAFE), SAFE_REPLY, "g", "bank", ("rule one", "rule two"), (UNSAFE_REPLY,))
    (reply,), (kept,) = about_replies([item]), kept_by([item])

    assert (reply.text, reply.statement, reply.unsafe) == (f"user: {UNSAFE}", SAFE_REPLY, None)
    assert (kept.statement, kept.unsafe) == ("rule one", False)
    assert kept.text == f"assistant: {SAFE_REPLY} [SEP] user: {UNSAFE}"
    assert SAFE_REPLY not in repr(reply)
    assert kept_by([ReplyExample(turn(UNSAFE), SAFE_REPLY, "g", "bank")]) == []


# ---------------------------------------------------------------- training

TALKS = (
    ("four beer and now i drive home", "you shouldn't drive"),
    ("we baked bread today", "it is kind to share bread"),
    ("i was not in the house with you", "you shouldn't lie"),
    ("so i have the texts of a friend", "please do not pry"),
)
WRONG = [statement for _, statement in TALKS]


def rows(count=8):
    """Rows of which each talk has two, once broken and once unknown."""
    found = []
    for number in range(count):
        said, statement = TALKS[number % 4]
        wrong = [other for other in WRONG if other != statement][:NEGATIVES]
        text = f"user: {said} {'so ' * (number // 4)}"
        broken = float(number % 2) if number < 4 else UNKNOWN
        found.append(
            {"text": text, "statements": [statement, *wrong], "broken": broken}
            | {"source": "reply:x" if number % 4 == 3 else "x", "length": len(text.split())}
        )
    return found


def recipe(base, **options):
    small = {"batch_size": 2, "max_tokens": 96, "bf16": False, "epochs": 1, "learning_rate": 1e-3}
    return RelevanceConfig.read(None, base=str(base), **(small | options))


# Enough to learn eight rows by heart.
LEARNS = {"epochs": 80, "stance_weight": 1.0}


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text("utf-8").splitlines()]


def weights(run):
    return load(run / "model")[0].state_dict()


def randomise(path):
    torch.manual_seed(9)
    save_file(
        {name: torch.randn_like(value) for name, value in load_file(path).items()}, path, {"format": "pt"}
    )


def logits_of(model, tokenizer, some):
    batch = Collator(tokenizer, 96)(some)
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"])


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    """A run that has learned eight rows."""
    run = tmp_path_factory.mktemp("relevance") / "run"
    train_relevance(rows(), recipe(tiny_base, **LEARNS), run, resume=False)
    return run


def test_eight_rows_are_learned(trained):
    model, tokenizer = load(trained / "model")
    logits = logits_of(model, tokenizer, rows()).reshape(8, -1, 2)

    assert (logits[..., ABOUT].argmax(1) == 0).all()
    assert (logits[:, 0, ABOUT] > 0).all()
    assert (logits[:, 1:, ABOUT] < 0).all()
    assert ((logits[:4, 0, BROKEN] > 0) == torch.tensor([False, True, False, True])).all()
    losses = [row["loss"] for row in history(trained) if "loss" in row]
    assert losses[-1] < losses[0]


def test_a_run_holds_recipe_weights_and_curves_and_no_pickle(trained, tiny_base):
    assert RelevanceConfig.model_validate_json((trained / "config.json").read_text()) == recipe(
        tiny_base, **LEARNS
    )
    assert {"python", "torch", "git"} <= json.loads((trained / "environment.json").read_text()).keys()
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    suffixes = {path.suffix for path in (trained / "model").rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".json", ".safetensors", ".txt"}


def test_word_embeddings_stay_as_they_were(trained, tiny_base):
    from transformers import BertModel

    before, after = (
        BertModel.from_pretrained(folder, add_pooling_layer=False)
        for folder in (tiny_base, trained / "model")
    )

    assert after.embeddings.word_embeddings.weight.equal(before.embeddings.word_embeddings.weight)
    assert not after.encoder.layer[0].output.dense.weight.equal(before.encoder.layer[0].output.dense.weight)


def test_padding_changes_nothing(trained):
    model, tokenizer = load(trained / "model")
    long = rows()[:1] + [rows()[1] | {"text": "user: " + "bread " * 60}]

    together = logits_of(model, tokenizer, long)
    alone = torch.cat([logits_of(model, tokenizer, [row]) for row in long])

    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = recipe(base, epochs=2, save_steps=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_relevance(rows(), config, whole, resume=False)
    broken.mkdir()
    (broken / "checkpoint-6").touch()  # a file where the folder would go: step 6 fails, as on a full disk
    with pytest.raises(FileExistsError):
        train_relevance(rows(), config, broken, resume=False)
    (broken / "checkpoint-6").unlink()
    assert [path.name for path in broken.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (broken / "model").exists()
    with (broken / "history.jsonl").open("a") as file:  # what it wrote after the checkpoint
        file.write('{"step": 5, "loss": 1.0}\n{"step": ')
    randomise(base / "model.safetensors")  # nothing of the base is left in what was resumed

    train_relevance(rows(), config, broken, resume=True)

    expected, found = weights(whole), weights(broken)
    assert expected.keys() == found.keys()
    assert all(found[name].equal(value) for name, value in expected.items())
    assert [row["step"] for row in history(broken)] == [row["step"] for row in history(whole)]


def test_the_seed_decides(tiny_base, tmp_path):
    runs = [tmp_path / name for name in ("one", "two", "other")]
    for number, (run, seed) in enumerate(zip(runs, (1, 1, 2), strict=True)):
        torch.manual_seed(number)  # what the host program did before must not matter
        train_relevance(rows(), recipe(tiny_base, max_steps=2, seed=seed), run, resume=False)
    one, two, other = map(weights, runs)

    assert all(two[name].equal(value) for name, value in one.items())
    assert not other["head.weight"].equal(one["head.weight"])


def test_mixed_precision_stays_finite(tiny_base, tmp_path):
    train_relevance(rows(), recipe(tiny_base, max_steps=2, bf16=True), tmp_path, resume=False)

    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-3}, r"got another: learning_rate 0.001, now 0.002"),
        ({"rows": rows(7)}, r"expected the rows that the run was started with, got others \(rows 8, now 7\)"),
    ],
)
def test_only_the_same_run_is_resumed(trained, tiny_base, change, message):
    options = {"rows": rows(), **LEARNS, **change}
    with pytest.raises(ConfigError, match=message):
        train_relevance(options.pop("rows"), recipe(tiny_base, **options), trained, resume=True)


@pytest.mark.parametrize(
    ("some", "message"),
    [
        ([], "expected at least one row, got none"),
        ([*rows(2), rows()[2] | {"statements": ["a", "b"]}], r"equally many statements, .*got \[2, 3\]"),
        ([rows()[0] | {"statements": ["a"]}], r"at least two, got \[1\]"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_refused(tiny_base, tmp_path, some, message):
    with pytest.raises(ConfigError, match=message):
        train_relevance(some, recipe(tiny_base), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "/nowhere/base"}, "'/nowhere/base', which cannot be loaded"),
        ({"base": "."}, "expected a BERT-like encoder as the base, got '.'"),
        ({"max_tokens": 200}, "expected max_tokens of at most 128, the longest input"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused(tiny_base, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train_relevance(rows(), recipe(**({"base": tiny_base} | options)), tmp_path / "run", resume=False)


def test_nothing_to_resume_from(tiny_base, tmp_path):
    with pytest.raises(ConfigError, match="expected a checkpoint to resume from"):
        train_relevance(rows(), recipe(tiny_base), tmp_path, resume=True)


@pytest.mark.parametrize("options", [{"max_tokens": MIN_TOKENS - 1}, {"max_rows": 0}, {"batch_size": 0}])
def test_a_setting_out_of_range_is_named(options):
    with pytest.raises(ConfigError, match=f"'{next(iter(options))}'"):
        RelevanceConfig.read(None, **options)


def test_the_recipe_that_ships_can_be_read():
    path = Path(guardrail.trainer.__file__).parent / "resources" / "relevance.toml"

    assert RelevanceConfig.read(path).max_rows is None


# ---------------------------------------------------------------- export


def test_onnx_says_what_torch_says_and_int8_about_that(trained, tmp_path):
    model, tokenizer = load(trained / "model")
    fp32 = export_fp32(model, tmp_path / "fp32.onnx")
    int8 = quantize_int8(fp32, tmp_path / "int8.onnx")
    some = [*rows(), rows()[0] | {"text": "user: " + "bread " * 90}]
    expected = torch.cat([logits_of(model, tokenizer, [row]) for row in some]).numpy()

    def onnx_logits(path, sets):
        session = load_session(path, 1, (OUTPUT,))
        batches = [Collator(tokenizer, 96)(part) for part in sets]
        names = ("input_ids", "attention_mask")
        fed = [{name: batch[name].numpy() for name in names} for batch in batches]
        return np.concatenate([session.run((OUTPUT,), feed)[0] for feed in fed])

    alone = [[row] for row in some]
    assert np.ptp(expected[:, ABOUT]) > 1
    assert np.abs(onnx_logits(fp32, alone) - expected).max() < 1e-4
    assert np.abs(onnx_logits(fp32, [some]) - expected).max() < 1e-4  # batches of any size, padded
    assert np.abs(onnx_logits(int8, alone) - expected).max() < 0.1 * np.ptp(expected)
    assert int8.stat().st_size < fp32.stat().st_size


def test_the_exported_folder_is_calibrated_and_reads_what_the_run_reads(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    figures = export_relevance(run, tmp_path / "artifact", rows())
    relevance = OnnxRelevance(tmp_path / "artifact")

    assert figures == json.loads((run / "metrics.json").read_text())
    assert figures["about_rules_auroc"] == figures["about_replies_auroc"] == figures["broken_auroc"] == 1
    assert figures["rules_first"] == figures["replies_first"] == 1
    assert figures["int8_auroc_loss"] == 0
    for row in rows(4):
        right, *wrong = relevance.relations(turn(row["text"].removeprefix("user: ")), row["statements"])
        assert right.about > 0.5 > max(relation.about for relation in wrong)
        assert (right.broken > 0.5) == (row["broken"] == 1)
    settings = json.loads((tmp_path / "artifact" / "relevance.json").read_text())
    assert settings["max_tokens"] == 128  # the base reads no more


def test_without_both_classes_there_is_nothing_to_calibrate_on(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(ConfigError, match="expected validation rows of both classes"):
        export_relevance(run, tmp_path / "artifact", [row for row in rows() if row["broken"] != 1])


# ---------------------------------------------------------------- the command


def command(run, base, path, *more):
    options = ["--out", str(run), "--base", str(base), "--config", str(path), "--max-steps", "2"]
    return CliRunner().invoke(app, ["train", "relevance", *options, *more])


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory):
    """A run of the command on a little of our own writing, its recipe and what it printed."""
    folder = tmp_path_factory.mktemp("command")
    path = folder / "recipe.toml"
    path.write_text("max_rows = 24\nbatch_size = 4\nbf16 = false\nsave_steps = 1\n", encoding="utf-8")
    result = command(folder / "run", tiny_base, path, "--json")
    assert result.exit_code == 0, result.output
    return folder / "run", path, result.stdout


def test_the_command_goes_from_data_to_a_folder_that_the_runtime_loads(finished):
    run, _, printed = finished
    (line,) = printed.splitlines()
    report = json.loads(line)

    assert report["run"] == str(run)
    assert report["figures"].keys() == {
        "about_rules_auroc",
        "about_replies_auroc",
        "rules_first",
        "replies_first",
        "broken_auroc",
        "int8_auroc_loss",
    }
    assert all(math.isfinite(value) for value in report["figures"].values())
    relations = OnnxRelevance(Path(report["model"])).relations(
        turn(UNSAFE), ["Please walk.", "Bread is good."]
    )
    assert len({relation.about for relation in relations}) == 2
    counts = json.loads((run / "rows.json").read_text())
    assert counts["rows"] == 48  # 24 rules and 24 replies
    assert RelevanceConfig.model_validate_json((run / "config.json").read_text()).max_steps == 2


def test_the_command_neither_overwrites_a_run_nor_goes_on_with_another_recipe(finished, tiny_base):
    run, path, _ = finished
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

    again = command(run, tiny_base, path)
    unread = ["--data", str(run / "no data")]  # these are refused before the data are looked for
    other = command(run, tiny_base, path, "--resume", "--seed", "4", *unread)
    lost = command(run.parent / "new", run.parent / "nowhere", path, *unread)

    assert (again.exit_code, other.exit_code, lost.exit_code) == (2, 2, 2)
    assert "--resume" in again.stderr
    assert "seed 13, now 4" in other.stderr
    assert "which cannot be loaded" in lost.stderr
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
