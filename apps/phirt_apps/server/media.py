"""Pictures and recordings inside of a request, as bytes.

Knows data URLs (RFC 2397) and base64. Knows nothing of what an encoder makes of them. Addresses are never
fetched, and paths never opened: whoever asks a server must not make it read for them what they cannot.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Literal

from phirt.encoders.encoder import ImageDetail

from .errors import BadRequestError


@dataclass(frozen=True)
class MediaPart:
    """A medium as it came."""

    modality: Literal["image", "audio"]
    data: bytes
    detail: ImageDetail = "auto"


def image_part(url: str, detail: ImageDetail, where: str) -> MediaPart:
    """The picture of a data URL. Raises BadRequestError for any other address."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "data":
        raise BadRequestError(
            f"{where} is an address ({scheme[:20]!r}…), which this server never opens; send the picture "
            "itself as data:image/png;base64,…",
            param=where,
            code="remote_media_refused",
        )
    kind, comma, payload = rest.partition(",")
    if not comma or not kind.lower().endswith(";base64"):
        raise BadRequestError(f"{where} is no data URL in base64; send data:image/png;base64,…", param=where)
    return MediaPart("image", from_base64(payload, where), detail)


def audio_part(data: str, where: str) -> MediaPart:
    """A recording in base64; which format it has, its content tells."""
    return MediaPart("audio", from_base64(data, where))


def from_base64(text: str, where: str) -> bytes:
    """Bytes of base64, with or without its padding. Raises BadRequestError."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"{where} is not base64: {error}", param=where) from error
    if not data:
        raise BadRequestError(f"{where} is empty", param=where)
    return data
