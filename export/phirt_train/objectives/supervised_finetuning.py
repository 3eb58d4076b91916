"""Answers in conversations, with and without pictures and recordings: supervised fine-tuning.

Knows what is learnt of conversations. Knows nothing of optimisers or of how files are laid out. What is
trained is the recipe's matter: a projector alone, a LoRA adapter with its tower, or the base weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.fields import Length, Range
from phirt_export.precision import autocast
from phirt_export.reference import Model, Route
from phirt_train.chunked_loss import IGNORED, chunked_cross_entropy
from phirt_train.context import TrainingContext
from phirt_train.conversation_rows import ConversationRows, Conversations, Group, Rows
from phirt_train.conversation_sources import ConversationData, ConversationSources
from phirt_train.data.augmentation import (
    UNCHANGED_AUDIO,
    UNCHANGED_IMAGE,
    AudioAugmentation,
    ImageAugmentation,
)
from phirt_train.data.mixture import Source
from phirt_train.data.sampling import Pick
from phirt_train.data.token_store import load_conversations
from phirt_train.media_features import MediaFeatures
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.stage import StageConfig
from phirt_train.written_answers import Asked, Written, answers, asked, measured

_AT_ONCE = 16
_WHOLE = Source(1.0)


@dataclasses.dataclass(frozen=True)
class SupervisedFinetuningData(ConversationData):
    """Conversations whose answers are learnt.

    Attributes:
        augment_images, augment_audio: random changes of pictures and recordings.
        unchanged: folders, relative to the data's, whose pictures are not changed.
        views: changed views that are kept of each file, where a tower's encoder stays frozen.
        written: files whose answers the model writes by itself in the end, by what the figures are called.
    """

    augment_images: ImageAugmentation = UNCHANGED_IMAGE
    augment_audio: AudioAugmentation = UNCHANGED_AUDIO
    unchanged: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    views: Annotated[int, Range(1, 1024)] = 1
    written: Written = dataclasses.field(default_factory=dict)

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return (*super().files(), *(one.file for one in self.written.values()))


class _Measured(NamedTuple):
    """Share of exact answers, and the mean loss of their tokens."""

    exact: float
    loss: float


class SupervisedFinetuning(ConversationSources):
    """Cross-entropy on the answers' tokens."""

    unit = "conversations"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, SupervisedFinetuningData)
        self.model, self.context = model, context
        media = MediaFeatures(
            model,
            context,
            data.max_crops,
            data.augment_images,
            data.augment_audio,
            data.unchanged,
            data.views,
        )
        self._rows = ConversationRows(model, context, media)
        super().__init__(data, stage, context)
        self._written = [(label, self._load(one.file, _WHOLE), one) for label, one in data.written.items()]
        self.head = nn.Module()

    def _load(self, name: str, limits: Source) -> Conversations:
        sequences = load_conversations(name, self.context)
        return self._rows.load(name, sequences, limits.min_tokens, limits.max_tokens)

    def prepare(self, step: int, share: Share) -> list[Group]:
        """Conversations of this part of a step with their media, changed at random, by route."""
        changes = np.random.default_rng((self.context.seed, step, share.index))
        picks = share.of(self._sampler.picks(step))
        return self._rows.groups(self.sources, picks, 1, changes, is_training=True)

    def loss(self, batch: Sequence[Group]) -> Loss:
        """Over the answers' tokens."""
        parts = [self._group_loss(group) for group in batch]
        total = torch.stack([part.total for part in parts]).sum()
        return Loss(total, sum(part.weight for part in parts), sum(part.units for part in parts))

    def _group_loss(self, group: Group) -> Loss:
        self._rows.note_rejected(self.sources, group)
        with autocast(self.context.device):
            hidden, targets = self._hidden(self.sources, group)
            learnt = targets != IGNORED
            wanted = targets[learnt]
            total = chunked_cross_entropy(hidden[learnt], self.model.head_weight(), wanted)
        return Loss(total, len(wanted), len(group.picks))

    def _hidden(self, sources: Sequence[Conversations], group: Group) -> tuple[Tensor, Tensor]:
        """Final hidden states [B, T, hidden] of a group's conversations, and targets [B, T]."""
        features = self._rows.features(sources, group, 1)
        rows = self._group_rows(sources, group, features)
        return self._rows.hidden_states(rows, features, group.route), rows.targets

    def _group_rows(
        self, sources: Sequence[Conversations], group: Group, features: Sequence[Sequence[Tensor]]
    ) -> Rows:
        return self._rows.rows(
            [
                (sources[source].sequences, int(sources[source].numbers[place]), own)
                for (source, place), own in zip(group.picks, features, strict=True)
            ]
        )

    def validate(self) -> dict[str, float]:
        """Share of held-out conversations whose every learnt token is the model's best, given the ones
        before: exact greedy answers. Of files whose answers the model writes, the measures of those.
        """
        figures = {f"{label} exact": self._measured(source).exact for label, source in self.held_out.items()}
        for label, source, written in self._written:
            pairs = self._texts(source, written.most)
            figures |= {f"{label} {measure}": measured(measure, pairs) for measure in written.measures}
        return figures

    def held_out_losses(self) -> dict[str, float]:
        """Mean loss of the learnt tokens of each held-out file."""
        return {label: self._measured(source).loss for label, source in self.held_out.items()}

    def _texts(self, source: Conversations, most: int) -> list[tuple[str, str]]:
        """The last answers of the first conversations of a file, each beside what the model writes there."""
        pairs, decode = [], self.context.encoder.decode
        for group in self._groups(source, range(min(most, len(source)))):
            with torch.no_grad(), autocast(self.context.device):
                features = self._rows.features([source], group, 1)
                questions = asked(self._group_rows([source], group, features))
                said = self._answers(questions, features, group.route)
            pairs += [(decode(one.answer), decode(ids)) for one, ids in zip(questions, said, strict=True)]
        return pairs

    def _answers(
        self, questions: Sequence[Asked], features: Sequence[Sequence[Tensor]], route: Route
    ) -> list[list[int]]:
        def hidden_states(token_ids: Tensor) -> Tensor:
            return self._rows.hidden_states(Rows(token_ids, token_ids), features, route)

        return answers(questions, self.model, hidden_states, self.context.device)

    def _groups(self, source: Conversations, places: Iterable[int]) -> Iterator[Group]:
        """Conversations of a file that is measured, a few at once, those of similar length together."""
        ordered = sorted(places, key=lambda place: (source.routes[place], source.lengths[place]))
        rng = np.random.default_rng(1)
        for begin in range(0, len(ordered), _AT_ONCE):
            picks = [Pick(0, place) for place in ordered[begin : begin + _AT_ONCE]]
            yield from self._rows.groups([source], picks, 1, rng, is_training=False)

    @torch.no_grad()
    def _measured(self, source: Conversations) -> _Measured:
        right, seen, nats, tokens = 0.0, 0, 0.0, 0
        for group in self._groups(source, range(len(source))):
            with autocast(self.context.device):
                hidden, targets = self._hidden([source], group)
            wrong = torch.zeros_like(targets, dtype=torch.bool)
            learnt = targets != IGNORED
            logits = F.linear(hidden[learnt].float(), self.model.head_weight())
            wrong[learnt] = logits.argmax(-1) != targets[learnt]
            nats += F.cross_entropy(logits, targets[learnt], reduction="sum").item()
            tokens += len(logits)
            right += (~wrong.any(1)).float().sum().item()
            seen += len(group.picks)
        return _Measured(right / seen, nats / tokens)


KIND = ObjectiveKind(SupervisedFinetuningData, SupervisedFinetuning)
