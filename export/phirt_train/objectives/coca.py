"""Vision encoder pre-training on captions: contrastive captioning (Yu et al., CoCa, arXiv 2205.01917).

A picture and its caption are to be alike, other captions of the batch unlike it (with SigLIP's loss, Zhai et
al., arXiv 2303.15343, or CLIP's, Radford et al., arXiv 2103.00020); and a tiny decoder that sees the patches
is to write the caption. Knows pictures, captions and the tower. Knows nothing of the language model. What is
contrasted is a part of a step: its other parts are not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from phirt.errors import ConfigError
from phirt.fields import Range
from phirt_export.precision import autocast
from phirt_export.reference import Model, ModelConfig
from phirt_train.caption_heads import CaptionHeads
from phirt_train.context import TrainingContext
from phirt_train.data.augmentation import UNCHANGED_IMAGE, ImageAugmentation
from phirt_train.data.mixture import HeldOut, Sources, check_sources, refuse_filters, shares_of
from phirt_train.data.readable import read_usable
from phirt_train.data.records import CaptionedImage
from phirt_train.data.rejects import Broken
from phirt_train.data.sampling import FromSampler, Sampler
from phirt_train.linear_probe import Probes, probe_accuracy, probe_files
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.picture_tower import Crops, PictureTower
from phirt_train.stage import StageConfig

Contrast = Literal["sigmoid", "softmax"]
_START: dict[Contrast, tuple[float, float]] = {"sigmoid": (10.0, -10.0), "softmax": (1 / 0.07, 0.0)}
_MOST_SCALE = 100.0  # of CLIP's similarities
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class CocaData:
    """Pictures with captions.

    Attributes:
        sources: share of each file of captioned pictures.
        contrast: the loss of the similarities: of each pair alone, or of each picture among all captions.
        caption_weight: how much the captions' loss counts beside it.
        num_layers: of the text tower, and of the decoder.
        max_tokens: what captions are cut to.
        augment: random changes of the pictures.
        held_out: files to measure the captions' loss on, by what the figure is called.
        probes: labelled pictures whose labels a linear regression reads off the tower's features.
    """

    sources: Sources
    contrast: Contrast = "sigmoid"
    caption_weight: Annotated[float, Range(0.0, 1e3)] = 2.0
    num_layers: Annotated[int, Range(1, 64)] = 2
    max_tokens: Annotated[int, Range(2, 4096)] = 64
    augment: ImageAugmentation = UNCHANGED_IMAGE
    held_out: HeldOut = dataclasses.field(default_factory=dict)
    probes: Probes = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sources(self.sources, {})
        refuse_filters(self.sources)

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the model has no vision tower."""
        if model.vision is None:
            raise ConfigError("the objective coca trains a vision tower, and the model has none")

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return (*self.sources, *self.held_out.values(), *probe_files(self.probes))


@dataclasses.dataclass(frozen=True, eq=False)
class _Captioned:
    """Pictures of one file and the token ids of their captions."""

    paths: Sequence[Path]
    captions: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.paths)


class CaptionBatch(NamedTuple):
    """Crops [n, 3, side, side], their patch masks [n, g, g], captions [n, T], padded, with their lengths [n],
    and which pairs of captions are equal, bool [n, n].
    """

    pixels: Tensor
    masks: Tensor
    token_ids: Tensor
    lengths: Tensor
    equal: Tensor
    broken: Sequence[Broken] = ()


def sigmoid_contrast(similarities: Tensor, equal: Tensor) -> Tensor:
    """Sum over the pictures of SigLIP's loss of similarities [n, n]: each pair of equal captions is a pair to
    be alike, every other one to be unlike.
    """
    return -F.logsigmoid(torch.where(equal, similarities, -similarities)).sum()


def softmax_contrast(similarities: Tensor, equal: Tensor) -> Tensor:
    """Sum over the pictures of CLIP's loss, the mean of both directions; equal captions share the target."""
    alike = equal.to(similarities.dtype)
    wanted = alike / alike.sum(1, keepdim=True)
    rows, columns = (F.cross_entropy(one, wanted, reduction="sum") for one in (similarities, similarities.T))
    return (rows + columns) / 2


class Coca(FromSampler[Sampler]):
    """Contrast of pictures and captions, and captions from pictures."""

    unit = "pictures"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data, config = stage.data, model.image_embed.config
        assert isinstance(data, CocaData)
        self.model, self.context, self.data = model, context, data
        self._tower = PictureTower(model, context)
        shares = shares_of(context.path, data.sources)
        self.sources = [self._load(name) for name in shares.names]
        sizes = {name: len(own) for name, own in zip(shares.names, self.sources, strict=True)}
        self._sampler = Sampler(sizes, shares, stage.batch, stage.steps, context.seed)
        self.held_out = {label: self._load(name) for label, name in data.held_out.items()}
        self.head = CaptionHeads(
            config.hidden_size,
            config.hidden_size,
            config.num_heads,
            data.num_layers,
            model.config.decoder.vocab_size,
            data.max_tokens,
            *_START[data.contrast],
        )
        self.head.initialize(torch.Generator().manual_seed(context.seed))

    def _load(self, name: str) -> _Captioned:
        records = read_usable(
            name,
            CaptionedImage,
            self.context,
            lambda record: record.image,
            lambda path, _: self._tower.check(path),
        )
        encoder = self.context.encoder
        encoded = encoder.encode_documents([record.text for _, record in records])
        captions = [(encoder.end_of_text, *one.token_ids)[: self.data.max_tokens] for one in encoded]
        return _Captioned([path for path, _ in records], captions)

    def prepare(self, step: int, share: Share) -> CaptionBatch:
        """Pictures of this part of a step, changed at random, with their captions."""
        rng = np.random.default_rng((self.context.seed, step, share.index))
        side, names = self._tower.constants.crop_size, self._sampler.draws.shares.names
        crops, captions, broken = [], [], []
        for number, item in share.of(self._sampler.picks(step)):
            source = self.sources[number]
            one = self._tower.crops(source.paths, [item], side, self.data.augment, rng)
            crops.append(one)
            captions += [source.captions[place] for place in one.taken]
            broken.append(Broken(names[number], one.broken))
        return self._batch(crops, captions, broken)

    def _batch(
        self, crops: Sequence[Crops], captions: Sequence[tuple[int, ...]], broken: Sequence[Broken] = ()
    ) -> CaptionBatch:
        pixels, masks = (torch.cat(parts) for parts in list(zip(*crops, strict=True))[:2])
        return CaptionBatch(pixels, masks, *_padded(captions, self.model.config.tokens.pad), broken)

    def loss(self, batch: CaptionBatch) -> Loss:
        """Over the pictures: their contrast, and the mean of the captions' loss over all tokens."""
        for broken in batch.broken:
            self.context.rejects.count(broken, self._sampler.sizes[broken.name])
        contrast, captions, _ = self._terms(batch)
        n = len(batch.pixels)
        return Loss(contrast + n * self.data.caption_weight * captions, n, n)

    def _terms(self, batch: CaptionBatch) -> tuple[Tensor, Tensor, int]:
        """The sum of the contrast, the captions' loss per token, and their tokens."""
        device, head = self.context.device, self.head
        token_ids, lengths = batch.token_ids.to(device), batch.lengths.to(device)
        patches = self._tower.encode(batch.pixels, batch.masks)
        inside = patches.weights > 0
        with autocast(device):
            pictures = head.pictures(patches.features, inside)
            texts, hidden = head.texts(token_ids, lengths)
            written = head.captions(hidden[:, :-1], patches.features, inside)
            learnt = torch.arange(1, token_ids.shape[1], device=device) < lengths[:, None]
            scores = head.scores(written[learnt])
        captions = F.cross_entropy(scores.float(), token_ids[:, 1:][learnt])
        with torch.autocast(device.type, enabled=False):
            return self._contrast(pictures @ texts.T, batch.equal.to(device)), captions, len(scores)

    def _contrast(self, cosines: Tensor, equal: Tensor) -> Tensor:
        scale = self.head.log_scale.exp()
        if self.data.contrast == "sigmoid":
            return sigmoid_contrast(cosines * scale + self.head.bias, equal)
        return softmax_contrast(cosines * scale.clamp(max=_MOST_SCALE), equal)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The captions' loss in nats a token, and the accuracy of each probe."""
        figures, rng, side = {}, np.random.default_rng(0), self._tower.constants.crop_size
        for label, source in self.held_out.items():
            total, tokens = 0.0, 0
            for begin in range(0, len(source), _AT_ONCE):
                items = range(begin, min(begin + _AT_ONCE, len(source)))
                crops = self._tower.crops(source.paths, items, side, UNCHANGED_IMAGE, rng)
                batch = self._batch([crops], [source.captions[place] for place in crops.taken])
                _, captions, count = self._terms(batch)
                total, tokens = total + captions.item() * count, tokens + count
            figures[f"{label} caption loss"] = total / tokens
        for label, probe in self.data.probes.items():
            figures[f"{label} probe accuracy"] = probe_accuracy(self.model, probe, self.context)
        return figures


def _padded(captions: Sequence[tuple[int, ...]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Captions [n, T], their lengths [n], and which are equal [n, n]."""
    lengths = torch.tensor([len(caption) for caption in captions])
    token_ids = torch.full((len(captions), int(lengths.max())), pad)
    for row, caption in zip(token_ids, captions, strict=True):
        row[: len(caption)] = torch.tensor(caption)
    known: dict[tuple[int, ...], int] = {}
    numbers: NDArray[np.int64] = np.array([known.setdefault(caption, len(known)) for caption in captions])
    return token_ids, lengths, torch.from_numpy(numbers[:, None] == numbers)


KIND = ObjectiveKind(CocaData, Coca)
