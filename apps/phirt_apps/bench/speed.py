"""Speed of a loaded model: prefill, decoding at several depths, encoders, tokens a second over time.

Knows engines and clocks. Knows nothing of tables or of what the machine could do. The first take of each
figure is left out: it allocates buffers, opens encoders and wakes threads.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import phirt
from phirt.bundle import adapters
from phirt.bundle.manifest import Geometry, Manifest, Modality
from phirt.errors import ConfigError
from phirt.generate.engine import Engine
from phirt.generate.sequence import Ids
from phirt_quant import samples

from .spread import Spread

PROMPT_TOKENS = (128, 1024)
DEPTHS = (128, 1024, 4096)
_SAMPLES_OVER_TIME = 20  # figures of a sustained run


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured: lengths in tokens, how often, and for how many seconds a sustained run lasts."""

    prompt_tokens: tuple[int, ...]
    new_tokens: int
    depths: tuple[int, ...]
    repeats: int
    sustained: float | None


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Seconds from the prompt's ids to the first chosen id, with an empty cache."""

    prompt_tokens: int
    first_token: Spread


@dataclasses.dataclass(frozen=True)
class Decode:
    """Tokens a second of `new_tokens` greedy steps, the first with `depth` positions cached."""

    depth: int
    new_tokens: int
    tokens_per_second: Spread

    @property
    def mean_depth(self) -> float:
        """Positions that a step finds in the cache, on average."""
        return self.depth + (self.new_tokens - 1) / 2


@dataclasses.dataclass(frozen=True)
class ThreadSpeed:
    """Tokens a second of the plan's first prefill and first depth with so many threads."""

    threads: int
    prefill: Spread
    decode: Spread


@dataclasses.dataclass(frozen=True)
class Encode:
    """Seconds to read and process one picture or clip, and to run its encoder."""

    source: str
    tokens: int
    prepare: Spread
    encode: Spread


def make_plan(
    geometry: Geometry,
    prompt_tokens: Sequence[int] | None,
    new_tokens: int,
    depths: Sequence[int] | None,
    repeats: int,
    sustained: float | None,
) -> Plan:
    """What to measure; of the usual lengths, where none are given, those that fit.

    Raises ConfigError for a length that does not.
    """
    room = geometry.context - new_tokens
    if room < 1:
        raise ConfigError(
            f"{new_tokens} new tokens do not fit behind a prompt: the model's context has {geometry.context} "
            "positions; give fewer --new-tokens"
        )
    if prompt_tokens is None:
        prompt_tokens = [n for n in PROMPT_TOKENS if n <= geometry.context] or [geometry.context]
    if depths is None:
        fitting = [n for n in DEPTHS if n <= room and not _crosses(geometry, n, new_tokens)]
        depths = fitting or [max(1, min(room, geometry.original_context - new_tokens))]
    for length in prompt_tokens:
        if not 1 <= length <= geometry.context:
            raise ConfigError(
                f"a prompt of {length} tokens: the model's context has {geometry.context} positions; "
                f"accepted: 1 to {geometry.context}"
            )
    for depth in depths:
        _check_depth(geometry, depth, new_tokens)
    return Plan(
        tuple(dict.fromkeys(prompt_tokens)), new_tokens, tuple(dict.fromkeys(depths)), repeats, sustained
    )


def with_threads(folder: Path, plan: Plan, threads: int) -> ThreadSpeed:
    """Opens the bundle anew with so many threads, and measures the first of each."""
    model = phirt.load(folder, threads=threads)
    engine, prompts = model.generator.new_engine(), Prompts(model.manifest)
    first = prefill(engine, prompts, plan.prompt_tokens[0], plan.repeats)
    decoded = decode(engine, prompts, plan.depths[0], plan.new_tokens, plan.repeats)
    speed = first.first_token.map(lambda seconds: first.prompt_tokens / seconds)
    return ThreadSpeed(threads, speed, decoded.tokens_per_second)


def _check_depth(geometry: Geometry, depth: int, new_tokens: int) -> None:
    room = geometry.context - new_tokens
    if not 1 <= depth <= room:
        raise ConfigError(
            f"a depth of {depth} with {new_tokens} new tokens: the model's context has {geometry.context} "
            f"positions; accepted: 1 to {room}"
        )
    if _crosses(geometry, depth, new_tokens):
        limit = geometry.original_context
        raise ConfigError(
            f"decoding {new_tokens} tokens from depth {depth} passes {limit}, the model's original context, "
            f"where all that is cached is run again; accepted: at most {max(0, limit - new_tokens)}, or "
            f"{limit} and more"
        )


def _crosses(geometry: Geometry, depth: int, new_tokens: int) -> bool:
    """Whether the rotary regime changes between the first and the last of these steps."""
    return geometry.has_long_regime and depth < geometry.original_context < depth + new_tokens


class Prompts:
    """Random ids that mean nothing to the runtime: no media placeholder, no end."""

    def __init__(self, manifest: Manifest) -> None:
        tokens = manifest.tokens
        taken = {tokens.bos, tokens.pad, *tokens.eos, *manifest.placeholders}
        usable = [i for i in range(manifest.geometry.vocab_size) if i not in taken]
        if not usable:
            raise ConfigError("all ids of this vocabulary are special; there is nothing to make a prompt of")
        self._usable = np.array(usable, dtype=np.int64)
        self._media = set(manifest.placeholders)

    def of(self, count: int) -> Ids:
        """`count` ids, the same every time."""
        return np.random.default_rng(count).choice(self._usable, count)

    def choose(self, logits: Any) -> int:
        """The likeliest id, or a usual one where that stands for an image or a recording."""
        token = int(np.argmax(logits))
        return int(self._usable[0]) if token in self._media else token


def prefill(engine: Engine, prompts: Prompts, count: int, repeats: int) -> Prefill:
    """Times the prefill of `count` ids."""
    ids = prompts.of(count)
    takes = []
    for _ in range(1 + repeats):
        engine.truncate(0)
        start = time.perf_counter()
        prompts.choose(engine.prefill(ids))
        takes.append(time.perf_counter() - start)
    return Prefill(count, Spread(tuple(takes[1:])))


def decode(engine: Engine, prompts: Prompts, depth: int, new_tokens: int, repeats: int) -> Decode:
    """Times `new_tokens` greedy steps from `depth` on."""
    token = _fill(engine, prompts, depth)
    takes = []
    for _ in range(1 + repeats):
        engine.truncate(depth)
        start = time.perf_counter()
        _steps(engine, prompts, token, new_tokens)
        takes.append(time.perf_counter() - start)
    return Decode(depth, new_tokens, Spread(tuple(new_tokens / seconds for seconds in takes[1:])))


def sustained(
    engine: Engine, prompts: Prompts, depth: int, new_tokens: int, seconds: float
) -> list[tuple[float, float]]:
    """Decodes from `depth` on, over and over, for `seconds`: (seconds since the start, tokens a second)."""
    token = _fill(engine, prompts, depth)
    _steps(engine, prompts, token, new_tokens)
    figures: list[tuple[float, float]] = []
    begin = last = time.perf_counter()
    steps = 0
    while last - begin < seconds:
        engine.truncate(depth)
        _steps(engine, prompts, token, new_tokens)
        steps += new_tokens
        now = time.perf_counter()
        if now - last >= seconds / _SAMPLES_OVER_TIME:
            figures.append((now - begin, steps / (now - last)))
            last, steps = now, 0
    return figures


def _fill(engine: Engine, prompts: Prompts, depth: int) -> int:
    """Makes the cache hold `depth` ids, under the rotary factors that the next step needs."""
    engine.truncate(0)
    token = prompts.choose(engine.prefill(prompts.of(depth)))
    engine.decode_step(token)
    return token


def _steps(engine: Engine, prompts: Prompts, token: int, count: int) -> None:
    for _ in range(count):
        token = prompts.choose(engine.decode_step(token))


def encode(model: phirt.Model, modality: Modality, path: Path | None, repeats: int) -> Encode | None:
    """Times a picture or a clip, the program's own where none is given; None where the model takes none.

    Raises BundleError for a given file that the model cannot take, MediaError for one that is unusable.
    """
    manifest = model.manifest
    if path is None and modality not in manifest.modalities:
        return None
    made: Any = samples.pictures()[0] if modality == "image" else samples.clips()[1]
    source = made if path is None else path
    own = f"a {'picture' if modality == 'image' else 'clip'} made by the program"
    what = own if path is None else str(path)
    encoder = model.generator.encoder
    prepared, encoded, count = [], [], 0
    for _ in range(1 + repeats):
        encoder.cache.clear()
        start = time.perf_counter()
        media = encoder.prepare(modality, source)
        middle = time.perf_counter()
        count = len(encoder.features(media, adapters.choose_rule(manifest, {modality})))
        prepared.append(middle - start)
        encoded.append(time.perf_counter() - middle)
    return Encode(what, count, Spread(tuple(prepared[1:])), Spread(tuple(encoded[1:])))
