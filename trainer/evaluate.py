"""Evaluate a model folder on held-out sets, through the library's own front door.

Verdicts come from `Guardrail.check_batch` on whole conversations: what a user would get. Retrieval
and the map use the folder's encoder by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from guardrail import Guardrail
from guardrail.artifact import TORCH_FOLDER, find_folder, load_artifact
from guardrail.errors import ConfigError
from guardrail.judges import as_judge
from guardrail.protocols import Encoder
from guardrail.rules import Rule

from . import loaders
from .data import load_own
from .escalation import escalation_curve
from .evaluation import benchmarks, systems
from .evaluation.classification import (
    Scored,
    category_figures,
    classification_figures,
    level_figures,
    score_set,
)
from .evaluation.common import by_source, sample, versions
from .evaluation.discrimination import discrimination_figures
from .evaluation.five_labels import five_label_figures
from .evaluation.meaning_map import MeaningMap, meaning_map
from .evaluation.refusal import refusal_figures
from .evaluation.report import Report, Section
from .evaluation.retrieval import measure, named_rules
from .examples import Example, Twin

__all__ = ["PARTS", "Report", "evaluate"]

BANK = "bank"
PROSOCIAL = "prosocial_dialog"
OPENINGS = "dailydialog_openings"


def evaluate(
    folder: str | Path | None,
    data_dir: Path | None,
    limit: int | None = None,
    *,
    base: str | None = None,
    judge: Any = None,
    rules: tuple[Rule, ...] | None = None,
    parts: Sequence[str] | None = None,
) -> Report:
    """Measure a model folder on every test set. A guard that fails ends it: a failure is no verdict.

    Args:
        folder: model folder; None for the one that ships.
        data_dir: folder of the public sets; None evaluates on our own held-out writing alone.
        limit: most items per set, chosen by a fixed seed; None for all.
        base: an untrained encoder to stand beside ours in retrieval: "minilm", a folder or a hub id.
        judge: a second opinion, to show quality against the share of turns that it reads.
        rules: whose held-out dialogues are measured on; those that the model does not know are added to
            it, as `add_rules` does. None: the model's own.
        parts: names from `PARTS`; None for all (escalation needs a judge).

    Raises:
        ConfigError: a part is unknown, "escalation" is asked for without a judge, or the judge is none.
        InputError: a rule has the id of another one of the model.
        ArtifactError: the model folder or a file of a public set is missing.
        ModelError: the guard failed on a turn.
    """
    chosen = _chosen(parts, judge)
    run = _Run(folder, data_dir, limit, base, None if judge is None else as_judge(judge), rules)
    caution = run.guard.thresholds.caution  # first of all: what cannot be loaded is told at once
    figures: dict[str, Section] = {}
    for name in chosen:
        figures |= PARTS[name](run)
    drawn = "classification" in chosen
    return Report(
        model=_title(folder),
        figures=figures,
        caution=caution,
        scored=run.scored if drawn else (),
        map=run.map() if drawn else None,
    )


@dataclass
class _Run:
    """What the parts share; sets are judged once, when the first part asks for them."""

    folder: str | Path | None
    data_dir: Path | None
    limit: int | None
    base: str | None
    judge: Any = field(repr=False)
    own_rules: tuple[Rule, ...] | None = field(repr=False)

    @cached_property
    def guard(self) -> Guardrail:
        guard = Guardrail.load(self.folder, on_error="raise")
        known = {rule.text for rule in guard.rules}
        guard.add_rules([rule for rule in self.own_rules or () if rule.text not in known])
        return guard

    @cached_property
    def encoder(self) -> Encoder:
        return load_artifact(find_folder(self.folder)).encoder

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        return self.guard.rules if self.own_rules is None else self.own_rules

    @cached_property
    def own(self) -> tuple[list[Example], list[Twin]]:
        return load_own("test", self.rules)

    @cached_property
    def scored(self) -> tuple[Scored, ...]:
        found = self.own[0] + self.public("test", None)
        sets = by_source(found)
        if self.data_dir is not None:
            sets[OPENINGS] = loaders.dailydialog_openings(self.data_dir)
        return tuple(score_set(self.guard, name, sample(sets[name], self.limit)) for name in sets)

    def public(self, split: loaders.Split, sources: list[str] | None) -> list[Example]:
        return [] if self.data_dir is None else loaders.load_examples(self.data_dir, sources, split)

    def bank_dialogues(self) -> list[Example]:
        return sample([example for example in self.own[0] if example.source == BANK], self.limit)

    def map(self) -> MeaningMap | None:
        dialogues = self.bank_dialogues()
        return meaning_map(self.encoder, self.rules, dialogues) if dialogues and self.rules[1:] else None


def _classification(run: _Run) -> dict[str, Section]:
    known = [scored for scored in run.scored if scored.unsafe.any()]
    return {
        "classification": {scored.name: classification_figures(scored) for scored in known},
        "categories": {
            f"{scored.name}/{name}": figures
            for scored in known
            for name, figures in category_figures(scored).items()
        },
        "levels": _levels(run, known),
    }


def _levels(run: _Run, known: Sequence[Scored]) -> Section:
    rows = {f"{scored.name}/three levels": level_figures(scored) for scored in known}
    for scored in known:
        if scored.name == PROSOCIAL:
            read = five_label_figures(run.encoder, run.public("val", [PROSOCIAL]), scored.examples)
            rows |= {f"{PROSOCIAL}/{name}": figures for name, figures in read.items()}
    return {name: figures for name, figures in rows.items() if figures}


def _retrieval(run: _Run) -> dict[str, Section]:
    ranking = {"bm25": systems.bm25_system()}
    if run.base is not None:
        ranking["base"] = systems.base_system(run.base)
    ranking["ours"] = systems.encoder_system(run.encoder)
    seen = benchmarks.seen_rules(run.data_dir, run.rules)
    tasks = [benchmarks.bank(run.rules, (e for e in run.own[0] if e.source == BANK), seen)]
    if run.data_dir is not None:
        public = (benchmarks.social_chem, benchmarks.moral_stories)
        tasks = [*(task(run.data_dir, seen) for task in public), *tasks]
    rows = {
        f"{task.name}/{name}": measure(system, task, run.limit)
        for task in tasks
        if task.queries
        for name, system in ranking.items()
    }
    violations = [example for example in run.bank_dialogues() if example.unsafe]
    if violations:
        rows[f"{BANK}/as named"] = named_rules(run.guard, violations)
    return {"retrieval": rows}


def _discrimination(run: _Run) -> dict[str, Section]:
    sources = by_source(run.own[1]).values()
    twins = [twin for members in sources for twin in sample(members, run.limit)]
    return {"discrimination": discrimination_figures(run.guard, load_own("train", run.rules)[1], twins)}


def _over_refusal(run: _Run) -> dict[str, Section]:
    harmless = {scored.name: scored for scored in run.scored if not scored.unsafe.any()}
    for scored in run.scored:
        if scored.name == BANK:
            harmless["bank/near misses"] = scored
    for source, twins in by_source(run.own[1]).items():
        if source != BANK:
            safe = [version for version in versions(twins) if not version.unsafe]
            harmless[f"{source}/safe versions"] = score_set(run.guard, source, sample(safe, run.limit))
    known = {name: scored for name, scored in harmless.items() if not scored.unsafe.all()}
    return {"over_refusal": {name: refusal_figures(scored) for name, scored in known.items()}}


def _escalation(run: _Run) -> dict[str, Section]:
    sets = {scored.name: list(scored.examples) for scored in run.scored if scored.has_both}
    for source, twins in by_source(run.own[1]).items():
        if source != BANK:
            sets[source] = sample(versions(twins), run.limit)
    return {
        "escalation": {
            f"{name}/{row.pop('share'):.0%}": row
            for name, members in sets.items()
            for row in escalation_curve(run.guard, members, run.judge)
        }
    }


PARTS: dict[str, Callable[[_Run], dict[str, Section]]] = {
    "classification": _classification,
    "retrieval": _retrieval,
    "discrimination": _discrimination,
    "over_refusal": _over_refusal,
    "escalation": _escalation,
}


def _title(folder: str | Path | None) -> str:
    """Return the name of a model: of its run where the folder's own says nothing."""
    if folder is None:
        return "default"
    path = Path(folder)
    return path.resolve().parent.name if path.name in ("artifact", TORCH_FOLDER) else path.name


def _chosen(parts: Sequence[str] | None, judge: Any) -> list[str]:
    names = [name for name in PARTS if name != "escalation" or judge is not None]
    if parts is None:
        return names
    for part in parts or [""]:
        if part not in PARTS:
            raise ConfigError(f"expected parts from {', '.join(PARTS)}; got {part!r}")
        if part not in names:
            raise ConfigError("expected a judge with the part 'escalation', got none; name one with --judge")
    return [name for name in names if name in parts]
