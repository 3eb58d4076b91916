"""What libsndfile decodes for us: FLAC, Ogg, and the rarer codecs inside WAV and AIFF.

Knows the soundfile package. Only formats are handed to it whose decoders write nothing to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import soundfile

from phirt.encoders.formats.sound import BLOCK, Block, DamagedError, Part, Sound, UndecodableError

_NOT_KNOWN = 1 << 62  # libsndfile reports 2^63 - 1 where the length is not known
_QUIET = ("WAV", "WAVEX", "RF64", "AIFF", "AU", "CAF", "FLAC", "OGG")
_NO_MEMORY = ("malloc", "allocate")


def open_sound(stream: BinaryIO | Part) -> Sound:
    """Raises UndecodableError for what libsndfile does not take."""
    try:
        file = soundfile.SoundFile(stream)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise _translated(error) from error
    if file.format not in _QUIET:
        raise UndecodableError(f"its sound is {file.format}")
    frames = int(file.frames)
    return Sound(
        int(file.samplerate),
        int(file.channels),
        frames if 0 <= frames < _NOT_KNOWN else None,
        _blocks(file, frames),
    )


def _blocks(file: soundfile.SoundFile, declared: int) -> Iterator[Block]:
    done, at_once = 0, BLOCK // max(1, int(file.channels)) + 1
    with file:
        while True:
            try:
                block = file.read(at_once, dtype="float32", always_2d=True)
            except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
                cause = _translated(error)
                if isinstance(cause, MemoryError):
                    raise cause from error
                raise DamagedError(f"cannot be decoded after sample {done} ({cause})") from error
            if not len(block):
                break
            done += len(block)
            yield block
    if done < declared < _NOT_KNOWN:
        raise DamagedError(f"declares {declared} samples and holds {done}")


def _translated(error: Exception) -> Exception:
    """The error without the address of the stream that soundfile puts into its message."""
    reason = str(getattr(error, "error_string", "") or error).strip().rstrip(".")
    if any(word in reason for word in _NO_MEMORY):
        return MemoryError(reason)
    return UndecodableError(reason or type(error).__name__)
