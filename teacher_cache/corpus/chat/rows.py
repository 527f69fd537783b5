"""Conversations' tokens → rows: one each, or whole ones together where they fit best."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from teacher_cache.corpus.documents import RowEnd, Tokenized
from teacher_cache.corpus.rows import TokenRow
from teacher_cache.format.arrays import ROLES
from teacher_cache.settings import RowSettings

WINDOW_ROWS = 512
"""Conversations are put together within so many rows' worth of them: more would hardly fit better, and take memory."""


def conversation_rows(
    conversations: Iterable[Tokenized], settings: RowSettings, pad_token_id: int, used: int = 0
) -> Iterator[tuple[TokenRow, RowEnd]]:
    """Rows and where each ends.

    Mode `document`: each conversation has a row; if `used`, that of the first one is left out. Mode `packed`: rows of
    a window, whose first conversation a row's end names, with the number of the window's rows up to there; the first
    `used` rows are left out.
    """
    if settings.mode == "document":
        for conversation in conversations:
            length = len(conversation.tokens)
            if used < length:
                yield row_of([conversation], settings.seq_len, pad_token_id), RowEnd(conversation, length)
            used = 0
        return
    for window in _windows(conversations, settings.seq_len + 1):
        packed = best_fit([len(conversation.tokens) for conversation in window], settings.seq_len + 1)
        for number, members in enumerate(packed[used:], used + 1):
            row = row_of([window[member] for member in members], settings.seq_len, pad_token_id)
            yield row, RowEnd(window[0], number)
        used = 0


def _windows(conversations: Iterable[Tokenized], room: int) -> Iterator[list[Tokenized]]:
    window: list[Tokenized] = []
    tokens = 0
    for conversation in conversations:
        window.append(conversation)
        tokens += len(conversation.tokens)
        if tokens >= WINDOW_ROWS * room:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Items of these lengths, by number, in bins of `room`: best fit, the longest first.

    A bin's items are in their order, and bins in that of their longest item: the first bins are a fair sample of all,
    since the longest item of a bin may stand anywhere. Source: best-fit decreasing, as for TRL's `packing_strategy`.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        at = bisect_left(free, (lengths[item], -1))
        if at == len(free):
            bins.append([])
            left, chosen = room, len(bins) - 1
        else:
            left, chosen = free.pop(at)
        bins[chosen].append(item)
        if left > lengths[item]:
            insort(free, (left - lengths[item], chosen))
    return [sorted(members) for members in sorted(bins)]


def row_of(conversations: Sequence[Tokenized], seq_len: int, pad_token_id: int) -> TokenRow:
    """A row of these conversations, padded to T + 1 tokens; they fit."""
    tokens = np.full(seq_len + 1, pad_token_id, np.uint32)
    roles = np.full(seq_len + 1, ROLES.index("padding"), np.uint8)
    counted, starts = np.zeros(seq_len + 1, np.bool_), np.zeros(seq_len + 1, np.bool_)
    first = 0
    for conversation in conversations:
        assert conversation.marks is not None
        span = slice(first, first + len(conversation.tokens))
        tokens[span], starts[first] = conversation.tokens, True
        roles[span], counted[span] = conversation.marks.roles, conversation.marks.counted
        counted[first] = False  # its first token follows another conversation, or nothing
        first = span.stop
    return TokenRow(tokens, starts[:-1], counted[1:], roles[1:])
