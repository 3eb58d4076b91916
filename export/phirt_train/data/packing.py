"""Rows of a fixed length from token sequences: windows of a running text, or whole sequences packed.

Knows sequences, their lengths and order. Knows nothing of masks, models or what is learnt. A row is a
function of the seed and its number.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from phirt_train.data.sampling import EpochOrder, random_of
from phirt_train.data.token_store import TokenSequences

_ROWS_AT_ONCE = 64  # about so many rows are packed together


class Row(NamedTuple):
    """Token ids int64 [T + 1], which of them are learnt, and the number of the sequence that each is of; -1
    where nothing is.
    """

    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    numbers: NDArray[np.int64]


class RowSource(Protocol):
    """Rows of one source."""

    @property
    def total_tokens(self) -> int:
        """Tokens that an epoch shows."""

    def row(self, number: int) -> Row:
        """One row."""

    def tokens(self, rows: int) -> int:
        """Tokens of the first rows, repeated ones among them."""


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which pieces share a row: each goes, the longest first, into the fullest row that has room for it.

    Args:
        lengths: of the pieces, each at most `room`.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # room that is left, row; ascending
    for piece in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        assert lengths[piece] <= room, "a piece is longer than a row"
        place = bisect.bisect_left(left, (lengths[piece], -1))
        if place == len(left):
            rows.append([])
            rest, row = room, len(rows) - 1
        else:
            rest, row = left.pop(place)
        rows[row].append(piece)
        bisect.insort(left, (rest - lengths[piece], row))
    return rows


class RunningText:
    """Windows of all sequences one after another; each epoch cuts them elsewhere. Text that is shorter than
    a row begins again at its end.
    """

    def __init__(self, sequences: TokenSequences, length: int, seed: int, name: str) -> None:
        self._token_ids, self._length = sequences.token_ids, length
        self._seed, self._name = seed, name
        self.total_tokens = len(sequences.token_ids)
        self._order = EpochOrder(-(-self.total_tokens // length), seed, name)

    def row(self, number: int) -> Row:
        """One window."""
        offset = int(random_of(self._seed, f"{self._name} windows", number // self._order.size).integers(
            min(self._length, self.total_tokens)
        ))  # fmt: skip
        begin = offset + self._order[number] * self._length
        places = np.arange(begin, begin + self._length + 1) % self.total_tokens
        token_ids = self._token_ids[places].astype(np.int64)
        return Row(token_ids, np.ones(len(token_ids), bool), np.zeros(len(token_ids), np.int64))

    def tokens(self, rows: int) -> int:
        """Each row shows as many as it is long; the last of an epoch, of which a part is repeated, fewer."""
        epochs, rest = divmod(rows, self._order.size)
        return epochs * self.total_tokens + min(rest * self._length, self.total_tokens)


class PackedText:
    """Whole sequences, each once an epoch, packed into rows.

    Args:
        sequences: the source.
        numbers: which of them are taken.
        length: of a row, which has a token more.
        cuts: whether a sequence that is longer becomes several, so that nothing is lost; else it ends where
            the row does.
        pad: the token behind the last sequence of a row.
    """

    def __init__(
        self,
        sequences: TokenSequences,
        numbers: NDArray[np.int64],
        length: int,
        cuts: bool,
        pad: int,
        seed: int,
        name: str,
    ) -> None:
        self._sequences, self._length, self._pad = sequences, length, pad
        self._seed, self._name = seed, name
        self._pieces = _pieces(sequences.starts[numbers], sequences.starts[numbers + 1], length, cuts)
        self.total_tokens = int((self._pieces[:, 1] - self._pieces[:, 0]).sum())
        self._order = EpochOrder(len(self._pieces), seed, name)
        pieces_a_row = len(self._pieces) * (length + 1) / self.total_tokens
        self._at_once = max(64, round(_ROWS_AT_ONCE * pieces_a_row))
        self._ends = [0]  # rows up to the end of each group of pieces that are packed together
        self._token_ends = [0]
        self._groups = functools.lru_cache(maxsize=4)(self._packed)

    def _packed(self, group: int) -> list[list[tuple[int, int]]]:
        """The rows of a group: where the pieces of each begin and end."""
        places = range(group * self._at_once, (group + 1) * self._at_once)
        pieces: list[list[int]] = self._pieces[[self._order[place] for place in places]].tolist()
        rows = pack([end - begin for begin, end in pieces], self._length + 1)
        order = random_of(self._seed, f"{self._name} rows", group).permutation(len(rows))
        return [[(pieces[index][0], pieces[index][1]) for index in rows[row]] for row in order]

    def _group_of(self, row: int) -> int:
        while self._ends[-1] <= row:
            rows = self._groups(len(self._ends) - 1)
            self._ends.append(self._ends[-1] + len(rows))
            self._token_ends.append(self._token_ends[-1] + _size(rows))
        return bisect.bisect_right(self._ends, row) - 1

    def row(self, number: int) -> Row:
        """One row."""
        group = self._group_of(number)
        size = self._length + 1
        token_ids, loss_mask = np.full(size, self._pad, np.int64), np.zeros(size, bool)
        numbers, at = np.full(size, -1, np.int64), 0
        for place, (begin, end) in enumerate(self._groups(group)[number - self._ends[group]]):
            span = slice(at, at + end - begin)
            token_ids[span] = self._sequences.token_ids[begin:end]
            loss_mask[span] = self._sequences.loss_mask[begin:end]
            numbers[span] = place
            at = span.stop
        return Row(token_ids, loss_mask, numbers)

    def tokens(self, rows: int) -> int:
        """Of the first rows."""
        if not rows:
            return 0
        group = self._group_of(rows - 1)
        return self._token_ends[group] + _size(self._groups(group)[: rows - self._ends[group]])


def _pieces(begins: NDArray[np.int64], ends: NDArray[np.int64], length: int, cuts: bool) -> NDArray[np.int64]:
    """Where parts of sequences that fit a row begin and end, [n, 2]. Each but a sequence's first begins with
    the last token of the one before, so that every token but the first of all is predicted.
    """
    counts = np.maximum(1, -(-(ends - begins - 1) // length)) if cuts else np.ones_like(begins)
    firsts = np.cumsum(counts) - counts
    number = np.arange(counts.sum()) - np.repeat(firsts, counts)  # of a part in its sequence
    starts = np.repeat(begins, counts) + number * length
    return np.stack((starts, np.minimum(np.repeat(ends, counts), starts + length + 1)), axis=1)


def _size(rows: Sequence[Sequence[tuple[int, int]]]) -> int:
    return sum(end - begin for row in rows for begin, end in row)
