"""Numbers that are none and spikes that stay stop a stage before they spoil its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from phirt_train.guards import DivergenceError, SpikeGuard
from phirt_train.progress import ignore


def diverging(toy: Any, folder: Path, change: Callable[[int, Tensor], Tensor], **schedule: Any) -> Any:
    values = {"peak": 0.01, "warmup_steps": 3, **schedule}
    run = toy.toy_run(folder, toy.toy_config(steps=60, schedule=values))
    run.objective.change = change
    run.CHECKPOINT_SECONDS = 0.0  # state is written after every step, where it may be
    return run


def kept(run: Any) -> tuple[int, dict[str, Tensor]]:
    """Step and weights of the state on disk."""
    with safe_open(run.state_path, "pt") as file:
        step = json.loads(file.metadata()["position"])["step"]
    return step, load_file(run.state_path)


def after(toy: Any, folder: Path, steps: int) -> dict[str, Tensor]:
    """The weights after some steps without any trouble, of the same schedule."""
    run = diverging(toy, folder, lambda step, total: total)
    for _ in range(steps):
        run._one_step()
    return run.parameters


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda total: total * float("nan"), "the loss is nan"),
        (lambda total: total * float("inf"), "the loss is inf"),
        (lambda total: total + (total - total.detach()).abs().sqrt(), "the gradient's length is nan"),
    ],
)
def test_what_is_no_number_is_not_applied(toy: Any, tmp_path: Path, spoil: Any, message: str) -> None:
    run = diverging(toy, tmp_path / "a", lambda step, total: spoil(total) if step == 7 else total)
    with pytest.raises(
        DivergenceError, match=f"stage toy stopped at step 7: {message}; its last good"
    ) as error:
        run.run(ignore)
    assert "\n" not in str(error.value)
    step, tensors = kept(run)
    assert step == 7
    for name, wanted in after(toy, tmp_path / "b", 7).items():
        assert torch.equal(tensors[f"weight.{name}"], wanted), name
        assert torch.equal(run.parameters[name], wanted), name


def test_a_spike_that_stays_stops_the_stage_and_the_state_before_it_is_kept(toy: Any, tmp_path: Path) -> None:
    run = diverging(
        toy, tmp_path / "a", lambda step, total: total * 50 if step >= 30 else total, spike_steps=4
    )
    with pytest.raises(
        DivergenceError, match=r"stopped at step 33: the loss \(.*\) lay more than 12 deviations"
    ):
        run.run(ignore)
    step, tensors = kept(run)
    assert step == 30
    for name, wanted in after(toy, tmp_path / "b", 30).items():
        assert torch.equal(tensors[f"weight.{name}"], wanted), name


def test_a_later_start_stops_at_the_same_step(toy: Any, tmp_path: Path) -> None:
    for _ in range(2):
        run = diverging(toy, tmp_path, lambda step, total: total * 50 if step >= 30 else total, spike_steps=4)
        with pytest.raises(DivergenceError, match="stopped at step 33"):
            run.run(ignore)
        assert kept(run)[0] == 30


def test_a_spike_that_passes_stops_nothing(toy: Any, tmp_path: Path) -> None:
    run = diverging(
        toy, tmp_path, lambda step, total: total * 50 if step in (30, 31, 32) else total, spike_steps=4
    )
    assert run.run(ignore).steps == 60
    assert kept(run)[0] == 60


def test_a_spike_of_the_gradient_alone_counts(toy: Any, tmp_path: Path) -> None:
    def steeper(step: int, total: Tensor) -> Tensor:
        return total if step < 30 else total * 50 - 49 * total.detach()

    run = diverging(toy, tmp_path, steeper, spike_steps=2)
    with pytest.raises(DivergenceError, match="stopped at step 31"):
        run.run(ignore)


def test_no_sigma_no_stop(toy: Any, tmp_path: Path) -> None:
    run = diverging(
        toy, tmp_path, lambda step, total: total * 50 if step >= 30 else total, spike_steps=4, spike_sigma=0.0
    )
    assert run.run(ignore).steps == 60


def test_mean_and_deviation_are_of_the_last_hundred_steps_without_spikes() -> None:
    guard, rng = SpikeGuard(4.0, 1000), np.random.default_rng(1)
    losses = rng.normal(10.0, 2.0, 150).clip(4, 16)
    for loss in losses:
        guard.add(float(loss), 1.0)
    mean, deviation = losses[-100:].mean(), losses[-100:].std()
    for _ in range(5):
        guard.add(float(mean + 10 * deviation), 1.0)
    assert guard.spikes == 5
    assert guard.is_spike(float(mean + 4.01 * deviation), 1.0)
    assert not guard.is_spike(float(mean + 3.99 * deviation), 1.0)
