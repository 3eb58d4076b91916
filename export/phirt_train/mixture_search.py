"""Shares of sources from short runs: which of them is worth more, and which less, on held-out text.

From given shares each source's is tried larger and smaller by a factor, the others following in proportion,
and the best of these moves is taken if it is better by more than chance; then again from there. Chance is
what runs at nearly the same shares differ by, which draw other rows. Rows that help a small model for a short
time need not be those that help a large one for long: what is found is a hint, and its table says how clear.

Knows shares and losses. Knows nothing of recipes or training: whoever calls brings a function that trains.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from phirt.errors import ConfigError
from phirt_train.measured import Measured
from phirt_train.progress import Progress, Report, ignore

STAGE = "mixture search"
_NEAR = (1.02, 0.98)  # times the first share: other draws of what is the same mixture
_DIGITS = 6

Shares = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One run: its shares, what was changed of the shares before, its loss, and whether it was taken."""

    shares: Shares
    change: str
    loss: float
    is_taken: bool = False


@dataclasses.dataclass(frozen=True)
class FoundShares:
    """The best shares, what the loss scatters by, and all runs in order."""

    shares: Shares
    loss: float
    noise: float
    tried: tuple[Tried, ...]

    def table(self) -> str:
        """The runs as a Markdown table."""
        lines = ["| change | shares | loss | taken |", "|---|---|---|---|"]
        for one in self.tried:
            shares = ", ".join(f"{name} {share:.3f}" for name, share in one.shares.items())
            lines.append(f"| {one.change} | {shares} | {one.loss:.4f} | {'yes' if one.is_taken else ''} |")
        return "\n".join(lines) + "\n"


def normalised(shares: Shares) -> dict[str, float]:
    """Shares that add up to one, rounded, so that they name the same run again."""
    total = math.fsum(shares.values())
    return {name: round(share / total, _DIGITS) for name, share in shares.items()}


def search_shares(
    measure: Callable[[Shares], float],
    start: Shares,
    *,
    rounds: int = 3,
    factor: float = 2.0,
    sigmas: float = 2.0,
    path: Path | None = None,
    identity: str = "",
    report: Report = ignore,
) -> FoundShares:
    """The best shares that moves from `start` lead to.

    Args:
        measure: trains at these shares, which add up to one, and gives the held-out loss.
        start: two sources at least, each with a share.
        rounds: moves at most; in each all sources are tried, larger and smaller.
        factor: by how much a share becomes larger or smaller.
        sigmas: a move must be better by so many deviations of two runs of one mixture.
        path: the file of losses from which a search that was stopped goes on.
        identity: names model, data and length in that file.
        report: told of each run.

    Raises:
        ConfigError: there are fewer than two sources, or the first run has no loss; the file is another's.
    """
    if len(start) < 2 or min(start.values()) <= 0:
        raise ConfigError("a search needs two sources at least, each with a share above 0")
    measured = Measured(path, f"mixture {identity}")
    total = 1 + len(_NEAR) + rounds * 2 * len(start)
    tried: list[Tried] = []

    def loss_of(shares: Shares, change: str) -> Tried:
        report(Progress(STAGE, len(tried), total, "runs", change))
        loss = measured.value(list(shares.items()), functools.partial(measure, shares))
        tried.append(Tried(shares, change, loss))
        return tried[-1]

    best = loss_of(normalised(start), "start")
    first = next(iter(start))
    near = [loss_of(_changed(best.shares, first, times), "nearly the same") for times in _NEAR]
    losses = [best.loss, *(one.loss for one in near)]
    if not all(map(math.isfinite, losses)):
        raise ConfigError("the first runs of the search have no loss; lower the rate, or make them longer")
    noise = float(np.std(losses, ddof=1))
    for _ in range(rounds):
        moves = [
            loss_of(_changed(best.shares, name, times), f"{name} {'more' if times > 1 else 'less'}")
            for name in start
            for times in (factor, 1 / factor)
        ]
        leading = min(moves, key=lambda one: one.loss)
        if not leading.loss < best.loss - sigmas * math.sqrt(2) * noise:
            break
        best = dataclasses.replace(leading, is_taken=True)
        tried[tried.index(leading)] = best
    report(Progress(STAGE, len(tried), len(tried), "runs", "done"))
    return FoundShares(best.shares, best.loss, noise, tuple(tried))


def _changed(shares: Shares, name: str, times: float) -> dict[str, float]:
    return normalised({other: share * (times if other == name else 1.0) for other, share in shares.items()})
