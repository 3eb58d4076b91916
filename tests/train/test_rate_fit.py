"""The learning rate from small runs, and the warm-up's stability, over losses that are computed by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from phirt.errors import ConfigError
from phirt_train.rate_fit import (
    StepReading,
    Trial,
    best_rate,
    fit_rates,
    fitted_rate,
    load_fit,
    step_fault,
    try_rates,
    warmup_stability,
)

RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
HORIZONS = [10_000, 20_000, 40_000, 80_000]


def loss_at(rate: float, tokens: int) -> float:
    """A parabola over ln rate whose vertex is at 0.05 · tokens^-0.32, as the paper's exponent has it."""
    best = 0.05 * tokens**-0.32
    return 2.0 + 3.0 / tokens**0.1 + 0.07 * math.log(rate / best) ** 2


def test_the_law_that_made_the_losses_is_found_again(tmp_path):
    trials = [Trial(tokens, rate, loss_at(rate, tokens)) for tokens in HORIZONS for rate in RATES]
    fit = fit_rates(trials)
    assert fit.exponent == pytest.approx(-0.32, rel=1e-9)
    assert fit.coefficient == pytest.approx(0.05, rel=1e-8)
    for point in fit.points:
        assert point.rate == pytest.approx(0.05 * point.tokens**-0.32, rel=1e-9)
        assert point.loss == pytest.approx(2.0 + 3.0 / point.tokens**0.1)
        assert point.explained == pytest.approx(1.0)
    assert "| 40,000 | 0.00168 | 0.00168 | 3.0397 | 100 % |" in fit.table()
    fit.save(path := tmp_path / "lr_fit.json")
    assert {"coefficient", "exponent", "points"} <= set(json.loads(path.read_text()))
    assert load_fit(path) == fit
    assert fitted_rate(path, 10**9) == pytest.approx(0.05 * (10**9) ** -0.32, rel=1e-7)


def test_a_vertex_by_hand():
    # Through (ln rate, loss) = (-1, 3), (0, 1), (1, 1): loss = 1 - x + x², lowest at 1/2 with 3/4.
    trials = [Trial(100, math.exp(x), loss) for x, loss in [(-1, 3.0), (0, 1.0), (1, 1.0)]]
    best = best_rate(trials)
    assert best.rate == pytest.approx(math.exp(0.5)) and best.loss == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([3.0, 2.0, 1.2], "outside of those that were tried, 0.001 to 0.1.*try higher"),
        ([1.2, 2.0, 3.0], "outside .*try lower|no lowest point"),
        ([1.0, 2.0, 1.0], "no lowest point between them"),
        ([2.0, math.inf, 1.0], "2 rates ended with a loss that is a number"),
    ],
)
def test_what_has_no_best_rate_is_refused(losses, said):
    trials = [Trial(50, rate, loss) for rate, loss in zip([1e-3, 1e-2, 1e-1], losses, strict=True)]
    with pytest.raises(ConfigError, match=said):
        best_rate(trials)


def test_losses_that_scatter_are_refused():
    # Through (ln rate, loss) = (-2, 3), (-1, 1), (0, 3), (1, 1), (2, 3) the best parabola is 57/35 + 2/7 x²,
    # which leaves 3.657 of 4.8 squares: it explains 24 %.
    trials = [Trial(50, math.exp(x), loss) for x, loss in zip(range(-2, 3), [3.0, 1, 3, 1, 3], strict=True)]
    with pytest.raises(ConfigError, match="a parabola explains 24 % of how the losses"):
        best_rate(trials)


def test_one_horizon_says_nothing_of_others():
    with pytest.raises(ConfigError, match="1 horizons say nothing"):
        fit_rates([Trial(50, rate, loss_at(rate, 50)) for rate in RATES])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "is not valid JSON"),
        ('{"coefficient": 1.0, "points": []}', "exponent"),
        ('{"coefficient": -1.0, "exponent": 0.1, "points": []}', "coefficient"),
    ],
)
def test_a_file_that_is_no_fit_is_named(tmp_path, content, said):
    path = tmp_path / "fit.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        fitted_rate(path, 100)


def test_a_sweep_that_was_stopped_runs_only_what_is_left(tmp_path):
    asked: list[tuple[float, int]] = []

    def train(rate: float, tokens: int) -> list[float]:
        if len(asked) == 7:
            raise KeyboardInterrupt
        asked.append((rate, tokens))
        return [9.0] * 30 + [loss_at(rate, tokens)] * 20  # the first steps do not count

    path = tmp_path / "sweep.jsonl"
    with pytest.raises(KeyboardInterrupt):
        try_rates(train, RATES, HORIZONS[:2], path=path, identity="toy")
    path.write_bytes(path.read_bytes() + b'{"key": [0.00')  # cut off in the middle of a line
    first, asked[:] = list(asked), []
    trials = try_rates(train, RATES, HORIZONS[:2], path=path, identity="toy")
    assert not set(first) & set(asked) and len(first) + len(asked) == 10
    expected = [loss_at(rate, tokens) for tokens in HORIZONS[:2] for rate in RATES]
    assert [trial.loss for trial in trials] == pytest.approx(expected)
    with pytest.raises(ConfigError, match="figures of another run"):
        try_rates(train, RATES, HORIZONS[:2], path=path, identity="other")


def test_steps_that_spike_or_blow_up():
    losses, norms = [2.0, 2.2] * 50, [1.0] * 100  # mean 2.1, deviation 0.1005
    assert step_fault(losses, norms, StepReading(2.4, 1.0)) == ""
    assert step_fault(losses, norms, StepReading(2.41, 1.0)).startswith("loss 2.41, usual are 2.1 ± 0.1")
    assert step_fault(losses, norms, StepReading(2.0, 10.0)) == ""
    assert step_fault(losses, norms, StepReading(2.0, 10.1)) == "norm of gradients 10.1, usual is 1"
    assert step_fault([], [], StepReading(math.nan, 1.0)) == "loss or gradients are no number"
    assert step_fault(losses[:9], norms[:9], StepReading(50.0, 99.0)) == ""


def test_the_largest_stable_multiple_of_a_quadratic():
    """Gradient descent on x² is stable below the rate 1: a warm-up to 0.3 bears twice as much, no more."""

    def train(multiple: float, steps: int) -> list[StepReading]:
        readings, x = [], torch.tensor(1.0, requires_grad=True)
        for step in range(steps):
            loss = x**2
            (gradient,) = torch.autograd.grad(loss, x)
            readings.append(StepReading(loss.item(), gradient.abs().item()))
            rate = 0.3 * multiple * min(1.0, (step + 1) / 20)
            with torch.no_grad():
                x -= rate * gradient
        return readings

    report = warmup_stability(train, 20)
    assert report.largest_stable == 2.0
    assert [run.step is None for run in report.runs] == [True, True, False, False]
    assert "| 2 | yes |" in report.table() and "| 4 | no | step" in report.table()


def test_a_multiple_above_one_that_fails_counts_for_nothing():
    def train(multiple: float, steps: int) -> list[StepReading]:
        return [StepReading(math.nan if multiple == 2 else 1.0, 1.0)] * steps

    assert warmup_stability(train, 5).largest_stable == 1.0
    assert warmup_stability(train, 5, multiples=(2.0, 4.0)).largest_stable is None
