"""One file for one conversation: turns, media features and the cache, so that it goes on without running
anything again.

Knows the file's layout and distrusts it. A zip without compression: conversation.json (texts, ids, what the
arrays are) and arrays as .npy. Never pickle. Written beside its place and moved there, so an older
file survives any failure.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import numpy.typing as npt

from phirt.bundle.adapters import adapter_name
from phirt.bundle.manifest import Manifest, Modality, Rule
from phirt.chat.place import DAMAGED, DOCUMENT, BoundedFile, may_replace
from phirt.errors import ContextError, ConversationError
from phirt.fields import Fields, Length, Range, parse_json
from phirt.generate.engine import Engine
from phirt.generate.engine_pool import CacheOwner
from phirt.generate.sequence import Adapter, MediaSpan, Prompt, common_prefix
from phirt.generator import Generator
from phirt.prompt.messages import Media, Message, Role
from phirt.prompt.tools import Tools
from phirt.runtime.atomic_file import PRIVATE, atomic_write

FORMAT = "phirt-conversation"
ACCEPTED_VERSIONS = (1, 2)

_KEY_LENGTH = 64  # hex sha256
_MAX_MEDIA = 4096
_MAX_MESSAGES = 1 << 16
_REMEDY = "name a file that phirt saved, unchanged"

Array = npt.NDArray[Any]
_Shapes = Mapping[str, Annotated[tuple[Annotated[int, Range(0, 1 << 32)], ...], Length(0, 16)]]


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """What a chat is made of. `engine` holds what is cached of it, where anything is.

    What a file says is not to be trusted: it may name somebody's picture and hold other features for it, or
    keys and values that no model computed. So its media say that they are `from_file`, and its engine must
    serve no other conversation.
    """

    system: str | None
    tools: Tools | None
    messages: tuple[Message, ...]
    user_adapter: str | None = None
    engine: Engine | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """What one of the media held at one moment: a fork that shares it may be encoding it meanwhile."""

    inputs: Mapping[str, Array]
    features: Mapping[str, Array]

    @classmethod
    def of(cls, media: Media) -> _Held:
        """Inputs first: once they are gone, the features are all there."""
        inputs = media.inputs or {}
        return cls(inputs, media.features.copy())


def save(generator: Generator, conversation: Conversation, owner: CacheOwner, path: str | Path) -> None:
    """Writes a conversation to `path`, with what its `owner` has cached of it, all or nothing: on
    ConversationError an older file stays as it was.

    Replaces a saved conversation, but no other file and no device.
    """
    path = Path(path)
    if not may_replace(path):
        raise ConversationError(f"{path} exists and is no saved conversation; choose another name")
    media = list(dict.fromkeys(item for message in conversation.messages for item in message.media))
    held = [_Held.of(item) for item in media]
    wanted = _prompt_of(generator, conversation)
    with generator.pool.reading(wanted, owner) as engine:
        cached = _useful_part(engine, wanted)
        document = json.dumps(_describe(generator, conversation, media, held, cached, engine)).encode()
        if len(document) > _max_document_bytes(generator.manifest):
            raise ConversationError(f"the conversation's texts are too long to be saved to {path}")
        try:
            with (
                atomic_write(path, mode=PRIVATE) as stream,
                zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
            ):
                archive.writestr(DOCUMENT, document)
                for index, item in enumerate(held):
                    for projector, features in item.features.items():
                        _write_array(archive, f"media/{index}/{projector}.npy", features)
                    for name, array in item.inputs.items():
                        _write_array(archive, f"media/{index}/inputs/{name}.npy", array)
                for name, array in () if engine is None else engine.cache.export():
                    _write_array(archive, f"cache/{name}.npy", array[:, :, : len(cached.ids)])
        except (OSError, ValueError) as error:  # ValueError: a zero character in the name
            reason = getattr(error, "strerror", None) or error
            raise ConversationError(
                f"the conversation cannot be saved to {path}: {reason}; "
                "what was there is unchanged: free some space or choose another place"
            ) from error


def load(generator: Generator, path: str | Path, user_adapter: str | None = None) -> Conversation:
    """Restores a conversation with the bundle that it was held with, and with the adapter, unless another one
    is named. Raises ConversationError, ConfigError.
    """
    generator.user_adapter_digest(user_adapter)
    path = Path(path)
    try:
        if not path.is_file():
            raise ConversationError(f"{path} is no file; name a saved conversation")
        with BoundedFile(path) as stream, zipfile.ZipFile(stream) as archive:
            stream.limit = None
            return _Reader(generator, archive, path).read(user_adapter)
    except DAMAGED as error:
        raise ConversationError(f"{path} is damaged or no saved conversation: {error}; {_REMEDY}") from error


def _describe(
    generator: Generator,
    conversation: Conversation,
    media: list[Media],
    held: list[_Held],
    cached: Prompt,
    engine: Engine | None,
) -> dict[str, Any]:
    """What conversation.json says."""
    places = {item: index for index, item in enumerate(media)}
    rule = generator.rule_of(conversation.messages)
    keys = [generator.encoder.span_key(item, rule) for item in media]
    first_places = {key: index for index, key in reversed(list(enumerate(keys)))}
    return {
        "format": FORMAT,
        "version": ACCEPTED_VERSIONS[-1],
        "bundle": generator.manifest.fingerprint,
        "variant": generator.manifest.variant,
        "system": conversation.system,
        "tools": None if conversation.tools is None else conversation.tools.json,
        "adapter": _describe_adapter(generator, conversation.user_adapter),
        "messages": [
            {
                "role": message.role,
                "content": message.content,
                "media": [places[item] for item in message.media],
                "ids": None if message.token_ids is None else list(message.token_ids),
            }
            for message in conversation.messages
        ],
        "media": [
            {
                "encoder": item.encoder,
                "key": item.key,
                "tokens": item.num_tokens,
                "inputs": {name: list(array.shape) for name, array in arrays.inputs.items()},
                "projectors": list(arrays.features),
            }
            for item, arrays in zip(media, held, strict=True)
        ],
        "cache": {
            "ids": cached.ids.tolist(),
            "route": cached.adapter.name,
            "long": engine is not None and engine.long_regime,
            "spans": [{"start": span.start, "media": first_places[span.key]} for span in cached.spans],
        },
    }


def _describe_adapter(generator: Generator, name: str | None) -> dict[str, Any] | None:
    """What is said about the user's adapter: its name, and what tells it from others of that name."""
    return None if name is None else {"name": name, "sha256": generator.user_adapter_digest(name)}


def _prompt_of(generator: Generator, conversation: Conversation) -> Prompt:
    """What the conversation as it stands asks to be cached; nothing where it has filled the context, and can
    be read but not gone on with.
    """
    try:
        return generator.encode_prompt(
            conversation.messages,
            conversation.system,
            conversation.tools,
            user_adapter=conversation.user_adapter,
        )
    except ContextError:
        return Prompt(np.zeros(0, dtype=np.int64), (), Adapter(generator.adapter_of(conversation.messages)))


def _useful_part(engine: Engine | None, wanted: Prompt) -> Prompt:
    """The part of a cache that a conversation can go on from: turns taken back are not written."""
    length = 0 if engine is None else common_prefix(engine.cached, wanted)
    spans = tuple(span for span in wanted.spans if span.start < length)
    return Prompt(wanted.ids[:length], spans, wanted.adapter)


def _max_document_bytes(manifest: Manifest) -> int:
    """Text of a whole context, generously: what does not fit cannot be gone on with."""
    return (1 << 20) + 128 * manifest.geometry.context


def _write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    with archive.open(name, "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


class _Reader:
    """Reads one opened archive for one model; every size is known from the manifest before an array is
    read.
    """

    def __init__(self, generator: Generator, archive: zipfile.ZipFile, path: Path) -> None:
        self._generator = generator
        self._manifest: Manifest = generator.manifest
        self._archive = archive
        self._path = path
        self._version = 0
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise self._refusal("it holds compressed parts")
        if sum(info.file_size for info in infos) > path.stat().st_size:
            raise self._refusal("its parts claim more bytes than it has")

    def read(self, user_adapter: str | None) -> Conversation:
        """The whole conversation, to go on with that adapter, or with its own."""
        root = self._document()
        entries = root.children("media", _MAX_MEDIA)
        media = [self._media(index, fields) for index, fields in enumerate(entries)]
        messages = self._messages(root, media)
        tools = root.optional_free_text("tools")
        name, held_with = self._user_adapter(root, user_adapter)
        digest = self._generator.user_adapter_digest(name)
        return Conversation(
            root.optional_free_text("system"),
            None if tools is None else Tools.from_json(tools),
            messages,
            name,
            self._engine(root.child("cache"), media, messages, digest)
            if digest == held_with and root.optional_text("variant") == self._manifest.variant
            else None,
        )

    def _user_adapter(self, root: Fields, wanted: str | None) -> tuple[str | None, str | None]:
        """The name of the user's adapter to go on with, and the digest of the one that the conversation was
        held with.
        """
        if not root.has("adapter"):
            return wanted, None
        saved = root.child("adapter")
        name, digest = saved.text("name"), saved.text("sha256")
        if wanted is not None:
            return wanted, digest
        names = [
            one for one in self._generator.user_adapters if self._generator.user_adapter_digest(one) == digest
        ]
        if not names:
            raise ConversationError(
                f"{self._path} was held with the adapter {name[:80]!r} (sha256 {digest[:12]}), which is not "
                "loaded; give its folder: --adapter FOLDER, or phirt.load(..., adapters={...})"
            )
        return (name if name in names else names[0]), digest

    def _document(self) -> Fields:
        try:
            info = self._archive.getinfo(DOCUMENT)
        except KeyError as error:
            raise self._refusal(f"it has no {DOCUMENT}") from error
        limit = _max_document_bytes(self._manifest)
        if info.file_size > limit:
            raise self._refusal(f"its {DOCUMENT} is larger than {limit} bytes")
        where = f"{self._path}: {DOCUMENT}"
        document = parse_json(self._archive.read(info), where, ConversationError, _REMEDY)
        root = Fields(document, where, ConversationError, _REMEDY)
        if root.raw("format") != FORMAT:
            raise self._refusal(f"its format is {root.raw('format')!r}, accepted: {FORMAT!r}")
        version = root.raw("version")
        if type(version) is not int or version not in ACCEPTED_VERSIONS:
            accepted = ", ".join(map(str, ACCEPTED_VERSIONS))
            raise ConversationError(
                f"{self._path}: version {version!r} is not known, accepted: {accepted}; update phirt"
            )
        self._version = version
        if root.text("bundle") not in (self._manifest.fingerprint, *self._manifest.continues):
            raise ConversationError(
                f"{self._path} was held with another bundle than {self._manifest.name!r}; "
                "load the bundle that it was saved with"
            )
        return root

    def _media(self, index: int, fields: Fields) -> Media:
        key, name = fields.text("key"), self._encoder_of(fields)
        if name not in self._manifest.encoders or len(key) != _KEY_LENGTH:
            raise fields.refusal(f"'encoder' {name!r} is none of the bundle's, or 'key' is not as expected")
        tokens = fields.integer("tokens", 1, self._manifest.geometry.context)
        spec = self._manifest.encoders[name]
        features = {}
        for projector in fields.texts("projectors"):
            if projector not in spec.projectors:
                raise fields.refusal(f"projector {projector!r} is not among {', '.join(spec.projectors)}")
            shape = (tokens, self._manifest.geometry.hidden_size)
            features[projector] = self._array(f"media/{index}/{projector}.npy", shape)
            features[projector].flags.writeable = False
        inputs = self._inputs(index, fields, name)
        try:
            return self._generator.encoder.restore(name, key, tokens, inputs or None, features)
        except ValueError as error:
            raise fields.refusal(str(error)) from error

    def _encoder_of(self, fields: Fields) -> str:
        """The encoder's name, which files of version 1 do not give."""
        if self._version > 1:
            return fields.text("encoder")
        kind = fields.read("kind", Modality)
        names = [name for name, spec in self._manifest.encoders.items() if spec.modality == kind]
        if not names:
            raise fields.refusal(f"the bundle takes no {kind}")
        return names[0]

    def _inputs(self, index: int, fields: Fields, encoder: str) -> dict[str, Array]:
        """What the encoder prepares, as far as it was saved."""
        if self._version == 1:
            frames = fields.integer("frames", 0)
            if not frames:
                return {}
            ((name, (_, shape)),) = self._generator.encoder.input_specs(encoder).items()
            return {name: self._array(f"media/{index}/inputs.npy", (frames, shape[-1] or 0))[None]}
        dtypes = {key: dtype for key, (dtype, _) in self._generator.encoder.input_specs(encoder).items()}
        shapes = fields.read("inputs", _Shapes)
        if unknown := set(shapes) - set(dtypes):
            raise fields.refusal(f"inputs {', '.join(sorted(unknown))} are none of the encoder's")
        return {
            name: self._array(f"media/{index}/inputs/{name}.npy", shape, dtypes[name])
            for name, shape in shapes.items()
        }

    def _messages(self, root: Fields, media: list[Media]) -> tuple[Message, ...]:
        """The turns. All their media and answers must have had room in the context."""
        context, total = self._manifest.geometry.context, 0
        messages = []
        for fields in root.children("messages", _MAX_MESSAGES):
            message = self._message(fields, media, context)
            total += sum(item.num_tokens for item in message.media) + len(message.token_ids or ())
            if total > context + 1:  # the last id of an answer is never run
                raise fields.refusal(
                    f"the messages up to here need more than the context of {context} tokens"
                )
            messages.append(message)
        return tuple(messages)

    def _message(self, fields: Fields, media: list[Media], context: int) -> Message:
        role = fields.text("role")
        if role not in get_args(Role):
            raise fields.refusal(f"role {fields.shown('role')} is not known")
        used = tuple(media[index] for index in fields.integers("media", 0, len(media) - 1, context))
        token_ids = None
        if fields.has("ids"):
            token_ids = fields.integers("ids", 0, self._manifest.geometry.vocab_size - 1, context)
            if set(token_ids) & set(self._manifest.placeholders):
                raise fields.refusal("an answer holds media placeholders")
        return Message(role, fields.free_text("content"), used, token_ids)  # type: ignore[arg-type]  # checked above

    def _engine(
        self, fields: Fields, media: list[Media], messages: Sequence[Message], lora: str | None
    ) -> Engine | None:
        """An engine with the cache that was saved; None where that is empty."""
        geometry = self._manifest.geometry
        ids = np.array(fields.integers("ids", 0, geometry.vocab_size - 1, geometry.context), dtype=np.int64)
        rule, route = self._generator.rule_of(messages), fields.text("route")
        if len(ids) and route != adapter_name(rule):
            raise fields.refusal(f"route is {route!r}, the conversation takes {adapter_name(rule)!r}")
        spans = tuple(self._span(entry, media, rule) for entry in fields.children("spans", _MAX_MEDIA))
        if sum(span.stop - span.start for span in spans) > geometry.context:
            raise fields.refusal("the media take more than the context")
        covered = [position for span in spans for position in range(span.start, min(span.stop, len(ids)))]
        if covered != np.flatnonzero(np.isin(ids, self._manifest.placeholders)).tolist():
            raise fields.refusal("the media do not stand at their placeholders")
        if not len(ids):
            return None
        engine = self._generator.new_engine()
        shape = (1, geometry.num_kv_heads, len(ids), geometry.head_dim)
        arrays = {
            name: self._array(f"cache/{name}.npy", shape, engine.cache.dtype.name)
            for name in engine.cache.names
        }
        engine.restore(
            Prompt(ids, spans, Adapter(route, lora)), arrays, long_regime=fields.raw("long") is True
        )
        return engine

    def _span(self, fields: Fields, media: list[Media], rule: Rule) -> MediaSpan:
        item = media[fields.integer("media", 0, len(media) - 1)]
        encoder = self._generator.encoder
        features = item.features.get(encoder.projector(item, rule))
        if features is None:
            raise fields.refusal("the media were not encoded for what the conversation takes")
        return MediaSpan(fields.integer("start", 0), features, encoder.span_key(item, rule))

    def _array(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Array:
        """An array whose shape and type must be the expected ones; nothing is allocated before that is
        known.
        """
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        expected = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            expected, {"descr": kind.newbyteorder("<").str, "fortran_order": False, "shape": shape}
        )
        try:
            if self._archive.getinfo(name).file_size < size:
                raise self._refusal(f"{name} is no {dtype} array of {shape}")
            with self._archive.open(name) as stream:
                # Only one header is right, so it is compared and not parsed.
                if stream.read(len(expected.getvalue())) != expected.getvalue():
                    raise self._refusal(f"{name} is no {dtype} array of {shape}")
                data = stream.read(size)
                if len(data) != size or stream.read(1):
                    raise self._refusal(f"{name} has not {size} bytes of values")
        except (KeyError, ValueError) as error:
            raise self._refusal(f"{name}: {error}") from error
        values = np.frombuffer(bytearray(data), dtype=kind).reshape(shape)
        if not np.isfinite(values).all():
            raise self._refusal(f"{name} holds values that are no numbers")
        return values

    def _refusal(self, cause: str) -> ConversationError:
        return ConversationError(f"{self._path}: {cause}; {_REMEDY}")
