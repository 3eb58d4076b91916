"""A Whisper tower's recogniser: spell what is said in pieces of words, with connectionist temporal
classification (Graves et al. 2006), on what the frozen encoder hears.

Knows recordings, their words and the tower's pieces. Knows nothing of the language model, whose own rows
stand for the pieces: what is recognised reaches it as words from the first step of what follows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt.fields import Range
from phirt_export.precision import autocast
from phirt_export.reference import Model, ModelConfig
from phirt_train.context import TrainingContext
from phirt_train.ctc_outputs import best_path, ctc_loss, word_error_rates
from phirt_train.data.mixture import shares_of
from phirt_train.data.readable import read_usable
from phirt_train.data.records import Transcript
from phirt_train.data.sampling import FromSampler, SimilarSampler
from phirt_train.frozen_media import FrozenSounds, inside
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.objectives.ctc import CtcData, Spoken, plain_words
from phirt_train.stage import Probability, StageConfig

_SHORT = 20  # rows; recordings up to this long go several times as many into a batch


@dataclasses.dataclass(frozen=True)
class PieceCtcData(CtcData):
    """Recordings to spell.

    Attributes:
        views: how many changed views of each recording are kept.
        mask: probability of hiding a row from the recogniser, in stretches of up to four.
    """

    views: Annotated[int, Range(1, 1024)] = 1
    mask: Probability = 0.0

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the model has no Whisper tower."""
        if model.whisper is None:
            raise ConfigError("the objective piece_ctc trains Whisper's tower, and the model has none")


class Pieces:
    """Words in the longest pieces that there are, and back."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = pieces
        self._number = {piece: number for number, piece in enumerate(pieces)}
        self._longest = max(map(len, pieces))

    def split(self, text: str) -> list[int]:
        """Numbers of the pieces of plain words; a letter that no piece has is left out."""
        rest, found = f" {text}", []
        while rest:
            sizes = range(min(self._longest, len(rest)), 0, -1)
            size = next((size for size in sizes if rest[:size] in self._number), 0)
            if size:
                found.append(self._number[rest[:size]])
            rest = rest[max(1, size) :]
        return found

    def join(self, numbers: Iterable[int]) -> str:
        """Plain words."""
        return " ".join("".join(self.pieces[number] for number in numbers).split())


@dataclasses.dataclass(frozen=True, eq=False)
class _Clips:
    """Recordings of one file: paths, words, pieces, and about how many rows each has."""

    paths: Sequence[Path]
    texts: Sequence[str]
    targets: Sequence[Sequence[int]]
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


class PieceCtc(FromSampler[SimilarSampler]):
    """CTC over the tower's pieces."""

    unit = "clips"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, PieceCtcData) and model.config.whisper is not None
        self.model, self.stage, self.context, self.data = model, stage, context, data
        self.pieces = Pieces(model.config.whisper.pieces)
        self._sounds = FrozenSounds(model.sound_embed, data.augment, context.cache, context.limits)
        shares = shares_of(context.path, data.sources, data.optional)
        sources = {name: self._load(name) for name in shares.names}
        self.sources = list(sources.values())
        lengths = {name: clips.lengths for name, clips in sources.items()}
        self._sampler = SimilarSampler(lengths, shares, stage.batch, stage.steps, context.seed, _SHORT)
        self.held_out = {label: self._load(name) for label, name in data.held_out.items()}
        self.head = nn.Module()
        wanted = [(p, v) for clips in sources.values() for v in range(data.views) for p in clips.paths]
        wanted += [(path, 0) for clips in self.held_out.values() for path in clips.paths]
        self._sounds.prepare(wanted, lambda left: context.note("listening to recordings", left, unit="left"))

    def _load(self, name: str) -> _Clips:
        lengths: list[int] = []

        def measure(path: Path, _: Transcript) -> None:
            lengths.append(self._sounds.count(path))

        records = read_usable(name, Transcript, self.context, lambda record: record.audio, measure)
        texts = [plain_words(record.text) for _, record in records]
        targets = [self.pieces.split(text) for text in texts]
        return _Clips([path for path, _ in records], texts, targets, np.array(lengths))

    def _log_probabilities(self, stacked: Tensor, lengths: Tensor) -> Tensor:
        with autocast(self.context.device):
            _, scores = self.model.sound_embed.recognise(stacked, inside(lengths, stacked))
        return F.log_softmax(scores.float(), -1)

    def prepare(self, step: int, share: Share) -> Spoken:
        """What the encoder hears in this part of a step, partly hidden, and the pieces that are said."""
        source, places = self._sampler.picks(step)
        clips, picks = self.sources[source], share.of(places)
        changes = np.random.default_rng((self.context.seed, step, share.index))
        picks = list(share.of(picks))
        views = [(clips.paths[index], int(changes.integers(self.data.views))) for index in picks]
        stacked, lengths = self._sounds.batch(views)
        return Spoken(self._masked(stacked, changes), lengths, [clips.targets[index] for index in picks])

    def loss(self, batch: Spoken) -> Loss:
        """Over the recordings, of each its CTC loss per piece."""
        stacked, lengths, targets, _ = batch
        return ctc_loss(self._log_probabilities(stacked, lengths), lengths, targets)

    def _masked(self, stacked: Tensor, rng: np.random.Generator) -> Tensor:
        if not self.data.mask:
            return stacked
        batch, rows, _ = stacked.shape
        begins = rng.random((batch, rows)) < self.data.mask / 2.5
        hidden = np.zeros((batch, rows), bool)
        sizes = rng.integers(1, 5, (batch, rows))
        for shift in range(4):
            hidden[:, shift:] |= (begins & (sizes > shift))[:, : rows - shift]
        return stacked * torch.from_numpy(~hidden).to(stacked)[..., None]

    def _heard(self, path: Path) -> str:
        return self.pieces.join(best_path(self._log_probabilities(*self._sounds.batch([(path, 0)]))[0]))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Word error rate of the best path, per held-out file."""
        return word_error_rates(self.held_out, self._heard)


KIND = ObjectiveKind(PieceCtcData, PieceCtc)
