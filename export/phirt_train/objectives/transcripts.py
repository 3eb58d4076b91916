"""Audio encoder pre-training: spell what is said, with connectionist temporal classification.

Knows clips, letters and the tower. Knows nothing of the language model: this stands in for the recogniser
that published audio towers start from (spec section F). A token covers 80 ms, too long for a letter, so the
head spells four letters a token.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt_export.reference import Model
from phirt_quant.word_errors import word_errors
from phirt_train.context import TrainingContext
from phirt_train.data.speech import (
    NEW_SPEAKER,
    NO_SPEAKER,
    STILL,
    Clips,
    load_clips,
    plain_words,
    warp_batch,
)
from phirt_train.options import TranscriptData
from phirt_train.recipe import StageConfig

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
PER_TOKEN = 4


class Transcripts:
    """CTC over letters. `sources` gives each source's share; short and long clips never share a batch."""

    unit = "clips"
    SHORT = 160  # frames; clips up to this long go four times as many into a batch

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, TranscriptData)
        self.model, self.stage, self.seed, self.device = model, stage, context.seed, context.device
        self.warp = data.warp
        self.sources: dict[str, Clips] = {}
        for name in data.sources:
            clips = load_clips(name, "train", context, data.synthetic)
            if clips is not None:
                self.sources[name] = clips
        if not self.sources:
            raise ConfigError(f"stage {stage.name}: {NO_SPEAKER}")
        shares = np.array([data.sources[name] for name in self.sources])
        self.shares = shares / shares.sum()
        digits, sentences = (
            load_clips(name, split, context, {})
            for name, split in (("fsdd", NEW_SPEAKER), ("speechocean762", "val"))
        )
        assert digits is not None and sentences is not None
        self.held_out = {"digits of a new speaker": digits, "sentences": sentences}
        if not stage.starts_from:
            self._set_feature_norm()
        self._mean_frame = model.audio_embed.encoder.encoder_embedding.global_mean.cpu()
        self.head = nn.Linear(model.audio_embed.config.hidden_size, PER_TOKEN * (len(LETTERS) + 1))
        generator = torch.Generator().manual_seed(self.seed)
        nn.init.normal_(self.head.weight, 0.0, 0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def _set_feature_norm(self) -> None:
        frames = np.concatenate([clips.frames[::7].astype(np.float32) for clips in self.sources.values()])
        norm = self.model.audio_embed.encoder.encoder_embedding
        norm.global_mean.copy_(torch.from_numpy(frames.mean(0)))
        norm.global_invstd.copy_(torch.from_numpy(1 / (frames.std(0) + 1e-3)))

    def _log_probabilities(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """[B, 4·tokens, letters + 1], the blank last."""
        with torch.autocast(self.device.type, torch.bfloat16):
            features = self.model.audio_embed.encoder(frames.to(self.device), lengths.to(self.device))
            scores = self.head(features)
        return F.log_softmax(scores.float().unflatten(-1, (PER_TOKEN, -1)).flatten(1, 2), dim=-1)

    def _pick(self, rng: np.random.Generator) -> list[tuple[Clips, int]]:
        """Clips of similar length from one source."""
        clips = self.sources[list(self.sources)[rng.choice(len(self.sources), p=self.shares)]]
        pool = clips.draw(4 * self.stage.batch, rng)
        if clips.lengths[pool[-1]] <= self.SHORT:
            return [(clips, int(i)) for i in pool]
        begin = int(rng.integers(0, 4)) * self.stage.batch
        return [(clips, int(i)) for i in pool[begin : begin + self.stage.batch]]

    def loss(self, step: int) -> tuple[Tensor, int]:
        """Mean CTC loss per letter of this step, and the number of clips."""
        rng = np.random.default_rng((self.seed, step))
        picks = self._pick(rng)
        pieces = [clips.frames[clips.starts[i] : clips.starts[i + 1]] for clips, i in picks]
        frames, lengths = warp_batch(pieces, self.warp, rng, self._mean_frame)
        targets = [[LETTERS.index(c) for c in plain_words(clips.records[i]["text"])] for clips, i in picks]
        log_probabilities = self._log_probabilities(frames, lengths)
        steps = PER_TOKEN * ((lengths + 7) // 8)
        loss = F.ctc_loss(
            log_probabilities.transpose(0, 1),
            torch.tensor(list(itertools.chain.from_iterable(targets)), device=self.device),
            steps,
            torch.tensor([len(target) for target in targets]),
            blank=len(LETTERS),
            zero_infinity=True,
        )
        return loss, len(picks)

    def _spell(self, clips: Clips, index: int) -> str:
        piece = clips.frames[clips.starts[index] : clips.starts[index + 1]]
        frames, lengths = warp_batch([piece], STILL, np.random.default_rng(0), self._mean_frame)
        best = self._log_probabilities(frames, lengths)[0].argmax(-1).tolist()
        return "".join(LETTERS[i] for i, _ in itertools.groupby(best) if i < len(LETTERS)).strip()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Word error rate of the best path, per held-out source."""
        figures = {}
        for name, clips in self.held_out.items():
            errors = words = 0
            for index, record in enumerate(clips.records):
                errors += word_errors(record["text"], self._spell(clips, index))
                words += len(record["text"].split())
            figures[f"{name} word error rate"] = errors / words
        return figures
