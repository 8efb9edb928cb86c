"""What a second opinion is worth: which turns to send to a judge, and quality against the share sent.

`pick_band` and `escalation_points` are pure functions on arrays; `escalation_curve` asks a guard and a
judge through the library's own front door.

Which band. The turns sent are those next to the threshold, counted by mass, not by distance in
probability. A band with half of its mass on either side would waste it: the threshold is set for few
false alarms, so far up that a turn just below it is more likely than not unsafe (P = 0.8), while one
just above it is hardly ever fine. And a turn that passes below is never looked at again. So at most a
quarter is taken above, the rest below. In ordinary traffic next to nothing lies above; all of it is
sent then, and what lies above the band is surer than any false alarm that was seen, so that nobody
can talk a judge into letting the clear cases pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail import Guardrail
from guardrail.calibration import Band
from guardrail.errors import ConfigError
from guardrail.types import Verdict

from .examples import Example
from .metrics import auroc, recall_at_fpr

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

# Most of what is sent that may lie above the threshold.
SHARE_ABOVE = 0.25
SHARES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
# What is measured is the judge's sense, not its speed; nobody waits for these answers.
DEADLINE_MS = 120_000.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Verdicts on n turns, as arrays.

    Attributes:
        probability: (n,) P(unsafe).
        flagged: (n,) what is flagged.
    """

    probability: Floats = field(repr=False)
    flagged: Bools = field(repr=False)


def pick_band(probabilities: Floats, threshold: float, share: float = 0.1) -> Band | None:
    """Return the band that sends a share of these turns to a judge: at most a quarter above, the rest below.

    Bands of larger shares hold those of smaller ones.

    Args:
        probabilities: (n,) calibrated P(unsafe) of turns as they come, labels not needed: validation
            turns of ordinary talk, or a day of an app's own traffic.
        threshold: the caution threshold.
        share: of the n to send, [0, 1]; never more, fewer where probabilities tie.

    Returns:
        The band, ends included; None if nothing is to be sent.

    Raises:
        ConfigError: the share is out of range, or there are no finite probabilities.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"expected a share in [0, 1], got {share:g}")
    if len(probabilities) == 0 or not np.isfinite(probabilities).all():
        raise ConfigError(f"expected finite probabilities of at least one turn, got {len(probabilities)}")
    if share == 1:
        return Band(low=0, high=1)
    below = np.sort(probabilities[probabilities < threshold])[::-1]  # nearest to the threshold first
    above = np.sort(probabilities[probabilities >= threshold])
    wanted = int(share * len(probabilities))
    above_wanted = min(max(int(SHARE_ABOVE * wanted), wanted - len(below)), len(above))
    up = _whole_ties(above, above_wanted)
    down = _whole_ties(below, min(wanted - above_wanted, len(below)))
    if up + down == 0:
        return None
    return Band(
        low=float(below[down - 1]) if down else threshold,
        high=float(above[up - 1] if up else np.nextafter(threshold, 0)),
    )


def _whole_ties(ordered: Floats, count: int) -> int:
    """Return the largest number <= count at which no run of equal values is cut."""
    while 0 < count < len(ordered) and ordered[count - 1] == ordered[count]:
        count -= 1
    return count


def escalation_points(
    unsafe: Bools,
    encoder: Outcomes,
    judged: Outcomes,
    threshold: float,
    shares: Sequence[float] = SHARES,
) -> list[dict[str, float]]:
    """Return the quality for each share sent to the judge.

    Args:
        unsafe: (n,) labels.
        encoder: verdicts without a judge.
        judged: verdicts with one, for the same n turns; those that no share sends may hold anything.
        threshold: the caution threshold, around which the bands lie.
        shares: to send, each in [0, 1].

    Returns:
        One row for each share: `share` wanted, `escalated` share in the band, its ends `low` and `high`
        (nan if nothing is sent), `accuracy`, `recall` (of the unsafe, flagged), `false_alarms` (of the
        safe, flagged), `auroc`, `recall_at_1_percent` (false alarms, by probability); nan where a
        class is missing.
    """
    rows = []
    for share in shares:
        band = pick_band(encoder.probability, threshold, share)
        sent = _inside(encoder.probability, band)
        probability = np.where(sent, judged.probability, encoder.probability)
        flagged = np.where(sent, judged.flagged, encoder.flagged)
        both = bool(unsafe.any() and not unsafe.all())
        rows.append(
            {
                "share": float(share),
                "escalated": float(sent.mean()),
                "low": band.low if band else float("nan"),
                "high": band.high if band else float("nan"),
                "accuracy": float((flagged == unsafe).mean()),
                "recall": _mean(flagged[unsafe]),
                "false_alarms": _mean(flagged[~unsafe]),
                "auroc": auroc(probability, unsafe),
                "recall_at_1_percent": recall_at_fpr(probability, unsafe, 0.01) if both else float("nan"),
            }
        )
    return rows


def escalation_curve(
    guard: Guardrail,
    examples: Sequence[Example],
    judge: Any,
    shares: Sequence[float] = SHARES,
    *,
    deadline_ms: float = DEADLINE_MS,
) -> list[dict[str, float]]:
    """Return quality against the share of these examples that is sent to a judge.

    Each example is sent once at most, and only if the largest share needs it.

    Args:
        guard: its own judge, if it has one, is not asked.
        examples: labelled, at least one.
        judge: as `Guardrail.load` takes it.
        shares: each in [0, 1].
        deadline_ms: longest wait for one answer, milliseconds; the guard's own setting is not used.

    Returns:
        Rows as of `escalation_points`, with `failed`: of what is sent, the share on which the judge
        failed, so that the encoder's verdict stood.

    Raises:
        ConfigError: no examples, a share out of range, or no judge.
        ModelError: the encoder failed and `on_error` is "raise".
    """
    conversations = [[{"role": t.role, "content": t.text} for t in example.turns] for example in examples]
    unsafe = np.array([example.unsafe for example in examples], bool)
    threshold = guard.thresholds.caution
    first = guard.with_judge(None).check_batch(conversations)
    encoder = _outcomes(first)
    sent = _inside(encoder.probability, pick_band(encoder.probability, threshold, max(shares, default=0.0)))
    asking = guard.with_judge(judge, uncertain_low=0.0, uncertain_high=1.0, judge_deadline_ms=deadline_ms)
    second = list(first)
    for place, verdict in zip(
        np.flatnonzero(sent).tolist(),
        asking.check_batch([conversations[place] for place in np.flatnonzero(sent)]),
        strict=True,
    ):
        second[place] = verdict
    rows = escalation_points(unsafe, encoder, _outcomes(second), threshold, shares)
    # A turn that was not asked about, such as a blank one, keeps its verdict; a failure gives it a reason.
    failed = np.array(
        [
            new.judged_by == "encoder" and new.reason != old.reason
            for new, old in zip(second, first, strict=True)
        ]
    )
    for row in rows:
        inside = (encoder.probability >= row["low"]) & (encoder.probability <= row["high"])
        row["failed"] = float(failed[inside].mean()) if inside.any() else 0.0
    return rows


def _inside(probabilities: Floats, band: Band | None) -> Bools:
    if band is None:
        return np.zeros(len(probabilities), bool)
    return (probabilities >= band.low) & (probabilities <= band.high)


def _outcomes(verdicts: Sequence[Verdict]) -> Outcomes:
    return Outcomes(
        np.array([verdict.probability for verdict in verdicts]),
        np.array([verdict.flagged for verdict in verdicts], bool),
    )


def _mean(values: Bools) -> float:
    return float(values.mean()) if len(values) else float("nan")
