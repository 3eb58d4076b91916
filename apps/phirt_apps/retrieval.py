"""Needles put to models, side by side: what was found, by length and depth.

Knows what was asked for and how figures are shown. Needles and how they are sought are phirt_quant's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Output, plain_table

if TYPE_CHECKING:
    from phirt_quant.evaluation import Scorer
    from phirt_quant.examiner import TextForm
    from phirt_quant.needles import Retrieval


@dataclasses.dataclass(frozen=True)
class NeedleInputs:
    """In how many tokens needles are hidden, between which sentences (None: the program's own), how many for
    each length and depth (None: the program's choice), and what draws them.
    """

    lengths: Sequence[int]
    text: Path | None = None
    count: int | None = None
    seed: int = 0


def seek_needles(
    form: TextForm, scorers: Sequence[Scorer], inputs: NeedleInputs, out: Output
) -> list[list[Retrieval]]:
    """For each scorer what came of the needles; all have the text of `form`.

    Raises:
        ConfigError: the text cannot be read, or the model does not take so many tokens.
    """
    from phirt_quant import samples
    from phirt_quant.needles import COUNT, make_needles, seek_all
    from phirt_quant.text_files import read_documents

    texts = samples.SENTENCES if inputs.text is None else read_documents(inputs.text)
    needles = make_needles(form, texts, inputs.lengths, count=inputs.count or COUNT, seed=inputs.seed)
    label = "seeking needles"
    with out.busy(label) as display:
        return seek_all(scorers, needles, form.context, functools.partial(display.advance, label))


def needles_object(found: list[list[Retrieval]]) -> list[dict[str, Any]]:
    """The figures as plain values, one object for each length and depth."""
    cells: list[dict[str, Any]] = []
    for candidate, *others in zip(*found, strict=True):
        cells.append(dataclasses.asdict(candidate))
        for other in others:
            cells[-1]["reference"] = {"found": other.found, "perplexity": other.perplexity}
    return cells


def needle_table(found: list[list[Retrieval]]) -> Any:
    """One row for each length and depth: shares found and perplexities of the passkeys' tokens."""
    columns = ["#tokens", "#depth", "#needles", "#found", "#perplexity"]
    if len(found) > 1:
        columns += ["#reference found", "#perplexity"]
    table = plain_table(*columns)
    for candidate, *others in zip(*found, strict=True):
        cells = [str(candidate.length), f"{100 * candidate.depth:.0f} %", str(candidate.items)]
        for one in (candidate, *others):
            cells += [f"{100 * one.found:.0f} %", f"{one.perplexity:.4g}"]
        table.add_row(*cells)
    return table
