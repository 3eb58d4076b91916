"""TIFF: libtiff is kept from writing to the terminal; raw pictures of cameras, which look alike, told apart.

Knows tags and the error handler of Pillow's libtiff. Decodes nothing.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from PIL import Image, _imaging

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

_REDUCED, _MAKER, _INNER, _DNG_VERSION = 254, 271, 330, 50706  # tags


def is_raw(image: Image.Image) -> bool:
    """Whether this is a camera's raw picture: its first page is a preview, or it says that it is DNG."""
    if image.format != "TIFF":
        return False
    tags = cast("TiffImageFile", image).tag_v2
    return _DNG_VERSION in tags or (tags.get(_REDUCED) == 1 and _INNER in tags and _MAKER in tags)


class QuietLibtiff:
    """A block in which libtiff's messages go nowhere; its errors still reach Pillow as failures.

    libtiff has one handler for the process, so the first block takes it away and the last one puts it back.
    Where libtiff cannot be reached by name (in Pillow for Windows) nothing is changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._previous: Any = None

    def __enter__(self) -> None:
        set_handler = _handler_setter()
        with self._lock:
            if self._inside == 0 and set_handler is not None:
                self._previous = set_handler(None)
            self._inside += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        set_handler = _handler_setter()
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and set_handler is not None:
                set_handler(self._previous)


def _handler_setter() -> Callable[[Any], Any] | None:
    try:
        setter = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return None
    setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return setter


quiet_libtiff = QuietLibtiff()
