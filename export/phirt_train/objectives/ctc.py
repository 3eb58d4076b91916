"""Audio encoder pre-training: spell what is said, with connectionist temporal classification (Graves et al.
2006).

Knows recordings, their words and the tower. Knows nothing of the language model: this stands in for the
recogniser that published audio towers start from. A token covers 80 ms, too long for a letter, so the head
spells four letters a token.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt.fields import Length
from phirt_export.precision import autocast
from phirt_export.reference import Model, ModelConfig
from phirt_train.context import TrainingContext
from phirt_train.ctc_outputs import best_path, ctc_loss, word_error_rates
from phirt_train.data.audio import FrameReader, augment_batch
from phirt_train.data.augmentation import UNCHANGED_AUDIO, AudioAugmentation
from phirt_train.data.mixture import (
    HeldOut,
    Sources,
    check_optional,
    check_sources,
    refuse_filters,
    shares_of,
)
from phirt_train.data.readable import read_usable, take_readable
from phirt_train.data.records import Transcript
from phirt_train.data.rejects import Broken
from phirt_train.data.sampling import FromSampler, SimilarSampler
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.stage import StageConfig

LETTERS_A_TOKEN = 4
_SHORT = 160  # frames; recordings up to this long go four times as many into a batch
_NORM_CLIPS = 2000  # of each source, that the frames' mean and deviation are taken from
_MAX_LETTERS = 4096


@dataclasses.dataclass(frozen=True)
class CtcData:
    """Recordings to spell.

    Attributes:
        sources: share of each file of recordings with their words.
        optional: sources that are left out where they are missing.
        augment: random changes of the recordings.
        held_out: files to measure word errors on, by what the figure is called.
    """

    sources: Sources
    optional: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    augment: AudioAugmentation = UNCHANGED_AUDIO
    held_out: HeldOut = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sources(self.sources, {})
        refuse_filters(self.sources)
        check_optional(self.optional, self.sources)

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the model has no audio tower."""
        if model.audio is None:
            raise ConfigError("the objective ctc trains an audio tower, and the model has none")

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return (*(name for name in self.sources if name not in self.optional), *self.held_out.values())


@dataclasses.dataclass(frozen=True, eq=False)
class _Clips:
    """Recordings of one file: paths, words, and about how many frames each has."""

    paths: Sequence[Path]
    texts: Sequence[str]
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


class Spoken(NamedTuple):
    """Frames [B, T, mels], frames of each recording [B], and the numbers of the letters in each."""

    frames: Tensor
    lengths: Tensor
    targets: Sequence[Sequence[int]]
    broken: Broken = Broken("", ())


def plain_words(text: str) -> str:
    """Lower case, letters and apostrophes and single spaces: the form in which transcripts are learnt and
    scored.
    """
    lowered = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LM" else " " for c in lowered)
    return " ".join(kept.split())


class Ctc(FromSampler[SimilarSampler]):
    """CTC over the letters of the training transcripts; short and long recordings never share a batch."""

    unit = "clips"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, CtcData)
        config = model.audio_embed.config
        self.model, self.stage, self.context, self.data = model, stage, context, data
        self._reader = FrameReader(config, context.limits)
        shares = shares_of(context.path, data.sources, data.optional)
        sources = {name: self._load(name) for name in shares.names}
        self.sources = list(sources.values())
        lengths = {name: clips.lengths for name, clips in sources.items()}
        self._sizes = {name: len(own) for name, own in lengths.items()}
        self._sampler = SimilarSampler(lengths, shares, stage.batch, stage.steps, context.seed, _SHORT)
        self.held_out = {label: self._load(name) for label, name in data.held_out.items()}
        self.letters = self._alphabet(sources.values())
        self._norm = model.audio_embed.encoder.encoder_embedding
        if context.is_fresh:
            self._set_feature_norm(sources.values())
        self._mean_frame = self._norm.global_mean.cpu()
        self.head = nn.Linear(config.hidden_size, LETTERS_A_TOKEN * (len(self.letters) + 1))
        generator = torch.Generator().manual_seed(context.seed)
        nn.init.normal_(self.head.weight, 0.0, 0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def _load(self, name: str) -> _Clips:
        lengths: list[int] = []

        def measure(path: Path, _: Transcript) -> None:
            lengths.append(self._reader.count_frames(path))

        records = read_usable(name, Transcript, self.context, lambda record: record.audio, measure)
        texts = [plain_words(record.text) for _, record in records]
        return _Clips([path for path, _ in records], texts, np.array(lengths))

    @staticmethod
    def _alphabet(sources: Iterable[_Clips]) -> str:
        letters = "".join(sorted({letter for clips in sources for text in clips.texts for letter in text}))
        if not 0 < len(letters) <= _MAX_LETTERS:
            raise ConfigError(
                f"the transcripts have {len(letters)} different letters; accepted: from 1 to {_MAX_LETTERS}"
            )
        return letters

    def _set_feature_norm(self, sources: Iterable[_Clips]) -> None:
        frames = []
        for clips in sources:
            for index in np.linspace(0, len(clips) - 1, min(len(clips), _NORM_CLIPS)).astype(int):
                frames.append(self._reader.read(clips.paths[index])[::7].astype(np.float32))
                if len(frames) % 100 == 0:
                    self.context.note("measuring the recordings", len(frames), unit="clips")
        joined = np.concatenate(frames)
        self._norm.global_mean.copy_(torch.from_numpy(joined.mean(0)))
        self._norm.global_invstd.copy_(torch.from_numpy(1 / (joined.std(0) + 1e-3)))

    def _log_probabilities(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """[B, 4·tokens, letters + 1], the blank last."""
        device = self.context.device
        with autocast(device):
            features = self.model.audio_embed.encoder(frames.to(device), lengths.to(device))
            scores: Tensor = self.head(features)
        spelled: Tensor = scores.float().unflatten(-1, (LETTERS_A_TOKEN, -1)).flatten(1, 2)
        return F.log_softmax(spelled, dim=-1)

    def prepare(self, step: int, share: Share) -> Spoken:
        """Frames of this part of a step, changed at random, and the letters that are said."""
        source, places = self._sampler.picks(step)
        clips, picks, pieces, rejected = self.sources[source], [], [], []
        for place in share.of(places):
            index, frames_of, wrong = take_readable(
                len(clips), place, lambda item: self._reader.read(clips.paths[item])
            )
            picks.append(index)
            pieces.append(frames_of)
            rejected += wrong
        changes = np.random.default_rng((self.context.seed, step, share.index))
        frames, lengths = augment_batch(pieces, self.data.augment, changes, self._mean_frame)
        targets = [[self.letters.index(letter) for letter in clips.texts[index]] for index in picks]
        return Spoken(frames, lengths, targets, Broken(self._sampler.draws.shares.names[source], rejected))

    def loss(self, batch: Spoken) -> Loss:
        """Over the recordings, of each its CTC loss per letter."""
        frames, lengths, targets, broken = batch
        self.context.rejects.count(broken, self._sizes[broken.name])
        letters = LETTERS_A_TOKEN * self._tokens(lengths)
        return ctc_loss(self._log_probabilities(frames, lengths), letters, targets)

    def _tokens(self, lengths: Tensor) -> Tensor:
        subsampling = self.model.audio_embed.config.subsampling
        return (lengths + subsampling - 1) // subsampling

    def _heard(self, path: Path) -> str:
        frames = [self._reader.read(path)]
        batch = augment_batch(frames, UNCHANGED_AUDIO, np.random.default_rng(0), self._mean_frame)
        best = best_path(self._log_probabilities(*batch)[0])
        return "".join(self.letters[letter] for letter in best).strip()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Word error rate of the best path, per held-out file."""
        return word_error_rates(self.held_out, self._heard)


KIND = ObjectiveKind(CtcData, Ctc)
