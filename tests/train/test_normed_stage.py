"""A stage whose model keeps running statistics (batch norm): they go with the weights, whatever happens."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from phirt_train.guards import DivergenceError
from phirt_train.loop import Interrupted, StageRun
from phirt_train.progress import Progress, ignore

PLAIN, ANYWHERE = ("first.", "second.", "norm."), ("*first", "*second", "*norm")
SCALE_ALONE = ("first.", "second.", "norm.weight", "norm.bias")


@pytest.fixture
def make(toy: Any, tmp_path: Path) -> Any:
    """Gives a run of a toy model with batch norm, by its folder."""

    class Normed(toy.ToyModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(32)
            self.register_buffer("table", torch.ones(4), persistent=False)

        def forward(self, rows: Tensor) -> Tensor:
            return self.second(torch.tanh(self.norm(self.first(rows))))  # type: ignore[no-any-return]

    def made(folder: str, change: Any = None, spoil: Any = None, **values: Any) -> StageRun:
        stage, model = toy.toy_config(**{"trains": PLAIN, **values}), Normed()
        objective = toy.ToyObjective(model, stage)
        objective.change = change or objective.change
        plain = objective.prepare

        def prepare(step: int, share: Any) -> Any:
            rows, step = plain(step, share)
            return (spoil(step, rows) if spoil else rows), step

        objective.prepare = prepare
        return StageRun(model, objective, stage, tmp_path / folder, 1, "digest")

    return made


def after(run: StageRun, steps: int) -> StageRun:
    run.model.train()
    for _ in range(steps):
        run._one_step()
    return run


def statistics(run: StageRun) -> Tensor:
    return run.model.state_dict()["norm.running_mean"]


@pytest.mark.parametrize("trains", [PLAIN, ANYWHERE, SCALE_ALONE])
def test_statistics_are_kept_for_a_later_start(make: Any, trains: tuple[str, ...]) -> None:
    whole = make("whole", trains=trains)
    whole.run(ignore)
    after(make("cut", trains=trains), 6).save()
    resumed = make("cut", trains=trains)
    resumed.run(ignore)
    assert sorted(resumed.buffers) == ["norm.num_batches_tracked", "norm.running_mean", "norm.running_var"]
    assert torch.equal(statistics(whole), statistics(resumed))


def test_statistics_of_frozen_layers_are_no_part_of_it(make: Any) -> None:
    run = make("frozen", trains=("first.", "second."))
    run.run(ignore)
    assert not run.buffers and not statistics(run).any()


def test_the_last_good_state_is_from_before_rows_that_are_no_numbers(make: Any) -> None:
    run = make("nan", spoil=lambda step, rows: rows * float("nan") if step == 5 else rows)
    with pytest.raises(DivergenceError, match="stopped at step 5"):
        run.run(ignore)
    kept = load_file(run.state_path)["buffer.norm.running_mean"]
    assert torch.equal(kept, statistics(after(make("good"), 5)))


def test_a_lone_spike_does_not_change_what_a_later_start_ends_with(make: Any) -> None:
    spike = {"steps": 40, "change": lambda step, total: total * 1e4 if step == 30 else total}
    whole = make("whole", **spike)
    whole.run(ignore)
    after(make("cut", **spike), 33)  # and is killed: its state is that of step 30
    resumed = make("cut", **spike)
    assert resumed.step == 30
    resumed.run(ignore)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_measuring_may_be_stopped_without_training_again(make: Any) -> None:
    whole = make("whole", ema=0.5).run(ignore)

    def stop(progress: Progress) -> None:
        if progress.activity == "measuring":
            raise KeyboardInterrupt

    cut = make("cut", ema=0.5)
    with pytest.raises(KeyboardInterrupt):
        cut.run(stop)
    again = make("cut", ema=0.5)
    assert again.step == 12
    assert again.run(ignore).figures == whole.figures


def test_a_signal_while_the_last_state_is_written_stops_the_stage(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("cut")
    save = run.save
    monkeypatch.setattr(run, "save", lambda *given: (save(*given), signal.raise_signal(signal.SIGINT)))
    with pytest.raises(Interrupted, match="stopped at step 12"):
        run.run(ignore)
    assert make("cut").step == 12
