"""How much a vision tower's features say of what pictures show: ridge regression from their mean to labels,
the tower as it is.

Knows labelled pictures and features. Knows nothing of how the tower was trained, so that towers can be
compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from phirt.fields import Length
from phirt_export.model_scorer import evaluating
from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.data.augmentation import UNCHANGED_IMAGE
from phirt_train.data.readable import read_usable
from phirt_train.data.records import LabelledImage
from phirt_train.picture_tower import PictureTower

_RIDGE = 0.01  # of the features' variance
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Probe:
    """Files of pictures with one label each: to fit the regression to, and to measure it on."""

    train: str
    test: str


Probes = Annotated[Mapping[str, Probe], Length(0, 64)]


def probe_files(probes: Mapping[str, Probe]) -> Iterable[str]:
    """All files that are read."""
    return [name for probe in probes.values() for name in (probe.train, probe.test)]


@torch.no_grad()
def probe_accuracy(model: Model, probe: Probe, context: TrainingContext) -> float:
    """Share of the test pictures whose label the regression scores highest."""
    tower = PictureTower(model, context)
    with evaluating(model):
        (x, labels), (test, wanted) = (_features(tower, name, context) for name in (probe.train, probe.test))
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    scores = ridge_scores(x, torch.nn.functional.one_hot(targets, len(names)).double(), test)
    best = scores.argmax(1).tolist()
    right = [names[number] == label for number, label in zip(best, wanted, strict=True)]
    return float(np.mean(right))


def ridge_scores(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Predictions [m, k] for features [m, d] of a ridge regression from features [n, d] to targets [n, k], in
    float64, features standardised.
    """
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-9)
    x, test = (x - mean) / deviation, (test - mean) / deviation
    center = y.mean(0)
    gram = x.T @ x + _RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights: Tensor = torch.linalg.solve(gram, x.T @ (y - center))
    return test @ weights + center


def _features(tower: PictureTower, name: str, context: TrainingContext) -> tuple[Tensor, list[str]]:
    """Mean features float64 [n, hidden] of a file's pictures, and their labels."""
    records = read_usable(
        name, LabelledImage, context, lambda record: record.image, lambda path, _: tower.check(path)
    )
    paths, rng = [path for path, _ in records], np.random.default_rng(0)
    parts, labels = [], []
    for begin in range(0, len(paths), _AT_ONCE):
        places = range(begin, min(begin + _AT_ONCE, len(paths)))
        crops = tower.crops(paths, places, tower.constants.crop_size, UNCHANGED_IMAGE, rng)
        parts.append(tower.encode(crops.pixels, crops.masks).mean().double().cpu())
        labels += [next(iter(records[place][1].classes.values())) for place in crops.taken]
    return torch.cat(parts), labels
