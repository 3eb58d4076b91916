"""What a stage left, measured by log-likelihood and few-shot, by passkeys at lengths, and by perplexity at
lengths: the figures of `phirt eval`, in the run's table.

It makes measured.json. Knows options. What is measured is `phirt_train.model_scores`' matter.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from phirt.fields import Length, Range
from phirt.runtime.atomic_file import write_text
from phirt_export.reference import ModelConfig
from phirt_quant.tasks import read_task
from phirt_train.data.records import Document, read_records
from phirt_train.model_scores import perplexity_at, retrieval, task_scores
from phirt_train.step import StepContext, StepKind, StepOutcome

_Count = Annotated[int, Range(1, 1 << 20)]
_Lengths = Annotated[tuple[Annotated[int, Range(2, 1 << 24)], ...], Length(0, 64)]


@dataclasses.dataclass(frozen=True)
class MeasurementOptions:
    """What is measured.

    Attributes:
        texts: a file of texts, which passkeys are hidden in and whose perplexity is measured.
        needles: lengths of texts with a passkey, which may be past the model's context.
        needle_count: passkeys at each length and depth.
        perplexities: lengths at which perplexity is measured, over `documents` texts.
        tasks: tasks by name, as `phirt eval --task` has them, from the user's data.
        limit: most records of a task; None for all.
        shots: examples before each question; None for what is usual.
    """

    texts: str | None = None
    needles: _Lengths = ()
    needle_count: _Count = 4
    perplexities: _Lengths = ()
    documents: _Count = 5
    tasks: Annotated[tuple[str, ...], Length(0, 64)] = ()
    limit: _Count | None = None
    shots: Annotated[int, Range(0, 64)] | None = None

    def __post_init__(self) -> None:
        if (self.needles or self.perplexities) and self.texts is None:
            raise ValueError("needles and perplexities need 'texts', a file of texts to hide them in")
        if not (self.needles or self.perplexities or self.tasks):
            raise ValueError("nothing is measured; give needles, perplexities or tasks")

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where there is no such task; every model can be measured, past its context
        too.
        """
        for name in self.tasks:
            read_task(name)

    def files(self) -> Iterable[str]:
        """The texts."""
        return () if self.texts is None else (self.texts,)

    def files_beside(self, folder: Path) -> Iterable[Path]:
        """The tasks' files, as they lie in the user's data."""
        names = [name for task in map(read_task, self.tasks) for name in (task.file, task.examples) if name]
        return [path for name in names for end in ("", ".xz") if (path := folder / f"{name}{end}").is_file()]


def measure(options: MeasurementOptions, context: StepContext) -> StepOutcome:
    """Measure all."""
    weights = context.model()
    model, encoder = weights.model(), weights.encoder
    figures: dict[str, float] = {}
    texts: list[str] = []
    if options.texts is not None:
        texts = [document.text for _, document in read_records(context.path(options.texts), Document)]
    for length in options.perplexities:
        context.note(f"perplexity at {length}")
        figures[f"perplexity at {length}"] = perplexity_at(model, encoder, texts, length, options.documents)
    for length in options.needles:
        context.note(f"passkeys at {length}")
        # Not by the step's seed: after every stage the same passkeys, so that its figures compare.
        cells = retrieval(model, encoder, texts, [length], count=options.needle_count)
        items = sum(cell.items for cell in cells)
        figures[f"passkeys at {length}"] = sum(cell.found * cell.items for cell in cells) / items
        nats = sum(math.log(cell.perplexity) * cell.items for cell in cells)
        figures[f"passkey perplexity at {length}"] = math.exp(nats / items)
    for name in options.tasks:
        context.note(f"task {name}")
        limit, shots = options.limit, options.shots
        found = task_scores(model, encoder, [name], context.source, limit=limit, shots=shots)
        figures |= {f"{name} {metric}": one.value for metric, one in found[name].items()}
    write_text(context.output / "measured.json", json.dumps(figures, indent=1) + "\n")
    return StepOutcome(len(figures), figures, "figures")


KIND = StepKind(MeasurementOptions, measure)
