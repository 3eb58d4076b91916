"""Vision encoder pre-training: name what a picture shows, one linear head per source on the pooled features.

Knows pictures, labels and the tower. Knows nothing of the language model: this stands in for the contrastive
start that published vision towers have (spec section F).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.data.pictures import (
    PLAIN,
    PictureSet,
    crop_batch,
    load_photos,
    render_scenes,
)
from phirt_train.data.shapes import COLOURS, SHAPES, WORDS
from phirt_train.options import Augmentation, ImageClassData
from phirt_train.recipe import StageConfig

CANVAS = 160


def _rendered_targets(pictures: PictureSet) -> dict[str, Tensor]:
    """Targets of rendered scenes; -100 where a question has no answer."""
    scenes = pictures.scenes
    shapes, colours = list(SHAPES), list(COLOURS)
    single = [scene.things[0] if len(scene.things) == 1 else None for scene in scenes]
    return {
        "count": torch.tensor([len(s.things) - 1 if s.things else -100 for s in scenes]),
        "shape": torch.tensor([shapes.index(t.shape) if t else -100 for t in single]),
        "colour": torch.tensor([colours.index(t.colour) if t else -100 for t in single]),
        "position": torch.tensor([t.row * 3 + t.column if t else -100 for t in single]),
        "word": torch.tensor([WORDS.index(s.word) if s.word else -100 for s in scenes]),
    }


RENDERED_CLASSES = {
    "count": 6,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "position": 9,
    "word": len(WORDS),
}


class ImageClasses:
    """Cross-entropy with label smoothing and mixing of pairs, over the sources of the recipe."""

    unit = "pictures"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, ImageClassData)
        self.model, self.stage, self.seed, self.device = model, stage, context.seed, context.device
        self.weights = dict(data.sources)
        self.resolutions = data.resolutions
        scene_change = Augmentation(min_area=1.0, shade=data.augment.shade / 2)
        self.changes = {
            name: scene_change if name in ("shapes", "words") else data.augment for name in self.weights
        }
        self.mix = data.mix
        self.train, self.held_out, self.targets, sizes = {}, {}, {}, {}
        for name in self.weights:
            if name in ("shapes", "words"):
                self.train[name] = render_scenes(name, data.rendered, self.seed, CANVAS)
                self.held_out[name] = render_scenes(name, 300, self.seed + 1, CANVAS)
                self.targets[name] = (
                    _rendered_targets(self.train[name]),
                    _rendered_targets(self.held_out[name]),
                )
                continue
            self.train[name] = load_photos(context.data, name, "train", CANVAS)
            self.held_out[name] = load_photos(context.data, name, "val", CANVAS)
            classes = {label: i for i, label in enumerate(sorted(set(self.train[name].labels)))}
            sizes[name] = len(classes)
            train, held_out = (
                {name: torch.tensor([classes[label] for label in pictures.labels])}
                for pictures in (self.train[name], self.held_out[name])
            )
            self.targets[name] = (train, held_out)
        sizes |= RENDERED_CLASSES
        width = model.image_embed.config.hidden_size
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(width)})
        for name, count in sizes.items():
            self.head[name] = nn.Linear(width, count)
        self._weights_to_start(self.seed)

    def _weights_to_start(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.head.named_parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 0.02, generator=generator)
                elif not name.startswith("norm"):
                    parameter.zero_()

    def _features(self, pixels: Tensor, mask: Tensor) -> Tensor:
        pixels, mask = pixels.to(self.device), mask.to(self.device)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            pooled = self.model.image_embed.img_processor(
                pixels.contiguous(memory_format=torch.channels_last), mask
            )
        weight = F.avg_pool2d(mask[:, None].float(), self.model.image_embed.config.pool).permute(0, 2, 3, 1)
        summed = (pooled.float() * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
        normed: Tensor = self.head["norm"](summed)
        return normed

    def _resolution(self, step: int) -> int:
        passed = [side for begin, side in self.resolutions if step >= begin * self.stage.steps]
        return passed[-1]

    def loss(self, step: int) -> tuple[Tensor, int]:
        """Mean loss over the sources' pictures of this step, and the number of pictures."""
        rng = np.random.default_rng((self.seed, step))
        names = list(self.weights)
        shares = np.array([self.weights[name] for name in names])
        counts = rng.multinomial(self.stage.batch, shares / shares.sum())
        patch, side = self.model.image_embed.config.patch_size, self._resolution(step)
        pixels, masks, parts = [], [], []
        for name, count in zip(names, counts, strict=True):
            if count == 0:
                continue
            picks = torch.from_numpy(rng.integers(0, len(self.train[name]), count))
            source = self.train[name]
            x, m = crop_batch(source.canvas[picks], source.sizes[picks], side, patch, self.changes[name], rng)
            if rng.random() < 0.5:  # as a global view, whose padding is not masked
                m = torch.ones_like(m)
            partner, share = torch.arange(int(count)), 1.0
            if name not in ("shapes", "words") and rng.random() < self.mix:
                share = float(rng.beta(0.4, 0.4))
                partner = torch.from_numpy(rng.permutation(int(count)))
                x, m = share * x + (1 - share) * x[partner], m | m[partner]
            pixels.append(x)
            masks.append(m)
            parts.append((name, picks, partner, share))
        features = self._features(torch.cat(pixels), torch.cat(masks))
        total, begin = features.new_zeros(()), 0
        for name, picks, partner, share in parts:
            rows = features[begin : begin + len(picks)]
            begin += len(picks)
            for head, target in self.targets[name][0].items():
                wanted = target[picks]
                if (wanted == -100).all():
                    continue
                scores, wanted = self.head[head](rows), wanted.to(self.device)
                first = F.cross_entropy(scores, wanted, label_smoothing=0.1, reduction="sum")
                second = F.cross_entropy(scores, wanted[partner], label_smoothing=0.1, reduction="sum")
                total = total + share * first + (1 - share) * second
        return total / self.stage.batch, self.stage.batch

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Accuracy per head on the held-out split."""
        config = self.model.image_embed.config
        rng = np.random.default_rng(0)
        figures: dict[str, float] = {}
        for name, pictures in self.held_out.items():
            features = torch.cat(
                [
                    self._features(
                        *crop_batch(
                            pictures.canvas[i : i + 64],
                            pictures.sizes[i : i + 64],
                            config.crop_size,
                            config.patch_size,
                            PLAIN,
                            rng,
                        )
                    )
                    for i in range(0, len(pictures), 64)
                ]
            )
            for head, target in self.targets[name][1].items():
                known = target != -100
                if known.any():
                    right = self.head[head](features[known]).argmax(1).cpu() == target[known]
                    figures[f"{head} accuracy"] = right.float().mean().item()
        return figures
