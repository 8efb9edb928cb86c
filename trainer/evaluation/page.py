"""The report as one HTML page without any other resource: tables, then plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

import numpy as np

from .classification import Scored
from .plots import histogram_panel, map_plot, reliability_panel, roc_panel
from .report import Report, Table

KEY = (
    '<p class="key">'
    '<span><svg viewBox="0 0 12 12" aria-hidden="true"><circle class="rule" cx="6" cy="6" r="4"/></svg>'
    "rule of thumb</span>"
    '<span><svg viewBox="0 0 12 12" aria-hidden="true"><path class="unsafe" d="M6 1l5 9h-10z"/></svg>'
    "violation of a held-out rule</span>"
    '<span><svg viewBox="0 0 12 12" aria-hidden="true"><circle class="safe" cx="6" cy="6" r="4"/></svg>'
    "near miss of a held-out rule</span></p>"
)


def to_html(report: Report) -> str:
    """Return the page. It holds figures, rule texts and domains, and no text of any data set."""
    sections = [(item.title, _table(item)) for item in report.tables()]
    sections += _plots(report)
    links = "".join(
        f'<li><a href="#s{number}">{escape(t)}</a></li>' for number, (t, _) in enumerate(sections)
    )
    body = "".join(
        f'<section aria-labelledby="s{number}"><h2 id="s{number}">{escape(title)}</h2>{content}</section>'
        for number, (title, content) in enumerate(sections)
    )
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation of {escape(report.model)}</title><style>{style}</style></head><body>"
        f"<header><h1>Evaluation of the model “{escape(report.model)}”</h1>"
        f"<p>A turn is flagged from P(unsafe) {report.caution:.3f} on. FA: false alarms, the share of safe "
        f'turns above a threshold.</p></header><nav aria-label="Sections"><ul>{links}</ul></nav>'
        f"<main>{body}</main></body></html>\n"
    )


def _table(item: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name) or "set"}</th>' for name in item.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0]).replace("/", "/<wbr>")}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in item.rows
    )
    return (
        f"<p>{escape(item.note)}</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(item.title)}, table">'
        f"<table><caption>{escape(item.title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _plots(report: Report) -> list[tuple[str, str]]:
    both = [scored for scored in report.scored if scored.has_both]
    plots: list[tuple[str, str]] = []
    if both:
        plots.append(("ROC curves", _panels(roc_panel(_name(s), s.probabilities, s.unsafe) for s in both)))
        plots.append(
            (
                "Reliability",
                "<p>Dots on the dashed line are calibrated; below it, P(unsafe) is too high.</p>"
                + _panels(reliability_panel(_name(s), s.probabilities, s.unsafe) for s in both),
            )
        )
    histograms = _histograms(report.scored, report.caution)
    if histograms:
        plots.append(("Casual against unsafe", _panels(histograms)))
    if report.map is not None:
        note = (
            f"<p>Every point is labelled by its rule. The plane holds {100 * report.map.shown:.0f} % of the "
            f"variance, so what lies together need not be alike. In the full space the nearest rule is of "
            f"the right domain for {100 * report.map.same_domain:.0f} % of the dialogues.</p>"
        )
        plot = (
            '<div class="scroll" tabindex="0" role="region" aria-label="Map, plot">'
            f'<div class="map">{map_plot(report.map)}</div></div>'
        )
        plots.append(("Map of rules and contexts", note + KEY + plot))
    return plots


def _histograms(sets: Sequence[Scored], threshold: float) -> list[str]:
    """Return all casual talk against the unsafe turns of each set."""
    casual = [scored.probabilities for scored in sets if not scored.unsafe.any()]
    if not casual:
        return []
    together = np.concatenate(casual)
    return [
        histogram_panel(_name(scored), together, scored.probabilities[scored.unsafe], threshold)
        for scored in sets
        if scored.unsafe.any()
    ]


def _panels(panels: Iterable[str]) -> str:
    return f'<div class="panels">{"".join(panels)}</div>'


def _name(scored: Scored) -> str:
    return scored.name.replace("_", " ")
