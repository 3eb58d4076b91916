"""Shares of a recipe's stage of text from short runs of it, by what held-out texts cost afterwards.

    python tests/benchmarks/mixture_trials.py export/recipes/reports/phi-4.toml --scale small
        --stage pretraining --data ../shared/data -o runs/shares [--tokens 100000] [--rounds 2] [--factor 2]

Prints a table of all runs and the shares that are best. A search that is stopped goes on with the runs that
it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from phirt_train.mixture_search import search_shares
from phirt_train.recipe import load_recipe
from phirt_train.stage_trials import StageTrials


def main() -> None:
    """Search, and print the table."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--scale")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--factor", type=float, default=2.0)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.scale)
    trials = StageTrials(recipe, options.stage, options.output / "run", options.data)
    found = search_shares(
        lambda shares: trials.held_out(shares, options.tokens),
        trials.shares,
        rounds=options.rounds,
        factor=options.factor,
        path=options.output / "trials.jsonl",
        identity=repr((recipe.model, recipe.seed, recipe.stages, options.tokens)),
    )
    print(found.table())
    print(f"noise {found.noise:.4f}; best {found.loss:.4f} at")
    for name, share in found.shares.items():
        print(f"    {name} {share:.3f}")


if __name__ == "__main__":
    main()
