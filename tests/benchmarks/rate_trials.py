"""The peak rate of a recipe's stage from short runs of it, and how much more its warm-up bears.

    python tests/benchmarks/rate_trials.py export/recipes/reports/phi-4.toml --scale small --stage pretraining
        --data ../shared/data -o runs/rates [--horizons 50000 100000 200000] [--rates 1e-3 2e-3 4e-3 8e-3]

Writes rates.json, which a stage takes as its peak: `peak = { fit = "rates.json" }`, for its own tokens. A
sweep that is stopped goes on with the runs that it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from phirt_train.rate_fit import fit_rates, try_rates, warmup_stability
from phirt_train.recipe import load_recipe
from phirt_train.stage_trials import StageTrials


def main() -> None:
    """Try, fit, and print both tables."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--scale")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--horizons", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.scale)
    trials = StageTrials(recipe, options.stage, options.output / "run", options.data)
    identity = repr((recipe.model, recipe.seed, recipe.stages[0]))
    known = options.output / "trials.jsonl"
    found = try_rates(trials.losses, options.rates, options.horizons, path=known, identity=identity)
    print("| tokens | rate | loss |\n|---|---|---|")
    for one in found:
        print(f"| {one.tokens:,} | {one.rate:g} | {one.loss:.3f} |")
    print()
    print(warmup_stability(trials.readings, trials.warmup_steps).table())
    fit = fit_rates(found)
    fit.save(options.output / "rates.json")
    print(f"rate = {fit.coefficient:.4g} · tokens^{fit.exponent:.3f}")


if __name__ == "__main__":
    main()
