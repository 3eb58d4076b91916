"""What a vision tower learns from captions and from labels, beside one that learnt nothing: linear probes at
equal images.

    python tests/benchmarks/training_rows_vision.py --data ../shared/data -o runs/rows-vision [--images N]

Three towers of the same size and seed: trained by contrastive captioning, trained to name labels, and as
drawn. The two trainings see the same pictures equally often. Then a ridge regression reads labels off each
frozen tower's mean features; of `grocery` neither has seen a picture. Data are written once, as
`export/recipes/reports/kimi-vl.toml` has them at its scale `small`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from phirt_train.preparation import prepare_data
from phirt_train.progress import ignore
from phirt_train.recipe import load_recipe
from phirt_train.runner import run_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "export/recipes/reports/kimi-vl.toml"
SEEN = {"caltech101": 0.4, "clothing": 0.3, "shapes": 0.2, "words": 0.1}
PROBED = ("caltech101", "clothing", "grocery")
TOWERS = {"captions": "captioned", "labels": "labelled", "nothing": ""}
BATCH = 48

HEAD = """
name = "towers"
seed = 23
[model.decoder]
num_layers = 1
hidden_size = 32
num_heads = 2
num_kv_heads = 1
head_dim = 16
intermediate_size = 32
vocab_size = 2048
norm_eps = 1e-5
rope = { theta = 10000.0, rotary_dim = 16, original_context = 256, context = 256 }
[model.vision]
crop_size = 96
patch_size = 16
hidden_size = 128
intermediate_size = 384
num_layers = 2
num_heads = 4
norm_eps = 1e-6
max_crops = 1
stem_channels = [16, 32, 64, 128]
[tokenizer]
vocab_size = 2048
"""
STAGE = """
[[stage]]
name = "{name}"
objective = "{objective}"
starts_from = {starts_from}
trains = ["model.embed_tokens_extend.image_embed.img_processor."]
steps = {steps}
batch = {batch}
schedule = {{ peak = {peak}, warmup_steps = {warmup}, weight_decay = 0.1, muon = true }}
[stage.data]
augment = {{ min_area = 0.5, color_jitter = 0.2 }}
"""


def sources(folder: str) -> str:
    """The table of what is learnt from."""
    return "[stage.data.sources]\n" + "".join(
        f'"{folder}/{name}.train.jsonl" = {share}\n' for name, share in SEEN.items()
    )


def probe(tower: str, starts_from: str) -> str:
    """A stage that trains next to nothing and measures a tower."""
    names = f'["{starts_from}"]' if starts_from else "[]"
    stage = STAGE.format(
        name=tower, objective="coca", starts_from=names, steps=1, batch=2, peak=1e-9, warmup=0
    )
    probes = "".join(
        f'{name} = {{ train = "images/{name}.train.jsonl", test = "images/{name}.val.jsonl" }}\n'
        for name in PROBED
    )
    return stage + sources("captions") + "[stage.data.probes]\n" + probes


def recipe(images: int) -> str:
    """Both trainings, and a measurement of each tower."""
    steps = max(1, images // BATCH)
    text = HEAD
    for name, objective, folder in (
        ("captioned", "coca", "captions"),
        ("labelled", "image_classification", "images"),
    ):
        text += STAGE.format(
            name=name, objective=objective, starts_from=[], steps=steps, batch=BATCH, peak=2e-3, warmup=10
        ) + sources(folder)
    return text + "".join(probe(tower, start) for tower, start in TOWERS.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6000)
    options = parser.parse_args()
    small = load_recipe(RECIPE, "small")
    assert small.prepare is not None
    options.output.mkdir(parents=True, exist_ok=True)
    prepared = options.output / "prepared"
    prepare_data(small, small.prepare, options.data, prepared, ignore)
    path = options.output / "towers.toml"
    path.write_text(recipe(options.images))
    results = {one.name: one for one in run_recipe(path, options.output / "run", prepared)}
    print(f"| {options.images:,} pictures; learnt from | {' | '.join(PROBED)} | seconds |")
    print(f"|---|{'---|' * (len(PROBED) + 1)}")
    for tower, start in TOWERS.items():
        figures = [results[tower].figures[f"{name} probe accuracy"] for name in PROBED]
        seconds = results[start].seconds if start else 0.0
        print(f"| {tower} | {' | '.join(f'{one:.1%}' for one in figures)} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
