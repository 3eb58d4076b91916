"""Conversations as padded rows of token ids with the features of their media: what objectives on
conversations share.

Knows token sequences, placeholders, routes and the reference model. Knows nothing of losses. A row takes the
one adapter that its media would have at inference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phirt.bundle.manifest import Modality
from phirt.errors import ConfigError, MediaError
from phirt_export.reference import ROUTES, Model, Route
from phirt_train.chunked_loss import IGNORED
from phirt_train.context import TrainingContext
from phirt_train.data.readable import take_readable
from phirt_train.data.rejects import Broken
from phirt_train.data.sampling import Pick
from phirt_train.data.token_store import TokenSequences
from phirt_train.media_features import MediaFeatures, MediaInputs, Opened

ALIKE = 64  # tokens; within a span of so many, lengths count as equal


@dataclasses.dataclass(frozen=True, eq=False)
class Conversations:
    """Those of one file that can be learnt: their numbers in it, about how long each is, and its route."""

    name: str
    sequences: TokenSequences
    numbers: NDArray[np.int64]
    lengths: NDArray[np.int64]
    routes: tuple[Route, ...]

    def __len__(self) -> int:
        return len(self.numbers)


class Rows(NamedTuple):
    """Right-padded token ids and shifted targets [B, T], targets -100 where nothing is learnt."""

    token_ids: Tensor
    targets: Tensor


class Group(NamedTuple):
    """Conversations of one route: the sequences of their tokens, and their media in order."""

    route: Route
    picks: tuple[Pick, ...]
    media: MediaInputs
    rejected: tuple[tuple[int, tuple[str, ...]], ...] = ()  # sources, and what is wrong with their items


class ConversationRows:
    """Makes rows of conversations for one model."""

    def __init__(self, model: Model, context: TrainingContext, media: MediaFeatures) -> None:
        self._model, self._context, self._media = model, context, media

    def load(
        self, name: str, sequences: TokenSequences, low: int = 0, high: int | None = None, width: int = 1
    ) -> Conversations:
        """What can be learnt of a file: rows of `width` sequences from `low` to `high` tokens each.

        Raises:
            ConfigError: nothing of it can be learnt, or too much of it cannot.
        """
        rejects, rows = self._context.rejects, len(sequences) // width
        before = rejects.files[name].rows if name in rejects.files else 0
        lengths = np.zeros((rows, width), np.int64)
        for row in range(rows):
            try:
                for place in range(width):
                    lengths[row, place] = self._length(sequences, row * width + place, high)
            except (ConfigError, MediaError) as error:
                rejects.add(name, f"{name}: conversation {row + 1} {error}")
                lengths[row] = -1
        rejects.check(name, rows + before)
        fits = (lengths.min(axis=1) >= low) & (lengths.max(axis=1) <= (1 << 62 if high is None else high))
        numbers = np.flatnonzero(fits)
        if not len(numbers):
            raise ConfigError(f"{name} has no conversation of {low} to {high} tokens; change these limits")
        routes = tuple(_route_of(sequences, int(row) * width) for row in numbers)
        return Conversations(name, sequences, numbers, lengths[numbers].sum(axis=1), routes)

    def _length(self, sequences: TokenSequences, index: int, high: int | None) -> int:
        """About how many tokens a conversation has, its media's rows among them. What is over a limit that a
        recipe has set is left out anyway, whether or not the context takes it.
        """
        length = int(sequences.starts[index + 1] - sequences.starts[index])
        for item in sequences.media[index]:
            length += self._media.count(sequences.file.parent / item.path, item.modality) - 1
        most = self._model.config.decoder.rope.context
        if most < length and (high is None or length <= high):
            raise ConfigError(
                f"needs about {length} tokens, and the model's context has {most}; shorten it, or use fewer "
                "or smaller media"
            )
        return length

    def open(
        self, source: Conversations, place: int, width: int, rng: np.random.Generator, *, is_training: bool
    ) -> tuple[int, list[tuple[Modality, Opened]], list[str]]:
        """The media of a source's item.

        Returns:
            The place of the item that is taken, its media, and what is wrong with those before it: where
            media are broken, the next item of the file is taken.
        """
        folder = source.sequences.file.parent

        def opened(taken: int) -> list[tuple[Modality, Opened]]:
            named = source.sequences.media[int(source.numbers[taken]) * width]
            return [
                (
                    item.modality,
                    self._media.open(folder / item.path, item.modality, rng, is_training=is_training),
                )
                for item in named
            ]

        return take_readable(len(source), place, opened)

    def groups(
        self,
        sources: Sequence[Conversations],
        picks: Sequence[Pick],
        width: int,
        rng: np.random.Generator,
        *,
        is_training: bool,
    ) -> list[Group]:
        """The picks with their media, by route."""
        by_route: dict[Route, list[tuple[Pick, list[tuple[Modality, Opened]]]]] = {}
        rejected: list[tuple[int, tuple[str, ...]]] = []
        for pick in picks:
            source = sources[pick.source]
            taken, opened, wrong = self.open(source, pick.item, width, rng, is_training=is_training)
            rejected += [(pick.source, tuple(wrong))] if wrong else []
            by_route.setdefault(source.routes[taken], []).append((Pick(pick.source, taken), opened))
        found = []
        for route, items in by_route.items():
            opened = [one for _, media in items for one in media]
            inputs = self._media.batch(opened, rng, is_training=is_training)
            found.append(Group(route, tuple(pick for pick, _ in items), inputs, tuple(rejected)))
            rejected = []
        return found

    def note_rejected(self, sources: Sequence[Conversations], group: Group) -> None:
        """Count what was left out in making a group.

        Raises:
            ConfigError: it is too much of a file.
        """
        for number, causes in group.rejected:
            source = sources[number]
            self._context.rejects.count(Broken(source.name, causes), len(source))

    def features(self, sources: Sequence[Conversations], group: Group, width: int) -> list[list[Tensor]]:
        """The features [rows, hidden] of the media of each of a group's items, in their order."""
        rows = iter(self._media.encode(group.media, ROUTES[group.route].audio_projector))
        return [
            [next(rows) for _ in sources[source].sequences.media[int(sources[source].numbers[place]) * width]]
            for source, place in group.picks
        ]

    def rows(self, sequences: Sequence[tuple[TokenSequences, int, Sequence[Tensor]]]) -> Rows:
        """Rows of sequences, each of a file and with the features of its media."""
        expanded = [_expanded(of, index, [len(part) for part in own]) for of, index, own in sequences]
        longest = max(len(token_ids) for token_ids, _ in expanded) - 1
        token_ids = torch.full((len(expanded), longest), self._model.config.tokens.pad)
        targets = torch.full((len(expanded), longest), IGNORED)
        for n, (row, mask) in enumerate(expanded):
            line, learnt = torch.from_numpy(row), torch.from_numpy(mask)
            token_ids[n, : len(row) - 1] = line[:-1]
            targets[n, : len(row) - 1] = torch.where(learnt[1:], line[1:], IGNORED)
        return Rows(token_ids.to(self._context.device), targets.to(self._context.device))

    def hidden_states(self, rows: Rows, features: Sequence[Sequence[Tensor]], route: Route) -> Tensor:
        """Final hidden states [B, T, hidden] of rows whose media have these features."""
        parts = [part for own in features for part in own]
        # Where the model has no adapter for the route, the base weights take it.
        adapted = route if ROUTES[route].adapter in self._model.config.adapters else "none"
        return self._model.hidden_states(rows.token_ids, torch.cat(parts) if parts else None, adapted)


def _route_of(sequences: TokenSequences, index: int) -> Route:
    """The route that a conversation takes at inference: an image decides before a recording does."""
    modalities = {item.modality for item in sequences.media[index]}
    return "vision" if "image" in modalities else "speech" if modalities else "none"


def _expanded(
    sequences: TokenSequences, index: int, rows: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Token ids and loss mask of a conversation, each placeholder repeated for its rows."""
    token_ids, loss_mask = sequences[index]
    repeats = np.ones(len(token_ids), np.int64)
    for item, count in zip(sequences.media[index], rows, strict=True):
        repeats[item.position] = count
    return token_ids.astype(np.int64).repeat(repeats), loss_mask.repeat(repeats)
