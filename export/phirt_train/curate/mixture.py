"""What each source gives to a training run: tokens, unique tokens, epochs, shares, as the reports print them.

Either shares are aimed at, and the epochs follow from what a source has (with a limit: what a source cannot
give, the others give in proportion); or epochs are given, and the shares follow. Knows numbers. Knows
nothing of files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated

from phirt.errors import ConfigError
from phirt.fields import Range

LONG_SUFFIX = ".long"


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """What is aimed at.

    Attributes:
        tokens: of the whole run; None for as many as one epoch of what is there, or as the epochs come to.
        shares: by source; they are scaled to a sum of 1.
        epochs: by source, in place of shares.
        most_epochs: of a source.
        long_share: the share of each source's tokens that comes from its long documents; None for as many as
            there are.
    """

    tokens: Annotated[float, Range(1, 1e18)] | None = None
    shares: Mapping[str, Annotated[float, Range(0, 1e6)]] = dataclasses.field(default_factory=dict)
    epochs: Mapping[str, Annotated[float, Range(0, 1e6)]] = dataclasses.field(default_factory=dict)
    most_epochs: Annotated[float, Range(0.01, 1e6)] = 1e6
    long_share: Annotated[float, Range(0, 1)] | None = None

    def __post_init__(self) -> None:
        if self.shares and self.epochs:
            raise ValueError("it has both shares and epochs, of which one follows from the other; give one")


@dataclasses.dataclass(frozen=True)
class Portion:
    """What a source gives: `tokens` are drawn from `unique_tokens`, which makes `epochs`; `share` is of
    all.
    """

    source: str
    share: float
    unique_tokens: int
    tokens: float
    epochs: float


def portions(available: Mapping[str, int], config: MixtureConfig) -> tuple[Portion, ...]:
    """A portion for each source that has tokens, in their order.

    Args:
        available: unique tokens by source; long documents of a source under its name with LONG_SUFFIX.

    Raises:
        ConfigError: the mixture names a source that is not there, or asks for more than the sources have.
    """
    sources = _by_source(available)
    _require(sources, [*config.shares, *config.epochs])
    if config.epochs:
        wanted = {name: sources[name] * times for name, times in config.epochs.items() if sources[name]}
        if config.tokens is not None:
            scale = config.tokens / (sum(wanted.values()) or 1.0)
            wanted = {name: tokens * scale for name, tokens in wanted.items()}
    else:
        shares = dict(config.shares) or {name: float(count) for name, count in sources.items()}
        shares = {name: share for name, share in shares.items() if share and sources[name]}
        total = config.tokens or _one_epoch(sources, shares)
        wanted = _filled(sources, shares, total, config.most_epochs)
    split = {}
    for name, tokens in wanted.items():
        split.update(_by_length(name, tokens, available, config))
    whole = sum(split.values()) or 1.0
    return tuple(
        Portion(name, tokens / whole, available[name], tokens, tokens / available[name])
        for name, tokens in split.items()
        if available[name]
    )


def table(found: Iterable[Portion]) -> str:
    """The portions as a table in Markdown."""
    rows = ["| source | share | unique tokens | tokens | epochs |", "|---|---|---|---|---|"]
    rows += [
        f"| {one.source} | {one.share:.1%} | {one.unique_tokens:,} | {one.tokens:,.0f} | {one.epochs:.2f} |"
        for one in found
    ]
    return "\n".join(rows)


def _by_source(available: Mapping[str, int]) -> dict[str, int]:
    sources: dict[str, int] = {}
    for name, tokens in available.items():
        base = name.removesuffix(LONG_SUFFIX)
        sources[base] = sources.get(base, 0) + tokens
    return sources


def _require(sources: Mapping[str, int], named: Iterable[str]) -> None:
    for name in named:
        if name not in sources:
            raise ConfigError(
                f"the mixture names {name!r}, which is no source, accepted: {', '.join(sources)}"
            )


def _one_epoch(sources: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """As many tokens as the shares allow without any text twice."""
    whole = sum(shares.values())
    return min((sources[name] * whole / share for name, share in shares.items()), default=0.0)


def _filled(
    sources: Mapping[str, int], shares: Mapping[str, float], total: float, most_epochs: float
) -> dict[str, float]:
    """Tokens by source; those that reach their limit give that, the others the rest, in proportion."""
    room = sum(sources[name] * most_epochs for name in shares)
    if total > room * (1 + 1e-9):
        raise ConfigError(
            f"the mixture asks for {total:,.0f} tokens, and its sources give {room:,.0f} in {most_epochs:g} "
            "epochs; ask for fewer, or raise most_epochs"
        )
    tokens: dict[str, float] = {}
    open_shares, rest = dict(shares), total
    while open_shares:
        whole = sum(open_shares.values())
        full = {
            name: sources[name] * most_epochs
            for name, share in open_shares.items()
            if rest * share / whole >= sources[name] * most_epochs
        }
        if not full:
            tokens |= {name: rest * share / whole for name, share in open_shares.items()}
            break
        tokens |= full
        rest -= sum(full.values())
        open_shares = {name: share for name, share in open_shares.items() if name not in full}
    return {name: tokens[name] for name in shares}


def _by_length(
    name: str, tokens: float, available: Mapping[str, int], config: MixtureConfig
) -> dict[str, float]:
    """A source's tokens, parted between its long documents and the others."""
    long_name = name + LONG_SUFFIX
    short, long = available.get(name, 0), available.get(long_name, 0)
    if not long:
        return {name: tokens}
    if not short:
        return {long_name: tokens}
    share = long / (long + short) if config.long_share is None else config.long_share
    share = min(share, long * config.most_epochs / tokens) if tokens else share
    return {name: tokens * (1 - share), long_name: tokens * share}
