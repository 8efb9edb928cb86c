"""The model folder: one manifest with hashes over everything in it, checked before anything is loaded.

manifest.json      format, encoder and index settings, canaries, SHA-256 and size of every other file
model.onnx         the encoder
tokenizer.json     its tokenizer
model/             or, in place of these two, the encoder as sentence-transformers saves it
calibration.json   calibration and thresholds, fitted for this very model file
rules.faiss        vectors of the rules
rules.jsonl        the rules; absent if they are the bank that ships with the library
MODEL_CARD.md      for people
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .calibration import Calibration, as_json
from .encoder import OnnxEncoder
from .errors import ArtifactError, ConfigError
from .rule_index import RuleIndex
from .rules import Rule, load_bank, read_rules, rules_digest

if TYPE_CHECKING:
    from .protocols import Encoder

Backend = Literal["auto", "onnx", "torch"]
FORMAT: Literal[1] = 1
DEFAULT_FOLDER = Path(__file__).parent / "models" / "default"
ONNX_FILES = ("model.onnx", "tokenizer.json")
TORCH_FOLDER = "model"
TORCH_FILES = (f"{TORCH_FOLDER}/modules.json", f"{TORCH_FOLDER}/tokenizer.json")
PARTS = ("calibration.json", "rules.faiss")
MAX_FILE_BYTES = 4 * 1024**3
MAX_MANIFEST_BYTES = 1024**2
HUB_PREFIX = "hf:"
Listing = TypeVar("Listing", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
# A plain name; or one in model/, or in a folder of a module there.
FileName = Annotated[str, Field(pattern=rf"^({TORCH_FOLDER}/({_NAME}/)?)?{_NAME}$")]


class FileEntry(BaseModel):
    """Size and hash of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256


class Canary(BaseModel):
    """Two conversations that show at start that the model works: one it must flag, one it must not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unsafe: Annotated[tuple[str, ...], Field(min_length=1)]
    safe: Annotated[tuple[str, ...], Field(min_length=1)]


class Manifest(BaseModel):
    """What the folder holds.

    Attributes:
        format: version of this layout.
        name: of the model.
        dimension: size of an embedding.
        max_tokens: longest window.
        encoder: SHA-256 of the encoder's files together.
        index_encoder: the same, of the encoder that made the rule vectors.
        rules: SHA-256 over ids and texts of the rules in the index.
        canary: conversations for the check at start.
        files: every other file in the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    name: str = "default"
    dimension: Annotated[int, Field(ge=1, le=65536)]
    max_tokens: Annotated[int, Field(ge=16, le=65536)]
    encoder: Sha256
    index_encoder: Sha256
    rules: Sha256
    canary: Canary
    files: dict[FileName, FileEntry]

    @property
    def backend(self) -> Literal["onnx", "torch"]:
        """What runs the encoder."""
        return _backend(self.files)

    @property
    def encoder_files(self) -> list[str]:
        """Names of the files that the encoder is made of."""
        return _encoder_files(self.files)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model folder that has been checked and loaded."""

    manifest: Manifest
    encoder: Encoder
    index: RuleIndex
    rules: tuple[Rule, ...]
    calibration: Calibration


def load_artifact(
    folder: Path, *, threads: int = 1, backend: Backend = "auto", device: str | None = None
) -> Artifact:
    """Check every hash in a model folder, then load it.

    Args:
        folder: the model folder.
        threads: of one model run; ONNX only.
        backend: "onnx" or "torch" refuses a folder of the other kind; "auto" takes what it holds.
        device: a device of torch; None takes a GPU if there is one. Torch only.

    Raises:
        ArtifactError: the folder or a file is missing, altered, truncated, a link or foreign; the
            index was built by another encoder or for other rules; or it holds no rules.
        ConfigError: a device for an ONNX model, or one that does not exist here.
        InputError: a rule in its `rules.jsonl` is broken.
        MissingDependencyError: a torch model without the train extra.
    """
    manifest = read_manifest(folder)
    _expect_backend(folder, manifest.backend, backend, device)
    for name in (*(ONNX_FILES if manifest.backend == "onnx" else TORCH_FILES), *PARTS):
        if name not in manifest.files:
            raise ArtifactError(f"expected {name} in the manifest of {folder}, it is not listed")
    for name, entry in manifest.files.items():
        verify_file(folder, name, entry)
    if manifest.backend == "torch":
        _refuse_strangers(folder, manifest)
    fingerprint = _fingerprint(manifest.files)
    if fingerprint != manifest.encoder:
        raise ArtifactError(
            f"expected model and tokenizer in {folder} to be the manifest's; they were swapped"
        )
    if manifest.index_encoder != fingerprint:
        raise ArtifactError(
            f"expected a rule index made by the encoder in {folder}, it was made by another one; "
            f"build the index again with this encoder"
        )
    calibration = Calibration.parse((folder / "calibration.json").read_bytes(), str(folder))
    rules = read_rules(folder / "rules.jsonl") if "rules.jsonl" in manifest.files else load_bank()
    if rules_digest(rules) != manifest.rules:
        raise ArtifactError(
            f"expected the rules that the index in {folder} was built for, got others; "
            f"build the index again, or restore the rules"
        )
    encoder = load_encoder(
        folder,
        manifest.backend,
        max_tokens=manifest.max_tokens,
        dimension=manifest.dimension,
        threads=threads,
        device=device,
    )
    index = RuleIndex.load(folder / "rules.faiss", manifest.dimension)
    if len(index) != len(rules) or not rules:
        raise ArtifactError(
            f"expected one vector for each of at least one rule, got {len(index)} for {len(rules)}"
        )
    return Artifact(manifest, encoder, index, rules, calibration)


def load_encoder(
    folder: Path,
    backend: Literal["onnx", "torch"],
    *,
    max_tokens: int,
    dimension: int,
    threads: int = 1,
    device: str | None = None,
) -> Encoder:
    """Return the encoder of a model folder. Checks no hash: `load_artifact` does.

    Raises:
        ArtifactError: the files are not what they should be.
        MissingDependencyError: a torch model without the train extra.
    """
    if backend == "onnx":
        return OnnxEncoder(folder, max_tokens=max_tokens, dimension=dimension, threads=threads)
    from .torch_encoder import TorchEncoder  # here: nothing else of the runtime needs torch

    return TorchEncoder(folder / TORCH_FOLDER, max_tokens=max_tokens, dimension=dimension, device=device)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a model folder.

    Raises:
        ArtifactError: folder or manifest is missing or broken.
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise ArtifactError(f"expected a model folder at {folder}, found none")
    run = trained_run(folder)
    if run is not None and not path.exists():
        raise ArtifactError(
            f"expected a model folder, {folder} holds a trained model without calibration and rules; "
            f"run: guardrail train calibrate {run}"
        )
    missing = f"expected manifest.json in {folder}, found none; is it a model folder?"
    return read_listing(path, Manifest, f"a manifest of format {FORMAT} in {folder}", missing)


def read_listing(path: Path, layout: type[Listing], what: str, missing: str) -> Listing:
    """Read the file that says what a folder holds; of bounded size, not a link, of the layout given.

    Args:
        path: of the file.
        layout: what it must hold.
        what: what it is, for the error where it is broken.
        missing: the error where there is none.

    Raises:
        ArtifactError: it is missing, a link, too large or broken.
    """
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(missing)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(
            f"expected a manifest of at most {MAX_MANIFEST_BYTES} bytes in {path.parent}, got more"
        )
    try:
        return layout.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"expected {what}: {place}: {first['msg']}") from error


def write_manifest(
    folder: Path, rules: Sequence[Rule], *, name: str, dimension: int, max_tokens: int, canary: Canary
) -> Manifest:
    """Hash the parts in the folder and write `manifest.json`; the index there must be for these rules.

    Other files, such as a model card or the checkpoints of a run, are left out.

    Returns:
        The manifest.

    Raises:
        ArtifactError: the folder holds no encoder.
    """
    encoder = ONNX_FILES if (folder / ONNX_FILES[0]).exists() else torch_files(folder)
    files = {
        name: file_entry(folder / name)
        for name in sorted((*encoder, *PARTS, "rules.jsonl"))
        if (folder / name).is_file()
    }
    fingerprint = _fingerprint(files)
    manifest = Manifest(
        name=name,
        dimension=dimension,
        max_tokens=max_tokens,
        encoder=fingerprint,
        index_encoder=fingerprint,
        rules=rules_digest(rules),
        canary=canary,
        files=files,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def write_parts(
    folder: Path,
    index: RuleIndex,
    rules: Sequence[Rule],
    calibration: Calibration,
    *,
    bundle_rules: bool = True,
) -> None:
    """Write index, calibration and rules into a folder.

    Args:
        folder: the model folder.
        index: vectors of the rules.
        rules: in the index's order.
        calibration: fitted for the folder's model.
        bundle_rules: False only for the folder that ships beside the bank: any other one must go on
            working when the library's bank changes.
    """
    index.save(folder / "rules.faiss")
    (folder / "calibration.json").write_text(
        json.dumps(as_json(calibration), indent=2) + "\n", encoding="utf-8"
    )
    own = folder / "rules.jsonl"
    own.unlink(missing_ok=True)
    if bundle_rules:
        lines = [rule.model_dump_json(by_alias=True) for rule in rules]
        own.write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_folder(name: str | Path | None) -> Path:
    """Return the folder of a model: None is the one that ships; else a folder, or a hub id.

    For the `model/` of a calibrated run it is the run: calibration and rules lie there.

    Only a name that begins with "hf:" goes to the hub: a mistyped folder must not reach the network.

    Raises:
        ArtifactError: the hub does not have it.
        MissingDependencyError: a hub id without huggingface_hub installed.
    """
    if name is None:
        return DEFAULT_FOLDER
    if not str(name).startswith(HUB_PREFIX):
        run = trained_run(Path(name))
        return run if run is not None and (run / "manifest.json").is_file() else Path(name)
    from .hub import download  # here: only this needs the hub's client

    return download(str(name).removeprefix(HUB_PREFIX))


def trained_run(folder: Path) -> Path | None:
    """Return the folder whose `model/` is a trained model, given either of the two; None for any other."""
    for run in (folder, folder.parent):
        inner = run / TORCH_FOLDER
        if folder in (run, inner) and (inner / "modules.json").is_file():
            return run
    return None


def torch_files(folder: Path) -> list[str]:
    """Return the names of the files in `model/`, without model cards and hidden ones."""
    paths = visible_files(folder / TORCH_FOLDER)
    return [path.relative_to(folder).as_posix() for path in paths if path.suffix != ".md"]


def visible_files(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted, without hidden ones (`.DS_Store`): nothing reads them."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)]


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files by their names in the manifest from one folder into another."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _backend(files: Iterable[str]) -> Literal["onnx", "torch"]:
    return "torch" if any(name.startswith(f"{TORCH_FOLDER}/") for name in files) else "onnx"


def _expect_backend(folder: Path, found: str, asked: str, device: str | None) -> None:
    if asked not in ("auto", "onnx", "torch"):
        raise ConfigError(f"expected backend to be auto, onnx or torch, got {asked!r}")
    if asked not in ("auto", found):
        raise ArtifactError(
            f"expected a model for {asked} in {folder}, got one for {found}; "
            f"write one with: guardrail train export"
        )
    if device is not None and found == "onnx":
        raise ConfigError(
            f"expected a device only for a torch model, {folder} holds ONNX, which runs on the CPU"
        )


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    """A file that nobody has signed could change what is loaded from `model/`."""
    strangers = set(torch_files(folder)) - set(manifest.files)
    if strangers:
        raise ArtifactError(
            f"expected only files of the manifest in {folder / TORCH_FOLDER}, found {min(strangers)}; "
            f"remove it, or fetch the model again"
        )


def file_entry(path: Path) -> FileEntry:
    """Return size and hash of a file."""
    return FileEntry(bytes=path.stat().st_size, sha256=_sha256(path))


def verify_file(folder: Path, name: str, entry: FileEntry) -> None:
    """Check that a file is a plain one, with the size and the hash that a manifest gives.

    Raises:
        ArtifactError: it is not.
    """
    path = folder / name
    linked = any((folder / parent).is_symlink() for parent in Path(name).parents)
    if linked or path.is_symlink() or not path.is_file():
        raise ArtifactError(f"expected a plain file at {path}, found none; the model folder is incomplete")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ArtifactError(f"expected {entry.bytes} bytes in {path}, got {size}; fetch the model again")
    if _sha256(path) != entry.sha256:
        raise ArtifactError(
            f"expected {path} as the manifest's SHA-256 says, it was altered; fetch the model again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encoder_files(files: Iterable[str]) -> list[str]:
    if _backend(files) == "onnx":
        return list(ONNX_FILES)
    return sorted(name for name in files if name.startswith(f"{TORCH_FOLDER}/"))


def _fingerprint(files: dict[str, FileEntry]) -> str:
    """Return the SHA-256 over the hashes of the encoder's files: what the rule vectors depend on."""
    names = _encoder_files(files)
    missing = [name for name in names if name not in files]
    if missing:
        raise ArtifactError(f"expected {' and '.join(missing)} in the model folder, found none")
    return hashlib.sha256("".join(files[name].sha256 for name in names).encode()).hexdigest()
