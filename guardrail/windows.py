"""Pack a conversation's tokens into windows that an encoder can read.

Pure functions on token ids. A window reads: the judged turn first, then earlier turns, the newest
first, so that whatever does not fit is the oldest. Nothing is cut silently: `Packing` says how much
was read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

# An over-long judged turn is read in pieces that overlap, so that no phrase is torn apart.
PIECE_OVERLAP = 32
# An older turn is read together with at most this share of the window taken by the judged turn.
JUDGED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Window:
    """One input of the encoder.

    Attributes:
        ids: token ids with the special tokens.
        start: first token of the judged turn that is in it.
        end: one past the last such token.
        recent: True if it holds the newest context; False if it holds older turns.
    """

    ids: tuple[int, ...]
    start: int
    end: int
    recent: bool


@dataclass(frozen=True, slots=True)
class Packing:
    """Windows, and what they hold.

    Attributes:
        windows: at most the number that was asked for, at least one.
        turns_read: turns of which at least one token is in a window.
        tokens_read: different tokens that are in a window.
        judged_read: True if every token of the judged turn is in a window.
    """

    windows: tuple[Window, ...]
    turns_read: int
    tokens_read: int
    judged_read: bool


def pack(
    judged: Sequence[int],
    context: Sequence[Sequence[int]],
    *,
    cls_id: int,
    sep_id: int,
    max_tokens: int,
    max_windows: int,
    max_context_windows: int | None = None,
) -> Packing:
    """Pack the judged turn and its context into windows.

    A window is `[CLS] judged [SEP] newest context [SEP] older [SEP] ...`. The first one holds the
    whole judged turn and as much context as fits. If the judged turn is longer than a window it
    comes in overlapping pieces. Context that did not fit comes in further windows, each beside the
    judged turn (its last half window, if it is long).

    Args:
        judged: token ids of the judged turn, without special tokens.
        context: token ids of the earlier turns, the newest first.
        cls_id: id of the token that begins a window.
        sep_id: id of the token that ends a turn.
        max_tokens: longest window in tokens, special tokens included; at least 16.
        max_windows: most windows; at least 1.
        max_context_windows: most further windows with older turns; None for no limit of their own.

    Returns:
        The windows and what they cover.
    """
    room = max_tokens - 2
    overlap = min(PIECE_OVERLAP, room // 4)  # a small window must still move forward
    spans = _piece_spans(len(judged), room, overlap, max_windows)
    queue = deque(tuple(turn) for turn in context if turn)
    given = len(queue)
    windows: list[Window] = []
    context_tokens = 0
    partly_read = False
    for start, end in spans:
        space = room - (end - start) if len(spans) == 1 else 0
        parts, partly_read = _fill(queue, space)
        windows.append(_window(judged, start, end, parts, cls_id, sep_id, recent=True))
        context_tokens += sum(map(len, parts))
    anchor = max(0, len(judged) - int(room * JUDGED_SHARE))
    if max_context_windows is not None:
        max_windows = min(max_windows, len(windows) + max_context_windows)
    while queue and len(windows) < max_windows:
        parts, partly_read = _fill(queue, room - (len(judged) - anchor))
        windows.append(_window(judged, anchor, len(judged), parts, cls_id, sep_id, recent=False))
        context_tokens += sum(map(len, parts))
    judged_tokens = spans[-1][1]
    return Packing(
        windows=tuple(windows),
        turns_read=1 + given - len(queue) + partly_read,
        tokens_read=judged_tokens + context_tokens,
        judged_read=judged_tokens == len(judged),
    )


def _piece_spans(length: int, room: int, overlap: int, max_pieces: int) -> list[tuple[int, int]]:
    spans = [(0, min(length, room))]
    while spans[-1][1] < length and len(spans) < max_pieces:
        start = spans[-1][1] - overlap
        spans.append((start, min(length, start + room)))
    return spans


def _fill(queue: deque[tuple[int, ...]], space: int) -> tuple[list[tuple[int, ...]], bool]:
    """Take turns off the queue's front until the space is full; the rest of a split turn stays.

    Returns:
        The parts, and True if the turn now at the front has been read in part.
    """
    parts: list[tuple[int, ...]] = []
    space -= 1  # the separator that ends each turn
    while queue and space > 0:
        turn = queue.popleft()
        parts.append(turn[:space])
        if len(turn) > space:
            queue.appendleft(turn[space:])
            return parts, True
        space -= len(turn) + 1
    return parts, False


def _window(
    judged: Sequence[int],
    start: int,
    end: int,
    context: Sequence[tuple[int, ...]],
    cls_id: int,
    sep_id: int,
    *,
    recent: bool,
) -> Window:
    ids = [cls_id, *judged[start:end], sep_id]
    for turn in context:
        ids.extend(turn)
        ids.append(sep_id)
    return Window(tuple(ids), start, end, recent)
