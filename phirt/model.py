"""The public face: load a bundle, open conversations, count tokens, transcribe.

Knows how the parts fit together. Each part's own rules live in its module; nothing below imports this.
"""

from __future__ import annotations

import importlib.resources
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from phirt.bundle.files import load_manifest, require_intact
from phirt.bundle.limits import with_limits
from phirt.bundle.manifest import Manifest
from phirt.bundle.user_adapters import AdapterFolders, read_adapters
from phirt.bundle.variants import for_provider
from phirt.chat.chat import Chat
from phirt.encoders.encoder import ImageDetail
from phirt.errors import BundleError, ConfigError
from phirt.generate.engine_pool import CacheLimits
from phirt.generate.sampling import GenerationConfig, GenerationOverrides, overridden
from phirt.generator import Generator, TokenCount
from phirt.runtime.device import Device, Provider
from phirt.runtime.placement import Placement
from phirt.runtime.session import OnPrepare, SessionConfig

if TYPE_CHECKING:  # Pillow, soundfile and more: only whoever brings media needs them
    from phirt.encoders.audio_file import AudioSource
    from phirt.encoders.image_file import ImageSource
    from phirt.transcription import OnTranscriptionProgress, Transcription

EMBEDDED = "mini"
_DEFAULTS = GenerationConfig()  # of transcription, which a chat's recommendations would only disturb
_DEFAULT_LIMITS = CacheLimits()


class Model:
    """A loaded bundle, whose graphs all its conversations share. Safe to use from many threads.

    `release_encoders` gives the encoders' memory back, `close` everything; `with phirt.load() as model`
    closes at the end.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.generator.manifest

    def __enter__(self) -> Model:
        self.generator.pool.require_open()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        manifest = self.manifest
        accepted = ", ".join(["text", *manifest.modalities])
        state = "closed" if self.generator.pool.is_closed else f"context {manifest.geometry.context}"
        return f"<phirt.Model {manifest.name!r}: {accepted}; {state}>"

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that the model was loaded with."""
        return self.generator.user_adapters

    @property
    def placements(self) -> dict[str, Placement]:
        """Which execution provider runs which nodes of the graphs that are open, by onnxruntime's word; empty
        where all run on the CPU.
        """
        return self.generator.placements

    def chat(
        self,
        system: str | None = None,
        tools: Iterable[Mapping[str, Any]] | None = None,
        adapter: str | None = None,
    ) -> Chat:
        """A new conversation. `tools` are dicts with at least a "name", offered to the model as JSON;
        `adapter` is one of those that the model was loaded with.
        """
        self.generator.pool.require_open()
        return Chat(self.generator, system, tools, adapter)

    def load_chat(self, path: str | Path, adapter: str | None = None) -> Chat:
        """A conversation that `Chat.save` wrote, ready to go on, with the adapter that it had or with another
        one. Raises ConversationError, ConfigError.
        """
        return Chat.load(self.generator, path, adapter)

    def transcribe(
        self,
        audio: AudioSource,
        *,
        config: GenerationConfig = _DEFAULTS,
        on_progress: OnTranscriptionProgress | None = None,
        cancel: threading.Event | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> str:
        """The words of a recording of any length. See `transcribe_segments`, which tells when each of them is
        said, and whether something was cut.
        """
        return self.transcribe_segments(
            audio, config=config, on_progress=on_progress, cancel=cancel, **overrides
        ).result.text

    def transcribe_segments(
        self,
        audio: AudioSource,
        *,
        config: GenerationConfig = _DEFAULTS,
        on_progress: OnTranscriptionProgress | None = None,
        cancel: threading.Event | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Transcription:
        """The words of a recording of any length, each segment when it is done; then its `result`.

        The recording is decoded as it is needed, and cut where nobody speaks, so that memory does not grow
        with it. `on_progress` is called with a `phirt.TranscriptionProgress`. `cancel` is set, from any
        thread, to end it; what it has is kept. `overrides` are settings that differ from `config`. Raises
        MediaError, where the end of a recording is damaged after the segments before it; BundleError,
        ConfigError, ClosedError.
        """
        from phirt.transcription import Transcription

        self.generator.pool.require_open()
        config = overridden(config, overrides)
        return Transcription(self.generator, audio, config, on_progress, cancel)

    def count_tokens(
        self,
        text: str,
        images: Iterable[ImageSource] = (),
        audio: Iterable[AudioSource] = (),
        system: str | None = None,
        image_detail: ImageDetail = "auto",
    ) -> TokenCount:
        """What `text` with media would cost as the first turn; runs no graph. Raises as `Chat.send` does."""
        return self.generator.count_tokens(text, images, audio, system, image_detail)

    def release_encoders(self) -> None:
        """Gives the encoders' memory back; they open again when needed."""
        self.generator.release_encoders()

    def close(self) -> None:
        """Gives all memory back; open answers fail at their next step. May be called again; everything else
        raises ClosedError from now on.
        """
        self.generator.close()


def load(
    path: str | Path | None = None,
    *,
    providers: Sequence[Provider] | Provider | None = None,
    threads: int | None = None,
    verify: bool = False,
    on_prepare: OnPrepare | None = None,
    cache_limits: CacheLimits = _DEFAULT_LIMITS,
    limits: Mapping[str, float] | None = None,
    adapters: AdapterFolders | None = None,
) -> Model:
    """Loads a bundle; None is the embedded one.

    `providers` are execution providers in order of preference, the CPU by default: names, or a name with
    onnxruntime's options for it. `threads` None takes as many as pay here: the physical cores that this
    process may use. `verify` checks every
    file's sha256, which reads them all; sizes are always checked. Where a large graph is opened for the first
    time on this machine it is prepared for it, and kept in the user's cache folder (the environment variable
    PHIRT_CACHE names another, or is `off`): `on_prepare` is called before, with the graph's name and the
    bytes of its weights. `cache_limits` bounds the keys and values that are kept for conversations to go on
    with. `limits` lowers or raises what the bundle says a request may cost: `image_pixels`,
    `audio_seconds`, `media_bytes`, and `context` up to what its decoder can do. `adapters` are folders
    of LoRA adapters that PEFT has saved, by names of which each chat may choose one. Raises BundleError,
    AdapterError, ProviderError, ConfigError.
    """
    if not isinstance(cache_limits, CacheLimits):
        raise ConfigError(f"cache_limits is a {type(cache_limits).__name__}, accepted: a phirt.CacheLimits")
    device = Device.named(providers, threads)
    config = SessionConfig(device, on_prepare=on_prepare)
    folder = embedded_bundle() if path is None else Path(path)
    manifest = for_provider(with_limits(load_manifest(folder), limits), device.provider, device.options)
    if verify:
        require_intact(folder)
    return Model(Generator(manifest, config, cache_limits, read_adapters(manifest, adapters)))


def embedded_bundle() -> Path:
    """Where the embedded bundle lies. Raises BundleError if this installation has none."""
    folder = Path(str(importlib.resources.files("phirt"))) / "bundles" / EMBEDDED
    if not folder.is_dir():
        raise BundleError(
            f"this installation of phirt has no embedded bundle ({EMBEDDED}); install a release, or name a "
            "bundle folder"
        )
    return folder
