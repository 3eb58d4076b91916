"""Pictures as people have them: opened with limits, decoded upright to RGB.

Knows file formats, EXIF and Pillow. Knows nothing of what an encoder makes of the pixels.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from phirt.bundle.manifest import Limits
from phirt.encoders.source import content_key, read_source
from phirt.errors import MediaError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ImageSource = str | Path | bytes | Image.Image

_ORIENTATION_TAG = 0x0112


def open_image(source: ImageSource, limits: Limits) -> tuple[Image.Image, str, str]:
    """Opens a picture by its header alone. Returns it (not decoded yet), its content key, and a name for
    messages.

    Raises MediaError for what is no picture of an accepted format, or has more pixels than the limit.
    """
    if isinstance(source, Image.Image):
        name = "the given picture"
        _check_pixels(source, name, limits)
        picture = Image.new(
            "RGB", upright_size(source)
        )  # a new one carries no EXIF, so it is not turned twice
        picture.paste(decode_picture(source, name))
        return picture, content_key(b"pixels", str(picture.size).encode(), picture.tobytes()), name
    data, name = read_source(source, "image", limits.media_bytes)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures on stderr; the bundle's own limit is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"{name} has too many pixels, the limit is {limits.image_pixels}; scale it down"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types on hostile headers
        raise MediaError(f"{name} is no picture that can be read; accepted: {', '.join(FORMATS)}") from error
    _check_pixels(image, name, limits)
    return image, content_key(b"image", data), name


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation is applied; of a PNG this may read the pixels."""
    return (image.height, image.width) if _orientation(image) >= 5 else image.size


def decode_picture(image: Image.Image, name: str) -> Image.Image:
    """The picture as upright RGB. Raises MediaError if it is damaged."""
    try:
        return to_rgb(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error … on damaged data
        raise MediaError(f"{name} is damaged or incomplete: {error}; give a complete picture") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame, decoded, upright, its transparency on white. The given picture is not changed."""
    orientation = _orientation(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _upright(_from_deep_grey(image), orientation)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        flat.alpha_composite(rgba)
        return _upright(flat.convert("RGB"), orientation)
    return _upright(image.convert("RGB"), orientation)


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Grey with more than 8 bits: 16-bit values keep their high byte (Pillow's own conversion would clip them
    to white).
    """
    values = np.asarray(image)
    grey = values / 257.0 if image.mode != "F" else values
    return Image.fromarray(np.clip(np.nan_to_num(grey), 0, 255).round().astype(np.uint8)).convert("RGB")


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
