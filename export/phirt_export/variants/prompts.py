"""What a bundle is shown to learn which numbers its graphs compute: prompts with their answers, and what its
encoders take.

Knows samples, and the runtime by which the bundle itself turns them into ids and features. Knows nothing of
graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.errors import BundleError, ConfigError
from phirt.generate.sequence import Adapter, Prompt
from phirt.generator import Generator
from phirt.prompt.messages import Message
from phirt_export.calibration.samples import Sample
from phirt_quant import samples as made

Array = npt.NDArray[Any]

_ROUTE_TOKENS = 2048  # of texts, and of turns of each route
_MEDIA_SAMPLES = 64
_ANSWER_TOKENS = 32
_PASSAGE_TOKENS = 256


@dataclasses.dataclass(eq=False)
class Shown:
    """Prompts, and for each encoder by name what it was given."""

    prompts: list[Prompt] = dataclasses.field(default_factory=list)
    encoded: dict[str, list[dict[str, Array]]] = dataclasses.field(default_factory=dict)


def show(generator: Generator, samples: Sequence[Sample], longest: int) -> Shown:
    """The samples as the bundle sees them, evenly from all of them, and pictures and clips made here for
    encoders that none of the samples has media for. No prompt is longer than `longest`.

    Raises:
        ConfigError: nothing of two tokens is left.
    """
    shown = Shown()
    for prompts in (_texts(generator, samples, longest), _turns(generator, samples, shown)):
        spent: dict[str, int] = {}
        for prompt in prompts:
            used = spent.get(prompt.adapter.name, 0)
            kept = _cut(prompt, longest)
            if len(kept.ids) > 1 and (not used or used + len(kept.ids) <= _ROUTE_TOKENS):
                spent[prompt.adapter.name] = used + len(kept.ids)
                shown.prompts.append(kept)
    if not shown.prompts:
        raise ConfigError("the calibration data has not two tokens in a row; give more text")
    return shown


def _texts(generator: Generator, samples: Sequence[Sample], longest: int) -> Iterator[Prompt]:
    """The beginnings of texts, evenly from all of them."""
    size = min(_PASSAGE_TOKENS, longest)
    texts = [sample.text for sample in samples if sample.text]
    step = max(1, len(texts) * size // (4 * _ROUTE_TOKENS))
    for text in texts[::step]:
        yield Prompt(np.array(generator.tokenizer.encode_content(text)[:size], dtype=np.int64))


def _turns(generator: Generator, samples: Sequence[Sample], shown: Shown) -> Iterator[Prompt]:
    """Turns with their answers; those without one are answered by the bundle."""
    turns = [sample for sample in samples if not sample.text]
    step = max(1, len(turns) // _MEDIA_SAMPLES)
    for sample in turns[::step]:
        try:
            yield _turn(generator, sample, sample.images, sample.audio, shown)
        except BundleError:
            # A template may take no system message: the text of phirt's own serves all models.
            if sample.images or sample.audio or not sample.system:
                raise
    for modality, media in (("image", made.pictures()), ("audio", made.clips())):
        if modality in generator.manifest.modalities and not _has(generator, shown, modality):
            for one in media:
                images, audio = ((one,), ()) if modality == "image" else ((), (one,))
                yield _turn(generator, Sample(prompt=made.BOTH_PROMPT), images, audio, shown)


def _has(generator: Generator, shown: Shown, modality: str) -> bool:
    encoders = generator.manifest.encoders
    return any(encoders[name].modality == modality for name in shown.encoded)


def _turn(generator: Generator, sample: Sample, images: Any, audio: Any, shown: Shown) -> Prompt:
    message = generator.message(sample.prompt, images=images, audio=audio, image_detail="low")
    for media in message.media:
        if media.inputs is not None:
            shown.encoded.setdefault(media.encoder, []).append(dict(media.inputs))
    messages = (*([Message("system", sample.system)] if sample.system else []), message)
    prompt = generator.encode_prompt(messages)
    if sample.answer:
        ids = [
            token
            for part in generator.tokenizer.split_control(sample.answer)
            for token in ([part] if isinstance(part, int) else generator.tokenizer.encode_content(part))
        ]
    else:
        stream = generator.stream(messages, max_new_tokens=_ANSWER_TOKENS, temperature=0.0, speculation=False)
        stream.text()
        ids = list(stream.result.token_ids)
    return Prompt(np.concatenate([prompt.ids, np.array(ids, np.int64)]), prompt.spans, prompt.adapter)


def _cut(prompt: Prompt, longest: int) -> Prompt:
    spans = tuple(span.before(longest) for span in prompt.spans if span.start < longest)
    return Prompt(prompt.ids[:longest], spans, Adapter(prompt.adapter.name))
