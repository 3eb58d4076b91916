"""Short runs of one stage of a recipe, at other peak rates and lengths: what `rate_fit` asks for to find the
peak of a long run, and how much more its warm-up bears.

Data, tokenizer and the stages before are made once, in a folder of their own; each trial then trains the
stage anew. Knows recipes and their runs. Knows nothing of fits.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError
from phirt_train.guards import DivergenceError
from phirt_train.metrics import METRICS_NAME
from phirt_train.progress import Report, ignore
from phirt_train.rate_fit import StepReading
from phirt_train.recipe import Recipe
from phirt_train.runner import run_loaded
from phirt_train.stage import StageConfig


class StageTrials:
    """Trials of the stage of this name.

    Args:
        recipe: as it is loaded, at the scale of the trials.
        stage: its name; stages and steps after it do not run.
        run_dir: where the trials' data and state go.
        data: the folder that the recipe's names start from.

    Raises:
        ConfigError: there is no such stage.
    """

    def __init__(
        self, recipe: Recipe, stage: str, run_dir: Path, data: Path, report: Report = ignore
    ) -> None:
        names = [one.name for one in recipe.stages]
        if stage not in names:
            raise ConfigError(f"no stage {stage!r:.80}; stages: {', '.join(names)}")
        place = names.index(stage)
        kept = recipe.stages[: place + 1]
        before = {None, *names[:place]}
        steps = tuple(step for step in recipe.steps if step.after in before)
        self._recipe = dataclasses.replace(recipe, stages=kept, steps=steps)
        self._stage, self._run_dir, self._data, self._report = kept[-1], run_dir, data, report

    @property
    def warmup_steps(self) -> int:
        """Steps of the stage's warm-up."""
        return self._stage.schedule.warmup_steps

    def losses(self, rate: float, tokens: int) -> list[float]:
        """The loss of every step of a run of so many tokens with its whole schedule; infinite from where it
        is none.
        """
        steps = max(1, round(tokens / (self._stage.batch * self._stage.tokens_of_item)))
        warmup = min(self.warmup_steps, steps // 4)
        schedule = dataclasses.replace(
            self._stage.schedule, peak=rate, warmup_steps=warmup, continues=None, spike_sigma=0.0
        )
        return [
            one.loss for one in self._run(dataclasses.replace(self._stage, steps=steps, schedule=schedule))
        ]

    def readings(self, multiple: float, steps: int) -> list[StepReading]:
        """The first steps at a multiple of the peak, which is held after the warm-up."""
        peak = self._stage.schedule.peak
        assert peak is not None, "a stage that resumes a schedule has no warm-up of its own"
        schedule = dataclasses.replace(
            self._stage.schedule, peak=multiple * peak, kind="wsd", decay_share=0.0, spike_sigma=0.0
        )
        return self._run(dataclasses.replace(self._stage, steps=steps, schedule=schedule))

    def _run(self, stage: StageConfig) -> list[StepReading]:
        bare = dataclasses.replace(stage, tokens=None, gate={})
        asked = [name for name in ("held_out", "written") if getattr(bare.data, name, None)]
        if asked:  # losses are wanted, and nothing is measured beside them
            nothing: dict[str, Any] = {name: {} for name in asked}
            bare = dataclasses.replace(bare, data=dataclasses.replace(bare.data, **nothing))  # type: ignore[type-var]
        recipe = dataclasses.replace(self._recipe, stages=(*self._recipe.stages[:-1], bare))
        folder = self._run_dir / stage.name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            run_loaded(recipe, self._run_dir, self._data, report=self._report, until=stage.name)
        except DivergenceError:
            found = _read(folder)
            return [*found, StepReading(math.inf, math.inf)]
        found = _read(folder)
        shutil.rmtree(folder)
        return found


def _read(folder: Path) -> list[StepReading]:
    lines = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    values = map(json.loads, lines)
    return [StepReading(_number(one["loss"]), _number(one["gradient_norm"])) for one in values]


def _number(value: float | None) -> float:
    return math.inf if value is None else value
