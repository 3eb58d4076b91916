"""Vision encoder pre-training: name what a picture shows, one linear head a question on the pooled features.

Knows pictures, labels and the tower. Knows nothing of the language model: this stands in for the contrastive
start that published vision towers have (SigLIP, arXiv 2303.15343).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt.fields import Length, Range
from phirt_export.reference import Model, ModelConfig
from phirt_train.context import TrainingContext
from phirt_train.data.augmentation import UNCHANGED_IMAGE, ImageAugmentation
from phirt_train.data.mixture import HeldOut, Sources, check_sources, refuse_filters, shares_of
from phirt_train.data.readable import read_usable
from phirt_train.data.records import LabelledImage
from phirt_train.data.rejects import Broken
from phirt_train.data.sampling import FromSampler, Sampler
from phirt_train.linear_probe import Probes, probe_accuracy, probe_files
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.picture_tower import PictureTower
from phirt_train.stage import Probability, StageConfig

_NO_ANSWER = -100
_SMOOTHING = 0.1
_MIX_CONCENTRATION = 0.4  # of mixup (Zhang et al., arXiv 1710.09412)
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class ImageClassificationData:
    """Pictures to classify.

    Attributes:
        sources: share of each file of labelled pictures.
        resolutions: (share of the steps, side in pixels): the crop's side from that point on; empty for the
            model's own.
        augment: random changes of the pictures.
        mixup: probability of mixing the pictures of a source in pairs.
        unchanged: sources whose pictures are neither changed nor mixed, such as shapes to be counted.
        held_out: files to measure accuracy on, by what the figure is called.
        probes: labelled pictures whose labels a linear regression reads off the tower's features.
    """

    sources: Sources
    resolutions: Annotated[tuple[tuple[Probability, Annotated[int, Range(1, 4096)]], ...], Length(0, 64)] = ()
    augment: ImageAugmentation = UNCHANGED_IMAGE
    mixup: Probability = 0.0
    unchanged: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    held_out: HeldOut = dataclasses.field(default_factory=dict)
    probes: Probes = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sources(self.sources, {})
        refuse_filters(self.sources)
        if self.resolutions and self.resolutions[0][0] != 0:
            raise ValueError("the first of resolutions begins at another share of the steps than 0")
        if unknown := [name for name in self.unchanged if name not in self.sources]:
            raise ValueError(f"unchanged names {', '.join(unknown)}, which are none of the sources")

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the model has no vision tower, or one for other sides."""
        if model.vision is None:
            raise ConfigError(
                "the objective image_classification trains a vision tower, and the model has none"
            )
        step = model.vision.patch_size * model.vision.pool
        if wrong := [side for _, side in self.resolutions if side % step]:
            raise ConfigError(f"resolutions has the side {wrong[0]}; accepted: multiples of {step}")

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return (*self.sources, *self.held_out.values(), *probe_files(self.probes))


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """Pictures of one file, and for each question the class of each, -100 where it has none."""

    paths: Sequence[Path]
    targets: Mapping[str, Tensor]
    is_unchanged: bool

    def __len__(self) -> int:
        return len(self.paths)


class _Part(NamedTuple):
    """Pictures of one source: classes by question, and the share of each beside its `partner`."""

    targets: Mapping[str, Tensor]
    partner: Tensor
    own: float


class _Drawn(NamedTuple):
    """Pixels [B, 3, side, side] and patch masks [B, g, g], source by source."""

    pixels: Tensor
    masks: Tensor
    parts: Sequence[_Part]
    broken: Sequence[Broken]


class ImageClassification(FromSampler[Sampler]):
    """Cross-entropy with label smoothing and mixup."""

    unit = "pictures"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, ImageClassificationData)
        self.model, self.stage, self.context, self.data = model, stage, context, data
        config = model.image_embed.config
        self._tower = PictureTower(model, context)
        shares = shares_of(context.path, data.sources)
        read = {name: self._read(name) for name in shares.names}
        self.classes = _classes(record for records in read.values() for _, record in records)
        self.sources = [self._pictures(records, name in data.unchanged) for name, records in read.items()]
        sizes = {name: len(records) for name, records in read.items()}
        self._sampler = Sampler(sizes, shares, stage.batch, stage.steps, context.seed)
        self.held_out = {label: self._pictures(self._read(n), True) for label, n in data.held_out.items()}
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(config.hidden_size)})
        self.heads = nn.ModuleDict(
            {
                str(i): nn.Linear(config.hidden_size, len(names))
                for i, names in enumerate(self.classes.values())
            }
        )
        self.head["questions"] = self.heads
        self._initialize(context.seed)

    def _initialize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.heads.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 0.02, generator=generator)
                else:
                    parameter.zero_()

    def _read(self, name: str) -> list[tuple[Path, LabelledImage]]:
        return read_usable(
            name,
            LabelledImage,
            self.context,
            lambda record: record.image,
            lambda path, _: self._tower.check(path),
        )

    def _pictures(self, records: Sequence[tuple[Path, LabelledImage]], is_unchanged: bool) -> _Pictures:
        """Classes that are in no training source have no answer."""
        targets = {
            question: torch.tensor(
                [names.get(record.classes.get(question, ""), _NO_ANSWER) for _, record in records]
            )
            for question, names in self.classes.items()
        }
        known = {question: target for question, target in targets.items() if (target != _NO_ANSWER).any()}
        return _Pictures([path for path, _ in records], known, is_unchanged)

    def _resolution(self, step: int) -> int:
        passed = [side for begin, side in self.data.resolutions if step >= begin * self.stage.steps]
        return passed[-1] if passed else self._tower.constants.crop_size

    def _features(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """The tower's mean over each picture's patches, normalised, [n, hidden]."""
        normed: Tensor = self.head["norm"](self._tower.encode(pixels, mask).mean())
        return normed

    def _scores(self, question: str, features: Tensor) -> Tensor:
        scores: Tensor = self.heads[str(list(self.classes).index(question))](features)
        return scores

    def prepare(self, step: int, share: Share) -> _Drawn:
        """Crops of this part of a step, and what they show."""
        rng = np.random.default_rng((self.context.seed, step, share.index))
        side = self._resolution(step)
        by_source: dict[int, list[int]] = {}
        for pick in share.of(self._sampler.picks(step)):
            by_source.setdefault(pick.source, []).append(pick.item)
        pixels, masks, parts, broken = [], [], [], []
        for number, places in sorted(by_source.items()):
            source = self.sources[number]
            change = UNCHANGED_IMAGE if source.is_unchanged else self.data.augment
            crops = self._tower.crops(source.paths, places, side, change, rng)
            x, mask, partner, own = self._mixed(source, crops.pixels, crops.masks, rng)
            pixels.append(x)
            masks.append(mask)
            targets = {question: target[crops.taken] for question, target in source.targets.items()}
            parts.append(_Part(targets, partner, own))
            broken.append(Broken(self._sampler.draws.shares.names[number], crops.broken))
        return _Drawn(torch.cat(pixels), torch.cat(masks), parts, broken)

    def loss(self, batch: _Drawn) -> Loss:
        """Over the pictures, of each the sum over the questions that it answers."""
        for broken in batch.broken:
            self.context.rejects.count(broken, self._sampler.sizes[broken.name])
        features = self._features(batch.pixels, batch.masks)
        total, begin = features.new_zeros(()), 0
        for targets, partner, own in batch.parts:
            rows = features[begin : begin + len(partner)]
            begin += len(partner)
            for question, wanted in targets.items():
                if (wanted != _NO_ANSWER).any():
                    scores = self._scores(question, rows)
                    first, second = (_cross_entropy(scores, one) for one in (wanted, wanted[partner]))
                    total = total + own * first + (1 - own) * second
        return Loss(total, len(features), len(features))

    def _mixed(
        self, source: _Pictures, x: Tensor, mask: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """Crops and masks of some pictures, perhaps mixed: with which, and the share of each one's own."""
        if rng.random() < 0.5:  # as a global view, whose padding is not masked
            mask = torch.ones_like(mask)
        partner, share = torch.arange(len(x)), 1.0
        if not source.is_unchanged and rng.random() < self.data.mixup:
            share = float(rng.beta(_MIX_CONCENTRATION, _MIX_CONCENTRATION))
            partner = torch.from_numpy(rng.permutation(len(x)))
            x, mask = share * x + (1 - share) * x[partner], mask | mask[partner]
        return x, mask, partner, share

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Accuracy per question and held-out file, and of each probe."""
        figures: dict[str, float] = {}
        rng = np.random.default_rng(0)
        for label, pictures in self.held_out.items():
            places, side = list(range(len(pictures))), self._tower.constants.crop_size
            features, taken = [], []
            for begin in range(0, len(places), _AT_ONCE):
                some = places[begin : begin + _AT_ONCE]
                crops = self._tower.crops(pictures.paths, some, side, UNCHANGED_IMAGE, rng)
                features.append(self._features(crops.pixels, crops.masks))
                taken += crops.taken
            for question, target in pictures.targets.items():
                target = target[taken]
                known = target != _NO_ANSWER
                right = self._scores(question, torch.cat(features)[known]).argmax(1).cpu() == target[known]
                name = label if len(pictures.targets) == 1 else f"{label} {question}"
                figures[f"{name} accuracy"] = right.float().mean().item()
        for label, probe in self.data.probes.items():
            figures[f"{label} probe accuracy"] = probe_accuracy(self.model, probe, self.context)
        return figures


def _cross_entropy(scores: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(
        scores, wanted.to(scores.device), label_smoothing=_SMOOTHING, reduction="sum", ignore_index=_NO_ANSWER
    )


def _classes(records: Iterable[LabelledImage]) -> dict[str, dict[str, int]]:
    """The number of each class, by question."""
    found: dict[str, set[str]] = {}
    for record in records:
        for question, name in record.classes.items():
            found.setdefault(question, set()).add(name)
    return {q: {name: i for i, name in enumerate(sorted(found[q]))} for q in sorted(found)}


KIND = ObjectiveKind(ImageClassificationData, ImageClassification)
