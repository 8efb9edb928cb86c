"""What all loaders share: reading files, cleaning text, splitting, skipping broken rows.

It knows no data set. Nothing here puts a row's text into an error, a report or a group's name.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

from guardrail.errors import ArtifactError
from guardrail.types import Role, Turn

from ..examples import Example, Twin

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_T = TypeVar("_T")
_G = TypeVar("_G", bound="Grouped")
_ROW_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
_REASONS_KEPT = 5

_LINK = re.compile(r"\[([^\]]*)\]\(\S*?\)")
# Strike-through, quote marks at a line's start, raised words, invisible characters. Not "**": it may be f**k.
_MARKUP = re.compile(r"~~|^\s*>+(?=[\s\w])|(?<!\S)\^+(?=\w)|[\u200b\u2060\ufeff\ufffd]", re.MULTILINE)
_NOT_ALNUM = re.compile(r"[\W_]+")
_LOOSE_MARK = re.compile(r"\s+([,.!?;])")
_LOOSE_APOSTROPHE = re.compile(r"(\w)\s?['\u2019]\s?(s|t|m|d|re|ve|ll)\b", re.IGNORECASE)


class Grouped(Protocol):
    """What belongs to a group that is never in two splits."""

    @property
    def group(self) -> str:
        """Name of the group."""


class BrokenRow(ValueError):
    """A row that cannot be used. The message goes into the report, so it holds no text of the row."""


class MissingFile(ArtifactError):
    """A file of a source is not in the data folder."""


@dataclass(slots=True)
class LoadReport:
    """What a load left out, by source.

    Attributes:
        skipped: broken rows.
        reasons: for the first broken rows: file, row number (counted from 1) and why.
        held_back: rows kept out of train or val because another split has the same text or group.
        seen: broken rows that are counted already.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    held_back: Counter[str] = field(default_factory=Counter)
    seen: set[tuple[str, Path, int]] = field(default_factory=set, repr=False)

    def skip(self, source: str, path: Path, row: int, error: Exception) -> None:
        """Count a broken row, once however often it is read; note the reason if it is among the first."""
        if (source, path, row) in self.seen:
            return
        self.seen.add((source, path, row))
        self.skipped[source] += 1
        reasons = self.reasons.setdefault(source, [])
        if len(reasons) < _REASONS_KEPT:
            # Messages of foreign errors may quote the row, so only their type is kept.
            why = str(error) if isinstance(error, BrokenRow) else type(error).__name__
            reasons.append(f"{path.name}, row {row}: {why}")


@dataclass(frozen=True, slots=True)
class Job:
    """One source being loaded for one split.

    Attributes:
        data_dir: the data folder.
        source: name of the source.
        split: the split that is asked for.
        per_dialogue: judged turns taken from each casual dialogue.
        report: where broken rows are counted.
    """

    data_dir: Path
    source: str
    split: Split
    per_dialogue: int = 2
    report: LoadReport = field(default_factory=LoadReport)

    def find(self, name: str) -> Path | None:
        """Return the path of `name` or `name.gz` in the data folder, None if there is neither."""
        plain = self.data_dir / name
        return next((path for path in (plain.with_name(plain.name + ".gz"), plain) if path.is_file()), None)

    def path(self, name: str) -> Path:
        """Return the path of a file that must be there.

        Raises:
            MissingFile: if it is not.
        """
        path = self.find(name)
        if path is None:
            raise MissingFile(
                f"expected the file {self.data_dir / name} (or .gz), but it is missing; check the data "
                f"folder (GUARDRAIL_DATA) or leave {self.source!r} out of the sources"
            )
        return path

    def json_items(self, name: str, parse: Callable[[Any], _T | None]) -> Iterator[_T]:
        """Parse every item of a JSON list, or every (key, value) of a JSON object."""
        path = self.path(name)
        try:
            data = json.loads(read_text(path))
        except ValueError as error:
            raise ArtifactError(
                f"expected JSON in {path}, got something else; copy the file again"
            ) from error
        items = data.items() if isinstance(data, dict) else data
        yield from self.each(path, enumerate(items, 1), parse)

    def json_lines(self, name: str, parse: Callable[[Any], _T | None]) -> Iterator[_T]:
        """Parse every line of a JSON-lines file; empty lines are passed over."""
        yield from self.lines(name, lambda line: parse(json.loads(line)))

    def lines(self, name: str, parse: Callable[[str], _T | None], *, header: bool = False) -> Iterator[_T]:
        """Parse every line of a text file but empty ones (and the first, if it is a header)."""
        path = self.path(name)
        # Not splitlines(): it also breaks at characters such as U+2028, which occur inside texts.
        lines = enumerate(read_text(path).split("\n"), 1)
        rows = ((row, line.rstrip("\r")) for row, line in lines if line.strip() and not (header and row == 1))
        yield from self.each(path, rows, parse)

    def csv_rows(
        self, name: str, parse: Callable[[dict[str, str]], _T | None], delimiter: str = ","
    ) -> Iterator[_T]:
        """Parse every row of a CSV file with a header."""
        path = self.path(name)
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
        yield from self.each(path, enumerate(reader, 1), parse)

    def each(
        self, path: Path, rows: Iterable[tuple[int, Any]], parse: Callable[[Any], _T | None]
    ) -> Iterator[_T]:
        """Parse numbered rows; a broken one is counted, one parsed to None is left out on purpose."""
        for number, row in rows:
            try:
                parsed = parse(row)
            except _ROW_ERRORS as error:
                self.report.skip(self.source, path, number, error)
                continue
            if parsed is not None:
                yield parsed

    def group(self, *parts: str) -> str:
        """Return the name of the group that texts belong to: source and a digest, never the text."""
        return f"{self.source}:{digest(*parts)}"

    def hashed(self, items: Iterable[_G], *, test: float = 0.0, val: float = 0.1) -> Iterator[_G]:
        """Keep the items whose group falls into this split: `test` of all, then `val` of the rest."""
        return (item for item in items if split_of(item.group, test=test, val=val) == self.split)


def read_text(path: Path) -> str:
    """Return a file's text, unzipped if its name ends in .gz.

    Raises:
        ArtifactError: if it cannot be unzipped.
    """
    if path.suffix != ".gz":
        return path.read_bytes().decode("utf-8", errors="replace")
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ArtifactError(
            f"expected gzip data in {path}, got something else; copy the file again"
        ) from error


def clean(text: str, *, tokenised: bool = False) -> str:
    """Return text without HTML entities, Reddit markup and runs of whitespace.

    Args:
        text: as published.
        tokenised: also close the gaps that word-tokenised sets have before marks (`it 's fine .`);
            a model would otherwise learn that such gaps mean casual talk.
    """
    # Twice: some sources escaped what was already escaped (&amp;nbsp;).
    text = html.unescape(html.unescape(text))
    text = " ".join(_MARKUP.sub("", _LINK.sub(r"\1", text)).split())
    if tokenised:
        text = _LOOSE_APOSTROPHE.sub(r"\1'\2", _LOOSE_MARK.sub(r"\1", text))
    return text


def normalise(text: str) -> str:
    """Return lower-case letters and digits only; the text itself if it has none (an emoji)."""
    return _NOT_ALNUM.sub("", text.lower()) or text.strip()


def digest(*parts: str) -> str:
    """Return a short stable digest of texts, blind to case, spaces and punctuation."""
    joined = "\n".join(normalise(part) for part in parts)
    return blake2b(joined.encode(), digest_size=8).hexdigest()


def share(key: str) -> float:
    """Return a stable pseudo-random number in [0, 1) for a key."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def split_of(group: str, *, test: float = 0.0, val: float = 0.1) -> Split:
    """Return the split of a group: `test` of all groups, then `val` of the rest, then train."""
    place = share(group)
    if place < test:
        return "test"
    return "val" if place < test + val * (1.0 - test) else "train"


def turns_of(texts: Sequence[str], last: Role = "user", *, tokenised: bool = False) -> tuple[Turn, ...]:
    """Return cleaned turns; roles alternate backwards from the judged, last one.

    Empty earlier turns are dropped after the roles are set, so that a gap does not swap the speakers.

    Raises:
        BrokenRow: if the last turn is empty.
    """
    other: Role = "assistant" if last == "user" else "user"
    count = len(texts)
    roles = [last if (count - 1 - i) % 2 == 0 else other for i in range(count)]
    cleaned = [clean(text, tokenised=tokenised) for text in texts]
    if not cleaned or not cleaned[-1]:
        raise BrokenRow("the judged turn is empty")
    return tuple(Turn(role, text) for role, text in zip(roles, cleaned, strict=True) if text)


def agreement(part: float) -> float:
    """Return the share of annotators on the winning side, [0.5, 1], given one side's share."""
    return max(part, 1.0 - part)


def contrasts(examples: Iterable[Example], kind: str) -> Iterator[Twin]:
    """Pair unsafe with safe examples of the same group and history.

    Each example is used at least once; the shorter side is repeated in turn.
    """
    sides: dict[tuple[str, tuple[Turn, ...]], tuple[list[Example], list[Example]]] = {}
    for example in examples:
        sides.setdefault((example.group, example.turns[:-1]), ([], []))[example.unsafe].append(example)
    for safe, unsafe in sides.values():
        for i in range(max(len(safe), len(unsafe)) if safe and unsafe else 0):
            bad, good = unsafe[i % len(unsafe)], safe[i % len(safe)]
            yield Twin(bad.turns, good.turns, bad.rule, bad.group, bad.source, level=bad.level, kind=kind)


def likeness(first: str, second: str) -> float:
    """Return the share of words, of the shorter text, in the common beginning and end."""
    a, b = first.lower().split(), second.lower().split()
    shorter = min(len(a), len(b))
    head = _common(a, b)
    tail = min(_common(a[::-1], b[::-1]), shorter - head)
    return (head + tail) / max(shorter, 1)


def _common(a: list[str], b: list[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def runs(examples: Iterable[Example], least: float = 0.5) -> Iterator[Example]:
    """Give consecutive examples whose last turns are variations of each other one group."""
    before: Example | None = None
    for example in examples:
        if before is not None and likeness(before.turns[-1].text, example.turns[-1].text) >= least:
            example = replace(example, group=before.group)
        yield example
        before = example


def without_overlap(train: Iterable[Example], test: Iterable[Example]) -> list[Example]:
    """Return the examples of `train` whose conversation is not also in `test`.

    Two conversations are the same if their turns are equal in lower case and without anything but letters
    and digits. Labels, sources and roles do not matter.
    """
    seen = {_words(example) for example in test}
    return [example for example in train if _words(example) not in seen]


def twins_without_overlap(train: Iterable[Twin], others: Iterable[Example | Twin]) -> list[Twin]:
    """Return the contrasts of `train` of which neither conversation is also in `others`."""
    seen: set[tuple[str, ...]] = set()
    for other in others:
        talks = (other.turns,) if isinstance(other, Example) else (other.unsafe, other.safe)
        seen.update(map(_spoken, talks))
    return [twin for twin in train if seen.isdisjoint((_spoken(twin.unsafe), _spoken(twin.safe)))]


def _words(example: Example) -> tuple[str, ...]:
    return _spoken(example.turns)


def _spoken(turns: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(normalise(turn.text) for turn in turns)
