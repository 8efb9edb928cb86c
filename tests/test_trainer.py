"""Training: recipe, mix, batches, metrics, and a tiny real run that is killed, resumed and repeated."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import DRIVING, PRIVACY, SAFE, UNSAFE, many_rules
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail import ArtifactError, ConfigError
from guardrail.types import Level, Turn

for package in ("torch", "sentence_transformers", "datasets", "sklearn", "matplotlib", "accelerate", "onnx"):
    pytest.importorskip(package)

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402

from guardrail.trainer.config import EncoderConfig  # noqa: E402
from guardrail.trainer.data import RESOURCES, DataSplit, load_own, load_split, require_dialogues  # noqa: E402
from guardrail.trainer.encoder import base_folder, build_model, environment, train  # noqa: E402
from guardrail.trainer.examples import Example, Twin  # noqa: E402
from guardrail.trainer.inputs import as_text  # noqa: E402
from guardrail.trainer.losses import UNSAFE_OF_UNKNOWN_LEVEL  # noqa: E402
from guardrail.trainer.metrics import (  # noqa: E402
    auroc,
    expected_calibration_error,
    pairwise_accuracy,
    recall_at_fpr,
    threshold_at_fpr,
)
from guardrail.trainer.mining import with_hard_casual, with_hard_negatives  # noqa: E402
from guardrail.trainer.mix import Norm, TrainingRows, build_rows  # noqa: E402
from guardrail.trainer.pipeline import train_encoder  # noqa: E402
from guardrail.trainer.sampling import LengthGroupedBatchSampler, SameSetBatchSampler  # noqa: E402
from guardrail.trainer.scoring import Outputs, torch_scorer  # noqa: E402
from guardrail.trainer.validation import validation_figures  # noqa: E402


def said(text, role="user"):
    return (Turn(role, text),)


# The recipe


def test_defaults_without_a_file():
    assert EncoderConfig.read() == EncoderConfig()


def test_options_lie_over_the_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('base = "mine"\nseed = 7\nepochs = 2\n[source_limits]\nbad = 10\n')
    config = EncoderConfig.read(path, seed=8, epochs=None)
    assert (config.base, config.seed, config.epochs) == ("mine", 8, 2)
    assert config.source_limits == {"bad": 10}
    assert config.batch_size == EncoderConfig().batch_size


def test_recipes_that_ship_are_readable_and_follow_each_other():
    first = EncoderConfig.read(RESOURCES / "knowledge.toml")
    second = EncoderConfig.read(RESOURCES / "situations.toml")
    third = EncoderConfig.read(RESOURCES / "default.toml")
    assert first.base == "minilm"
    assert second.base == "runs/knowledge/model"
    assert third.base == "runs/situations/model"
    # What sets the thresholds trains in none.
    for config in (first, second, third):
        assert config.source_limits["msc"] == config.source_limits["topical_chat"] == 0


def test_a_written_recipe_reads_back(tmp_path):
    config = EncoderConfig(seed=3, source_limits={"bad": 1})
    assert EncoderConfig.model_validate_json(config.model_dump_json()) == config


WRONG = {
    "unknown name": ({"learning_rat": 1}, "learning_rat"),
    "no epochs": ({"epochs": 0}, "epochs"),
    "batch of one": ({"batch_size": 1}, "batch_size"),
    "negative rate": ({"learning_rate": -1e-5}, "learning_rate"),
    "rate that is no number": ({"learning_rate": math.nan}, "learning_rate"),
    "all warm-up": ({"warmup_ratio": 1}, "warmup_ratio"),
    "temperature 0": ({"temperature": 0}, "temperature"),
    "negative weight": ({"twin_weight": -0.1}, "twin_weight"),
    "window too long": ({"max_tokens": 513}, "max_tokens"),
    "no repeats": ({"source_repeats": {"bad": 0}}, "source_repeats.bad"),
    "text for a number": ({"seed": "many"}, "seed"),
    "limit that is no number": ({"source_limits": {"bad": "all"}}, "source_limits.bad"),
    "negative limit": ({"source_limits": {"bad": -1}}, "source_limits.bad"),
    "limit of an unknown source": ({"source_limits": {"pears": 1}}, "source_limits"),
    "repeats of an unknown source": ({"source_repeats": {"pears": 1}}, "source_repeats"),
    "twin repeats of an unknown source": ({"twin_repeats": {"pears": 1}}, "twin_repeats"),
    "contrast of an unknown source": ({"contrast_only": ["pears"]}, "contrast_only"),
}


@pytest.mark.parametrize(("options", "name"), WRONG.values(), ids=WRONG)
def test_setting_out_of_range(options, name):
    with pytest.raises(ConfigError, match=f"training setting '{name}': .*, got "):
        EncoderConfig.read(**options)


def test_an_unknown_source_is_told_the_known_ones():
    with pytest.raises(ConfigError, match=r"expected names of sources \(.*bad, .*pairs.*\), not 'pears'"):
        EncoderConfig.read(source_limits={"pears": 1})


def test_our_own_writing_has_names_that_a_recipe_knows():
    examples, twins = load_own("train")
    names = {item.source for item in [*examples, *twins]}
    assert EncoderConfig(source_limits=dict.fromkeys(names, 1)).source_limits.keys() == names


def test_unknown_name_in_the_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("epoch = 3\n")
    with pytest.raises(ConfigError, match="training setting 'epoch'"):
        EncoderConfig.read(path)


@pytest.mark.parametrize("data", [b"epochs = ", b"\xff\xfe", b"seed = 1\nseed = 2\n", None])
def test_file_that_cannot_be_read(tmp_path, data):
    path = tmp_path / "recipe.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"expected a readable TOML file at .*recipe\.toml, got: "):
        EncoderConfig.read(path)


# Text


def test_as_text_puts_the_judged_turn_first():
    turns = [Turn("user", "one"), Turn("assistant", "two"), Turn("tool", "\uff54hree\u200b")]
    assert as_text(turns) == "user: three [SEP] assistant: two [SEP] user: one"
    assert as_text(turns[:1]) == "user: one"
    assert as_text(turns[:2], separator="</s>") == "assistant: two </s> user: one"


# The mix


def example(number, source="x", **changes):
    values = {"turns": said(f"text {number}"), "unsafe": False, "group": f"g{number}", "source": source}
    return Example(**(values | changes))


def twin(number, source="x", rule="", **changes):
    return Twin(said(f"bad {number}"), said(f"good {number}"), rule, f"g{number}", source, **changes)


def test_rows_hold_class_and_weight():
    examples = [
        example(0, level=Level.CASUAL),
        example(1, unsafe=True, level=Level.NEEDS_CAUTION, weight=0.5),
        example(2, unsafe=True, level=Level.NEEDS_INTERVENTION),
        example(3, unsafe=True),
        example(4),
    ]
    rows = build_rows(examples, [], [], EncoderConfig())
    assert rows.level[1] == {"text": "user: text 1", "label": [1, 0.5, -1]}
    assert [row["label"][0] for row in rows.level] == [0, 1, 2, UNSAFE_OF_UNKNOWN_LEVEL, 0]
    assert rows.counts() == {"level": 5, "twins": 0, "rules": 0, "norms": 0}


def test_twins_with_a_rule_feed_the_rule_losses():
    twins = [twin(0), twin(1, rule="Be kind.", level=Level.NEEDS_INTERVENTION)]
    rows = build_rows([], twins, [Norm("user: a", "Be fair.", 0.25, "fairness")], EncoderConfig())
    unknown = [UNSAFE_OF_UNKNOWN_LEVEL, 1.0, -1]
    assert rows.twins == [{"unsafe": "user: bad 0", "safe": "user: good 0", "label": unknown}]
    assert rows.rules == [
        {"unsafe": "user: bad 1", "safe": "user: good 1", "rule": "Be kind.", "label": [2, 1.5, -1]}
    ]
    assert list(rows.rules[0]) == ["unsafe", "safe", "rule", "label"]  # the trainer reads by order
    assert rows.norms == [{"text": "user: a", "rule": "Be fair.", "label": [0, 0.25, 1]}]


def test_sources_for_contrast_alone_have_no_level():
    config = EncoderConfig(contrast_only=["ethics_justice"])
    rows = build_rows([], [twin(0), twin(1, "ethics_justice")], [], config)
    assert sorted((row["unsafe"], row["label"][1]) for row in rows.twins) == [
        ("user: bad 0", 1.0),
        ("user: bad 1", 0.0),
    ]


def test_limits_per_source():
    examples = [example(i, source) for source in ("bad", "sbic", "c") for i in range(10)]
    limits = {"bad": 0, "sbic": 7, "social_chem_101": 2, "mic": 3}
    config = EncoderConfig(max_per_source=4, source_limits=limits, source_repeats={"mic": 2})
    twins = [twin(i, "bad") for i in range(5)] + [twin(i, "d") for i in range(5)]
    norms = [Norm(f"user: {i}", "Be kind.", 1.0) for i in range(9)]
    norms += [Norm(f"user: mic {i}", "Be kind.", 1.0, source="mic") for i in range(9)]
    rows = build_rows(examples, twins, norms, config)
    assert rows.counts() == {"level": 11, "twins": 4, "rules": 0, "norms": 2 + 2 * 3}
    assert len({row["text"] for row in rows.norms}) == 2 + 3


def test_the_seed_chooses():
    examples = [example(i) for i in range(50)]

    def texts(seed):
        config = EncoderConfig(max_per_source=5, seed=seed)
        return [row["text"] for row in build_rows(examples, [], [], config).level]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(set(texts(1))) == 5


def test_the_conversations_of_a_source_are_repeated():
    config = EncoderConfig(source_repeats={"bad": 3})
    examples = [example(0), replace(example(1), source="bad")]
    rows = build_rows(examples, [], [], config)
    assert sorted(Counter(row["text"] for row in rows.level).values()) == [1, 3]


def test_repr_of_rows_shows_no_text():
    rows = build_rows([example(0)], [twin(0)], [Norm("user: secret", "Be kind.", 1.0)], EncoderConfig())
    assert "text 0" not in repr(rows)
    assert "secret" not in repr(Norm("user: secret", "Be kind.", 1.0))


# Our own writing, by split


def test_own_writing_is_split_by_group():
    splits = {name: load_own(name) for name in ("train", "val", "test")}
    groups = {
        name: {item.group for item in [*examples, *twins]} for name, (examples, twins) in splits.items()
    }
    for one, other in itertools.combinations(groups, 2):
        assert not groups[one] & groups[other]
    sizes = {name: len(found) for name, found in groups.items()}
    total = sum(sizes.values())
    assert 0.07 < sizes["test"] / total < 0.13
    assert 0.07 < sizes["val"] / total < 0.13
    # Nothing is lost, and nothing written for the test is seen in training.
    assert {"bank", "own_casual"} <= {item.source for item in splits["train"][0]}
    assert {"bank", "pairs"} <= {item.source for item in splits["train"][1]}
    texts = {name: {as_text(item.turns) for item in examples} for name, (examples, _) in splits.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["val"]


def test_rules_to_train_on_need_unsafe_dialogues_in_validation():
    require_dialogues(many_rules())
    with pytest.raises(ArtifactError, match="expected unsafe dialogues of the rules in validation"):
        require_dialogues((PRIVACY,))


def test_own_rules_take_the_place_of_the_bank():
    found = [load_own(name, (DRIVING, PRIVACY)) for name in ("train", "val", "test")]
    bank = [item for examples, _ in found for item in examples if item.source == "bank"]
    twins = [item for _, twins in found for item in twins if item.source == "bank"]
    assert [item.unsafe for item in bank] == [True, True, False]
    assert {item.group for item in [*bank, *twins]} == {"driving-001"}
    assert [item.rule for item in twins] == [DRIVING.text] * 2
    assert [item.level for item in twins] == [Level.NEEDS_INTERVENTION, Level.NEEDS_CAUTION]


def test_without_a_data_folder_only_our_own():
    split = load_split(None, "val")
    examples, twins = load_own("val")
    assert (split.examples, split.norms) == ([], [])
    assert (split.bank, split.twins) == (examples, twins)


# Batches


def dataset_of(lengths):
    return Dataset.from_list([{"text": "x" * length, "label": [0, 1.0]} for length in lengths])


def sampler_of(dataset, batch_size=4, drop_last=False, seed=5):
    return LengthGroupedBatchSampler(
        dataset, batch_size, drop_last=drop_last, valid_label_columns=["label"], seed=seed
    )


LENGTHS = [int(length) for length in np.random.default_rng(0).integers(1, 500, 701)]


def test_every_row_once_per_epoch():
    sampler = sampler_of(dataset_of(LENGTHS))
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(itertools.chain(*batches)) == list(range(701))
        assert len(batches) == len(sampler) == 176
        assert sum(len(batch) != 4 for batch in batches) == 1


def test_another_order_every_epoch_the_same_with_the_same_seed():
    dataset = dataset_of(LENGTHS)

    def epochs(seed):
        sampler = sampler_of(dataset, seed=seed)
        orders = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            orders.append(list(sampler))
        return orders

    first, second = epochs(5)
    assert first != second
    assert {tuple(sorted(batch)) for batch in first} != {tuple(sorted(batch)) for batch in second}
    assert epochs(5) == [first, second]
    assert epochs(6)[0] != first


def test_batches_are_of_about_equal_length():
    batches = list(sampler_of(dataset_of(LENGTHS)))
    spread = np.mean([np.ptp([LENGTHS[row] for row in batch]) for batch in batches])
    assert spread < 0.05 * np.ptp(LENGTHS)
    order = [np.mean([LENGTHS[row] for row in batch]) for batch in batches]
    assert order != sorted(order)  # not from short to long


def test_drop_last():
    batches = list(sampler_of(dataset_of(LENGTHS), drop_last=True))
    assert {len(batch) for batch in batches} == {4}
    assert len(batches) == 175


def test_pairs_take_half_the_rows():
    pairs = Dataset.from_list([{"unsafe": "a", "safe": "b", "label": [1, 1.0]}] * 9)
    assert sorted(map(len, sampler_of(pairs, batch_size=8))) == [1, 4, 4]
    assert {len(batch) for batch in sampler_of(pairs, batch_size=2, drop_last=True)} == {2}


# Metrics

SCORES = st.integers(-5, 5).map(float)
ROWS = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=40)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_right_pairs(rows):
    scores, unsafe = (np.array(column) for column in zip(*rows, strict=True))
    pairs = [(u > s) + 0.5 * (u == s) for u in scores[unsafe] for s in scores[~unsafe]]
    found = auroc(scores, unsafe)
    assert found == pytest.approx(np.mean(pairs)) if pairs else math.isnan(found)


def test_pairwise_accuracy():
    unsafe, safe = np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 4.0, -1.0])
    assert pairwise_accuracy(unsafe, safe) == (1 + 0.5 + 0 + 1) / 4
    assert math.isnan(pairwise_accuracy(np.array([]), np.array([])))


@given(st.lists(SCORES, min_size=1, max_size=60), st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.99]))
@settings(max_examples=100, deadline=None)
def test_threshold_is_the_lowest_that_keeps_the_rate(safe, rate):
    scores = np.array(safe)
    allowed = [t for t in safe if sum(score > t for score in safe) <= rate * len(safe) + 1e-9]
    assert threshold_at_fpr(scores, rate) == min(allowed)


def test_recall_at_fpr():
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.25, 0.5, 0.95])
    unsafe = np.array([False, False, False, False, True, True, True])
    assert recall_at_fpr(scores, unsafe, 0.0) == pytest.approx(1 / 3)
    assert recall_at_fpr(scores, unsafe, 0.25) == pytest.approx(2 / 3)
    assert recall_at_fpr(scores, unsafe, 0.5) == 1


PROBABILITY = st.floats(0, 1)


@given(st.lists(st.tuples(PROBABILITY, st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_calibration_error(rows, bins):
    found = expected_calibration_error(*(np.array(column) for column in zip(*rows, strict=True)), bins)
    total = 0.0
    for number in range(bins):
        inside = [row for row in rows if min(math.floor(row[0] * bins), bins - 1) == number]
        if inside:
            gap = sum(p for p, _ in inside) / len(inside) - sum(u for _, u in inside) / len(inside)
            total += len(inside) / len(rows) * abs(gap)
    assert found == pytest.approx(total)


def test_calibration_error_of_the_right_and_the_wrong():
    unsafe = np.array([True, False] * 50)
    assert expected_calibration_error(np.full(100, 0.5), unsafe) == 0
    assert expected_calibration_error(unsafe.astype(float), unsafe) == 0
    assert expected_calibration_error(1 - unsafe.astype(float), unsafe) == 1


def test_validation_figures():
    def score(texts):
        odds = np.array([5.0 if "bad" in text else -5.0 for text in texts], np.float32)
        zeros = np.zeros((len(texts), 2), np.float32)
        return Outputs(zeros, zeros, np.stack([0 * odds, odds, odds], axis=1))

    bad, good = example(0, turns=said("bad"), unsafe=True), example(1)
    split = DataSplit([bad, good, example(2, "safe only")], [twin(0, "p")], [], [example(3, "bank")])
    figures = validation_figures(score, split)
    assert figures == {"val/x_auroc": 1.0, "val/recall_at_1_percent": 1.0, "val/p_pairwise": 1.0}


# A tiny real training


def own_rows():
    """Return a dozen rows for every objective: 8 steps an epoch at a batch of 4."""
    endings = ("now", "please", "a", "it", "so", "i")
    unsafe = [said(f"{UNSAFE} {ending}") for ending in endings]
    safe = [said(f"{SAFE} {ending}") for ending in endings]
    examples = [example(i, turns=turns, unsafe=True) for i, turns in enumerate(unsafe)]
    examples += [example(i, turns=turns, level=Level.CASUAL) for i, turns in enumerate(safe)]
    twins = [
        Twin(bad, good, DRIVING.text if i % 2 else "", f"g{i}", "x")
        for i, (bad, good) in enumerate(zip(unsafe, safe, strict=True))
    ]
    norms = [Norm("user: i drive", "No beer then.", 0.5), Norm("user: we bake", "Share the bread.", 1.0)]
    return build_rows(examples, twins, norms, EncoderConfig())


STEPS_PER_EPOCH = 8
SAVED_EVERY = 250  # steps, by the trainer


def recipe(base, **changes):
    values = {"base": str(base), "batch_size": 4, "max_tokens": 64, "bf16": False, "learning_rate": 1e-3}
    return EncoderConfig(**(values | changes))


def fresh(base, seed=13):
    torch.manual_seed(seed)
    return build_model(str(base), max_tokens=64)


def equal(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and a.equal(b) for (name, a), (other_name, b) in pairs)


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


class Killed(Exception):
    """Stands for the power cut."""


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory):
    """One uninterrupted run of 33 epochs, 264 steps."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    model = train(
        fresh(tiny_base),
        own_rows(),
        recipe(tiny_base, epochs=33),
        run,
        evaluate=lambda trained: {"val/answer": 42.0, "val/training": float(trained.training)},
    )
    return run, model


def test_run_folder_holds_everything(finished, tiny_base):
    run, _ = finished
    assert EncoderConfig.model_validate_json((run / "config.json").read_text()) == recipe(
        tiny_base, epochs=33
    )
    assert {"python", "torch", "git"} <= set(json.loads((run / "environment.json").read_text()))
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "model" / "modules.json").is_file()
    suffixes = {path.suffix for path in (run / "model").rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".json", ".safetensors", ".txt"}  # no pickle
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-264"]


def test_history_is_finite_and_falls(finished):
    run, _ = finished
    losses = [row["loss"] for row in history(run) if "loss" in row]
    assert len(losses) == 264 // 50
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    figures = [row for row in history(run) if "val/answer" in row]
    assert [row["step"] for row in figures] == [STEPS_PER_EPOCH * epoch for epoch in range(1, 34)]
    assert {row["val/training"] for row in figures} == {0.0}  # judged without dropout


def test_training_learns_the_dozen_rows(finished):
    _, model = finished
    rows = own_rows()
    score = torch_scorer(model.eval())
    odds = score([row["text"] for row in rows.level]).log_odds
    assert odds[:6].min() > odds[6:].max()


def test_embeddings_stay_frozen_unless_asked(finished, tiny_base, tmp_path):
    _, model = finished
    before = fresh(tiny_base)[0].model.get_input_embeddings().weight
    assert model[0].model.get_input_embeddings().weight.equal(before)
    thawed = train(
        fresh(tiny_base),
        own_rows(),
        recipe(tiny_base, max_steps=2, freeze_embeddings=False),
        tmp_path / "run",
    )
    assert not thawed[0].model.get_input_embeddings().weight.equal(before)


def test_plain_sentence_transformers_loads_the_model(finished):
    from sentence_transformers import SentenceTransformer

    run, model = finished
    again = SentenceTransformer(str(run / "model"), device="cpu")
    texts = [row["text"] for row in own_rows().level]
    assert np.array_equal(again.encode(texts), model.cpu().eval().encode(texts))
    assert np.array_equal(torch_scorer(again)(texts).level_logits, torch_scorer(model)(texts).level_logits)
    assert equal(again, model)


def test_a_killed_run_resumes_to_the_same_weights(finished, tiny_base, tmp_path):
    run, model = finished
    config = recipe(tiny_base, epochs=33)
    seen = itertools.count(1)

    def power_cut(_):
        if next(seen) * STEPS_PER_EPOCH > SAVED_EVERY:
            raise Killed
        return {}

    with pytest.raises(Killed, match="^$"):
        train(fresh(tiny_base), own_rows(), config, tmp_path / "run", evaluate=power_cut)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{SAVED_EVERY}"]
    # What a kill while writing leaves behind is no checkpoint, nor is half a line history.
    (tmp_path / "run" / "checkpoint-256").mkdir()
    (tmp_path / "run" / "checkpoint-257").mkdir()
    (tmp_path / "run" / "checkpoint-257" / "trainer_state.json").write_text('{"epoch": 3')
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"step": 256, "loss": 1.0}\n{"step": 25')
    # Another process starts from other random weights; nothing of them may be left.
    resumed = train(fresh(tiny_base, seed=99), own_rows(), config, tmp_path / "run", resume=True)
    assert equal(resumed, model)
    logged = [[row["step"] for row in history(folder) if "loss" in row] for folder in (run, tmp_path / "run")]
    assert logged[0] == logged[1]


def test_refuses_to_resume_with_another_recipe(finished, tiny_base):
    run, _ = finished
    other = recipe(tiny_base, epochs=33, learning_rate=2e-3, source_limits={"bad": 1})
    with pytest.raises(ConfigError, match="expected the recipe that the run was started with") as caught:
        train(fresh(tiny_base), own_rows(), other, run, resume=True)
    assert "learning_rate 0.001, now 0.002" in str(caught.value)
    assert "source_limits {}, now {'bad': 1}" in str(caught.value)
    assert "epochs" not in str(caught.value)


def test_refuses_to_resume_on_other_rows(tiny_base, tmp_path):
    config = recipe(tiny_base, max_steps=2, max_per_source=8)
    rules = (DRIVING, PRIVACY)
    train_encoder(config, tmp_path, rules=rules, validate=False)
    with pytest.raises(ConfigError, match=r"expected the rows that the run was started with.*--rules"):
        train_encoder(config, tmp_path, rules=(PRIVACY,), validate=False, resume=True)
    train_encoder(config, tmp_path, rules=rules, validate=False, resume=True)


def test_a_new_training_in_an_old_folder_starts_a_new_history(tiny_base, tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    train(fresh(tiny_base), own_rows(), recipe(tiny_base, max_steps=2), tmp_path)
    assert all(row.get("loss") != 9.0 for row in history(tmp_path))


def test_the_same_seed_gives_the_same_weights(tiny_base, tmp_path):
    one, two, other = (
        train(
            fresh(tiny_base),
            own_rows(),
            recipe(tiny_base, max_steps=10, seed=seed),
            tmp_path / str(number),
        )
        for number, seed in enumerate((1, 1, 2))
    )
    assert equal(one, two)
    assert not equal(one, other)


def test_mixed_precision_stays_finite(tiny_base, tmp_path):
    model = train(fresh(tiny_base), own_rows(), recipe(tiny_base, max_steps=2, bf16=True), tmp_path / "run")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    (loss,) = [row["train_loss"] for row in history(tmp_path / "run") if "train_loss" in row]
    assert math.isfinite(loss)


@pytest.mark.parametrize("kind", ["level", "twins", "rules", "norms"])
def test_one_objective_alone_trains(tiny_base, tmp_path, kind):
    rows = {name: [] for name in ("level", "twins", "rules", "norms")} | {kind: getattr(own_rows(), kind)}
    model = train(fresh(tiny_base), TrainingRows(**rows), recipe(tiny_base, max_steps=2), tmp_path / "run")
    assert not equal(model, fresh(tiny_base))
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_refuses_an_empty_mix(tiny_base, tmp_path):
    with pytest.raises(ConfigError, match="expected at least one training row, got none; check the sources"):
        train(fresh(tiny_base), TrainingRows([], [], [], []), recipe(tiny_base), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refuses_to_resume_from_nothing(tiny_base, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a checkpoint to resume from in .*run, found none"):
        train(fresh(tiny_base), own_rows(), recipe(tiny_base), tmp_path / "run", resume=True)


def test_from_data_to_run_folder_reproducibly(tiny_base, tmp_path):
    config = recipe(tiny_base, max_steps=2, max_per_source=8)
    models = []
    for number in range(2):
        torch.manual_seed(number)  # what the host program did before must not matter
        models.append(train_encoder(config, tmp_path / str(number), rules=(DRIVING, PRIVACY)))
    run = tmp_path / "0"
    rows = json.loads((run / "rows.json").read_text())
    assert set(rows) == {"level", "twins", "rules", "norms", "sha256"}
    figures = json.loads((run / "metrics.json").read_text())
    assert 0 <= figures["val/pairs_pairwise"] <= 1
    assert equal(*models)


# Hard negatives, large batches, an earlier run, several processes


def same_but(kind, rows, **columns):
    values = {name: getattr(rows, name) for name in ("level", "twins", "rules", "norms")}
    values[kind] = [{**row, **columns, "label": row["label"]} for row in values[kind]]
    return TrainingRows(**values)


def test_hard_negatives_stand_beside_every_rule(tiny_model):
    rows = own_rows()
    contrary = {"Share the bread.": "Keep the bread."}
    found = with_hard_negatives(rows, tiny_model, contrary, count=2, seed=0)
    by_rule = {row["rule"]: row["hard_0"] for row in found.norms}
    assert by_rule["Share the bread."] == "Keep the bread."
    assert by_rule["No beer then."] in ("Share the bread.", "No beer then.")  # alike: itself
    assert all(list(row)[-1] == "label" and "hard_1" in row for row in found.norms + found.rules)
    assert (found.level, found.twins) == (rows.level, rows.twins)
    plain = [{k: v for k, v in row.items() if not k.startswith("hard")} for row in found.rules]
    assert plain == rows.rules
    assert not tiny_model.training


@pytest.mark.parametrize("changes", [{"hard_negatives": 2}, {"social_weights": False}])
def test_other_contrasts_give_other_weights(tiny_base, tmp_path, changes):
    rows = own_rows()
    if "hard_negatives" in changes:
        rows = with_hard_negatives(rows, fresh(tiny_base), {}, count=2, seed=0)
    steps = {"max_steps": 8, "rule_weight": 1.0}
    other = train(fresh(tiny_base), rows, recipe(tiny_base, **steps, **changes), tmp_path / "other")
    plain = train(fresh(tiny_base), own_rows(), recipe(tiny_base, **steps), tmp_path / "plain")
    assert not equal(other, plain)
    assert all(value.isfinite().all() for value in other.state_dict().values())


def test_a_cached_batch_trains_as_the_plain_one(tiny_base, tmp_path):
    """Six situations at once, two at a time in memory, against six in memory."""
    norms = own_rows().norms * 3
    rows = TrainingRows([], [], [], norms)
    base = fresh(tiny_base)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    state = {name: value.clone() for name, value in base.state_dict().items()}
    cached = train(base, rows, recipe(tiny_base, batch_size=2, n_pair_batch=6, max_steps=3), tmp_path / "a")
    weights = {name: value.clone() for name, value in cached.state_dict().items()}
    base.load_state_dict(state)
    plain = train(base, rows, recipe(tiny_base, batch_size=12, max_steps=3), tmp_path / "b")
    for name, value in plain.state_dict().items():
        assert torch.allclose(weights[name], value, atol=1e-5), name


def test_a_model_of_an_earlier_run_keeps_its_heads(finished, tiny_base):
    run, model = finished
    again = build_model(str(run / "model"), max_tokens=32)
    assert equal(again.cpu(), model.cpu())
    assert again.max_seq_length == 32
    assert not equal(build_model(str(tiny_base), max_tokens=32), model)
    assert equal(build_model(str(run), max_tokens=32).cpu(), model.cpu())  # the run means its model


# What can be wrong with a base, or where git is missing


@pytest.mark.parametrize("base", ["runs/nowhere/model", "./nowhere", "nobody/nothing", "nothing"])
def test_a_base_that_is_not_there_is_refused_before_the_data_are_read(tmp_path, base):
    no_data = tmp_path / "no data"
    with pytest.raises(ConfigError, match=rf"a run or a hub id, got '{base}', which cannot be loaded"):
        train_encoder(EncoderConfig(base=base), tmp_path / "run", data_dir=no_data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("frame", [("<s>", "</s>"), ("[CLS]", None)])
def test_a_base_that_frames_texts_otherwise_is_refused(tiny_base, tmp_path, frame):
    from tokenizers import processors
    from transformers import AutoTokenizer

    base = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = [token for token in frame if token]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(["$A", *tokens]) if None in frame else f"{frame[0]} $A {frame[1]}",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens],
    )
    tokenizer.save_pretrained(base)
    with pytest.raises(ConfigError, match=r"frames a text as \[CLS\] ... \[SEP\]"):
        build_model(str(base), max_tokens=32)


def test_hub_ids_and_folders_are_bases_as_they_are(tmp_path):
    for base in ("org/encoder-v1.5", "bert-base-uncased", str(tmp_path)):
        assert base_folder(base) == base


def test_environment_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git"] == ""


def test_two_processes_share_their_negatives(tiny_base, tmp_path):
    """Under torchrun: the same loss and gradients as one process with both halves, one model saved."""
    worker = Path(__file__).with_name("torchrun_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(worker), str(tiny_base), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert report[0]["weights"] == report[1]["weights"]
    assert report[0]["loss"] == pytest.approx(report[0]["whole_loss"], abs=1e-6)
    for rank in report:
        assert rank["gradient"] == pytest.approx(rank["whole_gradient"], rel=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "train_loss" in row]) == 1  # one process writes
    # At each step both read as many texts of the same set, and between them every row.
    words = ("drive", "beer", "taxi", "kids", "tea", "rule", "bread", "share")
    kinds = [
        [({word for word in words for text in texts if word in text}, len(texts)) for texts in rank["read"]]
        for rank in report
    ]
    assert kinds[0] == kinds[1]
    assert all(len(kind) == 1 for kind, _ in kinds[0])
    seen = {text for rank in report for texts in rank["read"] for text in texts}
    expected = {"drive": 11, "beer": 5, "taxi": 5, "kids": 3, "tea": 1, "rule": 3, "bread": 1, "share": 1}
    assert {word: sum(word in text for text in seen) for word in words} == expected


def test_unrelated_talk_stands_before_short_conversations():
    talk = (Turn("user", "t1"), Turn("assistant", "t2"), Turn("user", "t3"), Turn("assistant", "t4"))
    examples = [example(0, "persona", turns=talk), example(1, unsafe=True)]
    examples.append(example(2, unsafe=True, turns=said("agreed", "assistant")))
    rows = build_rows(examples, [], [], EncoderConfig(padded_share=1.0)).level
    plain = build_rows(examples, [], [], EncoderConfig()).level
    assert (
        sorted(row["text"] for row in rows)
        == sorted(
            [
                as_text(talk),  # long enough as it is
                as_text((*talk, Turn("user", "text 1"))),
                as_text((*talk[:-1], Turn("assistant", "agreed"))),  # the speakers take turns
            ]
        )
    )
    assert [row["label"] for row in rows] == [row["label"] for row in plain]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_take_batches_of_one_set_at_a_time(processes):
    sets = [Dataset.from_list([{"text": "x" * i, "label": 0} for i in range(1, n)]) for n in (12, 8)]
    joined = torch.utils.data.ConcatDataset(sets)
    samplers = [LengthGroupedBatchSampler(data, 2, False, processes=processes, seed=3) for data in sets]
    sampler = SameSetBatchSampler(joined, samplers, seed=3, processes=processes)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    kinds = [{row >= len(sets[0]) for row in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    for start in range(0, len(batches), processes):
        step = slice(start, start + processes)
        assert len({tuple(kind) for kind in kinds[step]}) == 1
        assert len({len(batch) for batch in batches[step]}) == 1
    seen = Counter(row for batch in batches for row in batch)
    assert sorted(seen) == list(range(len(joined)))
    # Only the last batch of either set may not divide.
    assert seen.total() <= len(joined) + 2 * (processes - 1)
    if processes == 1:
        assert any(kinds[i] != kinds[i + 1] for i in range(len(kinds) - 1))
    assert list(sampler) == batches
    sampler.set_epoch(1)
    assert list(sampler) != batches


def test_everyday_talk_that_alarms_the_base_is_taken_first(tiny_model):
    calm = [
        replace(example(i, turns=said(f"{SAFE} {i}"), level=Level.CASUAL), source="wow") for i in range(4)
    ]
    alarming = replace(example(9, turns=said(UNSAFE), level=Level.CASUAL), source="wow")
    small = replace(example(8, turns=said(UNSAFE), level=Level.CASUAL), source="persona")
    config = EncoderConfig(hard_casual=1, source_limits={"wow": 2})
    found = with_hard_casual([*calm, alarming, small], tiny_model, config)
    assert [item.source for item in found] == ["wow"] * 4 + ["hard_casual", "persona"]
    assert [item.turns for item in found] == [item.turns for item in [*calm, alarming, small]]
    rows = build_rows(found, [], [], config)
    assert len(rows.level) == 2 + 1 + 1
    kept_apart = EncoderConfig(hard_casual=1, source_limits={"wow": 0, "persona": 0})
    assert with_hard_casual([*calm, alarming], tiny_model, kept_apart) == [*calm, alarming]
    assert not tiny_model.training
