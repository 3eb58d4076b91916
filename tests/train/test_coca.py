"""Contrastive captioning: losses of float64 loops, gradients from both terms, and a linear probe that tells a
tower that has learnt from one that has not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from phirt.errors import ConfigError
from phirt_train.linear_probe import Probe, probe_accuracy, ridge_scores
from phirt_train.objective import Share
from phirt_train.objectives.coca import sigmoid_contrast, softmax_contrast
from phirt_train.runner import run_recipe

STAGE = """
name = "vision_encoder"
objective = "coca"
trains = ["model.embed_tokens_extend.image_embed.img_processor."]
steps = 8
batch = 6
schedule = { peak = 3e-3, warmup_steps = 5, muon = true }
[stage.data]
sources = { "captions.jsonl" = 1.0 }
held_out = { captions = "captions.jsonl" }
probes = { colours = { train = "labels.jsonl", test = "labels.jsonl" } }
"""
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 180, 20)}


def write_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Noise with a tinge of one of three colours; two captions say the same of different pictures."""
    rng = np.random.default_rng(0)
    captions, labels = [], []
    for index in range(12):
        name, colour = list(COLOURS.items())[index % 3]
        noise = rng.integers(0, 256, (60, 70 - index, 3)) * 0.7 + np.array(colour) * 0.3
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{index}.png")
        captions.append({"image": f"{index}.png", "text": f"A {name} thing."})
        labels.append({"image": f"{index}.png", "label": name})
    write_lines(tmp_path / "captions.jsonl", captions)
    write_lines(tmp_path / "labels.jsonl", labels)
    return tmp_path


def similarities(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    names = rng.integers(0, 3, n)
    return torch.from_numpy(rng.normal(0, 3, (n, n))), torch.from_numpy(names[:, None] == names)


def test_the_sigmoid_loss_is_that_of_a_loop() -> None:
    s, equal = similarities(7, 1)
    assert 7 < int(equal.sum()) < 49
    total = 0.0
    for i in range(7):
        for j in range(7):
            z = 1 if equal[i, j] else -1
            total += math.log1p(math.exp(-z * float(s[i, j])))
    assert sigmoid_contrast(s, equal).item() == pytest.approx(total, rel=1e-12)


def test_the_softmax_loss_is_that_of_a_loop() -> None:
    s, equal = similarities(7, 2)
    total = 0.0
    for i in range(7):
        for row in (s[i], s[:, i]):
            norm = math.log(sum(math.exp(float(one)) for one in row))
            alike = [j for j in range(7) if equal[i, j]]
            total -= sum(float(row[j]) - norm for j in alike) / len(alike) / 2
    assert softmax_contrast(s, equal).item() == pytest.approx(total, rel=1e-12)
    own = torch.eye(7, dtype=torch.bool)  # all different: CLIP's own loss
    plain = [torch.nn.functional.cross_entropy(one, torch.arange(7)) for one in (s, s.T)]
    assert softmax_contrast(s, own).item() == pytest.approx(7 * sum(plain).item() / 2, rel=1e-12)  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("contrast", ["sigmoid", "softmax"])
def test_the_whole_loss_is_that_of_a_loop_in_float64(
    workshop: Callable[..., Any], pictures: Path, towers: str, in_float32: None, contrast: str
) -> None:
    objective = workshop(STAGE.replace("[stage.data]", f'[stage.data]\ncontrast = "{contrast}"'), towers)
    objective.model.eval()
    batch = objective.prepare(0, Share())
    loss = objective.loss(batch)
    objective.model.double()
    head = objective.head.double()
    tower, n = objective.model.image_embed.img_processor, len(batch.pixels)
    pooled = tower(batch.pixels.double(), batch.masks).flatten(1, 2)
    x, y, captions, tokens = [], [], 0.0, 0
    for i in range(n):
        # Without padding: rows of patches within the picture, and the caption's own tokens.
        weight = torch.nn.functional.avg_pool2d(batch.masks[i][None, None].double(), 2).flatten() > 0
        patches = pooled[i][weight][None]
        ids = batch.token_ids[i, : int(batch.lengths[i])]
        whole = head.tokens.num_embeddings - 1
        text = head.tokens(torch.cat((ids, torch.tensor([whole])))) + head.positions.weight[: len(ids) + 1]
        text = text[None]
        for block in head.text:
            text = block(text)
        q = head.query
        x.append(head.picture_norm(head.pooler(q, head.patch_norm(patches)))[0, 0])
        y.append(head.text_norm(text[0, -1]))
        hidden = text[:, :-2]
        for block in head.decoder:
            hidden = block(hidden, head.patch_norm(patches))
        scores = (head.decoder_norm(hidden)[0] @ head.tokens.weight[:whole].T).log_softmax(-1)
        captions -= sum(float(scores[at - 1, ids[at]]) for at in range(1, len(ids)))
        tokens += len(ids) - 1
    total = 0.0
    scale, bias = (10.0, -10.0) if contrast == "sigmoid" else (1 / 0.07, 0.0)
    cosine = [[float(a @ b / a.norm() / b.norm()) for b in y] for a in x]
    texts = [tuple(batch.token_ids[i].tolist()) for i in range(n)]
    for i in range(n):
        alike = [j for j in range(n) if texts[j] == texts[i]]
        if contrast == "sigmoid":
            for j in range(n):
                z = 1 if j in alike else -1
                total += math.log1p(math.exp(-z * (scale * cosine[i][j] + bias)))
            continue
        for row in (cosine[i], [cosine[j][i] for j in range(n)]):
            norm = math.log(sum(math.exp(scale * one) for one in row))
            total -= sum(scale * row[j] - norm for j in alike) / len(alike) / 2
    assert loss.total.item() == pytest.approx(total + 2.0 * n * captions / tokens, rel=1e-5)
    assert loss.weight == n == 6


def test_both_terms_reach_the_tower(workshop: Callable[..., Any], pictures: Path, towers: str) -> None:
    objective = workshop(STAGE, towers)
    contrast, captions, _ = objective._terms(objective.prepare(0, Share()))
    tower = list(objective.model.image_embed.img_processor.parameters())
    for term in (contrast, captions):
        grads = torch.autograd.grad(term, tower, retain_graph=True, allow_unused=True)
        assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_ridge_regression_is_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    x, y, test = (torch.from_numpy(rng.normal(size=shape)) for shape in ((20, 4), (20, 2), (5, 4)))
    z = (x - x.mean(0)) / x.std(0, correction=0)
    padded = torch.cat((z, (0.01 * 20) ** 0.5 * torch.eye(4, dtype=z.dtype)))
    wanted = torch.cat((y - y.mean(0), torch.zeros(4, 2, dtype=z.dtype)))
    weights = torch.linalg.lstsq(padded, wanted).solution
    expected = (test - x.mean(0)) / x.std(0, correction=0) @ weights + y.mean(0)
    torch.testing.assert_close(ridge_scores(x, y, test), expected)


def test_a_stage_trains_the_tower_and_leaves_no_head(pictures: Path, towers: str, tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "export/recipes/parrot/recipe.toml"
    head = recipe.read_text().split("[[stage]]")[0]
    at = head.index("[tokenizer]")
    text = head[:at] + towers + head[at:] + "[[stage]]" + STAGE.replace("steps = 8", "steps = 40")
    tokens = '[tokenizer]\nsources = ["captions.jsonl"]'
    (tmp_path / "recipe.toml").write_text(text.replace("[tokenizer]", tokens))
    (result,) = run_recipe(tmp_path, tmp_path / "run")
    assert result.unit == "pictures" and result.units == 240
    assert result.figures["captions caption loss"] < 3.0  # of the 5.7 of a guess
    assert result.figures["colours probe accuracy"] == 1.0
    weights = load_file(tmp_path / "run/vision_encoder/model.safetensors")
    assert weights and all(".img_processor." in name for name in weights)


def test_a_probe_measures_any_tower(workshop: Callable[..., Any], pictures: Path, towers: str) -> None:
    objective = workshop(STAGE, towers)
    accuracy = probe_accuracy(objective.model, Probe("labels.jsonl", "labels.jsonl"), objective.context)
    assert 0 <= accuracy <= 1


def test_broken_pictures_are_left_out_as_long_as_they_are_few(
    workshop: Callable[..., Any], pictures: Path, towers: str
) -> None:
    """One is no picture, and one ends in the middle, which its header does not show."""
    records = [json.loads(line) for line in (pictures / "captions.jsonl").read_text().splitlines()]
    (pictures / "text.png").write_text("no picture")
    whole = (pictures / "0.png").read_bytes()
    (pictures / "half.png").write_bytes(whole[: len(whole) // 2])
    bad = [{"image": "text.png", "text": "A red thing."}, {"image": "half.png", "text": "Half a thing."}]
    write_lines(pictures / "captions.jsonl", [*records, *bad])
    with pytest.raises(ConfigError, match=r"captions\.jsonl line 13: .*text\.png"):
        workshop(STAGE, towers)
    write_lines(pictures / "captions.jsonl", records * 20 + bad)
    objective = workshop(STAGE.replace("steps = 8", "steps = 41"), towers)
    for step in range(41):  # an epoch, the whole of it
        for broken in objective.prepare(step, Share()).broken:
            objective.context.rejects.count(broken, 241)
    notice = objective.context.rejects.notice()
    assert notice.startswith("left out: 2 of 241 rows of captions.jsonl")
