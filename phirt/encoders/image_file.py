"""Pictures as people have them: opened with limits, decoded upright to RGB.

Knows which of Pillow's readers takes which file, EXIF, and what to say of a file that none takes. Knows
nothing of what an encoder makes of the pixels. Pillow's own settings are the host's: they stay as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from phirt.bundle.manifest import Limits
from phirt.encoders.formats import jpeg, png, tiff
from phirt.encoders.formats.signatures import HEAD, FileType, identify
from phirt.encoders.formats.sound import DamagedError
from phirt.encoders.source import FileSource, content_key, read_source
from phirt.errors import MediaError, out_of_memory


@runtime_checkable
class ArrayLike(Protocol):
    """What numpy can look at as an array, such as a tensor of another library."""

    def __array__(self, *args: Any, **options: Any) -> npt.NDArray[Any]: ...


ImageSource = FileSource | Image.Image | ArrayLike
"""A picture: a file (path, bytes, open file), a PIL image, or an array: uint8 [height, width] or
[height, width, 3 or 4] (red, green, blue, opacity), uint16 [height, width]."""

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "Netpbm")

T = TypeVar("T")

_READERS = {
    "jpeg": ("JpegImagePlugin", "JpegImageFile"),
    "png": ("PngImagePlugin", "PngImageFile"),
    "webp": ("WebPImagePlugin", "WebPImageFile"),
    "gif": ("GifImagePlugin", "GifImageFile"),
    "bmp": ("BmpImagePlugin", "BmpImageFile"),
    "tiff": ("TiffImagePlugin", "TiffImageFile"),
    "avif": ("AvifImagePlugin", "AvifImageFile"),
    "ico": ("IcoImagePlugin", "IcoImageFile"),
    "ppm": ("PpmImagePlugin", "PpmImageFile"),
}
_ORIENTATION_TAG = 0x0112
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
_ARRAYS = "uint8 [height, width] or [height, width, 3 or 4], or uint16 [height, width]"


def open_image(source: ImageSource, limits: Limits) -> tuple[Image.Image, str, str]:
    """Opens a picture by its header alone. Returns it (not decoded yet), its content key, and a name for
    messages.

    Raises MediaError for what is no picture of an accepted format, or has more pixels than the limit.
    """
    if isinstance(source, ArrayLike) and not isinstance(source, Image.Image):
        source = _from_array(np.asarray(source))
    if isinstance(source, Image.Image):
        name = "the given picture"
        _check_pixels(source, name, limits)
        picture = Image.new(
            "RGB", upright_size(source)
        )  # a new one carries no EXIF, so it is not turned twice
        picture.paste(decode_picture(source, name))
        return picture, content_key(b"pixels", str(picture.size).encode(), picture.tobytes()), name
    data, name = read_source(source, "image", limits.media_bytes)
    found = identify(data[:HEAD])
    if found.key not in _READERS and found.key != "heic":
        raise MediaError(_foreign(name, found))
    image = _opened(data, name, found, limits)
    if tiff.is_raw(image):
        raise MediaError(_foreign(name, FileType("raw", "a camera's raw picture", "picture")))
    return image, content_key(b"image", data), name


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation is applied; of a PNG this may read the pixels."""
    return (image.height, image.width) if _orientation(image) >= 5 else image.size


def decode_picture(image: Image.Image, name: str) -> Image.Image:
    """The picture as upright RGB. Raises MediaError if it is damaged."""
    return _guarded(lambda: to_rgb(image), name)


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame, decoded, upright, its transparency on white. The given picture is not changed; where
    nothing is to be done it is returned itself.
    """
    with tiff.quiet_libtiff if image.format == "TIFF" else contextlib.nullcontext():
        orientation = _orientation(image)
        image.load()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _upright(_from_deep_grey(image), orientation)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        flat.alpha_composite(rgba)
        return _upright(flat.convert("RGB"), orientation)
    # A copy of a hundred million pixels is not free.
    return _upright(image if image.mode == "RGB" else image.convert("RGB"), orientation)


def _opened(data: bytes, name: str, found: FileType, limits: Limits) -> Image.Image:
    """The picture by its header. A JPEG without its end is decoded for it: see `jpeg`."""
    if found.key == "png":
        if png.is_apples(data):
            raise MediaError(
                _foreign(name, FileType("png", "a PNG in the way of iOS apps (CgBI)", "picture"))
            )
        data = png.picture_alone(data)
    reader = _reader(name, found)
    with tiff.quiet_libtiff if found.key == "tiff" else contextlib.nullcontext():
        image = _guarded(lambda: reader(io.BytesIO(data), ""), name)
    _check_pixels(image, name, limits)
    if found.key == "jpeg" and (whole := _guarded(lambda: jpeg.with_end(data), name)) is not data:
        image = _guarded(lambda: reader(io.BytesIO(whole), ""), name)
    return image


def _reader(name: str, found: FileType) -> Callable[[io.BytesIO, str], Image.Image]:
    """The class of Pillow that reads a format. `Image.open` is not asked: it warns of pictures larger than
    Pillow's own limit, or refuses them, and cannot be kept from it without touching what is the host's.
    """
    if found.key == "heic":
        try:
            import pillow_heif
        except ImportError as error:
            raise MediaError(
                f"{name} is {found.name}; reading it needs the package pillow-heif (phirt's extra `media`): "
                "pip install pillow-heif, or convert it: heif-convert IN OUT.jpg"
            ) from error
        return cast(Callable[[io.BytesIO, str], Image.Image], pillow_heif.HeifImageFile)
    module, reader = _READERS[found.key]
    return cast(
        Callable[[io.BytesIO, str], Image.Image], getattr(importlib.import_module(f"PIL.{module}"), reader)
    )


def _guarded(work: Callable[[], T], name: str) -> T:
    """What `work` returns. Decoders raise OSError, SyntaxError, struct.error and more on damaged data."""
    try:
        return work()
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has more pixels than Pillow allows ({error}); scale it down") from error
    except Exception as error:
        if lacking := out_of_memory(error, f"decode {name}"):
            raise lacking from error
        reason = " ".join(_ADDRESS.sub("the file", str(error)).split()) or type(error).__name__
        what = reason if isinstance(error, DamagedError) else f"its decoder says: {reason}"
        raise MediaError(f"{name} is damaged or incomplete: {what}; give a complete picture") from error


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """Raises MediaError for an array that is no picture."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (3, 4):
        raise MediaError(
            f"image: an array of the shape {array.shape} has its colours first, accepted: {_ARRAYS}; give "
            "array.transpose(1, 2, 0)"
        )
    if array.dtype.kind == "f":
        raise MediaError(
            f"image: an array of {array.dtype}, accepted: {_ARRAYS}; give "
            "(255 * array).round().astype('uint8') for values in 0 to 1"
        )
    colours = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4)
    if 0 in array.shape or not (colours or (array.ndim == 2 and array.dtype in (np.uint8, np.uint16))):
        raise MediaError(f"image: an array of {array.dtype} {array.shape}, accepted: {_ARRAYS}")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Grey with more than 8 bits: 16-bit values keep their high byte (Pillow's own conversion would clip them
    to white), 32-bit ones what the largest needs. Floats are shares of 1, or values up to 255 or more.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    top = float(values.max(initial=0.0))
    least = (1.0 if top <= 1 else 255.0) if image.mode == "F" else 65535.0
    grey = np.clip(values * np.float32(255 / max(top, least)), 0, 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block must not cost the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _check_pixels(image: Image.Image, name: str, limits: Limits) -> None:
    if image.width * image.height > limits.image_pixels:
        raise MediaError(
            f"{name} has {image.width} x {image.height} pixels, the limit is {limits.image_pixels}; scale it "
            "down"
        )


def _foreign(name: str, found: FileType) -> str:
    if found.kind == "sound":
        return f"{name} is {found.name}, a recording and no picture; attach it as audio"
    if found.kind == "film":
        return (
            f"{name} is {found.name}, no picture that can be read; attach it as audio for its sound, or take "
            "a picture out of it: ffmpeg -i IN -frames:v 1 OUT.png"
        )
    if found.kind == "picture":
        return (
            f"{name} is {found.name}, which phirt does not read; accepted: {', '.join(FORMATS)}, HEIC; "
            "convert it: magick IN OUT.png"
        )
    return f"{name} is {found.name}, no picture that can be read; accepted: {', '.join(FORMATS)}, HEIC"
