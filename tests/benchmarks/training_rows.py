"""What each idea of the reports' recipes is worth: two trainings that differ in it alone, at equal tokens.

    python tests/benchmarks/training_rows.py --data ../shared/data -o runs/rows [--row NAME ...] [--tokens N]

Data are written once, as `export/recipes/reports/phi-4.toml` has them at its scale `small`. A training that
is done stays done: the same command goes on, and prints the table of all rows. A result against a report's
claim stands in it like any other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from phirt_train.loop import StageResult
from phirt_train.preparation import prepare_data
from phirt_train.progress import ignore
from phirt_train.recipe import load_recipe
from phirt_train.runner import run_recipe
from phirt_train.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "export/recipes/reports/phi-4.toml"
Results = Mapping[str, StageResult]

MODEL = """
name = "row"
seed = 11

[model.decoder]
num_layers = 3
hidden_size = 128
num_heads = 4
num_kv_heads = 2
head_dim = 32
intermediate_size = 384
vocab_size = 2048
norm_eps = 1e-5
rope = {{ theta = 10000.0, rotary_dim = 32, original_context = {context}, context = {context} }}

[tokenizer]
vocab_size = 2048
file = "{tokenizer}"
"""
READ = """
[[stage]]
name = "{name}"
objective = "language_modeling"
starts_from = {starts_from}
trains = ["model."]
tokens = {tokens}
batch = 16
{more}
schedule = {{ kind = "linear", peak = {peak}, warmup_steps = 20, weight_decay = 0.1{continues} }}
[stage.data]
row_tokens = {row}
documents = {{ {documents} }}
[stage.data.held_out]
prose = "held_out/prose.jsonl"
problems = "held_out/problems.jsonl"
code = "held_out/code.jsonl"
"""
ANSWER = """
[[stage]]
name = "{name}"
objective = "supervised_finetuning"
starts_from = ["{after}"]
trains = ["model."]
steps = {steps}
batch = 16
rope = {{ context = 1024 }}
schedule = {{ peak = {peak}, warmup_steps = 10 }}
[stage.data]
sources = {{ {sources} }}
"""
PREFER = """
[[stage]]
name = "preferred"
objective = "direct_preference_optimization"
starts_from = ["answers"]
trains = ["model."]
steps = {steps}
batch = 16
schedule = {{ peak = 5e-5, warmup_steps = 5, weight_decay = 0.0 }}
[stage.data]
sources = {{ "preferences/chat.jsonl" = {{ share = 1.0, max_tokens = 120 }} }}
held_out = {{ chat = "preferences/chat.val.jsonl" }}
"""
STEP = """
[[step]]
name = "{name}"
kind = "{kind}"
{after}
options = {{ {options} }}
"""
FILTER = STEP.format(
    name="filtered",
    kind="curation",
    after="",
    options='source = [{ name = "web", files = ["kinds/web.jsonl"], quality = { languages = ["en"] } }], '
    'classifier = { positive = [{ files = ["kinds/rewrites.jsonl", "kinds/acquired.jsonl"] }], '
    'made = ["corruptions"], keep = 0.9 }',
)
TALK = ", ".join(
    f'"chats/{domain}.jsonl" = {{ share = {share}, max_tokens = 120 }}'
    for domain, share in (("conversation", 0.4), ("identity", 0.2), ("reasoning", 0.2), ("math", 0.2))
)


@dataclasses.dataclass(frozen=True)
class Row:
    """An idea: what it claims, its trainings by name, and what is shown of each."""

    claim: str
    trainings: Mapping[str, str]
    shown: Callable[[Results], str]


def read(
    documents: str,
    tokens: float,
    *,
    name: str = "text",
    after: str = "",
    row: int = 128,
    more: str = "",
    peak: str = "3e-3",
    continues: str = "",
) -> str:
    """A stage that reads documents."""
    return READ.format(
        name=name,
        starts_from=f'["{after}"]' if after else "[]",
        tokens=tokens,
        documents=documents,
        row=row,
        more=more,
        peak=peak,
        continues=f', continues = "{continues}"' if continues else "",
    )


def measured(name: str, after: str, lengths: str) -> str:
    """A step that looks for passkeys at lengths."""
    options = f'texts = "held_out/long.jsonl", needles = {lengths}, perplexities = {lengths}, documents = 8'
    return STEP.format(name=name, kind="measurement", after=f'after = "{after}"', options=options)


def attack(name: str, after: str, attacks: int) -> str:
    """A round of safety."""
    options = f"attacks = {attacks}, kept = {min(attacks, 40)}, measured = 200, max_new_tokens = 32"
    return STEP.format(name=name, kind="safety_round", after=f'after = "{after}"', options=options)


def bits(results: Results, *stages: str) -> str:
    """Bits per byte of what is held out, after the last of these stages that there is."""
    figures = next(results[stage].figures for stage in reversed(stages) if stage in results)
    names = ("prose", "problems", "code")
    return ", ".join(f"{name} {figures[f'{name} bits per byte']:.3f}" for name in names)


def figures_of(results: Results, steps: Mapping[str, tuple[str, ...]]) -> str:
    """Figures of some stages and steps."""
    return "; ".join(
        f"{step}: " + ", ".join(f"{name} {results[step].figures[name]:.3f}" for name in names)
        for step, names in steps.items()
    )


def rows(tokens: float) -> dict[str, Row]:
    """All of them; each training reads so many tokens, or, past that, as many steps as its twin."""
    others = '"kinds/synthetic.jsonl" = {}, "kinds/code.jsonl" = {}, "kinds/acquired.jsonl" = {}'
    web, sifted = '"kinds/web.jsonl" = {}', '"made/filtered/web.jsonl" = {}'
    broad = f"{web.format(0.8)}, {others.format(0.0001, 0.1, 0.1)}"
    refined = f"{sifted.format(0.35)}, {others.format(0.45, 0.1, 0.1)}"
    # What two phases of two thirds and a third add up to.
    together = f"{web.format(0.533)}, {sifted.format(0.117)}, {others.format(0.15, 0.1, 0.1)}"
    rising = f"{sifted.format(0.35)}, {others.format('{ start = 0.1, end = 0.7 }', 0.125, 0.125)}"
    constant = f"{sifted.format(0.35)}, {others.format(0.4, 0.125, 0.125)}"
    base = read(constant.replace("made/filtered/web", "kinds/prose"), tokens)
    long = '"kinds/recall.jsonl" = 0.5, "kinds/long.jsonl" = 0.3, "kinds/synthetic.jsonl" = 0.2'
    recall = read(long, tokens)
    extend = read(
        long, tokens / 8, name="longer", after="text", row=512, peak="1e-3",
        more="rope = { theta = 160000.0, context = 512 }\nmicro_batch = 4",
    )  # fmt: skip
    sft = ANSWER.format(name="answers", after="text", steps=200, peak="1e-3", sources=TALK)
    repair = ANSWER.format(
        name="repaired", after="answers", steps=60, peak="5e-4",
        sources=f'"made/attack/rows.jsonl" = 0.5, {TALK}',
    )  # fmt: skip
    names = ("passkeys", "passkey perplexity", "perplexity")
    passkeys = tuple(f"{name} at {length}" for length in (128, 512) for name in names)
    preferred = ("chat preference accuracy", "chat preference margin")
    refused = ("refused of unsafe", "refused of look-alikes")
    return {
        "filter": Row(
            "a filtered web is worth more than a raw one (Phi-3, Phi-4-Mini)",
            {"raw": read(web.format(1.0), tokens), "filtered": FILTER + read(sifted.format(1.0), tokens)},
            lambda results: bits(results, "text"),
        ),
        "phases": Row(
            "two phases, web first, then filtered web and synthetic text, are worth more than one (Phi-3)",
            {
                "one phase": FILTER + read(together, tokens),
                "two phases": FILTER
                + read(broad, tokens * 2 / 3)
                + read(refined, tokens / 3, name="refined", after="text", continues="text"),
            },
            lambda results: bits(results, "text", "refined"),
        ),
        "synthetic": Row(
            "a rising share of synthetic text is worth more than a constant one (Phi-4)",
            {"constant": FILTER + read(constant, tokens), "rising": FILTER + read(rising, tokens)},
            lambda results: bits(results, "text"),
        ),
        "rope": Row(
            "a larger rotary base and a short mid-training find what lies at four times the context (Phi-4)",
            {
                "4x": recall
                + measured("before", "text", "[128, 512]")
                + extend
                + measured("after", "longer", "[128, 512]")
            },
            lambda results: figures_of(results, {"before": passkeys, "after": passkeys}),
        ),
        "dpo": Row(
            "preferences are learnt (Phi-3, Phi-4)",
            {
                "at the start": base + sft + PREFER.format(steps=1),
                "trained": base + sft + PREFER.format(steps=100),
            },
            lambda results: figures_of(results, {"preferred": preferred}),
        ),
        "safety": Row(
            "break-fix rounds refuse more of what is unsafe, and not of what only looks so (Phi-3)",
            {
                "one round": base
                + sft
                + attack("attack", "answers", 200)
                + repair
                + attack("checked", "repaired", 0),
            },
            lambda results: figures_of(results, {"attack": refused, "checked": refused}),
        ),
    }  # fmt: skip


def prepared(data: Path, folder: Path) -> Path:
    """The data of all trainings, with one tokenizer beside them."""
    recipe, output = load_recipe(RECIPE, "small"), folder / "data"
    assert recipe.prepare is not None and recipe.tokenizer is not None
    prepare_data(recipe, recipe.prepare, data, output, ignore)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        files = [output / name for name in recipe.tokenizer.sources]
        tokenizer.write_text(train_tokenizer(recipe.tokenizer, files, ignore), encoding="utf-8")
    return output


def train(name: str, stages: str, folder: Path, data: Path) -> dict[str, StageResult]:
    """The results of a training, by stage and step."""
    place = folder / name.replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    context = 128
    head = MODEL.format(context=context, tokenizer=(folder / "tokenizer.json").resolve())
    (place / "recipe.toml").write_text(head + stages, encoding="utf-8")
    return {result.name: result for result in run_recipe(place, place / "run", data)}


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--row", action="append", help="one of the rows; by default all")
    parser.add_argument("--tokens", type=float, default=400_000, help="that each training reads")
    options = parser.parse_args()
    every = rows(options.tokens)
    if unknown := [name for name in options.row or () if name not in every]:
        parser.error(f"there is no row {unknown[0]}; accepted: {', '.join(every)}")
    data = prepared(options.data, options.output)
    print("| idea | training | minutes | held out |\n|---|---|---|---|", flush=True)
    found = {}
    for name in options.row or every:
        for training, stages in every[name].trainings.items():
            results = train(f"{name} {training}", stages, options.output, data)
            minutes = sum(result.seconds for result in results.values()) / 60
            shown = every[name].shown(results)
            print(f"| {every[name].claim} | {training} | {minutes:.1f} | {shown} |", flush=True)
            found[f"{name}: {training}"] = shown
    (options.output / "rows.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
