"""Media of a conversation: prepared once, encoded once, their features remembered by content.

Knows encoders and their sessions by the manifest's names. Knows nothing of kinds, text, templates or the
decoder.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from phirt.bundle.adapters import encoder_name, projector_index
from phirt.bundle.manifest import Manifest, Modality, Rule
from phirt.encoders.encoder import ImageDetail, InputSpecs, check_detail, open_encoders
from phirt.errors import BundleError, not_enough_memory
from phirt.prompt.messages import Features, Inputs, Media
from phirt.runtime.placement import Placement
from phirt.runtime.session import LazySession, SessionConfig
from phirt.runtime.system import has_address_space

_FEATURE_CACHE_BYTES = 256 << 20
_MATRIX_PRODUCT_BYTES = 40 << 20


class FeatureCache:
    """Encoder outputs by content and projector, the least recently used dropped beyond a bound of bytes."""

    def __init__(self, max_bytes: int = _FEATURE_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, str], Features] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, projector: str) -> Features | None:
        """The features, or None."""
        with self._lock:
            found = self._entries.get((key, projector))
            if found is not None:
                self._entries.move_to_end((key, projector))
            return found

    def put(self, key: str, projector: str, features: Features) -> None:
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

    def forget(self, key: str) -> None:
        """Forgets one content, under every projector."""
        with self._lock:
            for entry in [entry for entry in self._entries if entry[0] == key]:
                self._bytes -= self._entries.pop(entry).nbytes

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0


class MediaEncoder:
    """Prepares media and encodes them; the encoder graphs open on first use and can be released.

    Raises BundleError for a bundle whose encoders this installation cannot work with.
    """

    def __init__(self, manifest: Manifest, config: SessionConfig) -> None:
        self._manifest = manifest
        self._encoders = open_encoders(manifest)
        quiet = dataclasses.replace(config, repeated=False)
        self._sessions = {
            name: LazySession(manifest, spec.graph, quiet) for name, spec in manifest.encoders.items()
        }
        self.cache = FeatureCache()

    @property
    def open_graphs(self) -> tuple[str, ...]:
        """The encoders whose graph is in memory now."""
        return tuple(name for name, session in self._sessions.items() if session.is_open)

    @property
    def placements(self) -> dict[str, Placement | None]:
        """What runs the nodes of each encoder's graph; None where that is the CPU, or the graph not open."""
        return {name: session.placement for name, session in self._sessions.items()}

    def release(self) -> None:
        """Gives the encoders' memory back; they open again when needed."""
        for session in self._sessions.values():
            session.release()

    def prepare(self, modality: Modality, source: Any, detail: ImageDetail = "auto") -> Media:
        """Reads and processes a picture or a recording. Raises MediaError; BundleError where the bundle takes
        none; ConfigError for a `detail` that is none.
        """
        name = encoder_name(self._manifest, modality)
        prepared = self._encoders[name].prepare(source, self._manifest.limits, check_detail(detail))
        known = self._known(name, prepared.key)
        missing = len(known) < len(self._manifest.encoders[name].projectors)
        # numpy's library of matrix products ends the process where it gets no memory of its own.
        if missing and not has_address_space(_MATRIX_PRODUCT_BYTES):
            raise not_enough_memory(f"process the {modality}")
        inputs = prepared.make_inputs() if missing else None
        return Media(name, modality, prepared.key, prepared.num_tokens, inputs, known)

    def count(self, modality: Modality, source: Any, detail: ImageDetail = "auto") -> int:
        """What a picture or a recording costs in tokens; nothing is encoded for it. Raises as `prepare`."""
        name = encoder_name(self._manifest, modality)
        return self._encoders[name].prepare(source, self._manifest.limits, check_detail(detail)).num_tokens

    def restore(
        self, name: str, key: str, num_tokens: int, inputs: Inputs | None, features: Mapping[str, Features]
    ) -> Media:
        """Media of a saved conversation, for the encoder `name`. Raises ValueError where the encoder would
        not make these inputs, or the features are not `num_tokens` rows of its projectors.
        """
        spec = self._manifest.encoders[name]
        shape = (num_tokens, self._manifest.geometry.hidden_size)
        for projector, rows in features.items():
            if projector not in spec.projectors:
                raise ValueError(f"projector {projector!r} is not among {', '.join(spec.projectors)}")
            if rows.shape != shape:
                raise ValueError(f"features of {projector!r} have the shape {rows.shape}, expected {shape}")
        if inputs is None and len(features) < len(spec.projectors):
            raise ValueError(f"neither the encoder's inputs nor all features of {key[:16]!r} are there")
        if inputs is not None:
            self._check_inputs(name, num_tokens, inputs)
        return Media(name, spec.modality, key, num_tokens, inputs, dict(features), from_file=True)

    def input_specs(self, name: str) -> InputSpecs:
        """What an encoder prepares, by the manifest's name of the encoder: names, dtypes, shapes."""
        return self._encoders[name].inputs

    def projector(self, media: Media, rule: Rule) -> str:
        """The projector that `media` takes in a conversation under `rule`."""
        return self._manifest.encoders[media.encoder].projectors[
            projector_index(self._manifest, media.encoder, rule)
        ]

    def span_key(self, media: Media, rule: Rule) -> str:
        """The name of this content's features under `rule`, in the engine's cache."""
        return media.span_key(self.projector(media, rule))

    def features(self, media: Media, rule: Rule) -> Features:
        """float32 [num_tokens, hidden] for a conversation under `rule`; encodes unless that is known."""
        projector = self.projector(media, rule)
        # Chats and their forks share it: read before the features, which are all there once it is None.
        inputs = media.inputs
        found = media.features.get(projector)
        if found is None and not media.from_file:
            found = self.cache.get(media.key, projector)
        if found is None:
            found = self._encode(media, inputs, projector_index(self._manifest, media.encoder, rule))
            if not media.from_file:
                self.cache.put(media.key, projector, found)
        media.features[projector] = found
        if len(media.features) == len(self._manifest.encoders[media.encoder].projectors):
            media.inputs = None  # up to 87 MB of crops; nothing asks for them any more
        return found

    def _known(self, name: str, key: str) -> dict[str, Features]:
        """The features of a content that the cache still has, by projector."""
        found = {one: self.cache.get(key, one) for one in self._manifest.encoders[name].projectors}
        return {projector: rows for projector, rows in found.items() if rows is not None}

    def _check_inputs(self, name: str, num_tokens: int, inputs: Inputs) -> None:
        wanted = self._encoders[name].inputs
        if set(inputs) != set(wanted):
            raise ValueError(f"inputs {', '.join(inputs)} are not those of the encoder {name!r}")
        for key, (dtype, shape) in wanted.items():
            array = inputs[key]
            expected = tuple(
                given if size is None else size for size, given in zip(shape, array.shape, strict=False)
            )
            if array.dtype.name != dtype or array.shape != expected or len(shape) != array.ndim:
                raise ValueError(
                    f"the input {key!r} is {array.dtype} {array.shape}, expected {dtype} {shape}"
                )
        if (count := self._encoders[name].count(inputs)) != num_tokens:
            raise ValueError(f"the inputs make {count} tokens, not {num_tokens}")

    def _encode(self, media: Media, inputs: Inputs | None, projector: int) -> Features:
        assert inputs is not None
        features = self._encoders[media.encoder].run(self._sessions[media.encoder], inputs, projector)
        expected = (media.num_tokens, self._manifest.geometry.hidden_size)
        if features.shape != expected:
            raise BundleError(
                f"the {media.encoder} encoder returned features of shape {features.shape}, expected "
                f"{expected}; export the bundle again"
            )
        features.flags.writeable = False  # shared by the cache and every conversation
        return features
