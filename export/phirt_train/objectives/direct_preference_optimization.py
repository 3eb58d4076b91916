"""Direct preference optimization (Rafailov et al., arXiv 2305.18290): of two answers to the same turns, the
wanted one becomes likelier than the other, measured from where the stage starts.

Knows pairs, log-probabilities and the reference, which is the model as it is at the stage's start: what it
gives the answers is computed once, in float32, and kept. Knows nothing of optimisers or files' layouts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.fields import Range
from phirt.runtime.atomic_file import atomic_write
from phirt_export.model_scorer import evaluating
from phirt_export.precision import autocast
from phirt_export.reference import Model
from phirt_train.chunked_loss import IGNORED, chunked_log_probabilities
from phirt_train.context import TrainingContext
from phirt_train.conversation_rows import ConversationRows, Conversations, Group
from phirt_train.conversation_sources import ConversationData, ConversationSources
from phirt_train.data.mixture import Source
from phirt_train.data.sampling import Pick
from phirt_train.data.token_store import load_preferences
from phirt_train.media_features import MediaFeatures
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.stage import StageConfig

_ANSWERS = 2  # of a pair: the chosen one, then the rejected one
_AT_ONCE = 8  # pairs


@dataclasses.dataclass(frozen=True)
class DirectPreferenceOptimizationData(ConversationData):
    """Pairs of answers (`records.PreferencePair`).

    Attributes:
        beta: how strongly the model is held to where it starts.
    """

    beta: Annotated[float, Range(1e-6, 100.0)] = 0.1


class DirectPreferenceOptimization(ConversationSources):
    """-log σ(β · (how much likelier the chosen answer became - how much likelier the rejected one did))."""

    unit = "pairs"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, DirectPreferenceOptimizationData)
        self.model, self.context, self.data = model, context, data
        self._rows = ConversationRows(model, context, MediaFeatures(model, context, data.max_crops))
        super().__init__(data, stage, context)
        weights = _digest_of(model)
        self._references = [self._reference(source, weights) for source in self.sources]
        self._held_references = {
            label: self._reference(source, weights) for label, source in self.held_out.items()
        }
        self.head = nn.Module()

    def _load(self, name: str, limits: Source) -> Conversations:
        sequences = load_preferences(name, self.context)
        return self._rows.load(name, sequences, limits.min_tokens, limits.max_tokens, _ANSWERS)

    def _reference(self, source: Conversations, weights: str) -> Tensor:
        """Log-probabilities [pairs, 2] that the model as it is gives a source's answers, kept in the cache by
        weights and data: a stage that goes on finds those of its start.
        """
        sequences, crops = source.sequences, self.data.max_crops
        facts = hashlib.sha256(repr((weights, crops, _media_of(sequences.file.parent, source))).encode())
        for array in (sequences.token_ids, sequences.loss_mask, sequences.starts, source.numbers):
            facts.update(np.ascontiguousarray(array).tobytes())
        path = self.context.cache / f"reference-{facts.hexdigest()[:32]}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.save(file, self._score(source).numpy(), allow_pickle=False)
        return torch.from_numpy(np.load(path, allow_pickle=False))

    @torch.no_grad()
    def _score(self, source: Conversations) -> Tensor:
        found, done = torch.zeros(len(source), _ANSWERS), 0
        with evaluating(self.model), torch.autocast(self.context.device.type, enabled=False):
            for group in self._held_groups(source):
                items = [pick.item for pick in group.picks]
                found[items] = self._log_probabilities([source], group).cpu()
                done += len(items)
                self.context.note(f"scoring the answers of {source.name}", done, len(source), "pairs")
        return found

    def _held_groups(self, source: Conversations) -> Iterator[Group]:
        """All pairs of a source, those of similar length together."""
        rng = np.random.default_rng(0)
        ordered = sorted(range(len(source)), key=lambda item: (source.routes[item], source.lengths[item]))
        for begin in range(0, len(ordered), _AT_ONCE):
            picks = [Pick(0, item) for item in ordered[begin : begin + _AT_ONCE]]
            yield from self._rows.groups([source], picks, _ANSWERS, rng, is_training=False)

    def _log_probabilities(self, sources: Sequence[Conversations], group: Group) -> Tensor:
        """Of each pair's answers, given what comes before, [pairs, 2]: one pass serves both."""
        features = self._rows.features(sources, group, _ANSWERS)
        sequences = [
            (sources[pick.source].sequences, int(sources[pick.source].numbers[pick.item]) * _ANSWERS + n, own)
            for n in range(_ANSWERS)
            for pick, own in zip(group.picks, features, strict=True)
        ]
        rows = self._rows.rows(sequences)
        hidden = self._rows.hidden_states(rows, features * _ANSWERS, group.route)
        learnt = rows.targets != IGNORED
        of_tokens = chunked_log_probabilities(hidden[learnt], self.model.head_weight(), rows.targets[learnt])
        of_answers = of_tokens.new_zeros(len(sequences))
        return of_answers.index_add(0, learnt.nonzero()[:, 0], of_tokens).view(_ANSWERS, -1).T

    def _margins(
        self, sources: Sequence[Conversations], references: Sequence[Tensor], group: Group
    ) -> Tensor:
        """β · (change of the chosen answer's log-probability - change of the rejected one's), [pairs]."""
        reference = torch.stack([references[pick.source][pick.item] for pick in group.picks])
        with autocast(self.context.device):
            own = self._log_probabilities(sources, group)
        change = own - reference.to(own.device)
        return self.data.beta * (change[:, 0] - change[:, 1])

    def prepare(self, step: int, share: Share) -> list[Group]:
        """Pairs of this part of a step with their media, by route."""
        rng = np.random.default_rng((self.context.seed, step, share.index))
        picks = share.of(self._sampler.picks(step))
        return self._rows.groups(self.sources, picks, _ANSWERS, rng, is_training=False)

    def loss(self, batch: Sequence[Group]) -> Loss:
        """Over the pairs."""
        for group in batch:
            self._rows.note_rejected(self.sources, group)
        margins = torch.cat([self._margins(self.sources, self._references, group) for group in batch])
        return Loss(-F.logsigmoid(margins).sum(), len(margins), len(margins))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of held-out pairs: how many prefer the chosen answer more than the reference does, and the mean
        margin.
        """
        figures = {}
        for label, source in self.held_out.items():
            reference = [self._held_references[label]]
            margins = torch.cat(
                [self._margins([source], reference, group) for group in self._held_groups(source)]
            )
            figures[f"{label} preference accuracy"] = (margins > 0).float().mean().item()
            figures[f"{label} preference margin"] = margins.mean().item()
        return figures


def _digest_of(model: nn.Module) -> str:
    """A digest of all weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _media_of(folder: Path, source: Conversations) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a source's media."""
    paths = {item.path for row in source.numbers for item in source.sequences.media[int(row) * _ANSWERS]}
    states = [(path, (folder / path).stat()) for path in sorted(paths)]
    return [(path, state.st_size, state.st_mtime_ns) for path, state in states]


KIND = ObjectiveKind(DirectPreferenceOptimizationData, DirectPreferenceOptimization)
