"""Answers about pictures and recordings through the language model: alignment, LoRA and joint stages.

Knows features, placeholders and rows of tokens. Knows nothing of optimisers or files' layouts. What is
trained is the recipe's matter: the projector alone, the LoRA branch with tower and projector, or the second
audio projector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt_export.reference import ROUTES, Model, Route
from phirt_train.context import TrainingContext
from phirt_train.data.media_chats import MediaChats, Sample, Turn
from phirt_train.data.pictures import (
    PLAIN,
    RENDERED,
    PictureSet,
    crop_batch,
    load_photos,
    render_scenes,
)
from phirt_train.data.speech import NEW_SPEAKER, NO_SPEAKER, STILL, Clips, load_clips, warp_batch
from phirt_train.data.tasks import hear
from phirt_train.data.tokens import encode_chat
from phirt_train.objectives.language import IGNORED
from phirt_train.options import Augmentation, MediaAnswerData, Warp
from phirt_train.recipe import StageConfig

CANVAS = 160


class MediaAnswers:
    """Cross-entropy on the answers. `pictures` and `clips` give each source's share of the samples."""

    unit = "samples"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, MediaAnswerData)
        self.model, self.stage, self.seed, self.device = model, stage, context.seed, context.device
        self.route: Route = "vision" if data.route == "vision" else "speech"
        self.tokenizer = Tokenizer.from_file(str(context.tokenizer))
        # Mirrored or cut flags are other countries' flags.
        self.changes = {n: PLAIN if n in (*RENDERED, "flags") else data.augment for n in data.pictures}
        self.warp = data.warp
        self.pictures = {name: self._load_pictures(name, context, data.rendered) for name in data.pictures}
        loaded = {name: load_clips(name, "train", context, data.synthetic) for name in data.clips}
        self.clips = {name: clips for name, clips in loaded.items() if clips is not None}
        self.held_out_digits = load_clips("fsdd", NEW_SPEAKER, context, {}) if "fsdd" in self.clips else None
        trained = {name: train for name, (train, _) in self.pictures.items()}
        self.chats = MediaChats(data, trained, self.clips, stage.batch)
        if data.clips and not self.clips:
            raise ConfigError(f"stage {stage.name}: {NO_SPEAKER}")
        if data.start_projector_from:
            projectors = model.audio_embed.audio_projection
            projectors["vision"].load_state_dict(projectors[data.start_projector_from].state_dict())
        self.head = nn.Module()

    def _load_pictures(
        self, name: str, context: TrainingContext, rendered: int
    ) -> tuple[PictureSet, PictureSet | None]:
        if name in RENDERED:
            seeds = (self.seed + 100, self.seed + 101)
            return render_scenes(name, rendered, seeds[0], CANVAS), render_scenes(name, 200, seeds[1], CANVAS)
        train = load_photos(context.data, name, "train", CANVAS)
        return train, None if name == "flags" else load_photos(context.data, name, "val", CANVAS)

    # Features

    def picture_features(
        self, refs: Sequence[tuple[PictureSet, int, Augmentation]], rng: np.random.Generator
    ) -> list[Tensor]:
        """Rows of decoder width for each picture, global view and one crop, as the runtime assembles them."""
        if not refs:
            return []
        embed = self.model.image_embed
        config = embed.config
        parts = [
            crop_batch(
                p.canvas[i : i + 1], p.sizes[i : i + 1], config.crop_size, config.patch_size, change, rng
            )
            for p, i, change in refs
        ]
        pixels = torch.cat([x for x, _ in parts]).contiguous(memory_format=torch.channels_last)
        masks = torch.cat([m for _, m in parts])
        patches = embed.img_processor.embeddings(pixels.to(self.device))
        pooled = embed.img_processor.encode(
            torch.cat((patches, patches)), torch.cat((torch.ones_like(masks), masks)).to(self.device)
        )
        rows = []
        for n, mask in enumerate(masks):
            grid = (int(mask[::2, 0].sum()), int(mask[0, ::2].sum()))
            rows.append(embed.assemble(torch.stack((pooled[n], pooled[n + len(masks)])), (1, 1), grid))
        joined = embed.img_projection(torch.cat(rows))
        return list(joined.split([len(r) for r in rows]))

    def clip_features(
        self, refs: Sequence[tuple[Clips, int]], warp: Warp, rng: np.random.Generator
    ) -> list[Tensor]:
        """Rows of decoder width for each clip through the route's projector."""
        if not refs:
            return []
        pieces = [clips.frames[clips.starts[i] : clips.starts[i + 1]] for clips, i in refs]
        mean_frame = self.model.audio_embed.encoder.encoder_embedding.global_mean.cpu()
        frames, lengths = warp_batch(pieces, warp, rng, mean_frame)
        projector = ROUTES[self.route].audio_projector
        rows = self.model.audio_embed(frames.to(self.device), projector, lengths.to(self.device))
        tokens = (lengths + 7) // 8
        return [row[:count] for row, count in zip(rows, tokens.tolist(), strict=True)]

    def _features(
        self, samples: Sequence[Sample], rng: np.random.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        picture_refs = [
            (self.pictures[source][0], index, self.changes[source])
            for turn in _turns(samples)
            for source, index in turn.pictures
        ]
        clip_refs = [(self.clips[turn.clip[0]], turn.clip[1]) for turn in _turns(samples) if turn.clip]
        return self.picture_features(picture_refs, rng), self.clip_features(clip_refs, self.warp, rng)

    # Rows

    def _row(self, sample: Sample, rows: Iterator[int]) -> tuple[list[int], list[bool]]:
        """Ids and learnt flags; before a turn's text stand its placeholders, `rows` for each of its media."""
        tokens = self.model.config.tokens
        system = sample.turns[0].task.system
        ids, learn = encode_chat(self.tokenizer, [("system", system)] if system else [])
        for turn in sample.turns:
            said, known = encode_chat(
                self.tokenizer, [("user", turn.task.prompt), ("assistant", turn.task.answer)]
            )
            kinds: list[int | None] = [tokens.image] * len(turn.pictures) + (
                [tokens.audio] if turn.clip else []
            )
            media = [kind for kind in kinds if kind is not None for _ in range(next(rows))]
            ids += [*said[:1], *media, *said[1:]]  # the first id opens the user's turn
            learn += [*known[:1], *([False] * len(media)), *known[1:]]
        return ids, learn

    def loss(self, step: int) -> tuple[Tensor, int]:
        """Mean loss over the answers' tokens of this step, and the number of samples."""
        rng = np.random.default_rng((self.seed, step))
        samples = self.chats.batch(rng)
        with torch.autocast(self.device.type, torch.bfloat16):
            pictures, clips = self._features(samples, rng)
            ids, targets, features = self._assemble(samples, pictures, clips)
            hidden = self.model.hidden_states(ids, features, self.route)
            learnt = targets != IGNORED
            logits = F.linear(hidden[learnt], self.model.head_weight())
        return F.cross_entropy(logits.float(), targets[learnt]), len(samples)

    def _assemble(
        self, samples: Sequence[Sample], pictures: list[Tensor], clips: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded ids and shifted targets [B, T], and all media rows in order."""
        next_picture, next_clip = iter(pictures), iter(clips)
        rows, media = [], []
        for sample in samples:
            own: list[Tensor] = []
            for turn in sample.turns:
                own += [next(next_picture) for _ in turn.pictures]
                own += [next(next_clip)] if turn.clip else []
            media += own
            rows.append(self._row(sample, iter([len(part) for part in own])))
        longest = max(len(ids) for ids, _ in rows) - 1
        ids_out = torch.full((len(rows), longest), self.model.config.tokens.pad)
        targets = torch.full((len(rows), longest), IGNORED)
        for n, (ids, learn) in enumerate(rows):
            line, known = torch.tensor(ids), torch.tensor(learn)
            ids_out[n, : len(ids) - 1] = line[:-1]
            targets[n, : len(ids) - 1] = torch.where(known[1:], line[1:], IGNORED)
        return ids_out.to(self.device), targets.to(self.device), torch.cat(media)

    # Measuring

    @torch.no_grad()
    def _exact(self, samples: Sequence[Sample], pictures: list[Tensor], clips: list[Tensor]) -> float:
        """Share of samples whose every answer token is the model's best, given the ones before: exact greedy
        answers.
        """
        ids, targets, features = self._assemble(samples, pictures, clips)
        best = self.model(ids, features, self.route).argmax(-1)
        right = (best == targets) | (targets == IGNORED)
        share: float = right.all(1).float().mean().item()
        return share

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of exact answers on held-out photos and on digits of the held-out speaker."""
        rng = np.random.default_rng(1)
        figures = {}
        for name, (_, held_out) in self.pictures.items():
            if held_out is None:
                continue
            scores = []
            for begin in range(0, len(held_out), 32):
                picks = range(begin, min(begin + 32, len(held_out)))
                features = self.picture_features([(held_out, i, PLAIN) for i in picks], rng)
                samples = [self._held_out_sample(name, held_out, i) for i in picks]
                scores.append(self._exact(samples, features, []) * len(picks))
            figures[name] = sum(scores) / len(held_out)
        if self.held_out_digits is not None:
            clips = self.held_out_digits
            scores = []
            for i, record in enumerate(clips.records):
                sample = Sample((Turn(hear(record, np.random.default_rng(0)), (), ("fsdd", i)),))
                scores.append(self._exact([sample], [], self.clip_features([(clips, i)], STILL, rng)))
            figures["digits of a new speaker"] = float(np.mean(scores))
        return figures

    def _held_out_sample(self, source: str, pictures: PictureSet, index: int) -> Sample:
        task = self.chats.ask(source, pictures, index, np.random.default_rng((7, index)))
        return Sample((Turn(task, ((source, index),)),))


def _turns(samples: Sequence[Sample]) -> Iterator[Turn]:
    for sample in samples:
        yield from sample.turns
