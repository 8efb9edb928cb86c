"""The torch backend: the same results as ONNX, and every folder that must be refused."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from fakes import DRIVING, SAFE, UNSAFE

from guardrail import ArtifactError, ConfigError, Guardrail, ModelError
from guardrail.artifact import Canary, load_artifact, read_manifest, write_manifest, write_parts
from guardrail.calibration import unsafe_log_odds
from guardrail.encoder import OnnxEncoder
from guardrail.rule_index import RuleIndex

pytestmark = pytest.mark.train
MAX_TOKENS = 64
# Against fp32 ONNX; a trained MiniLM stays within 1e-5 of log-odds.
COSINE, LOG_ODDS = 0.9999, 1e-3
# Against int8 of random weights, which lose the most; a trained MiniLM keeps 0.98.
INT8_COSINE = 0.98
TEXTS = [
    UNSAFE,
    SAFE,
    "no",
    "",
    "Do not lie to the kids, say please!",
    "we drive " * 20,
    "caf\xe9 \u4f60\u597d \U0001f37a 42% [SEP] user: ok",
]


@pytest.fixture(scope="module")
def run_folder(tiny_model, tmp_path_factory):
    """A run with a trained model, as `train` leaves it."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    tiny_model.save(str(run / "model"), create_model_card=False)
    return run


@pytest.fixture(scope="module")
def torch_encoder(run_folder):
    from guardrail.torch_encoder import TorchEncoder

    return TorchEncoder(run_folder / "model", max_tokens=MAX_TOKENS, dimension=32, device="cpu")


@pytest.fixture(scope="module")
def torch_folder(run_folder, torch_encoder, tiny_folder, tmp_path_factory):
    """The model folder `tiny_folder`, with the torch encoder in place of the int8 one."""
    folder = tmp_path_factory.mktemp("model") / "torch"
    shutil.copytree(run_folder / "model", folder / "model")
    artifact = load_artifact(tiny_folder)
    index = RuleIndex(32)
    index.add(torch_encoder.encode(windows_of(torch_encoder, [r.text for r in artifact.rules])).embeddings)
    write_parts(folder, index, artifact.rules, artifact.calibration)
    sign(folder, artifact.rules)
    return folder


@pytest.fixture
def copy(torch_folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(torch_folder, tmp_path / "folder")


def sign(folder, rules):
    canary = Canary(unsafe=(UNSAFE,), safe=(SAFE,))
    write_manifest(folder, rules, name="t", dimension=32, max_tokens=MAX_TOKENS, canary=canary)


def windows_of(encoder, texts):
    room = encoder.max_tokens - 2
    return [(encoder.cls_id, *encoder.tokenize(text).ids[:room], encoder.sep_id) for text in texts]


def differences(one, other):
    """Return the worst cosine of embeddings, the worst gap of violations and of log-odds."""
    return (
        (one.embeddings * other.embeddings).sum(1).min(),
        np.abs(one.violations - other.violations).max(),
        np.abs(unsafe_log_odds(one.level_logits) - unsafe_log_odds(other.level_logits)).max(),
    )


# The same results


def test_equals_fp32_onnx_within_the_bound(torch_encoder, tiny_fp32, tiny_folder, tmp_path):
    shutil.copy(tiny_fp32, tmp_path / "model.onnx")
    shutil.copy(tiny_folder / "tokenizer.json", tmp_path / "tokenizer.json")
    onnx = OnnxEncoder(tmp_path, max_tokens=MAX_TOKENS, dimension=32)
    assert [torch_encoder.tokenize(text) for text in TEXTS] == [onnx.tokenize(text) for text in TEXTS]
    windows = windows_of(onnx, TEXTS)
    cosine, violation, log_odds = differences(torch_encoder.encode(windows), onnx.encode(windows))
    assert cosine >= COSINE
    assert violation <= LOG_ODDS
    assert log_odds <= LOG_ODDS


def test_stays_near_int8_onnx(torch_encoder, tiny_folder):
    onnx = OnnxEncoder(tiny_folder, max_tokens=MAX_TOKENS, dimension=32)
    windows = windows_of(onnx, TEXTS)
    assert differences(torch_encoder.encode(windows), onnx.encode(windows))[0] >= INT8_COSINE


def test_padding_changes_nothing(torch_encoder):
    windows = windows_of(torch_encoder, TEXTS) * 6  # more than one batch
    together = torch_encoder.encode(windows)
    for row in range(len(TEXTS)):
        alone = torch_encoder.encode([windows[row]])
        assert np.allclose(together.embeddings[row], alone.embeddings[0], atol=1e-5)
        assert np.allclose(together.violations[row], alone.violations[0], atol=1e-5)
        assert np.allclose(together.level_logits[row], alone.level_logits[0], atol=1e-5)
    assert together.embeddings.shape == together.violations.shape == (len(windows), 32)
    assert together.level_logits.shape == (len(windows), 3)
    assert {together.embeddings.dtype, together.level_logits.dtype} == {np.dtype("f4")}


def test_no_window(torch_encoder):
    output = torch_encoder.encode([])
    assert (output.embeddings.shape, output.level_logits.shape) == ((0, 32), (0, 3))


def test_special_tokens_written_by_a_user_stay_ordinary(torch_encoder):
    assert not set(range(5)) & set(torch_encoder.tokenize("[SEP] a[CLS]b [PAD]").ids)


def test_a_device_that_fails_when_its_results_are_read(run_folder):
    """As a GPU does, which computes later than it is asked to; "meta" computes nothing at all."""
    from guardrail.torch_encoder import TorchEncoder

    with pytest.raises(ArtifactError, match="it cannot be run"):
        TorchEncoder(run_folder / "model", max_tokens=MAX_TOKENS, dimension=32, device="meta")


def test_ids_that_the_model_does_not_have(torch_encoder):
    with pytest.raises(ModelError, match="encoder: torch failed on 1 windows of up to 3 tokens"):
        torch_encoder.encode([(2, 10**6, 3)])


# The guard


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_guard_on_torch_judges_as_one_on_onnx(torch_folder, tiny_folder, backend):
    guard = Guardrail.load(torch_folder, backend=backend, device="cpu")
    other = Guardrail.load(tiny_folder, backend="onnx")
    for text in (UNSAFE, SAFE):
        assert guard.check(text).action == other.check(text).action
        assert guard.check(text).probability == pytest.approx(other.check(text).probability, abs=0.05)
    assert guard.rules == other.rules
    assert guard.check_batch([UNSAFE, SAFE]) == [guard.check(UNSAFE), guard.check(SAFE)]


def test_verdicts_are_those_of_fp32_onnx_within_the_bound(torch_folder, tiny_fp32, tmp_path):
    folder = tmp_path / "fp32"
    folder.mkdir()
    shutil.copy(tiny_fp32, folder / "model.onnx")
    for name in ("tokenizer.json", "calibration.json", "rules.faiss", "rules.jsonl"):
        source = torch_folder / ("model" if name == "tokenizer.json" else "") / name
        shutil.copy(source, folder / name)
    sign(folder, load_rules(folder))
    torch, onnx = Guardrail.load(torch_folder, device="cpu"), Guardrail.load(folder, backend="onnx")
    # P = sigmoid(slope * log-odds + intercept) moves by a quarter of the slope at most.
    bound = LOG_ODDS * max(1, torch.calibration.unsafe.slope / 4)
    talks = [*filter(None, TEXTS), [UNSAFE, SAFE, UNSAFE], [SAFE, UNSAFE], "we drive beer " * 60]
    for one, other in zip(torch.check_batch(talks), onnx.check_batch(talks), strict=True):
        assert one.probability == pytest.approx(other.probability, abs=bound)
        assert (one.action, one.level, one.status, one.coverage) == (
            other.action,
            other.level,
            other.status,
            other.coverage,
        )
        assert [match.rule for match in one.rules] == [match.rule for match in other.rules]
        assert [match.rule for match in one.touched] == [match.rule for match in other.touched]


def test_rules_added_on_torch_work_at_once_and_are_saved(torch_folder, tmp_path):
    guard = Guardrail.load(torch_folder)
    (added,) = guard.add_rules(["You shouldn't feed bread to ducks."])
    again = Guardrail.load(guard.save(tmp_path / "copy"), backend="torch")
    assert again.rules[-1] == added
    assert again.check(UNSAFE) == guard.check(UNSAFE)
    assert again.search_rules("bread", k=5) == guard.search_rules("bread", k=5)


def test_the_model_of_a_calibrated_run_is_found_in_the_run(torch_folder):
    assert Guardrail.load(torch_folder / "model").check(UNSAFE).flagged


def test_a_bare_run_says_how_to_calibrate_it(run_folder):
    for folder in (run_folder, run_folder / "model"):
        with pytest.raises(ArtifactError, match=f"run: guardrail train calibrate {run_folder}$"):
            Guardrail.load(folder, backend="torch")


def test_another_backend_than_asked_for(torch_folder, tiny_folder):
    with pytest.raises(ArtifactError, match=r"expected a model for onnx in .*, got one for torch"):
        Guardrail.load(torch_folder, backend="onnx")
    with pytest.raises(ArtifactError, match=r"expected a model for torch in .*, got one for onnx"):
        Guardrail.load(tiny_folder, backend="torch")
    with pytest.raises(ConfigError, match="expected backend to be auto, onnx or torch, got 'tensorrt'"):
        Guardrail.load(tiny_folder, backend="tensorrt")


def test_devices(torch_folder, tiny_folder):
    with pytest.raises(ConfigError, match="expected a device that torch has here, got 'nonsense'"):
        Guardrail.load(torch_folder, device="nonsense")
    with pytest.raises(ConfigError, match="expected a device only for a torch model"):
        Guardrail.load(tiny_folder, device="cpu")


@pytest.mark.skipif("not __import__('torch').cuda.is_available()")
def test_a_gpu_gives_the_same(run_folder, torch_encoder):
    from guardrail.torch_encoder import TorchEncoder

    gpu = TorchEncoder(run_folder / "model", max_tokens=MAX_TOKENS, dimension=32, device="cuda")
    windows = windows_of(gpu, TEXTS)
    cosine, _, log_odds = differences(torch_encoder.encode(windows), gpu.encode(windows))
    assert cosine >= COSINE
    assert log_odds <= LOG_ODDS


def test_without_the_train_extra_the_install_line_is_given(torch_folder):
    code = (
        "import sys\n"
        "for name in ('torch', 'sentence_transformers'): sys.modules[name] = None\n"
        "from guardrail import Guardrail, MissingDependencyError\n"
        "try: Guardrail.load(sys.argv[1])\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(torch_folder)], capture_output=True, text=True)
    assert "pip install 'prosocial-guardrail[train]'" in done.stdout, done.stderr


# What must be refused


class Bomb:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def refused(folder, pattern):
    with pytest.raises(ArtifactError, match=pattern):
        load_artifact(folder)


def test_every_file_of_the_model_is_signed(torch_folder):
    on_disk = {p.relative_to(torch_folder).as_posix() for p in torch_folder.rglob("*") if p.is_file()}
    assert set(read_manifest(torch_folder).files) == on_disk - {"manifest.json"}


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/modules.json", "model/2_Dense/config.json"]
)
def test_an_altered_file(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    refused(copy, f"{name} as the manifest's SHA-256 says, it was altered")


def test_a_file_that_nobody_signed(copy):
    (copy / "model" / "adapter_config.json").write_text("{}")
    refused(copy, r"expected only files of the manifest in .*, found model/adapter_config\.json")


def test_hidden_files_do_not_matter(copy, tmp_path):
    """A file manager or a version control leaves some behind; nothing reads them."""
    (copy / "model" / ".DS_Store").write_bytes(b"x")
    (copy / "model" / ".cache").mkdir()
    (copy / "model" / ".cache" / "weights.bin").write_bytes(b"x")
    guard = Guardrail.load(copy, device="cpu")
    assert guard.check(UNSAFE).flagged
    sign(copy, load_rules(copy))
    assert not [name for name in read_manifest(copy).files if "/." in name]
    saved = guard.save(tmp_path / "saved")
    assert not list((saved / "model").glob(".*"))


@pytest.mark.parametrize("place", [".cache", "../elsewhere", "/tmp", "a/b"])
def test_a_module_in_a_place_that_is_not_looked_at(copy, place):
    path = copy / "model" / "modules.json"
    modules = json.loads(path.read_text())
    modules[2]["path"] = place
    path.write_text(json.dumps(modules))
    sign(copy, load_rules(copy))
    refused(copy, f"expected modules in plain folders of .*, got '{place}'")


def test_an_onnx_model_slipped_in_is_not_run(copy, tiny_folder):
    shutil.copy(tiny_folder / "model.onnx", copy / "model.onnx")
    assert type(load_artifact(copy).encoder).__name__ == "TorchEncoder"


def test_a_link_to_another_folder(copy, tmp_path):
    (copy / "model" / "2_Dense").rename(tmp_path / "elsewhere")
    (copy / "model" / "2_Dense").symlink_to(tmp_path / "elsewhere")
    refused(copy, "expected a plain file at .*2_Dense")


def test_a_manifest_without_the_modules(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["model/modules.json"]
    path.write_text(json.dumps(manifest))
    refused(copy, r"expected model/modules\.json in the manifest")


@pytest.mark.parametrize("name", ["model/../../x", "model/a/b/c.json", "model/.hidden", "model//x", "a/b"])
def test_a_manifest_that_names_a_path_elsewhere(copy, name):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    refused(copy, "expected a manifest of format 1 .* files")


def test_pickled_weights_are_never_read(copy, tmp_path):
    bomb = tmp_path / "exploded"
    (copy / "model" / "2_Dense" / "model.safetensors").unlink()
    (copy / "model" / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(bomb)))
    sign(copy, load_rules(copy))
    refused(copy, r"expected only safetensors and JSON in .*, found pytorch_model\.bin")
    assert not bomb.exists()


def test_pickle_dressed_as_safetensors(copy, tmp_path):
    bomb = tmp_path / "exploded"
    (copy / "model" / "model.safetensors").write_bytes(pickle.dumps(Bomb(bomb)))
    sign(copy, load_rules(copy))
    refused(copy, "expected a sentence-transformers model in .*, cannot load it")
    assert not bomb.exists()


@pytest.mark.parametrize(
    "module", ["os.system", "evil.Dense", "sentence_transformers.sentence_transformer.modules.WordEmbeddings"]
)
def test_modules_of_another_kind(copy, module):
    path = copy / "model" / "modules.json"
    modules = json.loads(path.read_text())
    modules[2]["type"] = module
    path.write_text(json.dumps(modules))
    sign(copy, load_rules(copy))
    refused(copy, f"expected modules among Dense, Normalize, Pooling, Transformer in .*, got '{module}'")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"idx": 0}]'])
def test_broken_modules(copy, text):
    (copy / "model" / "modules.json").write_text(text)
    sign(copy, load_rules(copy))
    with pytest.raises(ArtifactError, match="expected a (sentence-transformers )?model"):
        load_artifact(copy)


def test_a_model_without_our_heads(copy):
    path = copy / "model" / "modules.json"
    modules = json.loads(path.read_text())
    path.write_text(json.dumps([modules[0], modules[1], {**modules[5], "idx": 2}]))
    sign(copy, load_rules(copy))
    refused(copy, r"expected a model with outputs .*; was it trained by guardrail train encoder\?")


def test_a_dimension_that_is_not_the_models(run_folder):
    from guardrail.torch_encoder import TorchEncoder

    with pytest.raises(ArtifactError, match="expected outputs of shapes"):
        TorchEncoder(run_folder / "model", max_tokens=MAX_TOKENS, dimension=16)


def test_a_folder_that_is_not_there(tmp_path):
    from guardrail.torch_encoder import TorchEncoder

    with pytest.raises(ArtifactError, match="expected a tokenizer at"):
        TorchEncoder(tmp_path / "none", max_tokens=MAX_TOKENS, dimension=16)


def load_rules(folder):
    from guardrail.rules import read_rules

    rules = read_rules(folder / "rules.jsonl")
    assert rules[0] == DRIVING
    return rules
