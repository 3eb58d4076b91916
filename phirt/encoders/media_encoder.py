"""Pictures and recordings of a conversation: prepared once, encoded once, their features remembered by
content.

Knows processors, encoder sessions and routes' projectors. Knows nothing of text, templates or the decoder.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.bundle import adapters
from phirt.bundle.manifest import ImageSpec, Manifest
from phirt.encoders import image_file
from phirt.encoders import phi4mm_audio as audio_processor
from phirt.encoders import phi4mm_image as image_processor
from phirt.encoders.audio_file import AudioSource
from phirt.encoders.image_file import ImageSource
from phirt.encoders.phi4mm_image import ImageDetail, ImageInputs
from phirt.encoders.source import content_key
from phirt.errors import BundleError
from phirt.prompt.messages import Media
from phirt.runtime.session import LazySession, SessionConfig

Rows = npt.NDArray[np.float32]

_FEATURE_CACHE_BYTES = 256 << 20
IMAGE_PROJECTOR = "image"  # images have one projector; the name keeps their features apart from audio's


class FeatureCache:
    """Encoder outputs by content and projector, the least recently used dropped beyond a bound of bytes."""

    def __init__(self, max_bytes: int = _FEATURE_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, str], Rows] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, projector: str) -> Rows | None:
        """The features, or None."""
        with self._lock:
            found = self._entries.get((key, projector))
            if found is not None:
                self._entries.move_to_end((key, projector))
            return found

    def put(self, key: str, projector: str, features: Rows) -> None:
        """Remembers features, unless they alone exceed the bound."""
        with self._lock:
            old = self._entries.pop((key, projector), None)
            self._bytes -= 0 if old is None else old.nbytes
            if features.nbytes > self._max_bytes:
                return
            self._entries[key, projector] = features
            self._bytes += features.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._entries.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0


class MediaEncoder:
    """Prepares media and encodes them; the encoder graphs open on first use and can be released."""

    def __init__(self, manifest: Manifest, config: SessionConfig) -> None:
        self._manifest = manifest
        quiet = dataclasses.replace(config, repeated=False)
        graphs = [name for name in ("vision", "speech") if name in manifest.graphs]
        self._sessions = {name: LazySession(manifest, name, quiet) for name in graphs}
        self.cache = FeatureCache()

    @property
    def open_graphs(self) -> tuple[str, ...]:
        """The encoder graphs that are in memory now."""
        return tuple(name for name, session in self._sessions.items() if session.is_open)

    def release(self) -> None:
        """Gives the encoders' memory back; they open again when needed."""
        for session in self._sessions.values():
            session.release()

    def prepare_image(self, source: ImageSource, detail: ImageDetail = "auto") -> Media:
        """Reads and processes a picture with as many crops as `detail` allows. Raises MediaError; BundleError
        where the bundle takes no images.
        """
        spec = self._image_spec(detail)
        image, content, name = image_file.open_image(source, self._manifest.limits)
        size = image_file.upright_size(image)
        across, down = image_processor.choose_crops(size, spec)
        # The same picture in another grid of crops has other features.
        key = content_key(content.encode(), f"{across}x{down}".encode())
        known = self.cache.get(key, IMAGE_PROJECTOR)
        if known is not None:
            return Media("image", key, len(known), None, {IMAGE_PROJECTOR: known})
        inputs = image_processor.process_image(image, spec, name)
        return Media("image", key, image_processor.count_tokens(size, spec, name), inputs)

    def prepare_audio(self, source: AudioSource) -> Media:
        """Reads and processes a recording. Raises MediaError; BundleError where the bundle takes no audio."""
        adapters.choose_route(self._manifest, images=0, audio=1)
        spec = self._manifest.audio
        assert spec is not None
        frames, key = audio_processor.process_audio(source, spec, self._manifest.limits)
        return Media("audio", key, audio_processor.count_tokens(len(frames), spec), frames)

    def count_image_tokens(self, source: ImageSource, detail: ImageDetail = "auto") -> int:
        """What a picture costs; nothing is resized or encoded for it."""
        spec = self._image_spec(detail)
        image, _, name = image_file.open_image(source, self._manifest.limits)
        return image_processor.count_tokens(image_file.upright_size(image), spec, name)

    def _image_spec(self, detail: ImageDetail) -> ImageSpec:
        """The bundle's image constants with the crops that `detail` allows."""
        adapters.choose_route(self._manifest, images=1, audio=0)
        assert self._manifest.image is not None
        return image_processor.cap_crops(self._manifest.image, detail)

    def projector(self, media: Media, route: str) -> str:
        """The projector that `media` takes in a conversation on `route`."""
        return IMAGE_PROJECTOR if media.kind == "image" else adapters.audio_projector(self._manifest, route)

    def features(self, media: Media, route: str) -> Rows:
        """float32 [num_tokens, hidden] for a conversation on `route`; encodes unless that is known
        already.
        """
        projector = self.projector(media, route)
        found = media.features.get(projector)
        if found is None:
            found = self.cache.get(media.key, projector)
        if found is None:
            found = self._encode(media, projector)
            self.cache.put(media.key, projector, found)
        media.features[projector] = found
        if media.kind == "image":
            media.inputs = None  # up to 87 MB of crops; the features never change with the route
        return found

    def _encode(self, media: Media, projector: str) -> Rows:
        if isinstance(media.inputs, ImageInputs):
            outputs = self._sessions["vision"].run(media.inputs.as_feed())
        else:
            assert media.inputs is not None
            feed: dict[str, npt.NDArray[Any]] = {
                "audio_embeds": media.inputs[None],
                "projector": np.array([adapters.PROJECTOR_IDS[projector]], dtype=np.int64),
            }
            outputs = self._sessions["speech"].run(feed)
        features = np.ascontiguousarray(outputs[0], dtype=np.float32)
        expected = (media.num_tokens, self._manifest.geometry.hidden_size)
        if features.shape != expected:
            raise BundleError(
                f"the {media.kind} encoder returned features of shape {features.shape}, expected {expected}; "
                "export the bundle again"
            )
        features.flags.writeable = False  # shared by the cache and every conversation
        return features
