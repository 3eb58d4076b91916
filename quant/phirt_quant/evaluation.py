"""A bundle beside a reference on equal prompts, route by route: how far apart their predictions are.

Knows prompts, forced continuations and who leads. Knows nothing of checkpoints or torch: a reference is
whatever yields logits, and another bundle is one.

Text is forced on both, many positions in a run. For media the reference answers greedily and its answer is
forced on the bundle, so that several bundles are compared along the same path.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

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
from phirt_quant.fidelity import Fidelity, FidelityMeter, log_softmax
from phirt_quant.samples import BOTH_PROMPT, IMAGE_PROMPT

STEPS = 16
PASSAGE_TOKENS = 256

Logits = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One prompt. Either `forced` holds the ids of a passage, those of which are predicted that stand from
    `first` on; or `text` and media are a user's turn, and the reference's answer is followed for at most
    STEPS tokens.
    """

    text: str = ""
    images: tuple[ImageSource, ...] = ()
    audio: tuple[AudioSource, ...] = ()
    forced: tuple[int, ...] | None = None
    first: int = 1


def likeliest(logits: Logits, placeholders: Sequence[int]) -> int:
    """The likeliest id of those that an answer may have: placeholders stand for rows of features."""
    token = int(logits.argmax())
    if token in placeholders:
        allowed = logits.copy()
        allowed[list(placeholders)] = -np.inf
        token = int(allowed.argmax())
    return token


class Scorer(Protocol):
    """A model that tells what it would have said."""

    def score(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """The logits float32 [vocab] by which each of `ids` from index `first` (at least 1) on is predicted,
        from all ids before it. They are valid until the next are asked for.
        """

    def answer(self, ids: Sequence[int], draft: Sequence[int] = ()) -> Iterator[int]:
        """The likeliest id after `ids`, then the one after that, to the end of the answer or of the context.
        `draft` is what may come, for models that run several positions sooner than one after the other.
        """


@runtime_checkable
class Listener(Protocol):
    """A model that answers turns with media."""

    def reply(self, case: Case, prompt: Prompt) -> Iterator[int]:
        """The likeliest id after the user's turn of `case`, then the one after that, to the end of the answer
        or of the context. `prompt` is the candidate's encoding of the case.
        """


class Reference(Scorer, Listener, Protocol):
    """A model to be compared with."""

    def follow(self, case: Case, prompt: Prompt) -> Iterator[Logits]:
        """Logits float32 [vocab] after the user's turn of `case`, and after each token that follows: the
        likeliest one of the logits before. `prompt` is the candidate's encoding of the case.
        """


@dataclasses.dataclass(frozen=True)
class RouteFidelity:
    """Figures of one route, and how many bits a byte of text costs either model (text only). `divergences`
    are float64 [positions, 2]: the place of each position in its window or answer, and its KL in nats.
    """

    fidelity: Fidelity
    divergences: npt.NDArray[np.float64] = dataclasses.field(compare=False, repr=False)
    reference_bits_per_byte: float | None = None
    candidate_bits_per_byte: float | None = None


class BundleScorer:
    """A bundle. What it has run of the ids before is not run again."""

    def __init__(self, model: phirt.Model) -> None:
        self._engine = model.generator.new_engine()
        self._context, self._eos = model.manifest.geometry.context, model.manifest.tokens.eos
        self._placeholders = model.manifest.placeholders

    def score(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See `Scorer`."""
        return self._engine.score_prompt(Prompt(np.array(ids[:-1], np.int64)), first - 1)

    def answer(self, ids: Sequence[int], draft: Sequence[int] = ()) -> Iterator[int]:
        """See `Scorer`."""
        prompt = Prompt(np.array(ids, np.int64))
        yield from self._engine.generate(
            prompt,
            self._choose,
            max_new_tokens=self._context,
            eos=self._eos,
            speculation=self._engine.speculation(self._eos, repeatable=True),
        )

    def reply(self, case: Case, prompt: Prompt) -> Iterator[int]:
        """See `Listener`."""
        yield from self._engine.generate(prompt, self._choose, max_new_tokens=self._context, eos=self._eos)

    def _choose(self, logits: Logits) -> int:
        return likeliest(logits, self._placeholders)


class BundleReference(BundleScorer):
    """Another bundle, which prepares and encodes media by itself."""

    def __init__(self, model: phirt.Model, candidate: phirt.Model) -> None:
        mine, other = (m.manifest.files[m.manifest.tokenizer].sha256 for m in (model, candidate))
        if mine != other:
            raise ConfigError(
                f"the bundles {candidate.manifest.name!r} and {model.manifest.name!r} have different "
                "tokenizers, so their predictions cannot be compared; compare bundles of one checkpoint"
            )
        super().__init__(model)
        self._model = model

    def follow(self, case: Case, prompt: Prompt) -> Iterator[Logits]:
        """See `Reference`."""
        engine, own = self._model.generator.new_engine(), self._encoded(case, prompt)
        logits = engine.prefill_prompt(own).copy()
        yield logits
        for _ in range(STEPS - 1):
            logits = engine.decode_step(int(logits.argmax())).copy()
            yield logits

    def reply(self, case: Case, prompt: Prompt) -> Iterator[int]:
        """See `Listener`."""
        return super().reply(case, self._encoded(case, prompt))

    def _encoded(self, case: Case, prompt: Prompt) -> Prompt:
        own = encode(self._model, case)
        if not np.array_equal(own.ids, prompt.ids) or own.adapter != prompt.adapter:
            raise ConfigError(
                "the two bundles turn the same request into different prompts, so their predictions cannot "
                "be compared; compare bundles of one checkpoint"
            )
        return own


def encode(model: phirt.Model, case: Case) -> Prompt:
    """The engine's prompt of a whole user turn."""
    media = model.generator.prepare_media(case.images, case.audio)
    return model.generator.encode_prompt((Message("user", case.text, media),), None, None)


def compare(
    candidate: phirt.Model,
    reference: Reference,
    cases: Sequence[Case],
    route: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> RouteFidelity:
    """Agreement over all steps of all cases, each of which takes `route`. `on_progress` is called with the
    cases that are done and their number.

    Raises:
        ConfigError: the models' vocabularies differ, or logits are not finite.
    """
    meter, scorer, count = FidelityMeter(), BundleScorer(candidate), 0
    places: list[int] = []
    for done, case in enumerate(cases):
        if on_progress is not None:
            on_progress(done, len(cases))
        if case.forced is None:
            places += range(_compare_answer(candidate, reference, case, route, meter))
            continue
        ids, first = case.forced, case.first
        both = zip(reference.score(ids, first), scorer.score(ids, first), ids[first:], strict=True)
        for leading, logits, token in both:
            meter.add(leading[None], logits[None], np.array([token]))
        places += range(first, len(ids))
        count += len(candidate.generator.tokenizer.decode(list(ids[first:])).encode())
    if on_progress is not None:
        on_progress(len(cases), len(cases))
    fidelity = meter.result()
    divergences = np.stack([np.array(places, np.float64), meter.divergences], axis=1)
    if not count:
        return RouteFidelity(fidelity, divergences)
    nats = (fidelity.reference_perplexity, fidelity.candidate_perplexity)
    scale = fidelity.positions / (math.log(2) * count)
    return RouteFidelity(fidelity, divergences, *(None if p is None else math.log(p) * scale for p in nats))


@dataclasses.dataclass(frozen=True)
class TextScore:
    """How well one model predicts a text: tokens predicted, perplexity by token, bits for a byte of text."""

    positions: int
    perplexity: float
    bits_per_byte: float


def score_text(
    candidate: phirt.Model, cases: Sequence[Case], on_progress: Callable[[int, int], None] | None = None
) -> TextScore:
    """The figures over all passages; `on_progress` as in `compare`.

    Raises:
        ConfigError: logits are not finite.
    """
    scorer, nats, positions, count = BundleScorer(candidate), 0.0, 0, 0
    for done, case in enumerate(cases):
        if on_progress is not None:
            on_progress(done, len(cases))
        assert case.forced is not None
        targets = case.forced[case.first :]
        for logits, token in zip(scorer.score(case.forced, case.first), targets, strict=True):
            nats -= float(log_softmax(logits)[token])
        positions += len(targets)
        count += len(candidate.generator.tokenizer.decode(list(targets)).encode())
    if on_progress is not None:
        on_progress(len(cases), len(cases))
    if not math.isfinite(nats):
        raise ConfigError("the logits hold values that are not finite; the model is damaged")
    return TextScore(positions, math.exp(nats / positions), nats / (math.log(2) * max(1, count)))


def _compare_answer(
    candidate: phirt.Model, reference: Reference, case: Case, route: str, meter: FidelityMeter
) -> int:
    """Adds the steps of the reference's answer, and returns their number."""
    prompt, engine = encode(candidate, case), candidate.generator.new_engine()
    assert prompt.adapter.name == route
    logits, token = engine.prefill_prompt(prompt), -1
    for step, leading in enumerate(reference.follow(case, prompt)):
        if step:
            logits = engine.decode_step(token)
        meter.add(leading[None], logits[None])
        token = int(leading.argmax())
        if token in candidate.manifest.tokens.eos:
            break
    return step + 1


def passages(
    model: phirt.Model,
    texts: Sequence[str],
    limit: int,
    window: int = PASSAGE_TOKENS,
    stride: int | None = None,
) -> list[Case]:
    """Windows of at most `window` tokens over the texts, each of which begins `stride` tokens after the one
    before, by default where that ended; together at most `limit` tokens of text.

    Of a window those tokens are predicted that none before it has predicted, as in the sliding window of
    Hugging Face's guide to perplexity, so a smaller stride means more context. Windows end before the long
    rotary regime would begin.

    Raises:
        ConfigError: there is not one token to predict, or the stride is longer than the window.
    """
    geometry, cases, left = model.manifest.geometry, [], limit
    longest = min(window, geometry.context, geometry.original_context)
    step = longest if stride is None else stride
    if not 1 <= step <= longest:
        raise ConfigError(f"the stride is {step} tokens, accepted: 1 to the window's {longest}")
    for text in texts:
        if left < 2:
            break
        token_ids = [int(i) for i in model.generator.tokenizer.encode_content(text)[:left]]
        left -= len(token_ids)
        reached = 0
        for start in range(0, len(token_ids), step):
            passage = tuple(token_ids[start : start + longest])
            first = max(1, reached - start)
            if first < len(passage):
                cases.append(Case(forced=passage, first=first))
            reached = start + len(passage)
            if reached == len(token_ids):
                break
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
