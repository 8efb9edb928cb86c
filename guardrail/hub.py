"""Fetch a model folder from the Hugging Face hub, when somebody asks for one by its id."""

from __future__ import annotations

from pathlib import Path

from .errors import ArtifactError, MissingDependencyError

PATTERNS = [
    "manifest.json",
    "model.onnx",
    "tokenizer.json",
    "model/*.json",
    "model/*.safetensors",
    "model/*.txt",
    "calibration.json",
    "rules.*",
    "MODEL_CARD.md",
]


def download(repo_id: str) -> Path:
    """Return the local folder of a hub model; only the files of a model folder are fetched.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        ArtifactError: the hub cannot be reached or does not have it.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub", "train") from error
    try:
        # Hub snapshots link into a cache; a model folder must hold plain files.
        target = Path.home() / ".cache" / "prosocial-guardrail" / repo_id.replace("/", "--")
        return Path(snapshot_download(repo_id, allow_patterns=PATTERNS, local_dir=target))
    except Exception as error:
        raise ArtifactError(
            f"expected a model folder or a reachable hub model, could not fetch {repo_id!r}; "
            f"pass a folder, or check the name and the network"
        ) from error
