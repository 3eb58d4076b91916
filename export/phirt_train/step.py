"""A step of a recipe that trains nothing: it makes data that later stages read, or measures what a stage
left.

A step is a table `[[step]]` of a recipe with a `kind`, which is one module of `phirt_train.steps`. It runs
once `after` a stage, with the weights of that stage, or, where it names none, before everything else. What it
writes lies in the run's folder as `made/NAME/…`, and later stages and steps name it so.

Knows what a step is given and gives. Knows nothing of any kind of step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from phirt_export.exporter import export_bundle
from phirt_export.reference import Model, ModelConfig
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.progress import Progress, Report
from phirt_train.stage import StageName

MADE = "made"


class StepOptions(Protocol):
    """What a kind of step takes: a frozen dataclass that the recipe's `[step.options]` is read into."""

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where it does not fit the model."""

    def files(self) -> Iterable[str]:
        """The JSON lines that must be there, as the recipe names them."""


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """One step.

    Attributes:
        name: folder of the step under the run folder, and under `made`.
        kind: a module of `phirt_train.steps`.
        options: what that takes.
        after: the stage whose weights it works with; None for a step that needs no model and runs first.
    """

    name: StageName
    kind: str
    options: StepOptions
    after: StageName | None = None

    def files(self) -> tuple[str, ...]:
        """All files that it reads, as the recipe names them."""
        return tuple(self.options.files())

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where it does not fit the model."""
        self.options.check(model)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The model that a step works with.

    Attributes:
        model: gives it in the reference implementation, in evaluation mode, on the run's device.
        checkpoint: gives it as a checkpoint folder, written where it is told.
        encoder: makes token ids as the runtime does.
    """

    model: Callable[[], Model]
    checkpoint: Callable[[Path], Path]
    encoder: ConversationEncoder


@dataclasses.dataclass(frozen=True)
class StepContext:
    """What a step is given beside its options.

    Attributes:
        step: its name.
        identity: a digest of all that its outcome is a function of.
        seed: what all its randomness comes from; no other step has the same.
        source: the user's data folder.
        path: gives the place of a file that the recipe names.
        output: an empty folder for what it makes.
        work: its own folder, which stays where it is cut off: what is kept there need not be made again. It
            is empty where what was kept is of another identity.
        weights: the model; None in a step that runs first.
        device: where the model is.
        report: takes reports of progress.
    """

    step: str
    identity: str
    seed: int
    source: Path
    path: Callable[[str], Path]
    output: Path
    work: Path
    weights: Weights | None
    device: torch.device
    report: Report

    def model(self) -> Weights:
        """The model of a kind of step that needs one, which `StepKind.needs_model` says."""
        assert self.weights is not None, "a step that needs a model was let through without one"
        return self.weights

    def bundle(self) -> Path:
        """The model as a bundle that the runtime loads, its weights as they are."""
        folder = self.work / "bundle"
        if not folder.is_dir():
            export_bundle(self.model().checkpoint(self.work / "checkpoint"), folder, bits=32)
        return folder

    def note(self, activity: str, step: int = 0, steps: int | None = None, unit: str = "records") -> None:
        """Report what is done."""
        self.report(Progress(self.step, step, steps, unit, activity))


@dataclasses.dataclass(frozen=True)
class StepOutcome:
    """What a step reports: how many records (or whatever `unit` says) it made, and figures by name."""

    units: int
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unit: str = "records"


@dataclasses.dataclass(frozen=True)
class StepKind:
    """One kind: the frozen dataclass of its `[step.options]`, what carries it out, and whether it needs a
    model.
    """

    options: type[Any]
    run: Callable[[Any, StepContext], StepOutcome]
    needs_model: bool = True


def step_of(name: str) -> str | None:
    """The step that makes a file of this name; None where it is no made one."""
    folder, _, rest = name.partition("/")
    return rest.partition("/")[0] if folder == MADE else None
