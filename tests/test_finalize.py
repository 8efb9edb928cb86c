"""From a run to a model folder: formats, what they cost, calibration, thresholds, nothing half-written."""

import json
import math
import shutil

import numpy as np
import pytest
from fakes import ENDINGS, SAFE, UNSAFE, WordEncoder, many_rules
from typer.testing import CliRunner

from guardrail import ArtifactError, ConfigError, Guardrail, ModelError
from guardrail.artifact import load_artifact, read_manifest
from guardrail.calibration import Calibration
from guardrail.protocols import EncoderOutput
from guardrail.rule_index import RuleIndex
from guardrail.types import Level, Turn

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.train, pytest.mark.usefixtures("train_extra")]

# Random weights raise false alarms at random: so many of our everyday turns that UNSAFE still stands out.
LOOSE = 0.5


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "mine"
    tiny_model.save(str(run / "model"), create_model_card=False)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A run that a test may change."""
    shutil.copytree(trained / "model", tmp_path / "mine" / "model")
    return tmp_path / "mine"


def export(run, folder, **settings):
    from guardrail.trainer.finalize import finalize

    return finalize(
        run, **{"data_dir": None, "folder": folder, "rules": many_rules(), "max_fpr": LOOSE} | settings
    )


def calibrate(folder, **settings):
    from guardrail.trainer.refit import refit

    return refit(folder, **{"data_dir": None, "max_fpr": LOOSE} | settings)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Model folders by format, and the figures of each."""
    root = tmp_path_factory.mktemp("exports")
    return {
        form: (root / form, export(trained, root / form, form=form))
        for form in ("fp32", "fp16", "int8", "torch")
    }


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported["int8"][0], tmp_path / "folder")


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Formats


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8", "torch"])
def test_every_format_loads_and_judges(exported, form):
    folder, figures = exported[form]
    guard = Guardrail.load(folder)
    assert guard.check(f"{UNSAFE} now").flagged
    assert guard.rules == many_rules()
    manifest = read_manifest(folder)
    assert manifest.name == "mine"
    assert manifest.backend == ("torch" if form == "torch" else "onnx")
    assert set(content(folder)) == {*manifest.files, "manifest.json"}
    assert figures["export/compared"] > 50
    assert figures["export/auroc_torch"] == pytest.approx(figures["export/auroc_exported"], abs=0.02)


@pytest.mark.parametrize(("form", "cosine"), [("fp32", 0.99999), ("fp16", 0.9999), ("torch", 0.99999)])
def test_formats_without_loss_keep_the_embeddings(exported, form, cosine):
    assert exported[form][1]["export/cosine_min"] >= cosine


def test_half_the_weights_are_half_the_size(exported):
    fp32, fp16 = ((exported[form][0] / "model.onnx").stat().st_size for form in ("fp32", "fp16"))
    # A model this small is mostly graph; what the halved weights save is half of them all.
    import onnx

    model = onnx.load(str(exported["fp32"][0] / "model.onnx"))
    weights = sum(4 * math.prod(tensor.dims) for tensor in model.graph.initializer)
    assert fp32 - fp16 == pytest.approx(weights / 2, rel=0.25)


def test_halved_weights_are_computed_in_fp32(exported):
    import onnx

    model = onnx.load(str(exported["fp16"][0] / "model.onnx"))
    halved = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert halved
    readers = {node.op_type for node in model.graph.node for name in node.input if name in halved}
    assert readers == {"Cast"}


def test_weights_too_large_for_fp16_stay_as_they_are(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from guardrail.trainer.export import halve_weights

    large = np.full((16, 16), 1e6, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(large, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "a"))
    halve_weights(tmp_path / "a", tmp_path / "b")
    (kept,) = onnx.load(str(tmp_path / "b")).graph.initializer
    assert np.array_equal(numpy_helper.to_array(kept), large)


def test_a_run_without_a_model(tmp_path):
    with pytest.raises(ArtifactError, match="expected a trained model in .*model, found none; train first"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_weights_of_a_run_are_not_read(run, tmp_path):
    (run / "model" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="expected only safetensors and JSON"):
        export(run, tmp_path / "out")
    with pytest.raises(ArtifactError, match="expected only safetensors and JSON"):
        calibrate(run)


def test_the_trained_model_of_another_run_is_not_overwritten(trained, run):
    before = content(run)
    with pytest.raises(ConfigError, match=r"expected a folder without a trained model, .* choose another"):
        export(trained, run, form="torch")
    assert content(run) == before


def test_the_run_keeps_the_figures_and_the_diagram(run, tmp_path):
    (run / "inner").mkdir()
    figures = export(run / "inner" / "..", tmp_path / "out")
    assert read_manifest(tmp_path / "out").name == "mine"  # not ".."
    assert json.loads((run / "finalize.json").read_text()) == figures
    assert (run / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_that_ships_shares_the_bank_and_keeps_its_card(run, tmp_path):
    from guardrail.rules import load_bank

    folder = tmp_path / "default"
    folder.mkdir()
    (folder / "MODEL_CARD.md").write_text("ours")
    export(run, folder, rules=None, bundle_rules=False)
    assert not (folder / "rules.jsonl").exists()
    assert (folder / "MODEL_CARD.md").read_text() == "ours"
    assert Guardrail.load(folder).rules == load_bank()
    calibrate(folder)
    assert not (folder / "rules.jsonl").exists()


def test_rules_that_are_not_the_bank_must_be_bundled(run, tmp_path):
    with pytest.raises(ArtifactError, match="expected the rules that the index in"):
        export(run, tmp_path / "out", bundle_rules=False)
    assert not (tmp_path / "out").exists()


# What an export costs


class Shuffled(WordEncoder):
    """Gives a conversation the embedding and the odds that another model would."""

    def encode(self, windows):
        output = super().encode(windows)
        return EncoderOutput(-output.embeddings, output.violations, -output.level_logits)


def comparison(**changes):
    from guardrail.trainer.compare import Comparison

    values = {
        "compared": 600,
        "cosine_mean": 0.99,
        "cosine_min": 0.9,
        "auroc_before": 0.9,
        "auroc_after": 0.9,
    }
    return Comparison(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine_mean": 0.979}, r"expected of int8 a mean cosine of at least 0\.98 to torch, got 0\.9790"),
        ({"cosine_mean": math.nan}, r"expected of int8 a mean cosine of at least 0\.98 to torch, got nan"),
        ({"auroc_after": 0.8949}, r"expected of int8 a loss of at most 0\.005 AUROC, got 0\.9000 -> 0\.8949"),
    ],
)
def test_a_lossy_export_is_refused(changes, message):
    with pytest.raises(ModelError, match=message + ".*--allow-lossy"):
        comparison(**changes).refuse_lossy("int8")


@pytest.mark.parametrize(
    "changes",
    [
        {"cosine_mean": 0.98},
        {"auroc_after": 0.8951},
        {"auroc_after": 0.95},
        {"auroc_after": 0.5, "compared": 50},  # a few swapped ranks
        {"auroc_before": math.nan, "auroc_after": math.nan},  # one class alone
    ],
)
def test_a_good_export_passes(changes):
    comparison(**changes).refuse_lossy("int8")


def test_comparison_with_the_model_itself_and_with_another(exported):
    from guardrail.trainer.compare import compare

    examples = [said(f"{text} {ending}", text == UNSAFE) for text in (UNSAFE, SAFE) for ending in ENDINGS]
    trained, fp32 = (load_artifact(exported[form][0]).encoder for form in ("torch", "fp32"))
    same = compare(trained, fp32, examples)
    assert (same.compared, same.auroc_before, same.auroc_after) == (16, 1, 1)
    assert same.cosine_min == pytest.approx(1, abs=1e-5)
    other = compare(trained, Shuffled(dimension=32), examples)
    assert other.cosine_mean < 0.98
    assert other.auroc_after != 1


@pytest.fixture
def ruined(run):
    """A run whose int8 version is bad: one huge unit, which nothing reads, takes the scale of all others."""
    from safetensors.torch import load_file, save_file

    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if name.endswith(("intermediate.dense.bias", "self.value.bias")):
            weight[0] = 3e4
        elif name.endswith("output.dense.weight"):
            weight[:, 0] = 0
    save_file(weights, path, metadata={"format": "pt"})
    return run


def test_a_refused_export_leaves_everything_as_it_was(ruined, folder, tmp_path):
    before = content(folder)
    with pytest.raises(ModelError, match="expected of int8 a mean cosine"):
        export(ruined, folder)
    assert content(folder) == before
    with pytest.raises(ModelError, match="expected of int8"):
        export(ruined, tmp_path / "new" / "out")
    assert not (tmp_path / "new" / "out").exists()
    assert not [path for path in tmp_path.rglob(".*") if path.is_dir()]  # no staging folder is left


# Which everyday turns set the thresholds


def said(text, unsafe=False, source="x", level=None):
    from guardrail.trainer.examples import Example

    level = level or (Level.NEEDS_CAUTION if unsafe else Level.CASUAL)
    return Example((Turn("user", text),), unsafe, text, source, level=level)


WORDS = ("beer", "bread", "friend", "kids", "taxi", "garden", "train", "song", "ducks", "mountain")


@pytest.fixture
def data_dir(tmp_path):
    """Two casual sets in their published formats, 60 dialogues each."""
    root = tmp_path / "data" / "casual"

    def turns(name, number):
        return [f"{name} {WORDS[number % 10]} {WORDS[number // 10]} {place}" for place in "ab"]

    for folder in ("self_dialogue", "topical_chat"):
        (root / folder).mkdir(parents=True)
    lines = [json.dumps({"turns": turns("home", number)}) for number in range(60)]
    (root / "self_dialogue" / "dialogues.jsonl").write_text("\n".join(lines))
    for name in ("valid_freq", "valid_rare"):
        rows = [{"turns": turns(name, number)} for number in range(30)]
        (root / "topical_chat" / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path / "data"


def recipe(run, base="minilm", **limits):
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"base": str(base), "source_limits": limits}))
    return run


def load_data(data_dir, **settings):
    from guardrail.trainer.calibration_data import load_calibration_data

    sources = None if data_dir is None else ["self_dialogue", "topical_chat"]
    return load_calibration_data(data_dir, **{"sources": sources} | settings)


def sources_of(data):
    return {example.source for example in data.casual}


def test_sources_that_did_not_train_set_the_thresholds_whole(data_dir, tmp_path):
    data = load_data(data_dir, run=recipe(tmp_path / "run", topical_chat=0, self_dialogue=5))
    assert sources_of(data) == {"topical_chat"}
    assert len(data.casual) == 120  # of the training split, too: it did not train
    assert data.max_fpr == 0.01
    in_validation = [e for e in data.split.examples if e.source == "topical_chat"]
    assert 0 < len(in_validation) < 60


@pytest.mark.parametrize("limits", [{}, {"topical_chat": 5}, {"msc": 0}])
def test_without_such_a_source_all_casual_ones_do_and_the_rate_is_a_tenth(data_dir, tmp_path, limits):
    data = load_data(data_dir, run=recipe(tmp_path / "run", **limits))
    assert sources_of(data) == {"self_dialogue", "topical_chat", "own_casual"}
    assert data.max_fpr == pytest.approx(0.001)
    # Validation alone.
    assert data.casual == [e for e in data.split.examples + data.split.bank if e.source in sources_of(data)]


def test_without_a_recipe_or_a_data_folder(data_dir, tmp_path):
    assert load_data(data_dir).max_fpr == pytest.approx(0.001)
    assert load_data(data_dir, run=tmp_path).max_fpr == pytest.approx(0.001)
    assert sources_of(load_data(None)) == {"own_casual"}


@pytest.mark.parametrize("text", ["{", "[]", '{"source_limits": 3}', '{"model_type": "bert"}'])
def test_another_config_beside_the_model_is_no_recipe(tmp_path, text):
    from guardrail.trainer.calibration_data import untrained_sources

    (tmp_path / "config.json").write_text(text)
    assert untrained_sources(tmp_path) == frozenset()


def test_what_a_base_was_trained_on_counts_as_trained(data_dir, tmp_path):
    from guardrail.trainer.calibration_data import untrained_sources

    first = recipe(tmp_path / "first", msc=0)
    (first / "model").mkdir()
    (first / "model" / "modules.json").write_text("[]")
    second = recipe(tmp_path / "second", base=first / "model", msc=0, topical_chat=0)
    assert untrained_sources(second) == {"msc"}
    assert untrained_sources(recipe(tmp_path / "third", msc=0, wow=0)) == {"msc", "wow"}


def test_the_user_names_the_sources_and_the_rate(data_dir, tmp_path):
    run = recipe(tmp_path / "run", topical_chat=0)
    data = load_data(data_dir, run=run, threshold_sources=["self_dialogue"])
    assert sources_of(data) == {"self_dialogue"}
    assert len(data.casual) < 60  # it trained: validation alone
    assert data.max_fpr == 0.01
    assert load_data(data_dir, run=run, max_fpr=0.2).max_fpr == 0.2


def test_a_source_without_everyday_turns(data_dir):
    with pytest.raises(
        ConfigError, match="expected everyday turns for the thresholds, validation has none of wow"
    ):
        load_data(data_dir, threshold_sources=["wow"])


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan])
def test_a_rate_out_of_range(rate):
    with pytest.raises(ConfigError, match="expected 0 < max_fpr < 1"):
        load_data(None, max_fpr=rate)


class Counting(WordEncoder):
    """The odds of a conversation are its number of "beer" less ten."""

    def _logits(self, window):
        from fakes import word_id

        odds = sum(token == word_id("beer") for token in window) - 10.0
        return np.array([0, odds, -30], np.float32)


def fitted(casual, max_fpr, **settings):
    from guardrail.trainer.calibrate import fit_calibration
    from guardrail.trainer.calibration_data import CalibrationData
    from guardrail.trainer.data import DataSplit

    examples = [
        said("beer " * (count + 8 * unsafe), unsafe) for count in range(16) for unsafe in (False, True)
    ]
    encoder, rules = Counting(max_tokens=128), many_rules()[:4]
    index = RuleIndex(encoder.dimension)
    index.add(encoder.encode([(1, *encoder.tokenize(r.text).ids, 2) for r in rules]).embeddings)
    data = CalibrationData(DataSplit(examples, [], [], []), casual, max_fpr)
    return fit_calibration(encoder, index, rules, data, **settings)


def test_the_thresholds_are_those_of_the_everyday_turns():
    everyday = [said("beer " * count, source="far") for count in range(20)]
    fit = fitted(everyday, 0.1)
    flagged = [
        example
        for example, p in zip(everyday, fit.everyday, strict=True)
        if p >= fit.calibration.thresholds.caution
    ]
    assert flagged == everyday[-2:]
    figures = fit.figures()
    assert figures["calibration/casual_flagged"] == figures["calibration/flagged_far"] == 0.1
    assert figures["calibration/casual_turns"] == 20
    assert figures["calibration/max_fpr"] == 0.1
    assert figures["calibration/casual_touched"] >= 0.1
    # The same model and the same validation split, but calmer talk: another threshold, the same slope.
    calm = fitted([said("beer " * (count // 4), source="near") for count in range(20)], 0.1)
    assert calm.calibration.thresholds.caution < fit.calibration.thresholds.caution
    assert calm.calibration.unsafe == fit.calibration.unsafe


def test_calibration_is_compared_with_the_one_before():
    everyday = [said("beer " * count, source="far") for count in range(20)]
    first = fitted(everyday, 0.1)
    second = fitted(everyday, 0.1, before=first.calibration.unsafe)
    assert np.array_equal(second.before, first.after)
    assert second.figures()["calibration/ece_before"] == first.figures()["calibration/ece_after"]
    assert first.figures()["calibration/ece_after"] <= first.figures()["calibration/ece_before"]


def test_a_tenth_of_everyday_talk_goes_to_a_judge():
    everyday = [said("beer " * (number // 10), source="far") for number in range(200)]
    fit = fitted(everyday, 0.05)
    band = fit.calibration.band
    assert band is not None
    sent = [p for p in fit.everyday if p in band]
    assert 0 < len(sent) <= 20
    assert band.low <= fit.calibration.thresholds.caution
    assert {"band/low", "band/high"} <= set(fit.figures())


@pytest.mark.parametrize(("share", "most"), [(0.3, 60), (1, 200)])
def test_the_share_for_a_judge_can_be_set(share, most):
    everyday = [said("beer " * (number // 10), source="far") for number in range(200)]
    fit = fitted(everyday, 0.05, escalated=share)
    sent = [p for p in fit.everyday if p in fit.calibration.band]
    assert most / 2 < len(sent) <= most


def test_a_guard_sends_its_judge_the_share_that_was_asked_for():
    """Also where single rules fire, so that a verdict's probability is not P(unsafe) of the level alone."""
    asked = []

    def judge(messages):
        asked.append(messages)
        return "nonsense"

    broken = "keep beer1 off road1 " * 10
    texts = ["beer " * (n % 10) + (broken if n % 10 == 6 and n > 60 else str(n)) for n in range(200)]
    fit = fitted([said(text, source="far") for text in texts], 0.5, escalated=0.6)
    guard = Guardrail(Counting(max_tokens=128), many_rules()[:4], calibration=fit.calibration)
    probabilities = [verdict.probability for verdict in guard.check_batch(texts)]
    assert (np.array(probabilities) > fit.everyday + 1e-6).sum() == 14
    guard.with_judge(judge).check_batch(texts)
    assert 100 < len(asked) <= 120  # ties are not cut


def test_no_share_for_a_judge_is_a_band_of_its_own():
    """Without one the guard would take the band that stands in for a missing one."""
    everyday = [said("beer " * (number // 10), source="far") for number in range(200)]
    fit = fitted(everyday, 0.05, escalated=0)
    assert fit.calibration.band is not None
    assert not [p for p in fit.everyday if p in fit.calibration.band]


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_for_a_judge_out_of_range(share):
    with pytest.raises(ConfigError, match=r"expected a share in \[0, 1\]"):
        fitted([said("beer", source="far"), said("bread", source="far")], 0.1, escalated=share)


# Calibrate again


@pytest.mark.parametrize("form", ["int8", "torch"])
def test_only_calibration_and_manifest_change(exported, tmp_path, form):
    folder = shutil.copytree(exported[form][0], tmp_path / "folder")
    before = content(folder)
    figures = calibrate(folder, max_fpr=0.4)
    after = content(folder)
    assert {name for name in before if before[name] != after[name]} == {"calibration.json", "manifest.json"}
    assert set(after) - set(before) == {"reliability.png"}
    assert after["reliability.png"].startswith(b"\x89PNG")
    artifact = load_artifact(folder)
    assert artifact.calibration.thresholds.caution == pytest.approx(figures["threshold/caution"], abs=1e-4)
    assert artifact.manifest.name == "mine"
    old = Calibration.parse(before["calibration.json"], "x")
    assert artifact.calibration.thresholds.caution > old.thresholds.caution
    assert artifact.calibration.unsafe == old.unsafe  # the same model and the same validation split
    assert Guardrail.load(folder).check(f"{UNSAFE} now").flagged


def test_a_bare_run_becomes_a_torch_folder(run):
    before = content(run)
    figures = calibrate(run / "model", rules=many_rules())
    after = content(run)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "manifest.json",
        "calibration.json",
        "rules.faiss",
        "rules.jsonl",
        "reliability.png",
    }
    guard = Guardrail.load(run, backend="torch")
    assert guard.check(f"{UNSAFE} now").flagged
    assert guard.rules == many_rules()
    assert figures["calibration/ece_before"] >= 0
    again = calibrate(run)
    assert again["calibration/ece_before"] == figures["calibration/ece_after"]


def test_the_plot_goes_where_it_is_asked_to(folder, tmp_path):
    calibrate(folder, plot=tmp_path / "plots" / "mine.png")
    assert (tmp_path / "plots" / "mine.png").is_file()
    assert not (folder / "reliability.png").exists()


def test_the_recipe_of_the_run_is_found_from_its_artifact(folder, data_dir, tmp_path):
    run = recipe(tmp_path / "a run", topical_chat=0)
    inner = folder.rename(run / "artifact")
    figures = calibrate(inner, data_dir=data_dir, sources=["self_dialogue", "topical_chat"])
    assert "calibration/flagged_topical_chat" in figures
    assert "calibration/flagged_self_dialogue" not in figures


def test_rules_for_a_folder_that_has_its_own(folder):
    with pytest.raises(ConfigError, match="expected rules only for a run that has none yet"):
        calibrate(folder, rules=many_rules())


def test_no_model_folder(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected manifest\.json in"):
        calibrate(tmp_path)


def test_an_altered_folder_is_not_blessed(folder):
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="fetch the model again"):
        calibrate(folder)


def test_what_cannot_work_leaves_the_folder_as_it_was(folder):
    before = content(folder)
    with pytest.raises(ModelError, match="expected the surest unsafe dialogue to reach"):
        calibrate(folder, max_fpr=1e-6)
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_rules_without_dialogues_give_no_canary(folder):
    from guardrail.trainer.assemble import choose_canary

    encoder = load_artifact(folder).encoder
    with pytest.raises(ArtifactError, match="add violations and near misses to more rules"):
        choose_canary(encoder, Calibration(), [said(SAFE)])


# A folder is replaced as a whole


def test_staging_replaces_the_manifest_last_and_keeps_other_files(tmp_path):
    from guardrail.trainer.assemble import staging

    target = tmp_path / "target"
    target.mkdir()
    for name in ("MODEL_CARD.md", "rules.jsonl", "manifest.json"):
        (target / name).write_text("old")
    with staging(target) as staged:
        (staged / "manifest.json").write_text("new")
        (staged / "model").mkdir()
        (staged / "model" / "a.json").write_text("new")
    assert {name: data.decode() for name, data in content(target).items()} == {
        "MODEL_CARD.md": "old",
        "manifest.json": "new",
        "model/a.json": "new",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_nothing_is_published_after_a_failure(tmp_path):
    from guardrail.trainer.assemble import staging

    def fail():
        with staging(tmp_path / "target") as staged:
            (staged / "manifest.json").write_text("new")
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fail()
    assert list(tmp_path.iterdir()) == []


# The commands


def command(*args):
    from guardrail.cli import app

    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def rules_file(tmp_path):
    path = tmp_path / "rules.jsonl"
    path.write_text("\n".join(rule.model_dump_json(by_alias=True) for rule in many_rules()))
    return path


def test_export_and_calibrate_as_commands(run, tmp_path, rules_file, monkeypatch):
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    out = tmp_path / "out"
    options = ("--rules", rules_file, "--max-fpr", LOOSE, "--json")
    result = command("train", "export", run, "--out", out, "--format", "fp16", *options)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["run"], answer["model"]) == (str(run), str(out))
    assert answer["figures"]["export/cosine_mean"] > 0.999
    assert Guardrail.load(out).rules == many_rules()
    options = ("--max-fpr", 0.4, "--escalate", 1, "--plot", tmp_path / "p.png")
    result = command("train", "calibrate", out, *options)
    assert result.exit_code == 0, result.stderr
    assert "band/low\t0\nband/high\t1\n" in result.stdout
    assert "calibration/max_fpr\t0.4\n" in result.stdout
    assert result.stdout.endswith(f"calibrated {out}\n")
    assert (tmp_path / "p.png").is_file()


def test_a_lossy_export_needs_a_word(ruined, tmp_path, rules_file, monkeypatch):
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    args = ("train", "export", ruined, "--out", tmp_path / "out", "--rules", rules_file, "--max-fpr", 0.9)
    result = command(*args)
    assert result.exit_code == 3
    assert "--allow-lossy" in result.stderr
    assert not (tmp_path / "out").exists()
    result = command(*args, "--allow-lossy", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["figures"]["export/cosine_mean"] < 0.98


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("calibrate", "none"), 3, "expected a model folder at none"),
        (("calibrate", "none", "--rules", "none.jsonl"), 2, "none.jsonl"),
        (("calibrate", "none", "--threshold-sources", "msc"), 2, "with --threshold-sources"),
        (("calibrate", "none", "--escalate", "1.5"), 2, "--escalate"),
        (("export", "none", "--out", "x"), 3, "train first"),
        (("export", "none", "--out", "x", "--format", "fp8"), 2, "fp8"),
    ],
)
def test_what_is_wrong_is_said(args, code, message, monkeypatch, tmp_path):
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    result = command("train", *args)
    assert result.exit_code == code
    assert message in result.stderr
