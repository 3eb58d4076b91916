"""Rotary embeddings as published configurations describe them: plain, linear, dynamic, llama3, YaRN and
LongRoPE.

Knows the keys (`rope_parameters` of transformers 5; `rope_theta`, `rope_scaling` and `partial_rotary_factor`
before) and reduces every scaling to one factor per rotated pair that divides the plain frequencies, and one
magnitude. Knows nothing of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from phirt.fields import Fields
from phirt_export.reference.config import RopeConfig

# LongRoPE's own longest published extension; tables of this many rows are still small beside the weights.
MAX_CONTEXT = 1 << 21
_LARGEST_CONTEXT = 1 << 40
_LARGEST_FACTOR = 1e6
_DEFAULT_THETA = 10000.0  # of every family's class in transformers, where neither key is there


def read_rope(config: Fields, head_dim: int) -> RopeConfig:
    """The rotary embedding of a decoder with heads of `head_dim`.

    Raises:
        ConfigError: a key is missing or out of range, or the scaling is not one of those above.
    """
    context = min(_context(config), MAX_CONTEXT)
    name = _scaling_key(config)
    scaling = config if name is None else config.child(name)
    place = next((f for f in (scaling, config) if f.has("rope_theta")), None)
    theta = _DEFAULT_THETA if place is None else place.number("rope_theta", 1.0, 1e12)
    # Absent where the whole head turns, as in Phi-3-mini's configuration.
    place = next((f for f in (scaling, config) if f.has("partial_rotary_factor")), None)
    share = 1.0 if place is None else place.number("partial_rotary_factor", 1e-3, 1.0)
    plain = _Plain(config, scaling, theta, int(head_dim * share), context)
    kind = "default" if name is None else _kind(scaling)
    if kind not in _SCALINGS:
        raise scaling.refusal(
            f"rope scaling {kind[:80]!r} is not supported, accepted: {', '.join(sorted(_SCALINGS))}"
        )
    return _SCALINGS[kind](plain)


def rope_notices(config: Fields) -> list[str]:
    """What is not done as config.json says: one line each."""
    notices = []
    context = _context(config)
    if context > MAX_CONTEXT:
        notices.append(f"the context of {context} positions is capped at {MAX_CONTEXT}")
    name = _scaling_key(config)
    if name is not None and _kind(config.child(name)) == "dynamic":
        notices.append(
            f"rope scaling 'dynamic' is the plain one up to max_position_embeddings: the context ends there, "
            f"at {min(context, MAX_CONTEXT)}"
        )
    return notices


def _context(config: Fields) -> int:
    """Positions; the first files of Llama 1 have them by another name."""
    keys = ("max_position_embeddings", "max_sequence_length")
    return config.integer(next(filter(config.has, keys), keys[0]), 1, _LARGEST_CONTEXT)


def _scaling_key(config: Fields) -> str | None:
    """Where the scaling stands: like transformers, `rope_scaling` goes before `rope_parameters`. What is set
    by hand beside parameters that it does not repeat is refused: transformers would forget the theta there.
    """
    old, new = (key if config.raw(key) else None for key in ("rope_scaling", "rope_parameters"))
    if old is None or new is None:
        return old or new
    parameters, scaling = config.child(new), config.child(old)
    if parameters.has("rope_theta") and not scaling.has("rope_theta"):
        lost = parameters.number("rope_theta", 1.0, 1e12)
        kept = config.number("rope_theta", 1.0, 1e12) if config.has("rope_theta") else _DEFAULT_THETA
        if lost != kept:
            raise config.refusal(
                f"'rope_scaling' stands beside 'rope_parameters', whose rope_theta {lost:g} transformers "
                f"forgets then for {kept:g}; put the scaling into 'rope_parameters'"
            )
    return old


def _kind(scaling: Fields) -> str:
    return scaling.text("rope_type" if scaling.has("rope_type") else "type", "default")


class _Plain:
    """What all scalings start from."""

    def __init__(self, config: Fields, scaling: Fields, theta: float, rotary_dim: int, context: int) -> None:
        self.config, self.scaling = config, scaling
        self.theta, self.rotary_dim, self.context = theta, rotary_dim, context

    @property
    def frequencies(self) -> list[float]:
        """Inverse frequency of each rotated pair."""
        return [self.theta ** (-i / self.rotary_dim) for i in range(0, self.rotary_dim, 2)]

    def original_context(self) -> int:
        """Positions before the extension: beside the scaling, in it, or, where neither says, the context."""
        place = next(
            (f for f in (self.config, self.scaling) if f.has("original_max_position_embeddings")), None
        )
        if place is None:
            return self.context
        return min(place.integer("original_max_position_embeddings", 2, _LARGEST_CONTEXT), MAX_CONTEXT)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number of the scaling."""
        if default is not None and not self.scaling.has(key):
            return default
        return self.scaling.number(key, 1e-6, _LARGEST_FACTOR)

    def one_regime(self, factors: list[float], magnitude: float = 1.0, context: int = 0) -> RopeConfig:
        """Factors that hold at every length."""
        context = max(context, self.context)
        same = tuple(factors)
        return RopeConfig(self.theta, self.rotary_dim, context, context, same, same, magnitude)


def _default(plain: _Plain) -> RopeConfig:
    return plain.one_regime([1.0] * len(plain.frequencies))


def _linear(plain: _Plain) -> RopeConfig:
    """Positions divided by one factor."""
    return plain.one_regime([plain.number("factor")] * len(plain.frequencies))


def _llama3(plain: _Plain) -> RopeConfig:
    """Llama 3.1: long waves are slowed by the factor, short ones kept, those between blended."""
    factor, original = plain.number("factor"), plain.original_context()
    low, high = plain.number("low_freq_factor"), plain.number("high_freq_factor")
    if high <= low:
        raise plain.scaling.refusal(f"'high_freq_factor' {high:g} must exceed 'low_freq_factor' {low:g}")

    def slowed(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        return 1 / (kept + (1 - kept) / factor)

    return plain.one_regime([slowed(frequency) for frequency in plain.frequencies])


def yarn_factors(
    theta: float,
    rotary_dim: int,
    original_context: int,
    factor: float,
    turns: tuple[float, float] = (32.0, 1.0),
    *,
    whole_pairs: bool = True,
) -> list[float]:
    """YaRN's factor of each rotated pair: 1 for pairs that turn `turns[0]` times or more within the original
    context, `factor` for those that turn `turns[1]` times or less, and between them a ramp over the pairs,
    which begins and ends at a whole pair.
    """

    def pair_with(count: float) -> float:
        return rotary_dim * math.log(original_context / (count * 2 * math.pi)) / (2 * math.log(theta))

    low, high = map(pair_with, turns)
    if whole_pairs:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = (high - low) or 1e-3
    slowed = [min(1.0, max(0.0, (i - low) / width)) for i in range(rotary_dim // 2)]
    return [1 / (1 - s + s / factor) for s in slowed]


def _yarn(plain: _Plain) -> RopeConfig:
    """YaRN (arXiv 2309.00071): a ramp over pairs from kept to slowed, and a magnitude that grows with the
    factor.
    """
    factor, original = plain.number("factor"), plain.original_context()
    turns = plain.number("beta_fast", 32.0), plain.number("beta_slow", 1.0)
    whole = plain.scaling.raw("truncate") is not False
    factors = yarn_factors(plain.theta, plain.rotary_dim, original, factor, turns, whole_pairs=whole)

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    magnitude = growth(1.0)
    if plain.scaling.has("mscale") and plain.scaling.has("mscale_all_dim"):
        magnitude = growth(plain.number("mscale")) / growth(plain.number("mscale_all_dim"))
    magnitude = plain.number("attention_factor", magnitude)
    extended = min(MAX_CONTEXT, int(original * factor))
    return plain.one_regime(factors, magnitude, extended)


def _longrope(plain: _Plain) -> RopeConfig:
    """LongRoPE (arXiv 2402.13753): two lists of factors, one for each regime."""
    short, long = (plain.scaling.numbers(f"{key}_factor", 1e-6, _LARGEST_FACTOR) for key in ("short", "long"))
    magnitude = plain.number("attention_factor") if plain.scaling.has("attention_factor") else None
    for key in ("short_mscale", "long_mscale"):
        if plain.scaling.has(key):
            raise plain.scaling.refusal(f"{key!r} is not supported: one magnitude must hold in both regimes")
    original = plain.original_context()
    return RopeConfig(plain.theta, plain.rotary_dim, original, plain.context, short, long, magnitude)


_SCALINGS: dict[str, Callable[[_Plain], RopeConfig]] = {
    "default": _default,
    "dynamic": _default,  # NTK-aware scaling begins past the context, which therefore ends where it begins
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first Phi-3 configurations
}
