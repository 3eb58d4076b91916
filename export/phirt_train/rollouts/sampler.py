"""Answers to one request, drawn with seeds: from a bundle, through the runtime's own engine.

All answers to a request come one after the other over one cache, so that its prompt is run once. The cache is
taken from no other request but where that makes no difference to the last bit, so an answer is a function of
the bundle, the request, the settings and the seed alone, whatever was drawn before it.

Knows the runtime and turns of conversations. Knows nothing of what is right, or of files of questions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import phirt
from phirt.generate.engine_pool import CacheOwner
from phirt.generate.sampling import GenerationConfig
from phirt.prompt.messages import Message
from phirt.prompt.tools import Tools
from phirt_train.data.answers import answer_ids
from phirt_train.data.records import TrainingMessage


@dataclasses.dataclass(frozen=True)
class Request:
    """Turns that a user ends, the tools that they are offered, and the folder that their media are in."""

    messages: tuple[TrainingMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    folder: Path = Path()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One answer, and whether the model has ended it itself."""

    text: str
    is_cut: bool = False


class Sampler(Protocol):
    """What draws answers."""

    @property
    def identity(self) -> str:
        """Names what answers are a function of, beside request and seed."""

    def sample(self, request: Request, seeds: Sequence[int]) -> list[Sample]:
        """An answer for each seed."""


class _Asker:
    """Whoever draws the answers to one request: the runtime knows a cache's owner by an object."""


class BundleSampler:
    """Draws from a loaded bundle. Safe to use from several threads."""

    def __init__(self, model: phirt.Model, config: GenerationConfig) -> None:
        self._generator = model.generator
        self._config = config
        # The fingerprint is over the manifest, which has the digests of all other files.
        facts = repr((model.manifest.fingerprint, dataclasses.replace(config, seed=None)))
        self.identity = hashlib.sha256(facts.encode()).hexdigest()

    def sample(self, request: Request, seeds: Sequence[int]) -> list[Sample]:
        """See `Sampler`. Raises what `phirt.Chat.send` raises: ContextError, MediaError, ConfigError."""
        messages = [self._message(turn, request.folder) for turn in request.messages]
        asker, tools = _Asker(), Tools.of(request.tools)
        owner = CacheOwner(weakref.ref(asker), asker)
        return [self._answer(messages, tools, owner, seed) for seed in seeds]

    def _answer(self, messages: list[Message], tools: Tools | None, owner: CacheOwner, seed: int) -> Sample:
        options = self._generator.options(self._config, {"seed": seed}, (), None, None)
        generation = self._generator.generation(messages, None, tools, options, owner=owner)
        while not generation.has_ended:
            generation.advance()
        assert generation.outcome is not None
        return Sample(generation.outcome.text, generation.outcome.is_cut)

    def _message(self, turn: TrainingMessage, folder: Path) -> Message:
        if turn.role == "assistant":
            ids = answer_ids(self._generator.tokenizer, turn)
            return Message("assistant", turn.content, token_ids=ids)
        role = self._generator.tool_role if turn.role == "tool" else turn.role
        images, audio = ([folder / name for name in names] for names in (turn.images, turn.audio))
        media = self._generator.prepare_media(images, audio) if images or audio else ()
        return Message(role, turn.content, media)
