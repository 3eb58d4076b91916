"""Answers messages without keeping them: prompt, media features and an engine for each request.

Knows how template, encoders, adapters and engines fit together. Keeps nothing of a request but what makes the
next one cheaper: encoded media by content, and caches of keys and values that any later request with the same
beginning goes on from. Knows nothing of history or of files; `chat` adds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from phirt.bundle import adapters
from phirt.bundle.lora import DECODER, LORA_DECODER, Lora
from phirt.bundle.manifest import Manifest, Modality, Rule
from phirt.encoders.encoder import ImageDetail
from phirt.encoders.media_encoder import MediaEncoder
from phirt.errors import BundleError, ConfigError, ContextError
from phirt.generate.call_format import CallFormat
from phirt.generate.cancellation import Cancellation, CancelSignal, check
from phirt.generate.constraint import Constraints
from phirt.generate.engine import Engine, OnProgress
from phirt.generate.engine_pool import NOBODY, CacheLimits, CacheOwner, EnginePool
from phirt.generate.generation import AnswerOptions, Generation, Request, Runtime
from phirt.generate.grammar import Grammar
from phirt.generate.json_schema import JsonSchema
from phirt.generate.kv_cache import cache_dtype
from phirt.generate.sampling import GenerationConfig, GenerationOverrides, LogitsProcessor, Sampler
from phirt.generate.sequence import Adapter, MediaSpan, Prompt
from phirt.generate.static_runs import StaticGraphs
from phirt.generate.text_stream import AsyncTextStream, TextStream
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Media, Message, Role
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS, Tools
from phirt.runtime.lora import LoraInputs
from phirt.runtime.placement import Placement
from phirt.runtime.session import Session, SessionConfig
from phirt.runtime.system import trim_heap

if TYPE_CHECKING:  # Pillow and soundfile: only whoever brings media needs them
    from phirt.encoders.audio_file import AudioSource
    from phirt.encoders.image_file import ImageSource

_DEFAULT_LIMITS = CacheLimits()


@dataclasses.dataclass(frozen=True)
class TokenCount:
    """What a prompt costs: `total` = `text` (with the template's own tokens) + every image + every
    recording; and the adapter that it takes.
    """

    total: int
    text: int
    images: tuple[int, ...]
    audio: tuple[int, ...]
    adapter: str


class StreamArguments(GenerationOverrides, total=False):
    """What `Generator.stream` takes beside the messages."""

    system: str | None
    tools: Tools | Iterable[Mapping[str, Any]] | None
    config: GenerationConfig | None
    logits_processors: Iterable[LogitsProcessor]
    sampler: Sampler | None
    on_progress: OnProgress | None
    adapter: str | None
    schema: JsonSchema | Grammar | None


class Generator:
    """A loaded bundle that answers messages: `stream(messages)` gives text and then a typed result.

    Safe to use from many threads and for many conversations at once, which share its graphs. Encoders open on
    first use, and `release_encoders` gives their memory back.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: SessionConfig,
        limits: CacheLimits = _DEFAULT_LIMITS,
        user_adapters: Mapping[str, Lora] | None = None,
    ) -> None:
        self.manifest = manifest
        self.defaults = _defaults(manifest)
        loras = dict(user_adapters or {})
        self._user_adapters = {name: lora.digest() for name, lora in loras.items()}
        # Taking an adapter costs even where none is active: who brings none does without.
        graph = LORA_DECODER if loras else DECODER
        # A vocabulary of 200,000 takes a second to read, and the encoders' libraries some time to import;
        # meanwhile the decoder opens on the other cores.
        with _attention_kernel(manifest, graph, config), ThreadPoolExecutor(1) as opener:
            decoder = opener.submit(_open_decoder, manifest, graph, config)
            self.tokenizer = Tokenizer(
                manifest.path(manifest.tokenizer), manifest.geometry.vocab_size, VISIBLE_TOKENS
            )
            self._template = ChatTemplate(
                _read_template(manifest),
                self.tokenizer,
                manifest.tokens,
                _placeholders(manifest),
                manifest.template_names,
            )
            self.encoder = MediaEncoder(manifest, config)
            session = decoder.result()
        self.call_format = CallFormat.of(self.tokenizer)
        self.constraints = Constraints(self.tokenizer, manifest.geometry.vocab_size, manifest.tokens.eos)
        self._decoder = session
        inputs = None
        if isinstance(session, Session):
            by_digest = {self._user_adapters[name]: lora for name, lora in loras.items()}
            inputs = LoraInputs(session.spec, manifest.geometry, by_digest)
        self.pool = EnginePool(partial(Engine, session, manifest, loras=inputs), limits)

    @property
    def placements(self) -> dict[str, Placement]:
        """Which provider runs which nodes of the graphs that are open, by graph; those that the CPU runs as a
        whole are left out.
        """
        decoder = self._decoder
        sessions = {DECODER: decoder} if isinstance(decoder, Session) else decoder.sessions
        found = {name: session.placement for name, session in sessions.items()} | self.encoder.placements
        return {name: placement for name, placement in found.items() if placement is not None}

    def stream(
        self,
        messages: Sequence[Message],
        *,
        system: str | None = None,
        tools: Tools | Iterable[Mapping[str, Any]] | None = None,
        config: GenerationConfig | None = None,
        logits_processors: Iterable[LogitsProcessor] = (),
        sampler: Sampler | None = None,
        on_progress: OnProgress | None = None,
        cancel: CancelSignal | None = None,
        adapter: str | None = None,
        schema: JsonSchema | Grammar | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> TextStream:
        """The answer to a conversation: iterate it for text, then read its `result`.

        The prompt is made and media are encoded here, so whatever is wrong with them shows at once; nothing
        else runs before the first piece is asked for. `logits_processors` and `sampler` are callables of
        `phirt.generate.sampling`; each is called once for each token, so answers stay what they are without
        speculation. `cancel` ends the answer from any thread, and raises RequestCancelledError here between
        one of the media and the next. `adapter` is one of those that the model was loaded with, `schema` what
        the answer must look like.
        `overrides` are settings that differ from `config`, which is what the model's makers recommend where
        it is None. Raises as `Chat.send` does.
        """
        options = self.options(config, overrides, logits_processors, sampler, on_progress, schema)
        generation = self.generation(
            messages, system, Tools.of(tools), options, cancel=cancel, user_adapter=adapter
        )
        return TextStream(generation)

    def options(
        self,
        config: GenerationConfig | None,
        overrides: Mapping[str, Any],
        logits_processors: Iterable[LogitsProcessor],
        sampler: Sampler | None,
        on_progress: OnProgress | None,
        schema: JsonSchema | Grammar | None = None,
    ) -> AnswerOptions:
        """How an answer is made: without `config` as the model's makers recommend (`defaults`). Raises
        ConfigError, SchemaError.
        """
        grammar = Grammar.of(schema)
        constraint = None if grammar is None else self.constraints.of(grammar)
        return AnswerOptions.of(
            config, overrides, logits_processors, sampler, on_progress, constraint, self.defaults
        )

    def astream(self, messages: Sequence[Message], **arguments: Unpack[StreamArguments]) -> AsyncTextStream:
        """`stream` for asyncio: `async for piece in generator.astream(...)`, with the same arguments."""
        return AsyncTextStream(lambda cancel: self.stream(messages, cancel=cancel, **arguments))

    def generation(
        self,
        messages: Sequence[Message],
        system: str | None,
        tools: Tools | None,
        options: AnswerOptions,
        *,
        cancel: CancelSignal | None = None,
        begin: float | None = None,
        owner: CacheOwner = NOBODY,
        on_end: Callable[[Generation], None] | None = None,
        user_adapter: str | None = None,
    ) -> Generation:
        """What `stream` and `Chat.send` read. `begin` is when work on the request began, `owner` whose cache
        it goes on from.
        """
        messages = _require_messages(messages, system)
        begin = time.perf_counter() if begin is None else begin
        prompt = self.encode_prompt(messages, system, tools, cancel, user_adapter)
        counts = {"image": 0, "audio": 0}
        for item in (item for message in messages for item in message.media):
            counts[item.modality] += item.num_tokens
        request = Request(
            prompt,
            options,
            tools,
            image_tokens=counts["image"],
            audio_tokens=counts["audio"],
            media_seconds=time.perf_counter() - begin,
            owner=owner,
            user_adapter=user_adapter,
        )
        return Generation(
            Runtime(self.manifest, self.tokenizer, self.pool), request, Cancellation(cancel), on_end
        )

    def message(
        self,
        text: str,
        *,
        images: Iterable[ImageSource] = (),
        audio: Iterable[AudioSource] = (),
        image_detail: ImageDetail = "auto",
        cancel: CancelSignal | None = None,
    ) -> Message:
        """A user's turn with its media read and processed. Raises MediaError, ConfigError, BundleError;
        RequestCancelledError where `cancel` was set meanwhile.
        """
        if not isinstance(text, str):
            raise ConfigError(f"text is a {type(text).__name__}, accepted: a string")
        return Message("user", text, self.prepare_media(images, audio, image_detail, cancel))

    def prepare_media(
        self,
        images: Iterable[ImageSource],
        audio: Iterable[AudioSource],
        image_detail: ImageDetail = "auto",
        cancel: CancelSignal | None = None,
    ) -> tuple[Media, ...]:
        """Reads and processes the media of one turn, images first. Raises as `message` does."""
        self.pool.require_open()
        pictures, clips = as_list(images, "images"), as_list(audio, "audio")
        media = []
        with _plain_arithmetic():
            for picture in pictures:
                check(cancel)
                media.append(self.encoder.prepare("image", picture, image_detail))
            for clip in clips:
                check(cancel)
                media.append(self.encoder.prepare("audio", clip))
        return tuple(media)

    def encode_prompt(
        self,
        messages: Sequence[Message],
        system: str | None = None,
        tools: Tools | None = None,
        cancel: CancelSignal | None = None,
        user_adapter: str | None = None,
    ) -> Prompt:
        """The engine's prompt for a conversation, its media encoded. Raises ContextError before anything is
        encoded; RequestCancelledError where `cancel` was set meanwhile.
        """
        self.pool.require_open()
        rule = self.rule_of(messages)
        adapter = Adapter(adapters.adapter_name(rule), self.user_adapter_digest(user_adapter))
        encoded = self._template.encode(_with_system(messages, system), None if tools is None else tools.json)
        context = self.manifest.geometry.context
        if len(encoded.ids) > context:
            raise ContextError(
                f"the prompt needs {len(encoded.ids)} tokens, the model's context has {context}; shorten it, "
                "use fewer media, or start a new conversation"
            )
        spans = self._encoded_media(encoded.media, rule, cancel)
        check(cancel)
        return Prompt(encoded.ids, tuple(spans), adapter)

    def _encoded_media(
        self, media: Sequence[tuple[int, Media]], rule: Rule, cancel: CancelSignal | None
    ) -> list[MediaSpan]:
        spans = []
        begun = any(item.inputs is not None for _, item in media)
        try:
            with _plain_arithmetic():
                for start, item in media:
                    check(cancel)
                    features = self.encoder.features(item, rule)
                    spans.append(MediaSpan(start, features, self.encoder.span_key(item, rule)))
        finally:
            if begun:  # crops and what encoders compute; the C library would keep it once for each thread
                trim_heap()
        return spans

    def count_tokens(
        self,
        text: str,
        images: Iterable[ImageSource] = (),
        audio: Iterable[AudioSource] = (),
        system: str | None = None,
        image_detail: ImageDetail = "auto",
    ) -> TokenCount:
        """What `text` with media would cost as the first turn; runs no graph. Raises as `message` does."""
        self.pool.require_open()
        count = self.encoder.count
        with _plain_arithmetic():
            pictures = [count("image", source, image_detail) for source in as_list(images, "images")]
            clips = [count("audio", source) for source in as_list(audio, "audio")]
        media = self._blank("image", pictures) + self._blank("audio", clips)
        messages = (Message("user", text, media),)
        encoded = self._template.encode(_with_system(messages, system))
        return TokenCount(
            total=len(encoded.ids),
            text=len(encoded.ids) - sum(pictures) - sum(clips),
            images=tuple(pictures),
            audio=tuple(clips),
            adapter=self.adapter_of(messages),
        )

    def adapter_of(self, messages: Sequence[Message]) -> str:
        """The bundle's own adapter that a conversation of these turns takes; "none" for the base weights
        alone.
        """
        return adapters.adapter_name(self.rule_of(messages))

    def rule_of(self, messages: Sequence[Message]) -> Rule:
        """What the manifest says about a conversation with the media of these turns."""
        return adapters.choose_rule(
            self.manifest, {media.modality for message in messages for media in message.media}
        )

    @property
    def user_adapters(self) -> tuple[str, ...]:
        """The names of the adapters that the model was loaded with."""
        return tuple(self._user_adapters)

    def user_adapter_digest(self, name: str | None) -> str | None:
        """What tells a user's adapter from others, however it is called; None for None. Raises ConfigError
        for one that is not there.
        """
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._user_adapters:
            there = ", ".join(map(repr, self._user_adapters)) or "none"
            raise ConfigError(
                f"there is no adapter {name!r:.80}, the model was loaded with: {there}; name its folder in "
                "phirt.load(..., adapters={...})"
            )
        return self._user_adapters[name]

    def _blank(self, modality: Modality, counts: Sequence[int]) -> tuple[Media, ...]:
        """Media of which nothing but their size is known."""
        if not counts:
            return ()
        name = adapters.encoder_name(self.manifest, modality)
        return tuple(Media(name, modality, "", count, None) for count in counts)

    @property
    def tool_role(self) -> Role:
        """The role of a turn that brings what tools returned, as the bundle's tokenizer names it."""
        return self._template.tool_role

    def new_engine(self) -> Engine:
        """An engine with an empty cache, outside the pool."""
        return self.pool.new_engine()

    def release_encoders(self) -> None:
        """Gives the encoders' memory back; they open again when needed."""
        self.encoder.release()

    def close(self) -> None:
        """Gives all memory back, that of open streams when they end, which is at their next step. May be
        called again; everything else raises ClosedError from now on.
        """
        self.pool.close()
        self.constraints.clear()
        self.encoder.release()
        self.encoder.cache.clear()


def as_list(items: Any, name: str) -> list[Any]:
    """The items of a list, a tuple or an iterator, which is consumed. Raises ConfigError for what is one
    medium and no list of them.
    """
    single = isinstance(items, str | bytes | bytearray | memoryview | os.PathLike | Mapping | np.ndarray)
    if single or hasattr(items, "read") or not isinstance(items, Iterable):
        raise ConfigError(f"{name} is a {type(items).__name__}, accepted: a list, even for one file")
    return list(items)


def _open_decoder(manifest: Manifest, graph: str, config: SessionConfig) -> Session | StaticGraphs:
    if manifest.static is not None:
        return StaticGraphs.open(manifest, config)
    return Session(manifest, graph, config)


def _attention_kernel(
    manifest: Manifest, graph: str, config: SessionConfig
) -> contextlib.AbstractContextManager[None]:
    """The kernel for the type in which a graph that has one keeps keys and values."""
    if manifest.static is not None:
        return contextlib.nullcontext()
    return config.device.attention_kernel(cache_dtype(manifest.graphs[graph].inputs))


@contextlib.contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """Numbers that vanish or overflow in processors are checked where they matter; `numpy.seterr` of the host
    must not turn them into errors.
    """
    with np.errstate(all="ignore"):
        yield


def _require_messages(messages: Iterable[Message], system: object) -> tuple[Message, ...]:
    """The messages of any iterable. Raises ConfigError for what is none, or holds something else."""
    if isinstance(messages, str | bytes | Message) or not isinstance(messages, Iterable):
        raise ConfigError(f"messages is a {type(messages).__name__}, accepted: a list of phirt.Message")
    messages = tuple(messages)
    if system is not None and not isinstance(system, str):
        raise ConfigError(f"system is a {type(system).__name__}, accepted: a string or None")
    for message in messages:
        if not isinstance(message, Message):
            raise ConfigError(f"a message is a {type(message).__name__}, accepted: a phirt.Message")
    return messages


def _read_template(manifest: Manifest) -> str:
    path = manifest.path(manifest.chat_template)
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}; export the bundle again") from error


def _defaults(manifest: Manifest) -> GenerationConfig:
    """The settings of a request that says nothing."""
    given = {} if manifest.generation is None else dataclasses.asdict(manifest.generation)
    return GenerationConfig(**{name: value for name, value in given.items() if value is not None})


def _placeholders(manifest: Manifest) -> dict[str, int]:
    return {name: encoder.placeholder for name, encoder in manifest.encoders.items()}


def _with_system(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """The turns with the system message in front."""
    return messages if system is None else (Message("system", system), *messages)
