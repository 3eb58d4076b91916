"""What the trunk would see in pictures of ImageNet's classes, of which there are none here.

The classifier of the published trunk says where its classes lie: for classes of equal spread a linear
classifier's weights are the classes' means, times the inverse of the covariance within classes (Fisher 1936).
Solved for the means, with the covariance that our own pictures have, and with the deviations of real pictures
from the means of their classes around them, this gives features whose classes the published classifier knows.
Knows features and classifiers, and the base that has both. Knows nothing of conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phirt.encoders.fixed_image import process
from phirt.encoders.image_file import decode_picture, open_image
from phirt_export.bundle import model_limits
from phirt_export.checkpoint import Checkpoint
from phirt_export.encoders import photo_constants
from phirt_export.model_weights import load_model
from phirt_export.precision import autocast
from phirt_export.reference import Model

from .media import Item, Note

_SHRINKAGE = 0.1  # of the covariance towards its diagonal
_SURE = 0.7  # the probability that the classifier gives a class at its mean
_FARTHEST = 8.0  # a class's mean lies from the middle of all, in lengths of that
_LOOKED_AT = 900  # pictures of each source
_AT_ONCE = 16


def write_imagined(
    base: Path, output: Path, pictures: Sequence[Sequence[Item]], per_class: int, seed: int, note: Note
) -> list[Item]:
    """Write features as `media/imagenet/<number>.npy`; returns them with their classes as labels."""
    model = load_model(Checkpoint(base))
    rng = np.random.default_rng(seed)
    chosen = [items[i] for items in pictures for i in rng.permutation(len(items))[:_LOOKED_AT]]
    numbers: dict[str, int] = {}
    labels = torch.tensor([numbers.setdefault(item.record["label"], len(numbers)) for item in chosen])
    seen = _seen(model, [output / item.path for item in chosen], note)
    classifier, names = model.photo_embed.classifiers[0], model.photo_embed.config.classes[0]
    assert isinstance(classifier, torch.nn.Linear)
    folder = output / "media/imagenet"
    folder.mkdir(parents=True)
    items = []
    with torch.no_grad():
        found = imagine(seen, labels, classifier.weight, classifier.bias, per_class, seed)
        for index, (number, features) in enumerate(found):
            path = f"media/imagenet/{index:05}.npy"
            np.save(output / path, features)
            items.append(Item(path, {"label": names[number]}))
    return items


def _seen(model: Model, paths: Sequence[Path], note: Note) -> Tensor:
    constants, limits = photo_constants(model.photo_embed.config), model_limits(model.config)
    found = []
    for begin in range(0, len(paths), _AT_ONCE):
        note("looking at pictures", begin)
        some = paths[begin : begin + _AT_ONCE]
        pixels = [process(decode_picture(open_image(path, limits)[0], path.name), constants) for path in some]
        batch = torch.from_numpy(np.stack(pixels)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(batch.device):
            found.append(model.photo_embed.look(batch).float())
    return torch.cat(found)


def imagine(
    seen: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, per_class: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers of classes and features [windows + 1, channels] of imagined pictures.

    Args:
        seen: features of real pictures, [n, windows + 1, channels], the last of all of a picture.
        labels: the class of each, int64 [n].
        weight, bias: the published classifier.
        per_class: pictures of each class.
        seed: what the draws are a function of.
    """
    wholes = seen[:, -1]
    means = torch.zeros(int(labels.max()) + 1, wholes.shape[1])
    counts = torch.bincount(labels).clamp(min=1)[:, None]
    means = means.index_add(0, labels, wholes) / counts
    deviations = wholes - means[labels]
    covariance = deviations.T @ deviations / len(deviations)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * torch.diag(covariance.diagonal())
    centres = class_means(wholes.mean(0), covariance, weight, bias)
    rng = np.random.default_rng(seed)
    for number, centre in enumerate(centres):
        for picked in rng.integers(0, len(seen), per_class):
            shifted = seen[picked] - means[labels[picked]] + centre
            yield number, shifted.clamp(min=0).half().numpy()


def class_means(middle: Tensor, covariance: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Means [classes, channels] that the classifier is as sure of as it is of clear pictures."""
    directions = F.normalize((weight - weight.mean(0)) @ covariance)
    low, high = torch.zeros(len(weight)), torch.full((len(weight),), _FARTHEST * float(middle.norm()))
    for _ in range(20):
        scale = (low + high) / 2
        centres = (middle + scale[:, None] * directions).clamp(min=0)
        sure = F.softmax(centres @ weight.T + bias, -1).diagonal() >= _SURE
        low, high = torch.where(sure, low, scale), torch.where(sure, scale, high)
    return (middle + high[:, None] * directions).clamp(min=0)
