"""A photo tower's own classifier: which of the names it has fits what the frozen trunk sees.

Knows labelled pictures and the tower's classes. Knows nothing of the language model. Trained by itself, so
that the rows of names are words from the first step of what follows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt.fields import Range
from phirt_export.reference import Model, ModelConfig
from phirt_train.context import TrainingContext
from phirt_train.data.augmentation import UNCHANGED_IMAGE, ImageAugmentation
from phirt_train.data.mixture import HeldOut, Sources, check_sources, refuse_filters, shares_of
from phirt_train.data.records import LabelledImage, read_records
from phirt_train.data.sampling import FromSampler, Sampler
from phirt_train.frozen_media import FrozenPhotos
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.stage import Probability, StageConfig

_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class NameClassificationData:
    """Pictures to name.

    Attributes:
        sources: share of each file of labelled pictures; what their labels are called does not matter.
        classifier: which of the tower's classifiers is trained; a label that it has no name for is its empty
            name.
        augment, views: random changes of the pictures, and how many changed views of each are kept.
        mixup: probability of mixing the pictures of a batch in pairs.
        smoothing: share of the target that all names have.
        held_out: files to measure accuracy on, by what the figure is called.
    """

    sources: Sources
    classifier: Annotated[int, Range(0, 15)] = 0
    augment: ImageAugmentation = UNCHANGED_IMAGE
    views: Annotated[int, Range(1, 1024)] = 1
    mixup: Probability = 0.0
    smoothing: Probability = 0.05
    held_out: HeldOut = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sources(self.sources, {})
        refuse_filters(self.sources)

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the model has no such classifier."""
        if model.photo is None or self.classifier >= len(model.photo.classes):
            raise ConfigError("the objective name_classification trains a classifier that the model has not")

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return (*self.sources, *self.held_out.values())


@dataclasses.dataclass(frozen=True, eq=False)
class _Named:
    """Pictures of one file and the number of each one's name."""

    paths: Sequence[Path]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.paths)


class _Drawn(NamedTuple):
    """Views, the number of each one's name [B], and each one's share beside the view `order` [B] of it."""

    views: Sequence[tuple[Path, int]]
    targets: Tensor
    own: float
    order: Tensor


class NameClassification(FromSampler[Sampler]):
    """Cross-entropy over the names."""

    unit = "pictures"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, NameClassificationData) and model.config.photo is not None
        self.model, self.stage, self.context, self.data = model, stage, context, data
        names = model.config.photo.classes[data.classifier]
        self._number = {name: number for number, name in enumerate(names)}
        self._photos = FrozenPhotos(model.photo_embed, data.augment, context.cache, context.limits)
        shares = shares_of(context.path, data.sources)
        sources = {name: self._load(name) for name in data.sources}
        self.sources = list(sources.values())
        sizes = {name: len(named) for name, named in sources.items()}
        self._sampler = Sampler(sizes, shares, stage.batch, stage.steps, context.seed)
        self.held_out = {label: self._load(name) for label, name in data.held_out.items()}
        self.head = nn.Module()
        wanted = [(p, v) for named in sources.values() for v in range(data.views) for p in named.paths]
        wanted += [(path, 0) for named in self.held_out.values() for path in named.paths]
        self._photos.prepare(wanted, lambda left: context.note("looking at pictures", left, unit="left"))

    def _load(self, name: str) -> _Named:
        path = self.context.path(name)
        paths, targets = [], []
        for place, record in read_records(path, LabelledImage):
            (label,) = record.classes.values()
            if label not in self._number and "" not in self._number:
                raise ConfigError(f"{place}: the model has no name {label!r:.80}, and none for the rest")
            paths.append(path.parent / record.image)
            targets.append(self._number.get(label, self._number.get("", 0)))
        return _Named(paths, torch.tensor(targets))

    def _scores(self, seen: Tensor) -> Tensor:
        return self.model.photo_embed.scores(seen, self.data.classifier)

    def prepare(self, step: int, share: Share) -> _Drawn:
        """Views of this part of a step, the numbers of their names, and with which each is mixed."""
        rng = np.random.default_rng((self.context.seed, step, share.index))
        views, targets = [], []
        for number, index in share.of(self._sampler.picks(step)):
            named = self.sources[number]
            views.append((named.paths[index], int(rng.integers(self.data.views))))
            targets.append(named.targets[index])
        own, order = 1.0, np.arange(len(views))
        if rng.random() < self.data.mixup:
            own, order = float(rng.beta(0.4, 0.4)), rng.permutation(len(views))
        return _Drawn(views, torch.stack(targets), own, torch.from_numpy(order))

    def loss(self, batch: _Drawn) -> Loss:
        """Over the pictures; of two that are mixed, each counts by its share."""
        seen, target = self._photos.batch(batch.views), batch.targets.to(self.context.device)
        own, order, smoothing = batch.own, batch.order.to(self.context.device), self.data.smoothing
        scores = self._scores(own * seen + (1 - own) * seen[order])
        first, second = (
            F.cross_entropy(scores, wanted, label_smoothing=smoothing, reduction="sum")
            for wanted in (target, target[order])
        )
        return Loss(own * first + (1 - own) * second, len(target), len(target))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of held-out pictures whose best name is theirs."""
        figures = {}
        for label, named in self.held_out.items():
            right = 0.0
            for begin in range(0, len(named), _AT_ONCE):
                paths = named.paths[begin : begin + _AT_ONCE]
                best = self._scores(self._photos.batch([(path, 0) for path in paths])).argmax(-1).cpu()
                right += (best == named.targets[begin : begin + _AT_ONCE]).float().sum().item()
            figures[f"{label} named"] = right / len(named)
        return figures


KIND = ObjectiveKind(NameClassificationData, NameClassification)
