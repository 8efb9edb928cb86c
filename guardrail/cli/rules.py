"""`guardrail rules`: list, search, add, validate rules of thumb."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .options import AsJson, ExtraRules, Model, load_guard
from .output import DONE, EXIT_CODES, FLAGGED, print_json, printable

if TYPE_CHECKING:
    from ..rules import Rule

NEAR_IDENTICAL = 0.9
TURNS_ROUND = frozenset("not never no nor without dont doesnt shouldnt cant cannot isnt arent wont".split())

app = typer.Typer(
    no_args_is_help=True, help="List, search, add and validate rules of thumb.", epilog=EXIT_CODES
)


class Severity(StrEnum):
    """What a violation usually asks for; the values of the bank's schema."""

    CAUTION = "needs_caution"
    INTERVENTION = "needs_intervention"


@app.command("list")
def list_rules(
    domain: Annotated[str | None, typer.Option(help="Only this field of life, e.g. driving.")] = None,
    severity: Annotated[Severity | None, typer.Option(help="Only this severity.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the rules of the bank that ships; on a pipe one tab-separated line a rule."""
    from ..rules import load_bank

    bank = load_bank()
    domains = sorted({rule.domain for rule in bank})
    if domain is not None and domain not in domains:
        raise InputError(f"expected a domain among {', '.join(domains)}; got {domain!r}")
    chosen = [rule for rule in bank if domain in (None, rule.domain) and severity in (None, rule.severity)]
    if as_json:
        print_json([_as_dict(rule) for rule in chosen])
        return
    from .render import print_table

    print_table(
        ("id", "domain", "severity", "rule"),
        [(rule.id, rule.domain, rule.severity, rule.text) for rule in chosen],
    )


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="Any text.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many rules.")] = 5,
    model: Model = None,
    rules: ExtraRules = None,
    as_json: AsJson = False,
) -> None:
    """Show the rules nearest to a text, with their cosine similarity."""
    found = load_guard(model, rules=rules).search_rules(query, k)
    if as_json:
        print_json([{**_as_dict(rule), "similarity": round(cosine, 4)} for rule, cosine in found])
        return
    from .render import print_table

    print_table(
        ("similarity", "id", "domain", "rule"),
        [(f"{cosine:.3f}", rule.id, rule.domain, rule.text) for rule, cosine in found],
    )


@app.command()
def add(
    text: Annotated[str, typer.Argument(metavar="RULE", help="The rule, one plain sentence.")],
    file: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Your rules; made if absent.")],
    rule_id: Annotated[str | None, typer.Option("--id", help="Default: custom- and a hash.")] = None,
    domain: Annotated[str, typer.Option(help="The field of life that it belongs to.")] = "custom",
    severity: Annotated[Severity, typer.Option(help="What a violation asks for.")] = Severity.CAUTION,
    as_json: AsJson = False,
) -> None:
    """Append a rule of thumb to a file of your own; refuse an id or a rule that is there already."""
    from ..rules import as_rule, load_bank, read_rules

    fields = {"rule": text, "domain": domain, "severity": severity.value}
    rule = as_rule(fields if rule_id is None else {**fields, "id": rule_id})
    own = read_rules(file) if file.exists() else ()
    _refuse_known(rule, own, str(file))
    _refuse_known(rule, load_bank(), "the bank that ships")
    _append(file, rule)
    if as_json:
        print_json({**_as_dict(rule), "file": str(file), "rules_in_file": len(own) + 1})
        return
    typer.echo(
        f"added {rule.id} to {file} (rules in it: {len(own) + 1}). Use the file with\n"
        f"  guardrail check --rules {file} TEXT\n"
        f"or in Python\n"
        f"  from guardrail.rules import read_rules\n"
        f"  guard.add_rules(read_rules({str(file)!r}))"
    )


@app.command(epilog=EXIT_CODES)
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSONL file of rules.")],
    as_json: AsJson = False,
) -> None:
    """Show every problem of a file of rules, with its line; exit with 1 if there is any."""
    from ..rules import check_rules

    rules, problems = check_rules(file)
    if as_json:
        found = [_problem(problem, file) for problem in problems]
        print_json({"file": str(file), "rules": len(rules), "problems": found})
    else:
        for problem in problems:
            typer.echo(printable(problem))
        typer.echo(printable(f"{file}: valid rules: {len(rules)}, problems: {len(problems)}"))
    raise typer.Exit(FLAGGED if problems else DONE)


def _as_dict(rule: Rule) -> dict[str, Any]:
    return {"rule_id": rule.id, "rule": rule.text, "domain": rule.domain, "severity": rule.severity}


def _problem(problem: str, file: Path) -> dict[str, Any]:
    line, _, reason = problem.removeprefix(f"{file}, line ").partition(": ")
    number = re.match(r"\d+", line)
    return {"file": str(file), "line": int(number[0]) if number else None, "reason": reason or problem}


def _refuse_known(rule: Rule, known: Iterable[Rule], where: str) -> None:
    for other in known:
        if other.id == rule.id:
            raise InputError(f"expected a new id, got {rule.id!r}, which {where} has; choose one with --id")
        if _near_identical(rule.text, other.text):
            raise InputError(f"expected a new rule, got one that {where} has as {other.id!r}: {other.text}")


def _near_identical(first: str, second: str) -> bool:
    """Return True if two rules have nearly the same words in the same order.

    Never if they differ in a negation or a number: that is another rule, however alike.
    """
    one, two = _words(first), _words(second)
    differing = set(one) ^ set(two)
    if differing & TURNS_ROUND or any(word.isdigit() for word in differing):
        return False
    matcher = SequenceMatcher(None, one, two, autojunk=False)
    return matcher.quick_ratio() >= NEAR_IDENTICAL and matcher.ratio() >= NEAR_IDENTICAL


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", re.sub(r"['’]", "", text.casefold()))


def _append(file: Path, rule: Rule) -> None:
    """Append a rule as one line, after a line break if the last line has none."""
    fields = ("id", "text", "domain", "severity")
    line = rule.model_dump_json(by_alias=True, include=set(fields)) + "\n"
    ends_open = file.exists() and (data := file.read_bytes()) and not data.endswith(b"\n")
    with file.open("a", encoding="utf-8") as out:
        out.write("\n" + line if ends_open else line)
