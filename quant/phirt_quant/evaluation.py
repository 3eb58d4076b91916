"""A bundle beside a reference on equal prompts, route by route: how far apart their predictions are.

Knows prompts, forced continuations and who leads. Knows nothing of checkpoints or torch: a reference is
whatever yields logits, and another bundle is one.

Text is forced on both, token by token. For media the reference answers greedily and its answer is forced on
the bundle, so that several bundles are compared along the same path.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

import phirt
from phirt.bundle.adapters import choose_rule
from phirt.bundle.manifest import Modality
from phirt.encoders.audio_file import AudioSource
from phirt.encoders.image_file import ImageSource
from phirt.errors import ConfigError
from phirt.generate.sequence import Prompt
from phirt.prompt.messages import Message
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_quant.fidelity import Fidelity, FidelityMeter
from phirt_quant.samples import BOTH_PROMPT, IMAGE_PROMPT

STEPS = 16
PASSAGE_TOKENS = 256

Logits = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One prompt. Either `forced` holds the ids of a passage, of which the first alone is the prompt; or
    `text` and media are a user's turn, and the reference's answer is followed for at most STEPS tokens.
    """

    text: str = ""
    images: tuple[ImageSource, ...] = ()
    audio: tuple[AudioSource, ...] = ()
    forced: tuple[int, ...] | None = None


class Reference(Protocol):
    """A model to be compared with."""

    def follow(self, case: Case, prompt: Prompt) -> Iterator[Logits]:
        """Logits float32 [vocab] after the prompt, and after each token that follows: those of `case.forced`,
        or the likeliest one of the logits before. `prompt` is the candidate's encoding of the case.
        """


@dataclasses.dataclass(frozen=True)
class RouteFidelity:
    """Figures of one route, and how many bits a byte of text costs either model (text only)."""

    fidelity: Fidelity
    reference_bits_per_byte: float | None = None
    candidate_bits_per_byte: float | None = None


class BundleReference:
    """Another bundle, which prepares and encodes media by itself."""

    def __init__(self, model: phirt.Model, candidate: phirt.Model) -> None:
        mine, other = (m.manifest.files[m.manifest.tokenizer].sha256 for m in (model, candidate))
        if mine != other:
            raise ConfigError(
                f"the bundles {candidate.manifest.name!r} and {model.manifest.name!r} have different "
                "tokenizers, so their predictions cannot be compared; compare bundles of one checkpoint"
            )
        self._model = model

    def follow(self, case: Case, prompt: Prompt) -> Iterator[Logits]:
        """See `Reference`."""
        engine = self._model.generator.new_engine()
        own = encode(self._model, case)
        if not np.array_equal(own.ids, prompt.ids) or own.adapter != prompt.adapter:
            raise ConfigError(
                "the two bundles turn the same request into different prompts, so their predictions cannot "
                "be compared; compare bundles of one checkpoint"
            )
        logits = engine.prefill_prompt(own).copy()
        yield logits
        for step in range(len(case.forced) - 2 if case.forced is not None else STEPS - 1):
            logits = engine.decode_step(following(case, logits, step)).copy()
            yield logits


def following(case: Case, logits: Logits, step: int) -> int:
    """The token that follows the logits of a step, counted from 0."""
    return int(logits.argmax()) if case.forced is None else case.forced[step + 1]


def encode(model: phirt.Model, case: Case) -> Prompt:
    """The engine's prompt: the bare first token of a passage, or a whole user turn."""
    if case.forced is not None:
        return Prompt(np.array(case.forced[:1], np.int64))
    media = model.generator.prepare_media(case.images, case.audio)
    return model.generator.encode_prompt((Message("user", case.text, media),), None, None)


def compare(candidate: phirt.Model, reference: Reference, cases: Sequence[Case], route: str) -> RouteFidelity:
    """Agreement over all steps of all cases, each of which takes `route`.

    Raises:
        ConfigError: the models' vocabularies differ, or logits are not finite.
    """
    meter, count = FidelityMeter(), 0
    for case in cases:
        prompt, engine = encode(candidate, case), candidate.generator.new_engine()
        assert prompt.adapter.name == route
        logits, token = engine.prefill_prompt(prompt), -1
        for step, leading in enumerate(reference.follow(case, prompt)):
            if step:
                logits = engine.decode_step(token)
            token = following(case, leading, step)
            meter.add(leading[None], logits[None], np.array([token]) if case.forced is not None else None)
            if case.forced is None and token in candidate.manifest.tokens.eos:
                break
        if case.forced is not None:
            count += len(candidate.generator.tokenizer.decode(list(case.forced[1:])).encode())
    fidelity = meter.result()
    if not count:
        return RouteFidelity(fidelity)
    nats = (fidelity.reference_perplexity, fidelity.candidate_perplexity)
    scale = fidelity.positions / (math.log(2) * count)
    return RouteFidelity(fidelity, *(None if p is None else math.log(p) * scale for p in nats))


def passages(model: phirt.Model, texts: Sequence[str], limit: int) -> list[Case]:
    """The texts cut into passages, at most `limit` tokens of all together.

    Passages end before the long rotary regime would begin.

    Raises:
        ConfigError: there is not one token to predict.
    """
    geometry, cases, left = model.manifest.geometry, [], limit
    longest = min(PASSAGE_TOKENS, geometry.context, geometry.rope.original_context)
    for text in texts:
        token_ids = model.generator.tokenizer.encode_content(text)
        for start in range(0, len(token_ids), longest):
            passage = tuple(int(i) for i in token_ids[start : start + min(longest, left)])
            if len(passage) > 1:
                cases.append(Case(forced=passage))
                left -= len(passage)
    if not cases:
        raise ConfigError("the text has fewer than two tokens, and one is predicted from another; give more")
    return cases


def media_cases(
    model: phirt.Model, images: Sequence[ImageSource], audio: Sequence[AudioSource]
) -> dict[str, list[Case]]:
    """User turns for the media that the bundle takes and that are given: each picture and each clip alone,
    and the first of both together. They are named by the adapter that they take, or by what they are where
    that is none.
    """
    manifest = model.manifest
    seen = [Case(IMAGE_PROMPT, images=(image,)) for image in images]
    heard = [Case(TRANSCRIBE_PROMPT, audio=(clip,)) for clip in audio]
    if seen and heard and len(manifest.modalities) > 1:
        seen.append(Case(BOTH_PROMPT, images=(images[0],), audio=(audio[0],)))
    cases: dict[Modality, list[Case]] = {"image": seen, "audio": heard}
    named = {}
    for modality in manifest.modalities:
        adapter = choose_rule(manifest, {modality}).adapter
        named[adapter or modality] = cases[modality]
    return {name: of for name, of in named.items() if of}
