"""Make a model folder whole: index the rules, calibrate, choose the canary, sign, try, publish.

Training, export and calibration all end here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from guardrail import Guardrail
from guardrail.artifact import Canary, write_manifest, write_parts
from guardrail.calibration import Calibration, Platt
from guardrail.errors import ArtifactError, ModelError
from guardrail.protocols import Encoder
from guardrail.reading import rule_windows
from guardrail.rule_index import RuleIndex
from guardrail.rules import Rule

from .calibrate import ESCALATED_SHARE, Fit, fit_calibration
from .calibration_data import CalibrationData
from .examples import Example
from .runtime_scoring import score_conversations

MANIFEST = "manifest.json"


def complete(
    staged: Path,
    encoder: Encoder,
    rules: tuple[Rule, ...],
    data: CalibrationData,
    *,
    name: str,
    index: RuleIndex | None = None,
    before: Platt | None = None,
    escalated: float = ESCALATED_SHARE,
    bundle_rules: bool = True,
) -> Fit:
    """Calibrate the encoder in a folder and write everything else that a model folder holds.

    Args:
        staged: a folder that holds the encoder's files alone.
        encoder: loaded from there, or equal to it.
        rules: the rules to index.
        data: what to calibrate on.
        name: of the model, for the manifest.
        index: vectors of these rules by this encoder; made if None.
        before: the calibration until now, for comparison; None for none.
        escalated: share of everyday turns that goes to a judge, if there is one, [0, 1].
        bundle_rules: False only for the folder that ships with the library, beside its bank.

    Raises:
        ArtifactError: no dialogue of our own (or the user's) can serve as canary.
        ModelError: nothing is ever flagged.
    """
    if index is None:
        index = RuleIndex(encoder.dimension)
        index.add(encoder.encode(rule_windows(rules, encoder)).embeddings)
    fit = fit_calibration(encoder, index, rules, data, before=before, escalated=escalated)
    write_parts(staged, index, rules, fit.calibration, bundle_rules=bundle_rules)
    write_manifest(
        staged,
        rules,
        name=name,
        dimension=encoder.dimension,
        max_tokens=encoder.max_tokens,
        canary=choose_canary(encoder, fit.calibration, data.split.bank),
    )
    Guardrail.load(staged)  # a folder that cannot start must not be handed on
    return fit


def choose_canary(encoder: Encoder, calibration: Calibration, own: Sequence[Example]) -> Canary:
    """Return the surest unsafe and the surest safe dialogue of our own validation split.

    Their verdicts at start show whether the model computes on this machine what it computed here.
    Only our own writing (or the user's) may go into a model folder, never a row of a public set.

    Raises:
        ArtifactError: there is no unsafe or no safe one.
        ModelError: even the surest unsafe one is not flagged.
    """
    unsafe = np.array([example.unsafe for example in own])
    if not unsafe.any() or unsafe.all():
        raise ArtifactError(
            "expected unsafe and safe dialogues of the rules in the validation split, got one kind; "
            "add violations and near misses to more rules"
        )
    odds = score_conversations(encoder, [example.turns for example in own]).log_odds
    best = int(np.argmax(np.where(unsafe, odds, -np.inf)))
    calmest = int(np.argmin(np.where(unsafe, np.inf, odds)))
    high, low = calibration.unsafe(odds[[best, calmest]])
    if not high >= calibration.thresholds.caution > low:
        raise ModelError(
            "detector",
            f"expected the surest unsafe dialogue to reach {calibration.thresholds.caution:.2f} and the "
            f"surest safe one to stay below, got {high:.2f} and {low:.2f}; train longer or with more data",
        )
    return Canary(
        unsafe=tuple(turn.text for turn in own[best].turns),
        safe=tuple(turn.text for turn in own[calmest].turns),
    )


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; what is in it at the end goes into the target, unless something failed.

    Every file is replaced atomically, the manifest last: whatever happens, the target is the old
    model, the new one, or refused by its hashes; it never runs with a calibration of another model.
    Files of other names stay, except rules that the new model does not have.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: on one file system a rename is atomic.
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield staged
        names = [path.relative_to(staged) for path in sorted(staged.rglob("*")) if path.is_file()]
        for name in sorted(names, key=lambda name: name == Path(MANIFEST)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, folder / name)
        if Path("rules.jsonl") not in names:
            (folder / "rules.jsonl").unlink(missing_ok=True)
    finally:
        shutil.rmtree(staged)
