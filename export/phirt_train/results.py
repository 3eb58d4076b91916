"""What stages and steps have reached, as it lies in a run's folder, and the table of it.

Knows the file of a result and its digest. Knows nothing of how it came about.
"""

from __future__ import annotations

from pathlib import Path

from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json, read_dataclass
from phirt_train.loop import StageResult

RESULT_NAME = "result.json"


def finished(folder: Path, digest: str) -> StageResult | None:
    """The result of a stage that is done; None while it is not.

    Raises:
        ConfigError: it was done with another recipe, or its result is damaged.
    """
    path = folder / RESULT_NAME
    if not path.is_file():
        return None
    remedy = f"delete {folder} and the folders of the stages that start from it"
    document = parse_json(path.read_bytes(), str(path), ConfigError, remedy)
    result = read_dataclass(StageResult, Fields(document, str(path), ConfigError, remedy))
    if result.digest != digest:
        raise ConfigError(
            f"{folder} was trained with another recipe; train into another folder, or delete {folder.name} "
            "and the stages that start from it"
        )
    return result


def result_table(results: list[StageResult]) -> str:
    """The stages and what they reached, as a Markdown table."""
    lines = ["| stage | steps | items | minutes | loss | held out |", "|---|---|---|---|---|---|"]
    for result in results:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in result.figures.items())
        steps, loss = (str(result.steps), f"{result.loss:.3f}") if result.steps else ("", "")
        lines.append(
            f"| {result.name} | {steps} | {result.units:,} {result.unit} | {result.seconds / 60:.1f} "
            f"| {loss} | {figures} |"
        )
    return "\n".join(lines) + "\n"
