"""Fine-tunes a checkpoint for a domain: conversations in, a PEFT folder out.

A part of the rows is held out. Training ends where their loss has not fallen for some measurements, and the
adapter is the one with which it was lowest: little is learnt by heart. What is stopped or killed goes on with
the same call.

Knows the folder of a fine-tuning and when it ends. How a step is done is `loop`'s matter, what is learnt is
supervised fine-tuning's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch

from phirt.errors import ConfigError
from phirt.fields import Fields, Range, parse_json, read_dataclass
from phirt.runtime.atomic_file import write_text
from phirt_export.bundle import model_limits
from phirt_export.chat_files import TOKENIZER_NAME, read_template, tokenizer_bytes
from phirt_export.checkpoint import Checkpoint
from phirt_export.checkpoint_scores import available_memory, needed_memory
from phirt_export.model_weights import load_model
from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.data.mixture import Source
from phirt_train.data.records import Conversation
from phirt_train.file_digests import FileDigests
from phirt_train.finetuning.branches import (
    TRAINED,
    Branch,
    add_branches,
    branch_tensors,
    sensible_rate,
    write_peft,
)
from phirt_train.finetuning.rows import read_rows, split, write_rows
from phirt_train.loop import StageRun
from phirt_train.objectives.supervised_finetuning import SupervisedFinetuning, SupervisedFinetuningData
from phirt_train.outside import weights_identity
from phirt_train.progress import Progress, Report, StepRecord, ignore
from phirt_train.run_marks import alone
from phirt_train.stage import Schedule, StageConfig
from phirt_train.state_file import read_tensors, save_tensors

STAGE = "finetune"
REPORT_NAME = "training.json"
_TRAIN, _HELD_OUT, _BEST, _MEASURED = "train.jsonl", "held_out.jsonl", "best.safetensors", "measured.json"
_MADE = "adapter"  # where the folder is written before it gets its name
_LABEL = "held out"
_LEAST_GAIN = 1e-4  # of the loss, to count as fallen


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """How an adapter is trained; the defaults suit a few dozen to some thousand rows.

    Attributes:
        rank, alpha, dropout: of the adapter; alpha is twice the rank by default.
        epochs: most passes over the rows.
        batch: rows of a step.
        peak: the highest learning rate; by default one that suits the model's width.
        held_out: share of the rows that are not trained on; 0 trains on all, for all epochs.
        patience: measurements of the held-out loss, one an epoch, that it may go without falling.
        seed: what all randomness comes from.
    """

    rank: Annotated[int, Range(1, 1024)] = 16
    alpha: Annotated[float, Range(1e-6, 1e6)] | None = None
    dropout: Annotated[float, Range(0.0, 0.9)] = 0.05
    epochs: Annotated[int, Range(1, 10_000)] = 20
    batch: Annotated[int, Range(1, 4096)] = 8
    peak: Annotated[float, Range(1e-9, 1.0)] | None = None
    held_out: Annotated[float, Range(0.0, 0.9)] = 0.1
    patience: Annotated[int, Range(1, 1000)] = 3
    seed: Annotated[int, Range(0, (1 << 31) - 1)] = 0

    @property
    def branch(self) -> Branch:
        """Sizes of the adapter."""
        return Branch(self.rank, 2.0 * self.rank if self.alpha is None else self.alpha, self.dropout)


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning came to; losses are means over the held-out answers' tokens, None without any."""

    adapter: Path
    rows: int
    held_out: int
    steps: int
    best_step: int
    seconds: float
    loss: float
    before: float | None
    after: float | None


class _Enough(Exception):  # noqa: N818 - it is no error
    """The held-out loss does not fall any more."""


def finetune(
    data: Path,
    adapter: Path,
    checkpoint: Path,
    settings: FinetuneSettings = FinetuneSettings(),
    *,
    base: str | None = None,
    report: Report = ignore,
) -> FinetuneResult:
    """Train an adapter on the rows of a file.

    Args:
        data: JSON lines, see `finetuning.rows`.
        adapter: the folder to write, as PEFT keeps adapters; beside it lies the state until it is complete.
        checkpoint: the float checkpoint of the model that the adapter is for.
        settings: how.
        base: what the adapter says that it belongs to; by default the checkpoint's place.
        report: told how far it is.

    Raises:
        ConfigError: rows, checkpoint or settings do not serve, or another process trains this adapter.
        Interrupted: a signal arrived; the state is on disk.
    """
    _require_new(adapter)
    rows = read_rows(data)
    report(Progress(STAGE, 0, None, "steps", "opening the checkpoint"))
    opened = Checkpoint(checkpoint)
    _require_memory(opened)
    work = adapter.with_name(f"{adapter.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    with alone(work):
        _require_new(adapter)  # another process may have ended meanwhile
        facts = repr((rows, settings, weights_identity(checkpoint), *_media_digest(rows, work, report)))
        tuning = _Finetuning(opened, work, settings, hashlib.sha256(facts.encode()).hexdigest(), report)
        tuning.prepare(rows)
        result = dataclasses.replace(tuning.train(), adapter=adapter)
        tuning.write(result, base or str(checkpoint.absolute()))
    shutil.rmtree(work, ignore_errors=True)  # with its lock, which some systems keep while it is held
    return result


def _require_new(adapter: Path) -> None:
    if adapter.exists():
        raise ConfigError(f"{adapter} is there already; name another folder with --adapter, or delete it")


def _media_digest(rows: list[Conversation], work: Path, report: Report) -> list[str]:
    """One over the media of rows, where there are any."""

    def note(done: int, count: int) -> None:
        report(Progress(STAGE, done, count, "files", "reading pictures and recordings"))

    turns = [turn for row in rows for turn in row.messages]
    named = dict.fromkeys(Path(name) for turn in turns for name in (*turn.images, *turn.audio))
    if not named:
        return []
    known = FileDigests(work / "files.json")
    digest = known.of_all(list(named), note)
    known.save()
    return [digest]


def _require_memory(checkpoint: Checkpoint) -> None:
    needed, there = needed_memory(checkpoint.config), available_memory()
    if needed > there:
        raise ConfigError(
            f"fine-tuning {checkpoint.path} needs about {needed / 1e9:.1f} GB of memory, and "
            f"{there / 1e9:.1f} GB are available; close other programs, or choose a smaller model"
        )


class _Finetuning:
    """One fine-tuning in its folder."""

    def __init__(
        self, checkpoint: Checkpoint, work: Path, settings: FinetuneSettings, digest: str, report: Report
    ) -> None:
        self.checkpoint, self.work, self.settings = checkpoint, work, settings
        self.digest, self.report = digest, report
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.losses: dict[int, float] = {}  # of the held-out rows, by the steps before
        self.counts = (0, 0)

    def prepare(self, rows: list[Conversation]) -> None:
        """Write what training reads, unless it is there from an earlier start."""
        mark = self.work / "digest"
        if mark.is_file() and mark.read_text(encoding="ascii", errors="replace") != self.digest:
            raise ConfigError(
                f"{self.work} holds an unfinished training on other rows or media, or with other settings; "
                "delete it, or give those again"
            )
        train, held_out = split(rows, self.settings.held_out, self.settings.seed)
        self.counts = (len(train), len(held_out))
        write_rows(train, self.work / _TRAIN)
        if held_out:
            write_rows(held_out, self.work / _HELD_OUT)
        (self.work / TOKENIZER_NAME).write_bytes(tokenizer_bytes(self.checkpoint.folder))
        write_text(mark, self.digest)

    def _stage(self) -> StageConfig:
        settings, (train, held_out) = self.settings, self.counts
        batch = min(settings.batch, train)
        steps = settings.epochs * self._steps_of_epoch
        peak = settings.peak or sensible_rate(self.checkpoint.config.decoder.hidden_size)
        return StageConfig(
            name=STAGE,
            objective="supervised_finetuning",
            trains=TRAINED,
            steps=steps,
            batch=batch,
            schedule=Schedule(
                peak=peak,
                kind="linear",
                warmup_steps=min(10, steps // 10),
                final_ratio=0.1,
                weight_decay=0.01,
            ),
            data=SupervisedFinetuningData(
                sources={_TRAIN: Source(1.0)}, held_out={_LABEL: _HELD_OUT} if held_out else {}
            ),
        )

    @property
    def _steps_of_epoch(self) -> int:
        return math.ceil(self.counts[0] / min(self.settings.batch, self.counts[0]))

    def _context(self) -> TrainingContext:
        config = self.checkpoint.config
        template = read_template(self.checkpoint.folder)
        return TrainingContext(
            stage=STAGE,
            seed=self.settings.seed,
            data=self.work,
            cache=self.work / "cache",
            encoder=ConversationEncoder(self.work / TOKENIZER_NAME, template, config),
            device=self.device,
            limits=model_limits(config),
            is_fresh=False,
            report=self.report,
        )

    def train(self) -> FinetuneResult:
        """Train to the last step, or as long as the held-out loss falls."""
        stage, context = self._stage(), self._context()
        self.report(Progress(STAGE, 0, stage.steps, "steps", "loading weights"))
        model = load_model(self.checkpoint)
        add_branches(model, self.settings.branch, self.settings.seed)
        model.to(self.device)
        objective = SupervisedFinetuning(model, stage, context)
        if (self.work / _MEASURED).is_file():
            self.losses = _read_losses(self.work / _MEASURED)
        elif objective.held_out:
            self._measure(0, objective, model)
        run = StageRun(
            model,
            objective,
            stage,
            self.work,
            context.seed,
            self.digest,
            record=lambda record: self._after(record, objective, model),
        )
        with contextlib.suppress(_Enough):
            run.run(self.report)
        steps, loss, seconds = run.step, run.loss, run.seconds
        if not self.losses:
            save_tensors(branch_tensors(model), self.work / _BEST)
        best = min(self.losses, key=self.losses.__getitem__) if self.losses else steps
        return FinetuneResult(
            self.work,
            *self.counts,
            steps,
            best,
            seconds,
            loss,
            self.losses.get(0),
            self.losses[best] if self.losses else None,
        )

    def _after(self, record: StepRecord, objective: SupervisedFinetuning, model: Model) -> None:
        """After every epoch: measures, keeps the best, and ends what does not get better."""
        if not objective.held_out or record.step % self._steps_of_epoch:
            return
        self._measure(record.step, objective, model)
        steps = sorted(self.losses)
        best = min(steps, key=lambda step: self.losses[step])
        if steps.index(best) <= len(steps) - 1 - self.settings.patience:
            raise _Enough

    def _measure(self, step: int, objective: SupervisedFinetuning, model: Model) -> None:
        self.report(Progress(STAGE, step, self.settings.epochs * self._steps_of_epoch, "steps", "measuring"))
        training = {module: module.training for module in model.modules()}
        model.eval()
        loss = objective.held_out_losses()[_LABEL]
        for module, was in training.items():
            module.training = was
        # What an earlier start had measured beyond the state that it left is measured again.
        self.losses = {at: known for at, known in self.losses.items() if at < step}
        if loss < min(self.losses.values(), default=math.inf) - _LEAST_GAIN:
            save_tensors(branch_tensors(model), self.work / _BEST)
        self.losses[step] = loss
        write_text(self.work / _MEASURED, json.dumps({str(at): one for at, one in self.losses.items()}))

    def write(self, result: FinetuneResult, base: str) -> None:
        """The adapter, which is whole once it has its name: with the branches that gave the held-out rows the
        lowest loss, or the last ones where none were held out.
        """
        made, adapter, settings = self.work / _MADE, result.adapter, self.settings
        made.mkdir(exist_ok=True)
        write_peft(made, read_tensors(self.work / _BEST), settings.branch, self.checkpoint, base)
        kept = dataclasses.asdict(result) | {
            "adapter": adapter.name,
            "settings": dataclasses.asdict(settings),
        }
        write_text(made / REPORT_NAME, json.dumps(kept, indent=1) + "\n")
        made.replace(adapter)


def _read_losses(path: Path) -> dict[int, float]:
    remedy = f"delete {path.parent}"
    fields = Fields(
        parse_json(path.read_bytes(), str(path), ConfigError, remedy), str(path), ConfigError, remedy
    )
    return {int(step): fields.number(step, -1e30, 1e30) for step, _ in fields.items()}


def read_settings(values: Mapping[str, object]) -> FinetuneSettings:
    """Settings by name, checked; what is not given takes its default.

    Raises:
        ConfigError: a value is out of its range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    return read_dataclass(FinetuneSettings, Fields(given, "fine-tuning", ConfigError, "give another value"))
