"""Answers in conversations, with and without pictures and recordings: supervised fine-tuning.

Knows conversations, features and placeholders. Knows nothing of optimisers or of how files are laid out. What
is trained is the recipe's matter: a projector alone, a LoRA adapter with its tower, or the base weights. A
batch takes the one adapter that its media would have at inference.
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

from phirt.bundle.manifest import Modality
from phirt.errors import ConfigError
from phirt.fields import Length, Range
from phirt_export.precision import autocast
from phirt_export.reference import ROUTES, Model, ModelConfig, Route
from phirt_train.context import TrainingContext
from phirt_train.data.augmentation import (
    UNCHANGED_AUDIO,
    UNCHANGED_IMAGE,
    AudioAugmentation,
    ImageAugmentation,
)
from phirt_train.data.mixture import HeldOut, Mixture, Sources, check_optional, present
from phirt_train.data.token_store import TokenSequences, load_conversations
from phirt_train.media_features import MediaFeatures
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.stage import StageConfig

IGNORED = -100  # what torch's cross-entropy leaves out
_POOL = 4  # a batch is drawn from so many times its size, so that its rows are of similar length
_ALIKE = 64  # tokens; within a span of so many, lengths count as equal
_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class SupervisedFinetuningData:
    """Conversations whose answers are learnt.

    Attributes:
        sources: share of each file of conversations.
        optional: sources that are left out where they are missing.
        max_crops: most crops of a picture beside its global view; None for as many as the model takes.
        augment_images, augment_audio: random changes of pictures and recordings.
        unchanged: folders, relative to the data's, whose pictures are not changed.
        views: changed views that are kept of each file, where a tower's encoder stays frozen.
        held_out: files to measure exact answers on, by what the figure is called.
    """

    sources: Sources
    optional: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    max_crops: Annotated[int, Range(1, 256)] | None = None
    augment_images: ImageAugmentation = UNCHANGED_IMAGE
    augment_audio: AudioAugmentation = UNCHANGED_AUDIO
    unchanged: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    views: Annotated[int, Range(1, 1024)] = 1
    held_out: HeldOut = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; give the share of one file at least")
        check_optional(self.optional, self.sources)

    def check(self, model: ModelConfig) -> None:
        """Every model has a decoder that can answer."""

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return (*(name for name in self.sources if name not in self.optional), *self.held_out.values())


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """Conversations of one file: about how long each is, and which take which route."""

    name: str
    sequences: TokenSequences
    lengths: np.ndarray
    by_route: dict[Route, np.ndarray]

    def __len__(self) -> int:
        return len(self.sequences)


Pick = tuple[_Source, int]


class Drawn(NamedTuple):
    """Conversations of one route, and the generator of the random changes of their media."""

    route: Route
    picks: Sequence[Pick]
    changes: np.random.Generator


class SupervisedFinetuning:
    """Cross-entropy on the answers' tokens."""

    unit = "conversations"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, SupervisedFinetuningData)
        self.model, self.stage, self.context, self.data = model, stage, context, data
        self._media = MediaFeatures(
            model,
            context,
            data.max_crops,
            data.augment_images,
            data.augment_audio,
            data.unchanged,
            data.views,
        )
        sources = {name: self._load(name) for name in present(context.data, data.sources, data.optional)}
        self.sources = Mixture(sources, data.sources)
        self.held_out = {label: self._load(name) for label, name in data.held_out.items()}
        self.head = nn.Module()

    def _load(self, name: str) -> _Source:
        sequences = load_conversations(name, self.context)
        text = np.diff(sequences.starts)
        media = [self._media_tokens(sequences, index) for index in range(len(sequences))]
        lengths, context = text + np.array(media), self.model.config.decoder.rope.context
        if (longest := int(lengths.max())) > context:
            raise ConfigError(
                f"{name}: conversation {int(lengths.argmax()) + 1} needs about {longest} tokens, and the "
                f"model's context has {context}; shorten it, or use fewer or smaller media"
            )
        routes = np.array([_route_of(sequences, index) for index in range(len(sequences))])
        by_route: dict[Route, np.ndarray] = {
            route: np.flatnonzero(routes == route) for route in ROUTES if (routes == route).any()
        }
        return _Source(name, sequences, lengths, by_route)

    def _media_tokens(self, sequences: TokenSequences, index: int) -> int:
        """About how many tokens the media of a conversation add to their placeholders."""
        return sum(
            self._media.count(sequences.file.parent / item.path, item.modality) - 1
            for item in sequences.media[index]
        )

    def _draw(self, rng: np.random.Generator) -> tuple[Route, list[Pick]]:
        """Conversations of one route and of similar length."""
        first = self.sources.draw(rng)
        routes = list(first.by_route)
        sizes = np.array([len(first.by_route[route]) for route in routes])
        route = routes[int(rng.choice(len(routes), p=sizes / sizes.sum()))]
        with_route = {s.name: s for s in self.sources.sources if route in s.by_route}
        shares = {
            source.name: share * len(source.by_route[route]) / len(source)
            for source, share in zip(self.sources.sources, self.sources.shares, strict=True)
            if route in source.by_route
        }
        mixture = Mixture(with_route, shares)
        pool: list[Pick] = []
        for _ in range(_POOL * self.stage.batch):
            source = mixture.draw(rng)
            indices = source.by_route[route]
            pool.append((source, int(indices[rng.integers(len(indices))])))
        lengths = np.array([source.lengths[index] for source, index in pool])
        order = np.argsort(lengths // _ALIKE, kind="stable")
        begin = int(rng.integers(0, _POOL)) * self.stage.batch
        return route, [pool[place] for place in order[begin : begin + self.stage.batch]]

    def prepare(self, step: int, share: Share) -> Drawn:
        """Conversations of this part of a step, and what their media are changed by."""
        route, picks = self._draw(np.random.default_rng((self.context.seed, step)))
        changes = np.random.default_rng((self.context.seed, step, share.index))
        return Drawn(route, share.of(picks), changes)

    def loss(self, batch: Drawn) -> Loss:
        """Over the answers' tokens."""
        route, picks, rng = batch
        with autocast(self.context.device):
            features = self._features(picks, route, rng, is_training=True)
            token_ids, targets, media = self._rows(picks, features)
            hidden = self.model.hidden_states(token_ids, media, self._adapted(route))
            learnt = targets != IGNORED
            logits = F.linear(hidden[learnt], self.model.head_weight())
        total = F.cross_entropy(logits.float(), targets[learnt], reduction="sum")
        return Loss(total, len(logits), len(picks))

    def _features(
        self, picks: Sequence[Pick], route: Route, rng: np.random.Generator, *, is_training: bool
    ) -> list[list[Tensor]]:
        """The features [rows, hidden] of each conversation's media, in their order."""
        paths: dict[Modality, list[Path]] = {"image": [], "audio": []}
        for source, index in picks:
            for item in source.sequences.media[index]:
                paths[item.modality].append(source.sequences.file.parent / item.path)
        projector = ROUTES[route].audio_projector
        rows = {
            "image": iter(self._media.images(paths["image"], rng, is_training=is_training)),
            "audio": iter(self._media.audio(paths["audio"], projector, rng, is_training=is_training)),
        }
        return [
            [next(rows[item.modality]) for item in source.sequences.media[index]] for source, index in picks
        ]

    def _adapted(self, route: Route) -> Route:
        """The route, or "none" where the model has no adapter for it and takes the base weights."""
        return route if ROUTES[route].adapter in self.model.config.adapters else "none"

    def _rows(
        self, picks: Sequence[Pick], features: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Right-padded token ids and shifted targets [B, T], and all rows of features in order."""
        rows = [
            _expanded(source.sequences, index, [len(part) for part in own])
            for (source, index), own in zip(picks, features, strict=True)
        ]
        longest = max(len(token_ids) for token_ids, _ in rows) - 1
        token_ids = torch.full((len(rows), longest), self.model.config.tokens.pad)
        targets = torch.full((len(rows), longest), IGNORED)
        for n, (row, mask) in enumerate(rows):
            line, learnt = torch.from_numpy(row), torch.from_numpy(mask)
            token_ids[n, : len(row) - 1] = line[:-1]
            targets[n, : len(row) - 1] = torch.where(learnt[1:], line[1:], IGNORED)
        parts = [part for own in features for part in own]
        media = torch.cat(parts) if parts else None
        return token_ids.to(self.context.device), targets.to(self.context.device), media

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of held-out conversations whose every learnt token is the model's best, given the ones
        before: exact greedy answers.
        """
        return {f"{label} exact": self._exact(source) for label, source in self.held_out.items()}

    def _exact(self, source: _Source) -> float:
        rng, right = np.random.default_rng(1), 0.0
        for route, indices in source.by_route.items():
            ordered = indices[np.argsort(source.lengths[indices], kind="stable")]
            for begin in range(0, len(ordered), _AT_ONCE):
                picks = [(source, int(index)) for index in ordered[begin : begin + _AT_ONCE]]
                features = self._features(picks, route, rng, is_training=False)
                token_ids, targets, media = self._rows(picks, features)
                with autocast(self.context.device):
                    hidden = self.model.hidden_states(token_ids, media, self._adapted(route))
                wrong = torch.zeros_like(targets, dtype=torch.bool)
                learnt = targets != IGNORED
                best = F.linear(hidden[learnt].float(), self.model.head_weight()).argmax(-1)
                wrong[learnt] = best != targets[learnt]
                right += (~wrong.any(1)).float().sum().item()
        return right / len(source)


def _route_of(sequences: TokenSequences, index: int) -> Route:
    """The route that a conversation takes at inference: an image decides before a recording does."""
    modalities = {item.modality for item in sequences.media[index]}
    return "vision" if "image" in modalities else "speech" if modalities else "none"


def _expanded(sequences: TokenSequences, index: int, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int64 and loss mask of a conversation, each placeholder repeated for its rows."""
    token_ids, loss_mask = sequences[index]
    repeats = np.ones(len(token_ids), np.int64)
    for item, count in zip(sequences.media[index], rows, strict=True):
        repeats[item.position] = count
    return token_ids.astype(np.int64).repeat(repeats), loss_mask.repeat(repeats)


KIND = ObjectiveKind(SupervisedFinetuningData, SupervisedFinetuning)
