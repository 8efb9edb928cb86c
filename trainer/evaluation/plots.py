"""Plots as inline SVG. Colours come from the page's CSS, so they follow its light or dark mode.

A panel is drawn in units of 300 x 240 and shows one thing; small multiples take the place of legends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from ..metrics import Bools, Floats, auroc, expected_calibration_error, reliability, roc
from .meaning_map import NEAR_MISS, RULE, VIOLATION, MeaningMap, Point

WIDTH, HEIGHT = 300, 240
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 40  # margins
BINS = 20
CURVE_POINTS = 120
BAR_SPACE = 0.46  # of the panel's height, for the tallest bar
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 720, 560, 24
LABEL_HEIGHT, LETTER = 15, 6.6  # of a domain's name on the map


def roc_panel(name: str, scores: Floats, unsafe: Bools) -> str:
    """Return the ROC curve of a set with both classes."""
    x, y = roc(scores, unsafe)
    if len(x) > CURVE_POINTS:  # the eye sees no more, and the page stays small
        kept = np.linspace(0, len(x) - 1, CURVE_POINTS).astype(int)
        x, y = x[kept], y[kept]
    area = auroc(scores, unsafe)
    return _panel(
        f"{name}: AUROC {area:.3f}",
        f"ROC curve of {name}, {len(scores)} turns; the area below it is {area:.3f}.",
        [_line((0, 1), (0, 1), "guide"), _line(x, y, "curve")],
        ("false alarms", "recall"),
    )


def reliability_panel(name: str, probabilities: Floats, unsafe: Bools) -> str:
    """Return the reliability diagram of a set: points on the diagonal are calibrated."""
    confidence, frequency, share = reliability(probabilities, unsafe, 10)
    error = expected_calibration_error(probabilities, unsafe)
    dots = [
        f'<circle class="dot" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="{2.5 + 9 * part**0.5:.1f}"/>'
        for x, y, part in zip(confidence, frequency, share, strict=True)
    ]
    return _panel(
        f"{name}: ECE {error:.3f}",
        f"Reliability of {name}: of the turns in each of ten bins of P(unsafe), the share that is unsafe. "
        f"Large dots hold many turns. The expected calibration error is {error:.3f}.",
        [_line((0, 1), (0, 1), "guide"), _line(confidence, frequency, "curve thin"), *dots],
        ("P(unsafe)", "share unsafe"),
    )


def histogram_panel(name: str, casual: Floats, unsafe: Floats, threshold: float) -> str:
    """Return the histogram of P(unsafe): unsafe turns upwards, casual ones downwards."""
    above, below = (_shares(scores) for scores in (unsafe, casual))
    top = max(float(above.max(initial=0)), float(below.max(initial=0)), 1e-9)
    bars = [
        _bar(place, share / top, kind)
        for shares, kind in ((above, "unsafe"), (below, "casual"))
        for place, share in enumerate(shares)
    ]
    at = _x(threshold)
    marks = [
        _line((0, 1), (0.5, 0.5), "guide solid"),
        f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text class="unsafe" x="{_x(0.4):.1f}" y="{TOP + 12}">unsafe</text>',
        f'<text class="casual" x="{_x(0.4):.1f}" y="{HEIGHT - BOTTOM - 6}">casual</text>',
        *(
            f'<text x="{LEFT - 5}" y="{_y(0.5 + end) + 4:.1f}" text-anchor="end">{top:.0%}</text>'
            for end in (BAR_SPACE, -BAR_SPACE)
        ),
    ]
    caught, false = (float((scores >= threshold).mean()) for scores in (unsafe, casual))
    return _panel(
        name,
        f"Histogram of P(unsafe), {name}: {len(unsafe)} unsafe turns upwards, {len(casual)} casual ones "
        f"downwards. Above the threshold {threshold:.2f} are {100 * caught:.1f} % and {100 * false:.1f} %.",
        [*bars, *marks],
        ("P(unsafe)", ""),
        y_ticks=False,
    )


def map_plot(found: MeaningMap) -> str:
    """Return the map of rules and contexts; a point's rule and domain show under the pointer."""
    kinds = (RULE, VIOLATION, NEAR_MISS)
    marks = [_mark(point) for kind in kinds for point in found.points if point.kind == kind]
    description = (
        f"Map of {len(found.points)} points, rules of thumb and dialogues about them, in the plane of two "
        f"principal components, which hold {100 * found.shown:.0f} % of the variance. Names stand where the "
        f"rules of a domain have their middle."
    )
    return (
        f'<svg viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{''.join(marks)}{''.join(_domain_labels(found.points))}</svg>"
    )


def _panel(
    title: str, description: str, marks: Iterable[str], axes: tuple[str, str], *, y_ticks: bool = True
) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    frame = [
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        *(
            f'<text x="{_x(v):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{v:g}</text>'
            for v in (0, 0.5, 1)
        ),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{axes[0]}</text>',
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{axes[1]}</text>',
    ]
    if y_ticks:
        frame += [
            f'<text x="{LEFT - 5}" y="{_y(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in (0, 0.5, 1)
        ]
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(description)}">{"".join(frame)}{"".join(marks)}</svg></figure>'
    )


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def _line(xs: Sequence[float] | Floats, ys: Sequence[float] | Floats, kind: str) -> str:
    points = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _shares(scores: Floats) -> Floats:
    counts, _ = np.histogram(scores, BINS, (0, 1))
    return counts / max(len(scores), 1)


def _bar(place: int, height: float, kind: str) -> str:
    """Return a bar from the middle line: up for unsafe ones, down for casual ones."""
    size = height * BAR_SPACE * (HEIGHT - TOP - BOTTOM)
    y = _y(0.5) - (size if kind == "unsafe" else 0)
    width = _x(1 / BINS) - _x(0) - 1
    return (
        f'<rect class="{kind}" x="{_x(place / BINS) + 0.5:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{size:.1f}"/>'
    )


def _spot(point: Point) -> tuple[float, float]:
    x = MAP_MARGIN + point.x * (MAP_WIDTH - 2 * MAP_MARGIN)
    return x, MAP_HEIGHT - MAP_MARGIN - point.y * (MAP_HEIGHT - 2 * MAP_MARGIN)


def _mark(point: Point) -> str:
    x, y = _spot(point)
    shape = {
        RULE: f'<circle class="rule" cx="{x:.1f}" cy="{y:.1f}" r="3">',
        VIOLATION: f'<path class="unsafe" d="M{x:.1f} {y - 5:.1f}l4.5 8h-9z">',
        NEAR_MISS: f'<circle class="safe" cx="{x:.1f}" cy="{y:.1f}" r="3.5">',
    }[point.kind]
    tag = "path" if point.kind == VIOLATION else "circle"
    return f"{shape}<title>{escape(point.kind)}, {escape(point.domain)}: {escape(point.rule)}</title></{tag}>"


def _domain_labels(points: Sequence[Point]) -> list[str]:
    """Return the names of the domains at the middle of their rules, moved down until none overlap."""
    spots: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if point.kind == RULE:
            spots.setdefault(point.domain, []).append(_spot(point))
    middles = {name: np.mean(places, axis=0).tolist() for name, places in spots.items()}
    placed: list[tuple[float, float, float]] = []
    labels = []
    for name, (x, y) in sorted(middles.items(), key=lambda item: item[1][1]):
        width = LETTER * len(name)
        while any(abs(y - b) < LABEL_HEIGHT and abs(x - a) < (width + w) / 2 for a, b, w in placed):
            y += 3
        placed.append((x, y, width))
        labels.append(
            f'<text class="domain" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(name)}</text>'
        )
    return labels
