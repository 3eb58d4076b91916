"""A checkpoint measured alone, as a bundle is: on tasks, by needles, by a text.

Knows what is measured of a checkpoint and how it is shown. The reference model is phirt_export's; what needs
a bundle's media or its quantized weights is not asked here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .examinations import TaskInputs, examine, task_table, text_result
from .extras import needs_extra
from .output import Output
from .retrieval import NeedleInputs, needle_table, needles_object, seek_needles

if TYPE_CHECKING:
    from phirt_quant.evaluation import Scorer
    from phirt_quant.examiner import TextForm


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, and no bundle."""
    from phirt.bundle.manifest import MANIFEST_NAME

    return (folder / "config.json").is_file() and not (folder / MANIFEST_NAME).is_file()


def evaluate_checkpoint(
    folder: Path,
    text: tuple[Path | None, int] | None,
    tasks: TaskInputs | None,
    needles: NeedleInputs | None,
    out: Output,
    *,
    as_json: bool,
) -> None:
    """Writes what was measured as tables, or as one JSON object. `text` is a file (None: the program's own
    sentences) and how many tokens of it.
    """
    form, scorer = _open(folder, out)
    document: dict[str, Any] = {"checkpoint": str(folder)}
    tables: list[Any] = []
    results = {} if tasks is None else examine(form, [scorer], tasks, out)
    if results:
        document["tasks"] = {name: result.as_object() for name, result in results.items()}
    if text is not None:
        results = {"text": text_result(form, scorer, *text, out), **results}
        document["text"] = results["text"].as_object()
    if results:
        tables.append(task_table(results))
    if needles is not None:
        found = seek_needles(form, [scorer], needles, out)
        document["needles"] = needles_object(found)
        tables.append(needle_table(found))
    out.results(document, tables, (), as_json=as_json)


def _open(folder: Path, out: Output) -> tuple[TextForm, Scorer]:
    with needs_extra("eval"):
        from phirt_export.checkpoint_scores import open_alone
    with out.busy("loading the checkpoint"):
        return open_alone(folder)
