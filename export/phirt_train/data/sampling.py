"""Which items a step takes: sources in their shares, and each source without replacement, epoch by epoch.

Everything is a function of seed and step, so that any process can say what any step takes, and a stage that
was stopped goes on as if it had not been. Knows names, sizes and shares. Knows nothing of what items are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from phirt_train.data.mixture import Shares

_Counts = NDArray[np.int64]
_GOLDEN = (5**0.5 - 1) / 2  # the steps' offsets are spread as evenly as a sequence can be
_AT_ONCE = 1 << 16
POOL = 4  # steps whose items are drawn together, so that those of one step can be alike


@dataclasses.dataclass(frozen=True)
class Consumed:
    """What a stage has taken of a source up to a step.

    Attributes:
        kind: what the recipe says that it holds.
        items: how many, with repetitions.
        tokens: of these items; 0 where they are not made of tokens.
        unique_tokens: without repetitions.
        epochs: how often it has been gone through.
    """

    kind: str
    items: int
    tokens: int
    unique_tokens: int
    epochs: float


class Pick(NamedTuple):
    """One item: the number of its source, and its own in that."""

    source: int
    item: int


def random_of(seed: int, name: str, *more: int) -> np.random.Generator:
    """The generator of a name: not that of any other."""
    return np.random.default_rng((seed, zlib.crc32(name.encode()), *more))


class Draws:
    """How many items each step takes of each source, and in which of its places.

    The number of a source's items in any step is within one of its share of them, and over many steps within
    a few.
    """

    def __init__(self, shares: Shares, batch: int, steps: int, seed: int) -> None:
        self.shares, self.batch, self.steps, self.seed = shares, batch, steps, seed
        self._phase = float(random_of(seed, "phase").random())
        self._known: tuple[int, _Counts] = (0, np.zeros(len(shares.names), np.int64))

    def counts(self, steps: NDArray[np.int64]) -> _Counts:
        """Items [n, sources] of steps [n]."""
        ends = self.batch * np.cumsum(self.shares.at(steps / self.steps), axis=1)
        offsets = (self._phase + steps * _GOLDEN) % 1.0
        edges = np.clip(np.ceil(ends - offsets[:, None]), 0, self.batch).astype(np.int64)
        edges[:, -1] = self.batch
        return np.diff(edges, axis=1, prepend=0)

    def before(self, step: int) -> _Counts:
        """Items [sources] of all steps before this one."""
        known, total = self._known if self._known[0] <= step else (0, np.zeros_like(self._known[1]))
        for begin in range(known, step, _AT_ONCE):
            total = total + self.counts(np.arange(begin, min(step, begin + _AT_ONCE))).sum(axis=0)
        self._known = (step, total)
        return total

    def realised(self, sizes: NDArray[np.float64] | None = None) -> list[dict[str, float]]:
        """For each hundredth of the steps, or each step where there are fewer, the share of each source; of
        each an item counts for so much.
        """
        edges = [number * self.steps // 100 for number in range(101)]
        found = []
        for begin, end in itertools.pairwise(edges):
            if begin < end:
                taken = self.counts(np.arange(begin, end)).sum(axis=0) * (1.0 if sizes is None else sizes)
                shares = (taken / taken.sum()).tolist()
                found.append(dict(zip(self.shares.names, shares, strict=True)))
        return found

    def of(self, step: int) -> list[tuple[int, int]]:
        """The items of a step, in random order: source, and how many of this source came before."""
        counts, before = self.counts(np.array([step]))[0], self.before(step)
        sources = np.repeat(np.arange(len(counts)), counts)
        places = np.concatenate([np.arange(count) for count in counts]) + before[sources]
        order = random_of(self.seed, "order", step).permutation(self.batch)
        return list(zip(sources[order].tolist(), places[order].tolist(), strict=True))


class EpochOrder:
    """The items of a source over and over, each epoch in an order of its own."""

    def __init__(self, size: int, seed: int, name: str) -> None:
        assert size > 0, "an empty source has no order"
        self.size = size
        self._permutation = functools.lru_cache(maxsize=2)(
            lambda epoch: random_of(seed, name, epoch).permutation(size).astype(np.uint32)
        )

    def __getitem__(self, place: int) -> int:
        epoch, within = divmod(place, self.size)
        return int(self._permutation(epoch)[within])


Alike = Callable[[Pick], tuple[int, ...]]


class Sampler:
    """The items of every step.

    Args:
        sizes: how many items each source has.
        shares: of the same sources.
        batch, steps: of the stage.
        seed: the stage's.
        alike: a key of items; those of a step have similar keys. None where any may stand together.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        shares: Shares,
        batch: int,
        steps: int,
        seed: int,
        alike: Alike | None = None,
    ) -> None:
        assert tuple(sizes) == shares.names, "sizes and shares are of different sources"
        self._pool = POOL if alike else 1
        self.sizes = dict(sizes)
        self._alike, self._batch, self._seed = alike, batch, seed
        self.draws = Draws(shares, batch * self._pool, -(-steps // self._pool), seed)
        self._orders = [EpochOrder(size, seed, name) for name, size in sizes.items()]
        self._batches = functools.lru_cache(maxsize=4)(self._make_batches)

    def picks(self, step: int) -> Sequence[Pick]:
        """What a step takes."""
        pool, place = divmod(step, self._pool)
        return self._batches(pool)[place]

    def _make_batches(self, pool: int) -> list[list[Pick]]:
        picks = [Pick(source, self._orders[source][place]) for source, place in self.draws.of(pool)]
        if self._alike is None:
            return [picks]
        picks.sort(key=self._alike)
        batches = [picks[begin : begin + self._batch] for begin in range(0, len(picks), self._batch)]
        order = random_of(self._seed, "batches", pool).permutation(len(batches))
        return [batches[place] for place in order]

    def before(self, step: int) -> list[int]:
        """Items of each source in all steps before this one."""
        pool, place = divmod(step, self._pool)
        counts = self.draws.before(pool).tolist()
        for batch in self._batches(pool)[:place] if place else ():
            for pick in batch:
                counts[pick.source] += 1
        return [int(count) for count in counts]

    def consumed(self, step: int, tokens: Sequence[NDArray[np.int64]] | None = None) -> dict[str, Consumed]:
        """What the steps before this one have taken of each source, whose items have so many tokens."""
        found = {}
        shares = self.draws.shares
        for number, count in enumerate(self.before(step)):
            order = self._orders[number]
            epochs, rest = divmod(count, order.size)
            total = part = 0
            if tokens is not None:
                total = int(tokens[number].sum())
                part = sum(int(tokens[number][order[epochs * order.size + n]]) for n in range(rest))
            unique = total if epochs else part
            found[shares.names[number]] = Consumed(
                shares.kinds[number], count, epochs * total + part, unique, count / order.size
            )
        return found


class SimilarSampler:
    """The items of every step, all of one source and of similar length.

    Args:
        lengths: of the items of each source.
        shares: of the steps that take each source.
        batch, steps, seed: the stage's.
        short: sources whose items are all at most so long give `POOL` times as many to a step.
    """

    def __init__(
        self,
        lengths: Mapping[str, NDArray[np.int64]],
        shares: Shares,
        batch: int,
        steps: int,
        seed: int,
        short: int,
    ) -> None:
        assert tuple(lengths) == shares.names, "lengths and shares are of different sources"
        self._lengths, self._batch, self._seed = list(lengths.values()), batch, seed
        self._is_short = [bool(own.max() <= short) for own in self._lengths]
        self.draws = Draws(shares, 1, steps, seed)
        self._orders = [EpochOrder(len(own), seed, name) for name, own in lengths.items()]

    def picks(self, step: int) -> tuple[int, list[int]]:
        """The source that a step takes, and which of its items."""
        ((source, visit),) = self.draws.of(step)
        order, size = self._orders[source], POOL * self._batch
        pool, part = (visit, 0) if self._is_short[source] else divmod(visit, POOL)
        items = [order[place] for place in range(pool * size, (pool + 1) * size)]
        items.sort(key=lambda item: int(self._lengths[source][item]))
        if self._is_short[source]:
            return source, items
        quarter = int(random_of(self._seed, "quarters", source, pool).permutation(POOL)[part])
        return source, items[quarter * self._batch : (quarter + 1) * self._batch]

    def consumed(self, step: int) -> dict[str, Consumed]:
        """What the steps before this one have taken of each source."""
        found, shares = {}, self.draws.shares
        for number, visits in enumerate(self.draws.before(step).tolist()):
            items = visits * self._batch * (POOL if self._is_short[number] else 1)
            epochs = items / len(self._lengths[number])
            found[shares.names[number]] = Consumed(shares.kinds[number], items, 0, 0, epochs)
        return found


S = TypeVar("S", Sampler, SimilarSampler)


class FromSampler(Generic[S]):
    """What an objective tells of the files that its sampler draws from."""

    _sampler: S

    def consumed(self, step: int) -> dict[str, Consumed]:
        """What the steps before this one have taken of each source."""
        return self._sampler.consumed(step)

    def realised(self) -> list[dict[str, float]]:
        """The share of each source of what is drawn, for each hundredth of the steps."""
        return self._sampler.draws.realised()
