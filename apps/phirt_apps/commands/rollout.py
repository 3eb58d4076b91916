"""`phirt rollout`: answers of a model to questions, those that are right apart from those that are not.

Knows its options and how progress is shown. The work is phirt_train's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phirt_apps import options
from phirt_apps.extras import needs_extra
from phirt_apps.output import Output, one_line, plain_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phirt_train.rollouts.report import LevelReport

SUMMARY = "Draw answers to questions, and keep the right ones to train with."
SECTION = "Make a model"


def _verifiers(incomplete: str) -> list[str]:
    """The names of verifiers that begin so, for the Tab key."""
    from phirt_train.rollouts.verifiers import VERIFIERS

    return [name for name in VERIFIERS if name.startswith(incomplete)]


def command(
    questions: Annotated[
        Path,
        typer.Argument(metavar="QUESTIONS", show_default=False, help="JSON lines, or .xz of them."),
    ],
    folder: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the answers go, and go on from.")
    ],
    bundle: options.Bundle = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=10_000, metavar="K", help="Answers to each question.")
    ] = 8,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="X", help="How varied they are; 0 is always the same.")
    ] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", metavar="X", help="Share of likely tokens.")] = 1.0,
    max_new_tokens: options.MaxNewTokens = 256,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same answers.")
    ] = 0,
    verify: Annotated[
        str,
        typer.Option(
            "--verify",
            metavar="NAME",
            help="number, strict, flexible, exact, tools or constraints.",
            autocompletion=_verifiers,
        ),
    ] = "number",
    least: Annotated[
        float, typer.Option("--least", metavar="P", help="Leave out questions answered right less often.")
    ] = 0.2,
    most: Annotated[
        float, typer.Option("--most", metavar="P", help="Leave out questions answered right more often.")
    ] = 0.8,
    pairs: Annotated[bool, typer.Option("--pairs", help="Write preference pairs as well.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Questions, spread evenly.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=256, metavar="N", help="Questions answered at once.")
    ] = 1,
    json: options.Json = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Draws answers to QUESTIONS and sorts them: accepted.jsonl to fine-tune with, and rejected.jsonl.

    A question is {"question": ..., "answer": ...} as GSM8K has them, or {"prompt": [turns], ...} with
    "answer", "calls" or "constraints"; "level" groups the report. Right answers are kept where their
    equations compute too, each way of working once, beside the answer that the question brings. Ctrl-C keeps
    what was drawn: the same command goes on from there.

    \b
      phirt rollout -m my-model problems.jsonl -o rollouts --samples 8
      phirt rollout -m my-model problems.jsonl -o rollouts --verify flexible --pairs
    """
    from phirt_apps.arguments import generation_config
    from phirt_apps.errors import UsageError
    from phirt_apps.models import load

    out = Output()
    config = generation_config(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with needs_extra("rollout"):
        from phirt.errors import ConfigError
        from phirt_train.rollouts.questions import read_questions
        from phirt_train.rollouts.run import roll_out
        from phirt_train.rollouts.sampler import BundleSampler
        from phirt_train.rollouts.selection import Selection
        from phirt_train.rollouts.verifiers import find_verifier
    try:
        verifier, selection = find_verifier(verify), Selection(least, most)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    asked = read_questions(questions, limit)
    try:
        with load(bundle, out, provider, threads) as model, out.busy("drawing answers") as display:
            levels = roll_out(
                asked,
                BundleSampler(model, config),
                verifier,
                folder,
                count=samples,
                seed=seed,
                selection=selection,
                with_pairs=pairs,
                media=questions.parent,
                workers=workers,
                on_progress=lambda done, total: display.advance("drawing answers", done, total),
            )
    except KeyboardInterrupt:
        out.notice(f"stopped; what was drawn is in {one_line(str(folder))}: the same command goes on from it")
        raise
    if json:
        out.json({"levels": {level: dataclasses.asdict(figures) for level, figures in levels.items()}})
    else:
        out.table(_table(levels))


def _table(levels: Mapping[str, LevelReport]) -> Any:
    columns = (
        "#questions",
        "#answers",
        "#right",
        "#too easy",
        "#in band",
        "#too hard",
        "#accepted",
        "#pairs",
    )
    table = plain_table("level", *columns)
    for level, one in levels.items():
        counts = (one.easier, one.in_band, one.harder, one.accepted, one.pairs)
        shown = (
            f"{one.questions:,}",
            f"{one.samples:,}",
            f"{100 * one.p:.1f} %",
            *map("{:,}".format, counts),
        )
        table.add_row(level, *shown)
    return table
