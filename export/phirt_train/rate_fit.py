"""The peak learning rate of a long run from many short ones, and how much more the warm-up bears.

At each horizon (tokens of a run) a parabola is laid through loss over the logarithm of the rate, and its
vertex is the best rate; over the horizons ln rate falls on a line over ln tokens (Bjorck et al., arXiv
2409.19913): rate = coefficient · tokens^exponent, which is carried on to the real run's tokens.

The warm-up is stable at a multiple of the peak where its losses have no spike and its gradients do not blow
up.

Knows rates, tokens and losses. Knows nothing of recipes or training: whoever calls brings a function that
trains.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, Range, parse_json, read_dataclass, write_dataclass
from phirt.runtime.atomic_file import write_text
from phirt_train.measured import Measured
from phirt_train.progress import Progress, Report, ignore

STAGE = "rate fit"
MULTIPLES = (1.0, 2.0, 4.0, 8.0)
_SPIKE_SIGMAS = 3.0
_WINDOW = 100  # steps before a step whose losses say what is usual
_LEAST_WINDOW = 10
_BLOW_UP = 10.0  # times the usual norm
_LEAST_EXPLAINED = 0.5
_MARGIN = 1e-9  # of a vertex at the outermost rate

_Tokens = Annotated[int, Range(1, 1 << 62)]
_Rate = Annotated[float, Range(1e-12, 1e3)]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One short run: its tokens, its peak rate, and the loss that it ended with."""

    tokens: _Tokens
    rate: _Rate
    loss: float


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best rate at one horizon, the loss that the parabola has there, and the share of the losses'
    variance that the parabola explains.
    """

    tokens: _Tokens
    rate: _Rate
    loss: float
    explained: Annotated[float, Range(0.0, 1.0)] = 1.0


@dataclasses.dataclass(frozen=True)
class RateFit:
    """rate = coefficient · tokens^exponent; `points` are the horizons that it was fitted to, `trials` all
    runs.
    """

    coefficient: Annotated[float, Range(1e-30, 1e30)]
    exponent: Annotated[float, Range(-10.0, 10.0)]
    points: Annotated[tuple[Optimum, ...], Length(1, 4096)]
    trials: Annotated[tuple[Trial, ...], Length(0, 1 << 16)] = ()

    def rate(self, tokens: int) -> float:
        """The peak rate of a run of so many tokens."""
        return float(self.coefficient * tokens**self.exponent)

    def table(self) -> str:
        """The horizons beside the line through them, as a Markdown table."""
        lines = ["| tokens | best rate | on the line | loss | explained |", "|---|---|---|---|---|"]
        for point in self.points:
            lines.append(
                f"| {point.tokens:,} | {point.rate:.3g} | {self.rate(point.tokens):.3g} | {point.loss:.4f} "
                f"| {100 * point.explained:.0f} % |"
            )
        return "\n".join(lines) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON that `fitted_rate` reads."""
        write_text(path, json.dumps(write_dataclass(self), indent=1) + "\n")


def load_fit(path: Path) -> RateFit:
    """The fit in a file.

    Raises:
        ConfigError: the file is missing or is no such fit.
    """
    remedy = "write it with phirt_train.rate_fit.fit_rates and RateFit.save"
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the fitted rate {path} cannot be read: {error}; {remedy}") from error
    document = parse_json(raw, str(path), ConfigError, remedy)
    return read_dataclass(RateFit, Fields(document, str(path), ConfigError, remedy, closed=True))


def fitted_rate(path: Path, tokens: int) -> float:
    """The peak rate that a file of `RateFit.save` has for a run of so many tokens.

    Raises:
        ConfigError: as `load_fit`; or there are no tokens, or the rate is none.
    """
    if tokens < 1:
        raise ConfigError(f"a run of {tokens} tokens has no learning rate; give it tokens")
    rate = load_fit(path).rate(tokens)
    if not 0 < rate < math.inf:
        raise ConfigError(f"{path} gives the rate {rate:g} for {tokens} tokens; fit it anew")
    return rate


def best_rate(trials: Sequence[Trial]) -> Optimum:
    """The vertex of the parabola over ln rate through runs of one horizon, by least squares.

    Raises:
        ConfigError: fewer than three rates, losses that bend the wrong way, a vertex outside of the rates
            that were tried, or losses that scatter more than the parabola explains: one cannot say then where
            the best rate is.
    """
    (tokens, *others) = {trial.tokens for trial in trials} or {0}
    assert not others
    finite = [trial for trial in trials if math.isfinite(trial.loss)]
    rates = sorted({trial.rate for trial in finite})
    if len(rates) < 3:
        raise ConfigError(
            f"at {tokens} tokens {len(rates)} rates ended with a loss that is a number, and a parabola needs "
            "three; try more, or lower ones"
        )
    tried = f"{rates[0]:g} to {rates[-1]:g}"
    logarithms = np.log([trial.rate for trial in finite])
    middle = float(logarithms.mean())
    losses = [trial.loss for trial in finite]
    bend, slope, constant = (float(term) for term in np.polyfit(logarithms - middle, losses, 2))
    if bend <= 0:
        raise ConfigError(
            f"at {tokens} tokens the losses of the rates {tried} have no lowest point between them; try "
            "rates further apart, or longer runs"
        )
    vertex = middle - slope / (2 * bend)
    if not logarithms.min() - _MARGIN <= vertex <= logarithms.max() + _MARGIN:
        side = "lower" if vertex < logarithms.min() else "higher"
        raise ConfigError(
            f"at {tokens} tokens the best rate lies outside of those that were tried, {tried}, near "
            f"{math.exp(min(max(vertex, -27.0), 6.0)):.3g}; try {side} ones"
        )
    explained = _explained(np.array(losses), np.polyval((bend, slope, constant), logarithms - middle))
    if explained < _LEAST_EXPLAINED:
        raise ConfigError(
            f"at {tokens} tokens a parabola explains {100 * explained:.0f} % of how the losses of the rates "
            f"{tried} vary, accepted: {100 * _LEAST_EXPLAINED:.0f} %; measure the loss on more held-out "
            "text, try closer rates, or longer runs"
        )
    return Optimum(tokens, math.exp(vertex), constant - slope**2 / (4 * bend), explained)


def _explained(losses: npt.NDArray[np.float64], curve: npt.NDArray[np.floating]) -> float:
    """The share of the losses' variance that a curve through them has."""
    total = float(((losses - losses.mean()) ** 2).sum())
    rest = float(((losses - curve) ** 2).sum())
    return min(1.0, max(0.0, 1 - rest / total)) if total else 1.0


def fit_rates(trials: Iterable[Trial]) -> RateFit:
    """The power law through the best rates of all horizons.

    Raises:
        ConfigError: there are fewer than two horizons, or one of them has no best rate.
    """
    every = tuple(trials)
    horizons = sorted({trial.tokens for trial in every})
    if len(horizons) < 2:
        raise ConfigError(f"{len(horizons)} horizons say nothing of others; give runs of two at least")
    points = [best_rate([trial for trial in every if trial.tokens == tokens]) for tokens in horizons]
    x, y = np.log([point.tokens for point in points]), np.log([point.rate for point in points])
    exponent = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    coefficient = math.exp(float(y.mean() - exponent * x.mean()))
    return RateFit(coefficient, exponent, tuple(points), every)


def try_rates(
    train: Callable[[float, int], Sequence[float]],
    rates: Sequence[float],
    horizons: Sequence[int],
    *,
    last: int = 20,
    path: Path | None = None,
    identity: str = "",
    report: Report = ignore,
) -> list[Trial]:
    """Short runs at every rate and horizon.

    Args:
        train: runs with a peak rate for so many tokens, its schedule complete, and gives the loss of each
            step.
        rates, horizons: what to try.
        last: the final loss is the mean of so many last steps.
        path: the file of losses from which a sweep that was stopped continues.
        identity: names model, data and schedule in that file.
        report: told of each run.

    Raises:
        ConfigError: the file is another sweep's.
    """
    measured = Measured(path, f"rates over {last} steps {identity}")
    trials: list[Trial] = []
    total = len(rates) * len(horizons)

    def final(rate: float, tokens: int) -> float:
        losses = list(train(rate, tokens))[-last:]
        return math.fsum(losses) / len(losses) if losses else math.inf

    for tokens in horizons:
        for rate in rates:
            report(Progress(STAGE, len(trials), total, "runs", f"{rate:.3g} for {tokens} tokens"))
            loss = measured.value([rate, tokens], functools.partial(final, rate, tokens))
            trials.append(Trial(tokens, rate, loss))
    report(Progress(STAGE, total, total, "runs", "done"))
    return trials


@dataclasses.dataclass(frozen=True)
class StepReading:
    """One step of a run: its loss, and the norm of its gradients before they are clipped."""

    loss: float
    grad_norm: float


@dataclasses.dataclass(frozen=True)
class Stability:
    """What the warm-up did at one multiple of the peak: `step` and `fault` say where it went wrong, None and
    empty where it did not.
    """

    multiple: float
    step: int | None = None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class WarmupReport:
    """All multiples that were tried, and the largest one that is stable as all lower ones are; None where
    even the lowest is not.
    """

    runs: tuple[Stability, ...]
    largest_stable: float | None

    def table(self) -> str:
        """The runs as a Markdown table."""
        lines = ["| times the peak | stable | fault |", "|---|---|---|"]
        for run in self.runs:
            where = "" if run.step is None else f"step {run.step}: {run.fault}"
            lines.append(f"| {run.multiple:g} | {'yes' if run.step is None else 'no'} | {where} |")
        return "\n".join(lines) + "\n"


def warmup_stability(
    train: Callable[[float, int], Iterable[StepReading]],
    warmup_steps: int,
    multiples: Sequence[float] = MULTIPLES,
    report: Report = ignore,
) -> WarmupReport:
    """Repeats the first steps of a run, twice the warm-up's, at multiples of its peak.

    Args:
        train: begins the run at a multiple of its peak rate and gives the readings of so many steps; it is
            not asked for more after a fault.
        warmup_steps: steps of the warm-up.
        multiples: what to try, from the lowest on.
        report: told of each run.
    """
    runs: list[Stability] = []
    for multiple in sorted(multiples):
        report(Progress(STAGE, len(runs), len(multiples), "runs", f"warm-up at {multiple:g} times the peak"))
        runs.append(_stability(multiple, train(multiple, 2 * warmup_steps)))
    stable = None
    for run in runs:
        if run.step is not None:
            break
        stable = run.multiple
    return WarmupReport(tuple(runs), stable)


def _stability(multiple: float, readings: Iterable[StepReading]) -> Stability:
    losses: list[float] = []
    norms: list[float] = []
    for step, reading in enumerate(readings):
        fault = step_fault(losses[-_WINDOW:], norms[-_WINDOW:], reading)
        if fault:
            return Stability(multiple, step, fault)
        losses.append(reading.loss)
        norms.append(reading.grad_norm)
    return Stability(multiple)


def step_fault(losses: Sequence[float], norms: Sequence[float], reading: StepReading) -> str:
    """What is wrong with a step after those of the window before it; empty where nothing is. A loss spikes
    where it stands more than three standard deviations above the window's mean, a gradient blows up at ten
    times the window's median norm; a window of less than ten steps says neither.
    """
    if not math.isfinite(reading.loss) or not math.isfinite(reading.grad_norm):
        return "loss or gradients are no number"
    if len(losses) < _LEAST_WINDOW:
        return ""
    mean, spread = float(np.mean(losses)), float(np.std(losses, ddof=1))
    if reading.loss > mean + _SPIKE_SIGMAS * spread:
        return f"loss {reading.loss:.4g}, usual are {mean:.4g} ± {spread:.2g}"
    usual = float(np.median(norms))
    if reading.grad_norm > _BLOW_UP * usual:
        return f"norm of gradients {reading.grad_norm:.4g}, usual is {usual:.4g}"
    return ""
