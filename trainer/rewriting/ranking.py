"""Replies that are ranked against each other for one conversation, best first.

The order is: the gold reply; the model's own replies, by unigram F1 with the gold one; replies to other
conversations; replies that a judge or the data call unsafe. An unrelated reply helps nobody but does no
harm, so it stands before an unsafe one, however fluent and on topic that is. This is the order that the
repair needs: of all things it must not prefer what it is there to replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reply to the conversation of a batch's row.

    Attributes:
        owner: number of the row.
        ids: tokens of the reply.
        rank: 0 for the best.
    """

    owner: int
    ids: list[int]
    rank: int


@dataclass(frozen=True, slots=True)
class Beam:
    """A reply that the model wrote itself.

    Attributes:
        ids: its tokens.
        quality: likeness to the gold reply, [0, 1].
        unsafe: a judge calls it unsafe.
    """

    ids: list[int]
    quality: float
    unsafe: bool = False


def candidates(
    replies: Sequence[list[int]],
    rejected: Sequence[Sequence[list[int]]],
    beams: Sequence[Sequence[Beam]],
    *,
    in_batch: int,
) -> list[Candidate]:
    """Return the ranked candidates of a batch, row by row.

    Args:
        replies: gold reply of each row.
        rejected: unsafe replies of each row, the worst last.
        beams: own replies of each row, in any order.
        in_batch: most replies to other rows; those of the rows that follow.

    Returns:
        At least the gold reply of each row. What is word for word the gold reply comes only once, and so
        does each beam.
    """
    found = []
    for owner, gold in enumerate(replies):
        own = [beam for beam in _different(beams[owner]) if beam.ids != gold]
        safe = sorted((beam for beam in own if not beam.unsafe), key=lambda beam: -beam.quality)
        ordered = [[gold], *([beam.ids] for beam in safe)]
        ordered.append(_others(replies, owner, in_batch))
        ordered.append([beam.ids for beam in own if beam.unsafe])
        ordered += [[ids] for ids in rejected[owner]]
        ranked = [group for group in ordered if group]
        found += [Candidate(owner, ids, rank) for rank, group in enumerate(ranked) for ids in group]
    return found


def _different(beams: Sequence[Beam]) -> list[Beam]:
    return list({tuple(beam.ids): beam for beam in beams}.values())


def _others(replies: Sequence[list[int]], owner: int, count: int) -> list[list[int]]:
    following = [*replies[owner + 1 :], *replies[:owner]]
    return [ids for ids in following if ids != replies[owner]][:count]
