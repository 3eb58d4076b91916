"""Finds where a sequence has said its end before, and so what may come next (prompt lookup; the longest match
of LZ77).

Knows token ids. Knows nothing of what a guess costs, or of runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_MIN_MATCH = 2  # ids that must agree for a match to be found
_MAX_MATCH = 16  # more agreeing ids say no more
_MAX_CANDIDATES = 8  # earlier places that one search looks at
_MIN_MATCH_TO_RESUME = 3  # ids that agree before a match that breaks is worth coming back to
_RESUME_WINDOW = 8  # positions from the place of a broken match on where the text may go on
_RESUME_PATIENCE = 8  # ids after which a broken match is given up


class PromptLookup:
    """An index of one sequence that grows id by id, and the place where its end was found before.

    Ids in `never` are neither drafted nor take part in a match: media placeholders, whose meaning is not in
    their id, and ids that end an answer. `match_length` says how many ids before the expected one agree. Less
    than 0: a match broke so many ids ago, and what is expected is what stands so far behind its place. Adding
    an id takes a few microseconds whatever the length.
    """

    def __init__(self, ids: Iterable[int], never: Collection[int]) -> None:
        self._never = frozenset(never)
        self._ids: list[int] = []
        self._ends: dict[int, int] = {}  # pair of ids: where it ended last
        self._earlier: list[int] = []  # by position: where the pair that ends here ended before, or -1
        for token in ids:
            self._append(token)
        self._source = -1  # the position whose id is expected next, or -1
        self._broken = -1  # the position whose id did not come when the last match broke; -1 if given up
        self._wrong = 0  # the position of the id that came instead
        self.match_length = 0
        self._search()

    @property
    def expected(self) -> int | None:
        """The id that comes next if the text repeats itself; None where there is no match."""
        if self._source < 0 or self._ids[self._source] in self._never:
            return None
        return self._ids[self._source]

    def add(self, token: int) -> bool | None:
        """Notes the next id. Returns whether it is the expected one, None where none was expected."""
        expected = self.expected
        self._append(token)
        if expected == token:
            self._source += 1
            self.match_length = max(self.match_length, 0) + 1
            return True
        if self.match_length >= _MIN_MATCH_TO_RESUME:
            self._broken, self._wrong = self._source, len(self._ids) - 1
        self._source, self.match_length = -1, 0
        if not self._realign():
            self._search()
        if self._source < 0:
            self._keep_step()
        return None if expected is None else False

    def draft(self, count: int) -> list[int]:
        """At most `count` ids that followed the match, none of `never`. A match that reaches the end of the
        sequence goes on into the draft itself, as in a text that loops.
        """
        drafted: list[int] = []
        if self._source < 0:
            return drafted
        for position in range(self._source, self._source + count):
            past = position - len(self._ids)
            token = self._ids[position] if past < 0 else drafted[past]
            if token in self._never:
                break
            drafted.append(token)
        return drafted

    def _append(self, token: int) -> None:
        position = len(self._ids)
        previous = self._ids[-1] if position else token
        self._ids.append(token)
        if position == 0 or token in self._never or previous in self._never:
            self._earlier.append(-1)
            return
        pair = previous << 32 | token
        self._earlier.append(self._ends.get(pair, -1))
        self._ends[pair] = position

    def _realign(self) -> bool:
        """Finds the last id near the place where a match broke: a word was replaced, left out or put in, and
        the text goes on as it did. So near one id is enough.
        """
        token, end = self._ids[-1], len(self._ids) - 1
        if end - self._wrong >= _RESUME_PATIENCE:
            self._broken = -1
        if self._broken < 0 or token in self._never:
            return False
        try:
            place = self._ids.index(token, self._broken, min(self._broken + _RESUME_WINDOW, end))
        except ValueError:
            return False
        self._source, self.match_length = place + 1, 1
        return True

    def _keep_step(self) -> None:
        """Expects what comes next if each id since a match broke stands for one at its place."""
        if self._broken >= 0:
            since = len(self._ids) - self._wrong
            self._source, self.match_length = self._broken + since, -since

    def _search(self) -> None:
        """Finds the longest match of the sequence's end among the latest candidates; the latest of equals."""
        candidate = self._earlier[-1] if self._earlier else -1
        best = 0
        for _ in range(_MAX_CANDIDATES):
            if candidate < 0 or best == _MAX_MATCH:
                return
            length = self._agreeing(candidate)
            if length > best:
                best, self._source = length, candidate + 1
                self.match_length = length
            candidate = self._earlier[candidate]

    def _agreeing(self, candidate: int) -> int:
        """How many ids that end at `candidate` are those at the sequence's end; at least the pair is."""
        ids, end, length = self._ids, len(self._ids) - 1, _MIN_MATCH
        while (
            length < min(_MAX_MATCH, candidate + 1)
            and ids[end - length] == ids[candidate - length]
            and ids[end - length] not in self._never
        ):
            length += 1
        return length
