"""Short runs of one stage of a recipe, at other peak rates, lengths and mixtures: what `rate_fit` asks for to
find the peak of a long run, and how much more its warm-up bears, and `mixture_search` to find shares.

Data, tokenizer and the stages before are made once, in a folder of their own; each trial then trains the
stage anew. Knows recipes and their runs. Knows nothing of fits or searches.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phirt.errors import ConfigError
from phirt_train.data.mixture import Shares, source_of
from phirt_train.guards import DivergenceError
from phirt_train.loop import StageResult
from phirt_train.metrics import METRICS_NAME
from phirt_train.objectives.language_modeling import LanguageModelingData
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
        return [one.loss for one in self._run(self._as_long(tokens, rate))]

    @property
    def shares(self) -> dict[str, float]:
        """The share of each file of documents, on average over the stage."""
        documents = self._text_data().documents
        means = Shares.of(documents).at(np.linspace(0, 1, 1001)).mean(axis=0)
        return dict(zip(documents, means.tolist(), strict=True))

    def held_out(self, shares: Mapping[str, float], tokens: int) -> float:
        """The mean of the held-out figures after a run of so many tokens with constant shares of documents;
        infinite where it diverges.

        Raises:
            ConfigError: the stage reads no documents, or has no held-out texts.
        """
        data = self._text_data()
        documents = {
            name: dataclasses.replace(source_of(data.documents[name]), share=share, start=None, end=None)
            for name, share in shares.items()
        }
        peak = self._stage.schedule.peak
        assert peak is not None, "a stage that resumes a schedule has no length of its own"
        stage = self._as_long(tokens, peak)
        stage = dataclasses.replace(stage, gate={}, data=dataclasses.replace(data, documents=documents))
        figures: list[float] = []
        self._train(stage, lambda result: figures.extend(result.figures.values()))
        return math.fsum(figures) / len(figures) if figures else math.inf

    def _text_data(self) -> LanguageModelingData:
        data = self._stage.data
        if not isinstance(data, LanguageModelingData) or not data.documents or not data.held_out:
            raise ConfigError(
                f"stage {self._stage.name} has no documents whose shares could be tried, or no held-out "
                "texts; name a stage of language_modeling that has both"
            )
        return data

    def _as_long(self, tokens: int, peak: float) -> StageConfig:
        """The stage over so many tokens with its whole schedule, which never stops it."""
        steps = max(1, round(tokens / (self._stage.batch * self._stage.tokens_of_item)))
        warmup = min(self.warmup_steps, steps // 4)
        schedule = dataclasses.replace(
            self._stage.schedule, peak=peak, warmup_steps=warmup, continues=None, spike_sigma=0.0
        )
        return dataclasses.replace(self._stage, steps=steps, schedule=schedule)

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
        found: list[StepReading] = []
        if not self._train(bare, lambda _: found.extend(_read(self._run_dir / stage.name))):
            found = [*_read(self._run_dir / stage.name), StepReading(math.inf, math.inf)]
        return found

    def _train(self, stage: StageConfig, take: Callable[[StageResult], object]) -> bool:
        """Train the stage anew; `take` is given its result while its folder is there. Whether it did not
        diverge; where it did, its folder stays.
        """
        recipe = dataclasses.replace(self._recipe, stages=(*self._recipe.stages[:-1], stage))
        folder = self._run_dir / stage.name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            results = run_loaded(recipe, self._run_dir, self._data, report=self._report, until=stage.name)
        except DivergenceError:
            return False
        take(results[-1])
        shutil.rmtree(folder)
        return True


def _read(folder: Path) -> list[StepReading]:
    lines = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    values = map(json.loads, lines)
    return [StepReading(_number(one["loss"]), _number(one["gradient_norm"])) for one in values]


def _number(value: float | None) -> float:
    return math.inf if value is None else value
