"""Whether the joint stage of phi-4-multimodal has hurt any route: each route's held-out answers before and
after it.

    python tests/benchmarks/training_interference.py --run runs/phi-4-multimodal --scale small

Before is what each route's own stages left: language after `posttraining`, pictures and films after
`v4_multi_frame`, recordings after `s2_tasks`; after is `joint`. A file of held-out conversations is dealt out
into parts, whose mean losses are the items that chance is estimated from.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch

from phirt_export.bundle import model_limits
from phirt_quant.interference import Scores, interference
from phirt_quant.metrics import Estimate
from phirt_train.context import TrainingContext
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.data.messages import write_lines
from phirt_train.data.records import read_lines
from phirt_train.objectives.supervised_finetuning import SupervisedFinetuning, SupervisedFinetuningData
from phirt_train.progress import ignore
from phirt_train.recipe import Recipe, load_recipe
from phirt_train.runner import run_recipe
from phirt_train.stage import Schedule, StageConfig
from phirt_train.weights import model_after

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "export/recipes/reports/phi-4-multimodal.toml"
ROUTES = {
    "language": ("posttraining", "chats/calls.val.jsonl"),
    "pictures": ("v4_multi_frame", "talks/caltech101.val.jsonl"),
    "films": ("v4_multi_frame", "talks/films.val.jsonl"),
    "recordings": ("s2_tasks", "talks/asr.new_speaker.jsonl"),
    "sounds": ("s2_tasks", "talks/au.val.jsonl"),
}
PARTS, MOST = 16, 160


def deal(source: Path) -> list[str]:
    """The names of parts of a file, beside it, so that paths of media stay right."""
    rows = [value for _, value in itertools.islice(read_lines(source), MOST)]
    names = []
    for part in range(min(PARTS, len(rows))):
        path = source.with_name(f"part{part}.{source.name}")
        write_lines(path, rows[part :: min(PARTS, len(rows))])
        names.append(path.name)
    return names


def losses(recipe: Recipe, run: Path, stage: str, name: str) -> Estimate:
    """The perplexity of the answers of a file under the weights that a stage left."""
    data, folder = run / "prepared", Path(name).parent
    parts = {part: str(folder / part) for part in deal(data / name)}
    config = recipe.model_after(stage)
    with tempfile.TemporaryDirectory() as cache:
        context = TrainingContext(
            stage="measured",
            seed=1,
            data=data,
            cache=Path(cache),
            encoder=ConversationEncoder(run / "tokenizer.json", recipe.chat_template, config),
            device=torch.device("cpu"),
            limits=model_limits(config),
            is_fresh=False,
            report=ignore,
        )
        first = next(iter(parts.values()))
        tables = SupervisedFinetuningData({first: 1.0}, held_out=parts)
        measured = StageConfig("measured", "supervised_finetuning", ("model.",), 1, 1, Schedule(1e-3), tables)
        model = model_after(recipe, run, stage).eval()
        means = np.array(list(SupervisedFinetuning(model, measured, context).held_out_losses().values()))
    for part in parts.values():
        (data / part).unlink()
    return Estimate(float(np.exp(means.mean())), float(np.exp(means.mean())) * means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="where the recipe was run")
    parser.add_argument("--scale", default="small")
    parser.add_argument("--data", type=Path, help="where it was not: run it from these data first")
    options = parser.parse_args()
    if options.data is not None:
        run_recipe(RECIPE, options.run, options.data, scale=options.scale)
    recipe = load_recipe(RECIPE, options.scale)
    before: Scores = {
        route: {"perplexity": losses(recipe, options.run, stage, name)}
        for route, (stage, name) in ROUTES.items()
    }
    after: Scores = {
        route: {"perplexity": losses(recipe, options.run, "joint", name)}
        for route, (_, name) in ROUTES.items()
    }
    found = interference(before, after)
    print(found.table())
    print(f"worse: {', '.join(found.worse) or 'none'}")


if __name__ == "__main__":
    main()
