"""Tasks on a bundle, and on what it is compared with: measures side by side.

Knows what was asked for and how figures are shown. Tasks, scoring and measures are phirt_quant's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import ConfigError

from .output import Output, plain_table

if TYPE_CHECKING:
    from phirt_quant.evaluation import Scorer
    from phirt_quant.examiner import TextForm
    from phirt_quant.metrics import Estimate


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """Which tasks, from which data folder, with how many records and examples; None is the task's own."""

    names: Sequence[str]
    data: Path | None
    limit: int | None = None
    shots: int | None = None
    seed: int = 0
    metrics: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Of one task, each measure's estimates: the bundle's and then, where there is one, the reference's."""

    items: int
    shots: int
    metrics: dict[str, tuple[Estimate, ...]]

    def as_object(self) -> dict[str, Any]:
        """The result as plain values."""
        measured: dict[str, Any] = {}
        for name, (candidate, *reference) in self.metrics.items():
            measured[name] = {"value": candidate.value, "standard_error": candidate.standard_error}
            for other in reference:
                difference, error = candidate.minus(other)
                measured[name] |= {
                    "reference": {"value": other.value, "standard_error": other.standard_error},
                    "difference": {"value": difference, "standard_error": error},
                }
        return {"items": self.items, "shots": self.shots, **measured}


def examine(
    form: TextForm, scorers: Sequence[Scorer], inputs: TaskInputs, out: Output
) -> dict[str, TaskResult]:
    """The results by task; scorers are the candidate's and, where there is one, the reference's, and `form`
    is how all of them have text.

    Raises:
        ConfigError: there is no such task, or the data folder does not hold its file.
    """
    from phirt_quant.metrics import estimate
    from phirt_quant.task_scores import read_examination, run
    from phirt_quant.tasks import known_tasks

    if inputs.data is None:
        named = ", ".join(known_tasks())
        raise ConfigError(f"tasks ({named}) read their files: say where they are with --data FOLDER")
    examinations = [
        read_examination(
            name, inputs.data, inputs.limit, inputs.shots, seed=inputs.seed, metrics=inputs.metrics
        )
        for name in dict.fromkeys(inputs.names)
    ]
    results = {}
    for examination in examinations:
        with out.busy(examination.name) as display:
            on_progress = functools.partial(display.advance, examination.name)
            outcomes = run(examination, form, scorers, on_progress)
        measured = {metric: tuple(estimate(metric, of) for of in outcomes) for metric in examination.metrics}
        results[examination.name] = TaskResult(len(examination.items), examination.shots, measured)
    return results


def text_result(form: TextForm, scorer: Scorer, text: Path | None, tokens: int, out: Output) -> TaskResult:
    """How well one model predicts the first tokens of a text (None: the program's own sentences), each
    document from its beginning on.
    """
    from phirt_quant import samples
    from phirt_quant.metrics import estimate
    from phirt_quant.task_scores import Examination, run
    from phirt_quant.tasks.task import Document
    from phirt_quant.text_files import read_documents

    documents, left = [], tokens
    for document in samples.SENTENCES if text is None else read_documents(text):
        ids = list(form.encode(document))[:left]
        left -= len(ids)
        if ids:
            documents.append(Document(form.decode(ids)))
    metrics = ("bits_per_byte", "byte_perplexity", "word_perplexity")
    label = "predicting the text"
    with out.busy(label) as display:
        on_progress = functools.partial(display.advance, label)
        (outcomes,) = run(Examination("text", metrics, 0, tuple(documents)), form, [scorer], on_progress)
    return TaskResult(len(documents), 0, {metric: (estimate(metric, outcomes),) for metric in metrics})


def task_table(results: dict[str, TaskResult]) -> Any:
    """One row a measure: the bundle's figure, and beside it the reference's and the difference."""
    compared = any(len(of) > 1 for result in results.values() for of in result.metrics.values())
    columns = ["task", "#items", "#shots", "measure", "#bundle"]
    table = plain_table(*columns, *(["#reference", "#difference"] if compared else []))
    for name, result in results.items():
        for metric, (candidate, *reference) in result.metrics.items():
            cells = [name, str(result.items), str(result.shots), metric]
            cells.append(_shown(metric, candidate.value, candidate.standard_error))
            for other in reference:
                cells.append(_shown(metric, other.value, other.standard_error))
                cells.append(_shown(metric, *candidate.minus(other), sign="+"))
            table.add_row(*cells)
    return table


def _shown(metric: str, value: float, error: float | None, sign: str = "") -> str:
    """A figure with its standard error: shares in percent, others to four digits."""
    from phirt_quant.metrics import METRICS

    is_share = METRICS[metric].is_share
    if is_share:
        text, spread = f"{100 * value:{sign}.1f}", None if error is None else f"{100 * error:.1f}"
    else:
        text, spread = f"{value:{sign}.4g}", None if error is None else f"{error:.2g}"
    return f"{text}{'' if spread is None else f' ± {spread}'}{' %' if is_share else ''}"
