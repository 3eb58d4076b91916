"""What tests start as processes of their own: one of those that train together, or one that is killed.

python worker_train.py together OUT SHARDING   with RANK and WORLD_SIZE: writes the losses of a small decoder
python worker_train.py killed FOLDER SEED      trains in a child that it kills, as often as the test wants
python worker_train.py recipe RECIPE RUN SHARDING   with RANK and WORLD_SIZE: runs a recipe
python worker_train.py finetune FOLDER CHECKPOINT   the same of an adapter, from the rows in the folder
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phirt_export import precision
from phirt_train.chunked_loss import chunked_cross_entropy
from phirt_train.finetuning.finetune import FinetuneSettings, finetune
from phirt_train.loop import StageRun
from phirt_train.objective import Loss, Share
from phirt_train.processes import join_processes, leave_processes
from phirt_train.progress import ignore
from phirt_train.runner import run_recipe
from phirt_train.sharding import whole
from phirt_train.state_file import save_tensors

KILLS = 20


def beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NextToken:
    """The next token of rows that are functions of their number; some tokens are not learnt."""

    unit = "tokens"

    def __init__(self, model: Any, stage: Any) -> None:
        self.model, self.stage = model, stage
        self.head = torch.nn.Linear(32, 4)
        with torch.no_grad():
            self.head.weight.fill_(0.1)
            self.head.bias.zero_()

    def prepare(self, step: int, share: Share) -> Tensor:
        numbers = share.of([step * self.stage.batch + n for n in range(self.stage.batch)])
        rows = [torch.randint(0, 40, (17,), generator=torch.Generator().manual_seed(n)) for n in numbers]
        return torch.stack(rows)

    def loss(self, batch: Tensor) -> Loss:
        hidden = self.model.hidden_states(batch[:, :-1]).flatten(0, 1)
        targets = batch[:, 1:].flatten().clone()
        targets[targets < 8] = -100
        total = chunked_cross_entropy(hidden, self.model.head_weight(), targets)
        return Loss(total + 0.1 * self.head(hidden).square().sum(), int((targets >= 0).sum()), len(targets))

    def validate(self) -> dict[str, float]:
        with torch.no_grad():
            return {"mean": self.model.hidden_states(torch.arange(8)[None]).mean().item()}


def train_together(out: Path, sharding: str) -> None:
    """Ten steps with and without Muon; after four of them a new start goes on from the state."""
    toy, processes = beside("toy_stage"), join_processes()
    for muon in (False, True):
        stage = toy.toy_config(
            name="together", trains=("model.",), steps=10, batch=8, micro_batch=3, ema=0.5,
            rates={"model.layers.0.": 0.5},
            schedule={"peak": 0.003, "warmup_steps": 2, "muon": muon},
        )  # fmt: skip
        folder, records = out / f"muon-{muon}", []
        for start in range(2):
            model = toy.toy_decoder()
            run = StageRun(
                model, NextToken(model, stage), stage, folder, 1, "digest",
                record=records.append, processes=processes, sharding=sharding,
            )  # fmt: skip
            if start == 0:
                for _ in range(4):
                    run._one_step()
                run.save()
                processes.wait()
        assert run.step == 4
        result = run.run(ignore)
        weights = {name: whole(parameter) for name, parameter in run.parameters.items()}
        if processes.is_first:
            facts = {"losses": [one.loss for one in records], "figures": dict(result.figures)}
            facts |= {"norms": [one.gradient_norm for one in records], "units": result.units}
            (folder / "facts.json").write_text(json.dumps(facts))
            save_tensors(weights, folder / "weights.safetensors")
        processes.wait()
    leave_processes()


def train_once(folder: Path, progress: int | None = None) -> None:
    """A whole stage with state after every step; each step is told to whoever reads `progress`."""
    toy = beside("toy_stage")
    StageRun.CHECKPOINT_SECONDS = 0.0

    def tell(record: Any) -> None:
        if progress is not None:
            os.write(progress, b".")

    stage = toy.toy_config(steps=60, ema=0.9, schedule={"peak": 0.01, "warmup_steps": 5, "muon": True})
    run = toy.toy_run(folder, stage, record=tell)
    run.run(ignore)
    save_tensors(dict(run.parameters), folder / "weights.safetensors")


def kill_children(train: Callable[[int, int], None], folder: Path, seed: int, most: int) -> None:
    """Fork children that train, and kill each after a random number of marks of progress; the last one may
    end. A child is told how many were killed before, and where its marks go.
    """
    rng, killed = random.Random(seed), []
    while True:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            train(len(killed), writer)
            os._exit(0)
        os.close(writer)
        left = rng.randint(1, most) if len(killed) < KILLS else 1000
        while left and os.read(reader, 1):
            left -= 1
        if not left:
            os.kill(child, signal.SIGKILL)
        os.close(reader)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        killed.append(os.WTERMSIG(status))
    (folder / "killed.json").write_text(json.dumps(killed))


def train_killed(folder: Path, seed: int) -> None:
    """A stage with state after every step."""
    toy = beside("toy_stage")
    toy.toy_run(folder, toy.toy_config())  # imports here what every child would import again
    kill_children(lambda _, progress: train_once(folder, progress), folder, seed, 5)


def finetune_killed(folder: Path, checkpoint: Path) -> None:
    """An adapter of the rows in a folder, killed in all that a fine-tuning does; of two children one writes
    its state after every step, the other only where it has to.
    """

    def train(number: int, progress: int) -> None:
        def tell(*_: Any) -> None:
            os.write(progress, b".")

        def stepping(run: StageRun) -> None:
            one_step(run)
            tell()

        one_step, StageRun.CHECKPOINT_SECONDS = StageRun._one_step, 0.0 if number % 2 else 1e9
        StageRun._one_step = stepping  # type: ignore[method-assign]
        settings = FinetuneSettings(**json.loads((folder / "settings.json").read_text()))
        finetune(folder / "my.jsonl", folder / "killed", checkpoint, settings, report=tell)

    kill_children(train, folder, 3, 14)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "together":
        train_together(Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "recipe":
        precision.multiplies_bfloat16 = lambda _: False  # as the process that it is held against
        run_recipe(Path(sys.argv[2]), Path(sys.argv[3]), sharding=sys.argv[4])
    elif sys.argv[1] == "whole":
        train_once(Path(sys.argv[2]))
    elif sys.argv[1] == "finetune":
        finetune_killed(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        train_killed(Path(sys.argv[2]), int(sys.argv[3]))
