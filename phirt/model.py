"""The public face: load a bundle, open conversations, count tokens, transcribe.

Knows how the parts fit together. Each part's own rules live in its module.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from phirt.bundle import adapters
from phirt.bundle.files import load_manifest, require_intact
from phirt.bundle.manifest import Manifest, Modality, Rule
from phirt.chat.chat import Chat
from phirt.encoders.audio_file import AudioSource
from phirt.encoders.encoder import ImageDetail
from phirt.encoders.image_file import ImageSource
from phirt.encoders.media_encoder import MediaEncoder
from phirt.errors import BundleError, ConfigError, ContextError
from phirt.generate.engine import Engine
from phirt.generate.sampling import GenerationConfig
from phirt.generate.sequence import MediaSpan, Prompt
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Media, Message, Role
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS, tools_to_json
from phirt.runtime.session import (
    OnPrepare,
    Session,
    SessionConfig,
    check_threads,
    resolve_providers,
    suited_attention,
)

EMBEDDED = "nano"
TRANSCRIBE_PROMPT = "Transcribe the audio clip into text."  # Phi-4-multimodal's own wording
_DEFAULTS = GenerationConfig()


@dataclasses.dataclass(frozen=True)
class TokenCount:
    """What a prompt costs: `total` = `text` (with the template's own tokens) + every image + every
    recording.
    """

    total: int
    text: int
    images: tuple[int, ...]
    audio: tuple[int, ...]
    route: str


class Model:
    """A loaded bundle. Conversations share its graphs; encoders open on first use.

    `release_encoders` gives their memory back; the rest goes with the object.
    """

    def __init__(self, manifest: Manifest, config: SessionConfig) -> None:
        self.manifest = manifest
        # A vocabulary of 200,000 takes a second to read; meanwhile the decoder opens on the other cores.
        with suited_attention(manifest.graphs["decoder"]), ThreadPoolExecutor(1) as opener:
            decoder = opener.submit(Session, manifest, "decoder", config)
            self.tokenizer = Tokenizer(
                manifest.path(manifest.tokenizer), manifest.geometry.vocab_size, VISIBLE_TOKENS
            )
            self._template = ChatTemplate(
                _read_template(manifest), self.tokenizer, manifest.tokens, _placeholders(manifest)
            )
            self._decoder = decoder.result()
        self.encoder = MediaEncoder(manifest, config)

    def chat(self, system: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None) -> Chat:
        """A new conversation. `tools` are dicts with at least a "name", offered to the model as JSON."""
        if system is not None and not isinstance(system, str):
            raise ConfigError(f"system is a {type(system).__name__}, accepted: a string or None")
        return Chat(self, system, tools_to_json(tools))

    def load_chat(self, path: str | Path) -> Chat:
        """A conversation that `Chat.save` wrote, ready to go on. Raises ConversationError."""
        from phirt.chat import store as conversation_file

        return conversation_file.load(self, path)

    def transcribe(self, audio: AudioSource, *, config: GenerationConfig = _DEFAULTS) -> str:
        """The words of a recording."""
        reply = self.chat().send(TRANSCRIBE_PROMPT, audio=[audio], config=config)
        return reply.text().strip()

    def count_tokens(
        self,
        text: str,
        images: Sequence[ImageSource] = (),
        audio: Sequence[AudioSource] = (),
        system: str | None = None,
        image_detail: ImageDetail = "auto",
    ) -> TokenCount:
        """What `text` with media would cost as the first turn; runs no graph. Raises as `Chat.send` does."""
        count = self.encoder.count
        pictures = [count("image", source, image_detail) for source in _as_sequence(images, "images")]
        clips = [count("audio", source) for source in _as_sequence(audio, "audio")]
        media = self._blank("image", pictures) + self._blank("audio", clips)
        messages = (Message("user", text, media),)
        encoded = self._template.encode(_with_system(messages, system, None))
        return TokenCount(
            total=len(encoded.ids),
            text=len(encoded.ids) - sum(pictures) - sum(clips),
            images=tuple(pictures),
            audio=tuple(clips),
            route=self.route_of(messages),
        )

    @property
    def tool_role(self) -> Role:
        """The role of a turn that brings what tools returned, as the bundle's tokenizer names it."""
        return self._template.tool_role

    def release_encoders(self) -> None:
        """Gives the encoders' memory back; they open again when needed."""
        self.encoder.release()

    def new_engine(self) -> Engine:
        """An engine with an empty cache on this model's decoder."""
        return Engine(self._decoder, self.manifest)

    def route_of(self, messages: Sequence[Message]) -> str:
        """The adapter that a conversation of these turns takes; "none" for the base weights alone."""
        return adapters.adapter_name(self.rule_of(messages))

    def rule_of(self, messages: Sequence[Message]) -> Rule:
        """What the manifest says about a conversation with the media of these turns."""
        return adapters.choose_rule(
            self.manifest, {media.modality for message in messages for media in message.media}
        )

    def _blank(self, modality: Modality, counts: Sequence[int]) -> tuple[Media, ...]:
        """Media of which nothing but their size is known."""
        if not counts:
            return ()
        name = adapters.encoder_name(self.manifest, modality)
        return tuple(Media(name, modality, "", count, None) for count in counts)

    def prepare_media(
        self,
        images: Sequence[ImageSource],
        audio: Sequence[AudioSource],
        image_detail: ImageDetail = "auto",
    ) -> tuple[Media, ...]:
        """Reads and processes the media of one turn, images first."""
        prepare = self.encoder.prepare
        pictures = [prepare("image", source, image_detail) for source in _as_sequence(images, "images")]
        clips = [prepare("audio", source) for source in _as_sequence(audio, "audio")]
        return (*pictures, *clips)

    def encode_prompt(self, messages: Sequence[Message], system: str | None, tools: str | None) -> Prompt:
        """The engine's prompt for a conversation, its media encoded. Raises ContextError before anything is
        encoded.
        """
        rule = self.rule_of(messages)
        encoded = self._template.encode(_with_system(messages, system, tools), tools)
        context = self.manifest.geometry.context
        if len(encoded.ids) > context:
            raise ContextError(
                f"the prompt needs {len(encoded.ids)} tokens, the model's context has {context}; shorten it, "
                "use fewer media, or start a new conversation"
            )
        spans = tuple(
            MediaSpan(start, self.encoder.features(item, rule), self.encoder.span_key(item, rule))
            for start, item in encoded.media
        )
        return Prompt(encoded.ids, spans, adapters.adapter_name(rule))


def load(
    path: str | Path | None = None,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    verify: bool = False,
    on_prepare: OnPrepare | None = None,
) -> Model:
    """Loads a bundle; None is the embedded one.

    `providers` are execution providers in order of preference, the CPU by default. `verify` checks every
    file's sha256, which reads them all; sizes are always checked. Where a large graph is opened for the first
    time on this machine it is prepared for it, and kept in the user's cache folder (the environment variable
    PHIRT_CACHE names another, or is `off`): `on_prepare` is called before, with the graph's name and the
    bytes of its weights. Raises BundleError, ProviderError, ConfigError.
    """
    config = SessionConfig(
        providers=resolve_providers(providers), threads=check_threads(threads), on_prepare=on_prepare
    )
    folder = embedded_bundle() if path is None else Path(path)
    manifest = load_manifest(folder)
    if verify:
        require_intact(folder)
    return Model(manifest, config)


def embedded_bundle() -> Path:
    """Where the embedded bundle lies. Raises BundleError if this installation has none."""
    folder = Path(str(importlib.resources.files("phirt"))) / "bundles" / EMBEDDED
    if not folder.is_dir():
        raise BundleError(
            f"this installation of phirt has no embedded bundle ({EMBEDDED}); install a release, or name a "
            "bundle folder"
        )
    return folder


def _read_template(manifest: Manifest) -> str:
    path = manifest.path(manifest.chat_template)
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}; export the bundle again") from error


def _placeholders(manifest: Manifest) -> dict[str, int]:
    return {name: encoder.placeholder for name, encoder in manifest.encoders.items()}


def _with_system(messages: Sequence[Message], system: str | None, tools: str | None) -> Sequence[Message]:
    """The turns with the system message in front, which tools need even without text."""
    if system is None and tools is None:
        return messages
    return (Message("system", system or ""), *messages)


def _as_sequence(items: Any, name: str) -> Sequence[Any]:
    if isinstance(items, str | bytes | Path) or not isinstance(items, Sequence):
        raise ConfigError(f"{name} is a {type(items).__name__}, accepted: a list, even for one file")
    return items
