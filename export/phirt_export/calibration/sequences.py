"""Calibration samples as a decoder sees them: token ids, rows of media features, a route.

Knows the checkpoint's tokenizer, template and encoders, and how much of the data is used. Knows nothing of
layers. The encoders run in float32, one at a time, and are given back.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Items
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from phirt.bundle.manifest import Modality
from phirt.encoders.phi4mm_audio import prepare_audio
from phirt.encoders.phi4mm_image import cap_crops, prepare_image
from phirt.errors import BundleError, ConfigError
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Media, Message
from phirt.prompt.tools import VISIBLE_TOKENS
from phirt_export.bundle import model_limits
from phirt_export.calibration.samples import OWN_TEXT, Sample, read_samples
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.checkpoint_scores import media_rows
from phirt_export.model_weights import load_tensors
from phirt_export.reference import ROUTES, Model, Route
from phirt_export.text_files import open_tokenizer, read_text_files

if TYPE_CHECKING:
    from phirt_export.reference import ModelConfig

PASSAGE_TOKENS = 256
_MEDIA_SAMPLES = 256

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
    """Token ids, the features float32 [rows, hidden] of their placeholders in order, and the route."""

    token_ids: tuple[int, ...]
    media: Tensor | None
    route: Route


def encode_samples(checkpoint: Checkpoint, samples: Items[Sample], route_tokens: int) -> list[Sequence]:
    """The samples as sequences, taken evenly from all of them: at most `route_tokens` of each route, but one
    sequence at least.

    Texts are cut into passages, which take the route without an adapter. A turn is rendered by the chat
    template, its answer behind it, in which control tokens count as such. Pictures are looked at with one
    crop beside the whole view.

    Raises:
        ConfigError: the model takes no images or no recordings, or there is nothing of two tokens or more.
        MediaError: a file is no picture or recording that can be read.
    """
    encoder = _Encoder(checkpoint)
    by_route: dict[Route, list[Sample]] = collections.defaultdict(list)
    for sample in samples:
        by_route[encoder.route_of(sample)].append(sample)
    turns: list[_Turn] = []
    for route in ROUTES:
        pieces = (
            encoder.text_turns(by_route[route], route_tokens)
            if route == "none"
            else map(encoder.turn, _spread(by_route[route], _MEDIA_SAMPLES))
        )
        left = route_tokens
        for turn in pieces:
            # One turn at least, however long: a route without any would not be calibrated.
            if len(turn.token_ids) > 1 and (len(turn.token_ids) <= left or left == route_tokens):
                left -= len(turn.token_ids)
                turns.append(turn)
    if not turns:
        raise ConfigError("the calibration data has not two tokens in a row; give more text")
    return encoder.with_features(turns)


def own_samples(checkpoint: Checkpoint) -> list[Sample]:
    """phirt's own text, without the turns that the checkpoint's template or context does not take."""
    encoder = _Encoder(checkpoint)

    def fits(sample: Sample) -> bool:
        try:
            return bool(sample.text or encoder.turn(sample))
        except (ConfigError, BundleError):
            return False

    return list(filter(fits, read_samples([OWN_TEXT])))


def thinned(sequences: Items[Sequence], route_tokens: int) -> list[Sequence]:
    """Some of the sequences, at most `route_tokens` of each route (but one sequence at least), taken evenly
    from all of them.
    """
    kept: list[Sequence] = []
    for route in ROUTES:
        of = [sequence for sequence in sequences if sequence.route == route]
        count = len(of)
        while count > 1 and sum(len(sequence.token_ids) for sequence in _spread(of, count)) > route_tokens:
            count -= 1
        kept += _spread(of, count)
    return kept


@dataclasses.dataclass(frozen=True, eq=False)
class _Turn:
    """Ids, and the media behind their placeholders, prepared but not encoded."""

    token_ids: tuple[int, ...]
    media: tuple[Media, ...]
    route: Route


class _Encoder:
    """Turns samples into ids with the checkpoint's own tokenizer, template and constants."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        config = self._config = checkpoint.config
        self._tokenizer = open_tokenizer(checkpoint.folder, config.decoder.vocab_size, VISIBLE_TOKENS)
        placeholders = {plan.name: plan.spec.placeholder for plan in checkpoint.encoders}
        texts = read_text_files(checkpoint.folder, config.decoder.vocab_size, config.tokens, placeholders)
        self._template = ChatTemplate(
            texts.template, self._tokenizer, config.tokens, placeholders, texts.names
        )
        self._limits = model_limits(config)
        self._longest = min(PASSAGE_TOKENS, config.decoder.rope.original_context)
        self._encoder_of: dict[Modality, str] = {
            plan.spec.modality: plan.name for plan in checkpoint.encoders
        }
        self._image, self._audio = config.vision, config.audio

    def route_of(self, sample: Sample) -> Route:
        """The route that the sample takes; refuses media that the model does not take."""
        if sample.images and self._image is None:
            raise ConfigError(f"{sample.images[0]}: {self._refusal('image', 'images')}; leave them out")
        if sample.audio and self._audio is None:
            raise ConfigError(f"{sample.audio[0]}: {self._refusal('audio', 'recordings')}; leave them out")
        return "vision" if sample.images else "speech" if sample.audio else "none"

    def _refusal(self, modality: Modality, what: str) -> str:
        if modality in self._encoder_of:
            return f"{what} cannot be calibrated with for the checkpoint's kind of encoder"
        return f"the checkpoint takes no {what}"

    def text_turns(self, samples: Items[Sample], route_tokens: int) -> Iterator[_Turn]:
        """Passages and turns without media, spread over all of the text."""
        turns: list[_Turn] = []
        for sample in samples:
            if not sample.text:
                turns.append(self.turn(sample))
                continue
            token_ids = self._tokenizer.encode_content(sample.text)
            for start in range(0, len(token_ids), self._longest):
                turns.append(_Turn(tuple(token_ids[start : start + self._longest]), (), "none"))
        total = sum(len(turn.token_ids) for turn in turns)
        wanted = max(1, len(turns) * route_tokens // max(route_tokens, total))
        return iter(_spread(turns, wanted))

    def turn(self, sample: Sample) -> _Turn:
        """A turn and its answer; cut where the model's original context ends."""
        media = (*map(self._picture, sample.images), *map(self._clip, sample.audio))
        system = (Message("system", sample.system),) if sample.system else ()
        encoded = self._template.encode((*system, Message("user", sample.prompt, media)))
        token_ids = [int(i) for i in encoded.ids]
        # The model writes control tokens itself, those of tool calls for instance.
        for part in self._tokenizer.split_control(sample.answer):
            token_ids += [part] if isinstance(part, int) else self._tokenizer.encode_content(part)
        context = self._config.decoder.rope.original_context
        if len(encoded.ids) > context:
            raise ConfigError(
                f"a turn of the calibration data needs {len(encoded.ids)} tokens, and the model's original "
                f"context has {context}; give shorter ones"
            )
        return _Turn(tuple(token_ids[:context]), media, self.route_of(sample))

    def with_features(self, turns: Items[_Turn]) -> list[Sequence]:
        """The turns with their media encoded; first all pictures, then all recordings."""
        rows: dict[int, Tensor] = {}
        for kind, tower in (("image", "image_embed"), ("audio", "audio_embed")):
            wanted = [(item, turn.route) for turn in turns for item in turn.media if item.modality == kind]
            if not wanted:
                continue
            model = _with_tower(self._checkpoint, self._config, tower)
            with torch.no_grad():
                for item, route in wanted:
                    assert item.inputs is not None
                    rows[id(item)] = media_rows(
                        model, item.modality, item.inputs, ROUTES[route].audio_projector
                    )
                    item.inputs = None
        sequences = []
        for turn in turns:
            media = torch.cat([rows[id(item)] for item in turn.media]) if turn.media else None
            sequences.append(Sequence(turn.token_ids, media, turn.route))
        return sequences

    def _picture(self, path: Path) -> Media:
        assert self._image is not None
        prepared = prepare_image(path, cap_crops(self._image, "low"), self._limits)
        return Media(
            self._encoder_of["image"], "image", prepared.key, prepared.num_tokens, prepared.make_inputs()
        )

    def _clip(self, path: Path) -> Media:
        assert self._audio is not None
        prepared = prepare_audio(path, self._audio, self._limits)
        return Media(
            self._encoder_of["audio"], "audio", prepared.key, prepared.num_tokens, prepared.make_inputs()
        )


def _spread(items: Items[_T], count: int) -> Items[_T]:
    """At most `count` of the items, evenly from all of them, in order."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def _with_tower(checkpoint: Checkpoint, config: ModelConfig, tower: str) -> Model:
    """A model of which one encoder alone has its weights; the rest takes no memory."""
    with torch.device("meta"):
        model = Model(config)
    prefix = f"model.embed_tokens_extend.{tower}."
    module = model.model.embed_tokens_extend.get_submodule(tower).to_empty(device="cpu").eval()
    names = [name for name in expected_shapes(config) if name.startswith(prefix)]
    load_tensors(module, checkpoint.tensor, names, prefix)
    return model.eval()
