"""Answers about pictures and recordings through the language model: alignment, LoRA and joint stages.

Knows features, placeholders and prompts. Knows nothing of optimisers or files' layouts. What is trained is
the recipe's
matter: the projector alone, the LoRA branch with tower and projector, or the second audio projector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt_export.reference import ROUTES, Model, Route
from phirt_export.train.context import TrainingContext
from phirt_export.train.data.pictures import (
    PLAIN,
    PictureSet,
    crop_batch,
    load_photos,
    render_scenes,
)
from phirt_export.train.data.speech import NEW_SPEAKER, NO_SPEAKER, STILL, Clips, load_clips, warp_batch
from phirt_export.train.data.tasks import Task, about_scene, describe, hear, name_it
from phirt_export.train.data.tokens import encode_chat
from phirt_export.train.objectives.language import IGNORED
from phirt_export.train.options import Augmentation, MediaAnswerData, Warp
from phirt_export.train.recipe import StageConfig

CANVAS = 160
RENDERED = ("shapes", "words")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One conversation to learn: its media and its task.

    `pictures` are (source, index) pairs; `clip` is a (source, index) pair or None.
    """

    task: Task
    pictures: tuple[tuple[str, int], ...] = ()
    clip: tuple[str, int] | None = None


class MediaAnswers:
    """Cross-entropy on the answers. `pictures` and `clips` give each source's share of the samples."""

    unit = "samples"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, MediaAnswerData)
        self.model, self.stage, self.seed, self.device = model, stage, context.seed, context.device
        self.route: Route = data.route
        self.tokenizer = Tokenizer.from_file(str(context.tokenizer))
        self.picture_shares = dict(data.pictures)
        self.clip_shares = dict(data.clips)
        self.two_pictures = data.two_pictures
        # Mirrored or cut flags are other countries' flags.
        self.changes = {n: PLAIN if n in (*RENDERED, "flags") else data.augment for n in self.picture_shares}
        self.warp = data.warp
        self.pictures: dict[str, tuple[PictureSet, PictureSet | None]] = {}
        for name in self.picture_shares:
            self.pictures[name] = self._load_pictures(name, context, data.rendered)
        self.clips: dict[str, Clips] = {}
        for name in list(self.clip_shares):
            clips = load_clips(name, "train", context, data.synthetic)
            if clips is None:
                del self.clip_shares[name]
            else:
                self.clips[name] = clips
        self.held_out_digits = load_clips("fsdd", NEW_SPEAKER, context, {}) if "fsdd" in self.clips else None
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

    # Samples

    def _ask(self, source: str, pictures: PictureSet, index: int, rng: np.random.Generator) -> Task:
        if source in RENDERED:
            return about_scene(pictures.scenes[index], rng)
        return name_it(source, pictures.labels[index], rng)

    def _picture_sample(self, rng: np.random.Generator, two: bool) -> Sample:
        names = list(self.picture_shares)
        weights = np.array([self.picture_shares[n] for n in names])
        source = names[rng.choice(len(names), p=weights / weights.sum())]
        pictures = self.pictures[source][0]
        index = int(rng.integers(len(pictures)))
        task = self._ask(source, pictures, index, rng)
        if two and source not in RENDERED:
            other_source = names[rng.integers(len(names))]
            other = (other_source, int(rng.integers(len(self.pictures[other_source][0]))))
            if rng.random() < 0.5:
                return Sample(Task("What is in the first picture?", task.answer), ((source, index), other))
            return Sample(Task("What is in the second picture?", task.answer), (other, (source, index)))
        if "spoken_questions" in self.clips:
            clips = self.clips["spoken_questions"]
            fitting = _fitting_questions(clips, source, pictures, index)
            spoken = int(fitting[rng.integers(len(fitting))])
            task = _spoken_task(clips.records[spoken]["text"], task, source, pictures, index)
            return Sample(task, ((source, index),), ("spoken_questions", spoken))
        return Sample(task, ((source, index),))

    def _clip_samples(self, rng: np.random.Generator) -> list[Sample]:
        """One batch of clips of similar length from one source."""
        names = list(self.clip_shares)
        weights = np.array([self.clip_shares[n] for n in names])
        source = names[rng.choice(len(names), p=weights / weights.sum())]
        clips = self.clips[source]
        pool = rng.integers(0, len(clips), 4 * self.stage.batch)
        pool = pool[np.argsort(clips.lengths[pool], kind="stable")]
        begin = int(rng.integers(0, 4)) * self.stage.batch
        picks = pool[begin : begin + self.stage.batch]
        return [Sample(hear(clips.records[i], rng), (), (source, int(i))) for i in picks]

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
            for s in samples
            for source, index in s.pictures
        ]
        clip_refs = [(self.clips[s.clip[0]], s.clip[1]) for s in samples if s.clip]
        return self.picture_features(picture_refs, rng), self.clip_features(clip_refs, self.warp, rng)

    # Rows

    def _row(self, sample: Sample, rows: list[int]) -> tuple[list[int], list[bool]]:
        """Ids and learnt flags: placeholders come first in the user's turn."""
        tokens = self.model.config.tokens
        chat = [("system", sample.task.system)] if sample.task.system else []
        chat += [("user", sample.task.prompt), ("assistant", sample.task.answer)]
        ids, learn = encode_chat(self.tokenizer, chat)
        user = ids.index(self.tokenizer.token_to_id("<|user|>")) + 1
        kinds = [tokens.image] * len(sample.pictures) + ([tokens.audio] if sample.clip else [])
        media = [token for token, count in zip(kinds, rows, strict=True) for _ in range(count)]
        return ids[:user] + media + ids[user:], learn[:user] + [False] * len(media) + learn[user:]

    def loss(self, step: int) -> tuple[Tensor, int]:
        """Mean loss over the answers' tokens of this step, and the number of samples."""
        rng = np.random.default_rng((self.seed, step))
        from_clips = bool(self.clip_shares) and not self.picture_shares
        if from_clips:
            samples = self._clip_samples(rng)
        else:  # a batch is padded to its longest row: samples with two pictures share batches
            two = bool(rng.random() < self.two_pictures)
            samples = [self._picture_sample(rng, two) for _ in range(self.stage.batch)]
        with torch.autocast(self.device.type, torch.bfloat16):
            pictures, clips = self._features(samples, rng)
            ids, targets, features = self._assemble(samples, pictures, clips)
            hidden = self.model.hidden_states(ids, features, self.route)
            learnt = targets != IGNORED
            logits = F.linear(hidden[learnt], self.model.embedding_weight())
        return F.cross_entropy(logits.float(), targets[learnt]), len(samples)

    def _assemble(
        self, samples: Sequence[Sample], pictures: list[Tensor], clips: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded ids and shifted targets [B, T], and all media rows in order."""
        remaining_pictures, remaining_clips = iter(pictures), iter(clips)
        rows, media = [], []
        for sample in samples:
            own = [next(remaining_pictures) for _ in sample.pictures] + (
                [next(remaining_clips)] if sample.clip else []
            )
            media += own
            rows.append(self._row(sample, [len(part) for part in own]))
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
        return right.all(1).float().mean().item()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of exact answers on held-out photos and on digits of the held-out speaker."""
        rng = np.random.default_rng(1)
        figures = {}
        asked_aloud = "spoken_questions" in self.clips
        for name, (_, held_out) in self.pictures.items():
            if held_out is None or asked_aloud:
                continue
            scores = []
            for begin in range(0, len(held_out), 32):
                picks = range(begin, min(begin + 32, len(held_out)))
                features = self.picture_features([(held_out, i, PLAIN) for i in picks], rng)
                samples = [Sample(self._held_out_task(name, held_out, i), ((name, i),)) for i in picks]
                scores.append(self._exact(samples, features, []) * len(picks))
            figures[name] = sum(scores) / len(held_out)
        if self.held_out_digits is not None:
            clips = self.held_out_digits
            scores = []
            for i, record in enumerate(clips.records):
                sample = Sample(hear(record, np.random.default_rng(0)), (), ("fsdd", i))
                scores.append(self._exact([sample], [], self.clip_features([(clips, i)], STILL, rng)))
            figures["digits of a new speaker"] = float(np.mean(scores))
        return figures

    def _held_out_task(self, source: str, pictures: PictureSet, index: int) -> Task:
        return self._ask(source, pictures, index, np.random.default_rng((7, index)))


def _fitting_questions(clips: Clips, source: str, pictures: PictureSet, index: int) -> NDArray[np.int64]:
    """Spoken questions that make sense for a picture."""
    fitting = {
        "clothing": ("What is this?", "What piece of clothing is this?"),
        "caltech101": ("What is this?", "What is in the picture?"),
        "grocery": ("What is this?", "Which product is this?"),
        "words": ("What is this?", "What does it say?"),
        "shapes": ("How many shapes are there?",),
    }[source]
    if source == "shapes" and len(pictures.scenes[index].things) == 1:
        fitting = ("What is this?", "What shape is this?")
    return np.flatnonzero([record["text"] in fitting for record in clips.records])


def _spoken_task(question: str, task: Task, source: str, pictures: PictureSet, index: int) -> Task:
    """The task with an empty prompt (the question is heard) and the answer to the spoken question."""
    if source != "shapes":
        return Task("", task.answer)
    things = pictures.scenes[index].things
    if question == "How many shapes are there?":
        return Task("", ("one", "two", "three", "four", "five", "six")[len(things) - 1])
    return Task(
        "",
        things[0].shape if question == "What shape is this?" else describe(things),
    )
