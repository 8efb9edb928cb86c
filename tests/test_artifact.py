"""Model folders: what loads, what comes back after saving, and every attack that must be refused."""

import hashlib
import json
import os
import pickle
import re

import faiss
import numpy as np
import pytest
from fakes import DRIVING, PRIVACY, SAFE, UNSAFE, WordEncoder

from guardrail import ArtifactError, ConfigError, Guardrail, InputError
from guardrail.artifact import (
    DEFAULT_FOLDER,
    MAX_MANIFEST_BYTES,
    Canary,
    Manifest,
    find_folder,
    load_artifact,
    write_manifest,
    write_parts,
)
from guardrail.calibration import Calibration
from guardrail.rule_index import RuleIndex
from guardrail.rules import load_bank, read_rules

FILES = ("model.onnx", "tokenizer.json", "calibration.json", "rules.faiss", "rules.jsonl")
CONVERSATIONS = [
    UNSAFE,
    SAFE,
    "Nothing of this is in any rule: a garden, a train, a song.",
    ["i had beer", "oh, where are you now?", "in the car. i drive home"],
    "drive " * 300,
]


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def write(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest))


def fresh_manifest(folder, rules=None, **changes):
    """Write the manifest anew, as somebody would who built this folder himself."""
    old = Manifest.model_validate(manifest_of(folder))
    values = {"name": old.name, "dimension": old.dimension, "max_tokens": old.max_tokens}
    values |= {"canary": old.canary} | changes
    write_manifest(folder, read_rules(folder / "rules.jsonl") if rules is None else rules, **values)


def rehash(folder, name):
    """Bring size and hash of one file in the manifest up to date, and nothing else."""
    data = (folder / name).read_bytes()
    manifest = manifest_of(folder)
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write(folder, manifest)


def unit_vectors(count, dimension):
    vectors = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def refused(folder, *parts):
    """Assert that the folder is refused in words that hold each of the parts."""
    with pytest.raises(ArtifactError, match=".*".join(map(re.escape, parts))):
        load_artifact(folder)


# What loads


def test_loads_and_judges(tiny_folder):
    guard = Guardrail.load(tiny_folder)
    assert [rule.id for rule in guard.rules] == ["driving-001", "privacy-001", "bread-001", "honesty-001"]
    assert guard.rules[0] == DRIVING
    assert guard.check(UNSAFE).flagged
    assert not guard.check(SAFE).flagged
    assert guard.check(UNSAFE).status == guard.check(SAFE).status == "ok"


def test_loads_from_a_string_and_takes_settings(tiny_folder):
    guard = Guardrail.load(str(tiny_folder), caution_threshold=0.85)
    assert not guard.check(UNSAFE).flagged  # the canary is checked against the calibrated threshold
    with pytest.raises(ConfigError, match="caution_threshold"):
        Guardrail.load(tiny_folder, caution_threshold=2)


def test_artifact_holds_what_the_folder_holds(tiny_folder):
    artifact = load_artifact(tiny_folder)
    assert artifact.manifest == Manifest.model_validate(manifest_of(tiny_folder))
    assert set(artifact.manifest.files) == set(FILES)
    assert artifact.encoder.dimension == artifact.index.dimension == artifact.manifest.dimension == 32
    assert len(artifact.index) == len(artifact.rules) == 4
    assert artifact.calibration != Calibration()


def test_the_folder_that_ships_shares_the_bank(folder):
    bank = load_bank()
    index = RuleIndex(32)
    index.add(unit_vectors(len(bank), 32))
    calibration = Calibration.parse((folder / "calibration.json").read_text(), "here")
    write_parts(folder, index, bank, calibration, bundle_rules=False)
    fresh_manifest(folder, bank)
    assert not (folder / "rules.jsonl").exists()
    assert Guardrail.load(folder).rules == bank


def test_find_folder(tmp_path):
    assert find_folder(None) == DEFAULT_FOLDER
    assert find_folder(tmp_path) == find_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ArtifactError, match=re.escape(f"expected a model folder at {tmp_path / 'none'}")):
        Guardrail.load(tmp_path / "none")


# Save and load


def test_saved_guard_gives_equal_verdicts(tiny_folder, tmp_path):
    guard = Guardrail.load(tiny_folder)
    assert guard.save(tmp_path / "a" / "copy") == tmp_path / "a" / "copy"
    again = Guardrail.load(tmp_path / "a" / "copy")
    assert again.rules == guard.rules
    assert again.calibration == guard.calibration
    for conversation in CONVERSATIONS:
        assert again.check(conversation) == guard.check(conversation)


def test_saved_guard_keeps_added_rules(tiny_folder, tmp_path):
    guard = Guardrail.load(tiny_folder, top_k=5, touch_threshold=-1, max_rules=5)
    (added,) = guard.add_rules(["You shouldn't feed \u201cbread\u201d to ducks.\u2028Ever."])
    again = Guardrail.load(guard.save(tmp_path / "copy"), top_k=5, touch_threshold=-1, max_rules=5)
    assert again.rules == guard.rules
    assert again.rules[-1] == added
    assert again.search_rules("ducks", k=5) == guard.search_rules("ducks", k=5)
    for conversation in CONVERSATIONS:
        verdict = again.check(conversation)
        assert verdict == guard.check(conversation)
        assert added in [match.rule for match in verdict.touched]
    # The source is as it was.
    assert len(Guardrail.load(tiny_folder).rules) == 4


def test_saving_twice_gives_the_same_files(tiny_folder, tmp_path):
    first = Guardrail.load(tiny_folder).save(tmp_path / "1" / "copy")
    second = Guardrail.load(first).save(tmp_path / "2" / "copy")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_save_refuses_a_folder_with_files(tiny_folder, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    guard = Guardrail.load(tiny_folder)
    with pytest.raises(ArtifactError, match="expected an empty or new folder, .* choose another"):
        guard.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_save_refuses_a_guard_made_from_parts(tmp_path):
    guard = Guardrail(WordEncoder(), [DRIVING, PRIVACY])
    with pytest.raises(ArtifactError, match="expected a guard that was loaded from a model folder"):
        guard.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# What is not there


def test_missing_folder(tmp_path):
    refused(tmp_path / "gone", "expected a model folder at", "gone", "found none")


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "expected a model folder at", "file", "found none")


def test_missing_manifest(folder):
    (folder / "manifest.json").unlink()
    refused(folder, "expected manifest.json in", str(folder), "is it a model folder?")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, "expected a plain file at", str(folder / name), "the model folder is incomplete")


@pytest.mark.parametrize("name", FILES[:4])
def test_file_that_the_manifest_does_not_list(folder, name):
    manifest = manifest_of(folder)
    del manifest["files"][name]
    write(folder, manifest)
    refused(folder, f"expected {name} in the manifest of", str(folder), "not listed")


def test_empty_folder_gets_no_manifest(tmp_path):
    canary = Canary(unsafe=(UNSAFE,), safe=(SAFE,))
    with pytest.raises(ArtifactError, match=r"expected model\.onnx and tokenizer\.json in the model folder"):
        write_manifest(tmp_path, [DRIVING], name="x", dimension=32, max_tokens=64, canary=canary)
    assert not list(tmp_path.iterdir())


# What was altered on the way


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_byte(folder, name, place):
    data = bytearray((folder / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[place]] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, str(folder / name), "it was altered", "fetch the model again")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated(folder, name, keep):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * keep)])
    refused(folder, f"expected {len(data)} bytes in {folder / name}", "fetch the model again")


@pytest.mark.parametrize("name", FILES)
def test_longer(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    refused(folder, "bytes in", str(folder / name), "fetch the model again")


@pytest.mark.parametrize("name", FILES)
def test_hashes_are_checked_before_anything_is_parsed(folder, name):
    size = (folder / name).stat().st_size
    (folder / name).write_bytes(b"\xff" * size)
    refused(folder, str(folder / name), "it was altered", "fetch the model again")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_symlink_instead_of_a_file(folder, tmp_path, name):
    os.rename(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, "expected", name if name == "manifest.json" else str(folder / name), "found none")


@pytest.mark.parametrize("name", FILES)
def test_folder_instead_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, "expected a plain file at", str(folder / name))


# A broken or lying manifest


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_manifest(folder, text):
    (folder / "manifest.json").write_bytes(text)
    refused(folder, "expected a manifest of format 1 in", str(folder))


def test_manifest_too_large_to_read(folder):
    (folder / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    refused(folder, f"expected a manifest of at most {MAX_MANIFEST_BYTES} bytes in", str(folder))


LIES = {
    "format 2": ({"format": 2}, "format"),
    "format as text": ({"format": "1"}, "format"),
    "no dimension": ({"dimension": 0}, "dimension"),
    "huge dimension": ({"dimension": 10**9}, "dimension"),
    "tiny window": ({"max_tokens": 3}, "max_tokens"),
    "hash of another form": ({"encoder": "0" * 63}, "encoder"),
    "upper-case hash": ({"rules": "A" * 64}, "rules"),
    "unknown field": ({"code": "import os"}, "code"),
    "canary without a twin": ({"canary": {"unsafe": ["a"]}}, "canary.safe"),
    "canary without a turn": ({"canary": {"unsafe": [], "safe": ["b"]}}, "canary.unsafe"),
    "canary that is text": ({"canary": {"unsafe": "a", "safe": "b"}}, "canary.unsafe"),
}


@pytest.mark.parametrize(("change", "place"), LIES.values(), ids=LIES)
def test_manifest_out_of_range(folder, change, place):
    write(folder, manifest_of(folder) | change)
    refused(folder, "expected a manifest of format 1 in", str(folder), place)


@pytest.mark.parametrize(
    "name", ["../evil", "..", "/etc/passwd", "a/b", "a\\b", ".hidden", "", "model.onnx\n", "C:x", "a\0b"]
)
def test_manifest_that_names_a_path(folder, name):
    manifest = manifest_of(folder)
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    write(folder, manifest)
    refused(folder, "expected a manifest of format 1 in", str(folder), "files")


@pytest.mark.parametrize("size", [10 * 1024**3, -1, 1e300])
def test_manifest_that_claims_a_size_out_of_range(folder, size):
    manifest = manifest_of(folder)
    manifest["files"]["model.onnx"]["bytes"] = size
    write(folder, manifest)
    refused(folder, "expected a manifest of format 1 in", str(folder), "files.model.onnx.bytes")


def test_manifest_that_claims_three_gigabytes(folder):
    manifest = manifest_of(folder)
    manifest["files"]["model.onnx"]["bytes"] = 3 * 1024**3
    write(folder, manifest)
    refused(folder, "expected 3221225472 bytes in", str(folder / "model.onnx"), "fetch the model again")


# Parts that do not belong together, with hashes brought up to date


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_swapped_encoder(folder, tiny_fp32, name):
    if name == "model.onnx":
        (folder / name).write_bytes(tiny_fp32.read_bytes())
    else:
        (folder / name).write_text((folder / name).read_text() + "\n")
    rehash(folder, name)
    refused(folder, "expected model and tokenizer in", str(folder), "they were swapped")


def test_swapped_encoder_with_its_fingerprint(folder, tiny_fp32, tmp_path):
    other = Guardrail.load(folder).save(tmp_path / "other")
    (other / "model.onnx").write_bytes(tiny_fp32.read_bytes())
    fresh_manifest(other)
    (folder / "model.onnx").write_bytes(tiny_fp32.read_bytes())
    rehash(folder, "model.onnx")
    write(folder, manifest_of(folder) | {"encoder": manifest_of(other)["encoder"]})
    refused(folder, "a rule index made by the encoder in", str(folder), "build the index again")


def test_index_of_another_encoder(folder, tiny_fp32, tmp_path):
    other = Guardrail.load(folder).save(tmp_path / "other")
    (other / "model.onnx").write_bytes(tiny_fp32.read_bytes())
    fresh_manifest(other)
    (folder / "rules.faiss").write_bytes((other / "rules.faiss").read_bytes())
    rehash(folder, "rules.faiss")
    write(folder, manifest_of(folder) | {"index_encoder": manifest_of(other)["index_encoder"]})
    refused(folder, "it was made by another one", "build the index again with this encoder")


@pytest.mark.parametrize("how", ["another text", "another id", "another order", "one less"])
def test_swapped_rules(folder, how):
    lines = (folder / "rules.jsonl").read_text().splitlines()
    if how == "another text":
        lines[1] = lines[1].replace("shouldn't", "should")
    elif how == "another id":
        lines[1] = lines[1].replace("privacy-001", "privacy-002")
    lines = {"another order": lines[::-1], "one less": lines[:-1]}.get(how, lines)
    before = (folder / "rules.jsonl").read_bytes()
    (folder / "rules.jsonl").write_text("\n".join(lines))
    assert (folder / "rules.jsonl").read_bytes().strip() != before.strip()
    rehash(folder, "rules.jsonl")
    refused(folder, "expected the rules that the index in", str(folder), "restore the rules")


def test_rules_taken_out_of_the_manifest(folder):
    manifest = manifest_of(folder)
    del manifest["files"]["rules.jsonl"]
    write(folder, manifest)
    refused(folder, "expected the rules that the index in", str(folder), "restore the rules")


def test_broken_rule(folder):
    (folder / "rules.jsonl").write_text('{"id": "a"}\n')
    rehash(folder, "rules.jsonl")
    with pytest.raises(InputError, match=r"rules\.jsonl, line 1"):
        load_artifact(folder)


# Folders that are built wrong: every hash is right


def test_zero_rules(folder):
    write_parts(folder, RuleIndex(32), [], Calibration())
    fresh_manifest(folder, [])
    refused(folder, "at least one rule", "got 0 for 0")


@pytest.mark.parametrize("count", [3, 5])
def test_index_of_another_length(folder, count):
    index = RuleIndex(32)
    index.add(unit_vectors(count, 32))
    index.save(folder / "rules.faiss")
    fresh_manifest(folder)
    refused(folder, "expected one vector for each", f"got {count} for 4")


@pytest.mark.parametrize("dimension", [16, 384])
def test_index_of_another_dimension(folder, dimension):
    index = RuleIndex(dimension)
    index.add(unit_vectors(4, dimension))
    index.save(folder / "rules.faiss")
    fresh_manifest(folder)
    refused(folder, "expected an index of dimension 32 at", str(folder / "rules.faiss"), "build it again")


def test_index_of_another_measure(folder):
    index = faiss.IndexFlatL2(32)
    index.add(unit_vectors(4, 32))
    faiss.write_index(index, str(folder / "rules.faiss"))
    fresh_manifest(folder)
    refused(folder, str(folder / "rules.faiss"))


@pytest.mark.parametrize("data", [b"", b"no index", b"IxFI" + b"\xff" * 200])
def test_garbage_index(folder, data):
    (folder / "rules.faiss").write_bytes(data)
    fresh_manifest(folder)
    refused(folder, "expected a FAISS index at", str(folder / "rules.faiss"))


class Bomb:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", FILES)
def test_pickle_dressed_as_a_file(folder, tmp_path, name):
    bomb = tmp_path / "exploded"
    (folder / name).write_bytes(pickle.dumps(Bomb(bomb)))
    fresh_manifest(folder, [DRIVING])
    with pytest.raises((ArtifactError, InputError), match="expected"):
        load_artifact(folder)
    assert not bomb.exists()


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80\x04\x95"])
def test_garbage_model(folder, data):
    (folder / "model.onnx").write_bytes(data)
    fresh_manifest(folder)
    refused(folder, "expected an ONNX model at", str(folder / "model.onnx"))


def test_model_with_other_outputs(folder):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(folder / "model.onnx"))
    del model.graph.output[1:]
    onnx.save(model, str(folder / "model.onnx"))
    fresh_manifest(folder)
    refused(folder, "expected a model with outputs embedding, violation, level_logits, got embedding")


@pytest.mark.parametrize("data", [b"", b"garbage", b"{}", b"\xff\xfe\x00"])
def test_garbage_tokenizer(folder, data):
    (folder / "tokenizer.json").write_bytes(data)
    fresh_manifest(folder)
    refused(folder, "expected a Hugging Face tokenizer file at", str(folder / "tokenizer.json"))


def test_tokenizer_without_separator(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("[SEP]", "[END]"))
    fresh_manifest(folder)
    refused(folder, "expected a tokenizer with the token [SEP]")


CALIBRATIONS = {
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "slope that turns the order round": b'{"unsafe": {"slope": -1}}',
    "unknown field": b'{"unsafe": {"scale": 1}}',
    "threshold out of range": b'{"thresholds": {"caution": 1.5}}',
    "not a number": b'{"rule": {"product": NaN}}',
    "infinite": b'{"rule": {"intercept": -Infinity}}',
}


@pytest.mark.parametrize("data", CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_broken_calibration(folder, data):
    (folder / "calibration.json").write_bytes(data)
    fresh_manifest(folder)
    refused(folder, "expected a calibration in", str(folder))


# The last door: the model itself


def test_canary_that_is_not_flagged(folder):
    fresh_manifest(folder, canary=Canary(unsafe=(SAFE,), safe=("hello there",)))
    load_artifact(folder)  # everything is in order but the model does not do its work
    with pytest.raises(
        ArtifactError, match=r"expected the model in .*model to flag its canary.*fetch it again"
    ):
        Guardrail.load(folder)


def test_canary_whose_twin_is_no_safer(folder):
    fresh_manifest(folder, canary=Canary(unsafe=(UNSAFE,), safe=(UNSAFE,)))
    with pytest.raises(ArtifactError, match=r"got P\(unsafe\) 0\.80 and 0\.80"):
        Guardrail.load(folder)


def test_canary_below_the_threshold(folder):
    path = folder / "calibration.json"
    values = json.loads(path.read_text())
    values["thresholds"]["caution"] = 0.99
    path.write_text(json.dumps(values))
    fresh_manifest(folder)
    with pytest.raises(ArtifactError, match="flag its canary and not its twin"):
        Guardrail.load(folder)


def test_refusal_shows_no_canary_text(folder):
    fresh_manifest(folder, canary=Canary(unsafe=(SAFE,), safe=(UNSAFE,)))
    with pytest.raises(ArtifactError, match="flag its canary") as caught:
        Guardrail.load(folder)
    assert "bread" not in str(caught.value)
    assert "beer" not in str(caught.value)


def test_dimension_that_is_not_the_model_s(folder):
    index = RuleIndex(16)
    index.add(unit_vectors(4, 16))
    index.save(folder / "rules.faiss")
    fresh_manifest(folder, dimension=16)
    with pytest.raises(ArtifactError, match="dimension"):
        Guardrail.load(folder)


def test_save_does_not_bless_a_model_that_was_swapped_meanwhile(folder, tiny_fp32, tmp_path):
    guard = Guardrail.load(folder)
    (folder / "model.onnx").write_bytes(tiny_fp32.read_bytes())
    with pytest.raises(ArtifactError, match=r"model\.onnx|swapped|altered"):
        guard.save(tmp_path / "copy")
