"""Which parameters a stage trains, and which of them at a rate of their own.

Knows names and patterns. Knows nothing of what parameters do.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt_train.stage import StageConfig


def fits(name: str, pattern: str) -> bool:
    """Whether a name begins with a pattern or, where it is written with a leading `*`, contains it."""
    return pattern[1:] in name if pattern.startswith("*") else name.startswith(pattern)


def _require_use(stage: StageConfig, patterns: Iterable[str], names: Sequence[str]) -> None:
    if idle := [pattern for pattern in patterns if not any(fits(name, pattern) for name in names)]:
        raise ConfigError(
            f"stage {stage.name}: no parameter fits {', '.join(idle)}; names are like {names[0]} and "
            f"{names[-1]}"
        )


def check_rates(names: Sequence[str], stage: StageConfig) -> None:
    """Raises ConfigError where no parameter of the model has a rate that the stage gives to some."""
    _require_use(stage, [pattern for pattern in stage.rates if not pattern.startswith("head.")], names)


def trained_names(names: Iterable[str], stage: StageConfig) -> list[str]:
    """The names that begin with (or, written with a leading `*`, contain) one of the stage's patterns.

    Raises:
        ConfigError: a pattern fits no name.
    """
    known = list(names)
    _require_use(stage, stage.trains, known)
    return [name for name in known if any(fits(name, pattern) for pattern in stage.trains)]


def part_rates(names: Iterable[str], stage: StageConfig) -> dict[str, float]:
    """What the rate of a trained parameter is multiplied by, where the stage says so.

    Raises:
        ConfigError: a pattern fits no name.
    """
    known = list(names)
    _require_use(stage, stage.rates, known)
    found: dict[str, float] = {}
    for pattern, rate in stage.rates.items():
        for name in known:
            if fits(name, pattern):
                found.setdefault(name, rate)
    return found


def kept_buffers(model: nn.Module, trained: Container[str], stage: StageConfig) -> dict[str, Tensor]:
    """What moves with the trained parameters and belongs to the weights, by name: the running statistics of
    modules with a trained parameter of their own, and buffers that a pattern fits. Tables that no checkpoint
    has are none of it.
    """
    stored = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {}
    for place, module in model.named_modules():
        start = f"{place}." if place else ""
        moves = any(f"{start}{name}" in trained for name, _ in module.named_parameters(recurse=False))
        for name, buffer in module.named_buffers(start.removesuffix("."), recurse=False):
            if name in stored and (moves or any(fits(name, pattern) for pattern in stage.trains)):
                found[name] = buffer
    return found


def select(model: nn.Module, stage: StageConfig) -> dict[str, nn.Parameter]:
    """The parameters that the stage trains, by name; all others are frozen."""
    parameters = dict(model.named_parameters())
    chosen = trained_names(parameters, stage)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return {name: parameters[name] for name in chosen}
