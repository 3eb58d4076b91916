"""Pictures and recordings that a question brings: from files, the clipboard, the microphone.

Knows which files are media, by their first bytes. Does not decode them; the runtime does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phirt.errors import MediaError
from phirt_apps.interactive.dropped import MediaKind, media_kind
from phirt_apps.output import one_line

if TYPE_CHECKING:
    import numpy.typing as npt

FILE_FILTER = (
    "Pictures and recordings (*.jpg *.jpeg *.png *.webp *.gif *.bmp *.tif *.tiff *.avif *.ico *.ppm *.heic "
    "*.wav *.aif *.aiff *.au *.caf *.flac *.ogg *.mp3 *.m4a *.webm *.amr *.mp4);;All files (*)"
)
_LABEL = 40


@dataclass(frozen=True, eq=False)
class Attachment:
    """One of them: what it is called, and what the runtime takes for it."""

    label: str
    kind: MediaKind
    source: Any = field(repr=False)


def of_file(path: Path) -> Attachment:
    """The file as an attachment. Raises MediaError, in one line, for what is neither."""
    kind = media_kind(path)
    name = _short(path.name or str(path))
    if kind is not None:
        return Attachment(name, kind, path)
    if path.is_dir():
        raise MediaError(f"{name} is a folder; drop the pictures or recordings in it")
    if not path.exists():
        raise MediaError(f"{name} is not there")
    raise MediaError(
        f"{name} is no picture or recording; accepted: JPEG, PNG, WebP and the like, WAV, FLAC, MP3, Ogg"
    )


def of_address(address: str) -> MediaError:
    """What to say where something was dropped that lies elsewhere: nothing is fetched."""
    return MediaError(f"{_short(address)} is not on this machine; save it first, then drop the file")


def of_picture(data: bytes) -> Attachment:
    """A picture without a name, as a file's bytes."""
    return Attachment("pasted picture", "image", data)


def of_samples(samples: npt.NDArray[np.int16], rate: int) -> Attachment:
    """What the microphone recorded: int16 [n]."""
    return Attachment(f"recording, {len(samples) / rate:.1f} s", "audio", (samples, rate))


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
