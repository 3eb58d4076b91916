"""Pictures as phones, scanners, editors and cut downloads leave them: by Pillow, pillow-heif or by hand."""

from __future__ import annotations

import dataclasses
import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from phirt.bundle.manifest import Limits
from phirt.encoders import image_file
from phirt.encoders.formats import png, tiff
from phirt.errors import MediaError

LIMITS = Limits(image_pixels=1_000_000, audio_seconds=10.0, media_bytes=1 << 24)
Y, X = np.mgrid[0:120, 0:160]
PIXELS = np.stack([X * 255 // 159, Y * 255 // 119, (X + Y) * 255 // 278], axis=-1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded(image: Image.Image = PICTURE, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def heic(image: Image.Image = PICTURE, exif: bytes = b"") -> bytes:
    stream = io.BytesIO()
    file = pillow_heif.from_pillow(image)
    file[0].info["exif"] = exif or None
    file.save(stream, quality=90)
    return stream.getvalue()


def read(source: image_file.ImageSource, limits: Limits = LIMITS) -> np.ndarray:
    image, _, name = image_file.open_image(source, limits)
    size = image_file.upright_size(image)
    found = image_file.decode_picture(image, name)
    assert found.size == size and found.mode == "RGB"
    return np.asarray(found)


# --- PNG and its metadata (case 07) ---


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """The chunks stand behind the header."""
    return data[:33] + b"".join(chunks) + data[33:]


@pytest.mark.parametrize("size", [2 << 20, 70 << 20])
@pytest.mark.parametrize("name", ["zTXt", "iTXt", "iCCP", "tEXt", "nonsense"])
def test_metadata_of_any_size_is_left_out(name, size):
    big = bytes(size)
    chunks = {
        "zTXt": lambda: chunk(b"zTXt", b"parameters\0\0" + zlib.compress(big)),
        "iTXt": lambda: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(big)),
        "iCCP": lambda: chunk(b"iCCP", b"profile\0\0" + zlib.compress(big)),
        "tEXt": lambda: chunk(b"tEXt", b"workflow\0" + b"x" * (3 << 20)) * 5,
        "nonsense": lambda: (
            chunk(b"iCCP", b"\0\0\0") + chunk(b"zTXt", b"x") + chunk(b"eXIf", b"no exif")[:-4] + b"bad!"
        ),
    }[name]()
    limits = dataclasses.replace(LIMITS, media_bytes=1 << 28)
    np.testing.assert_array_equal(read(with_chunks(encoded(), chunks), limits), PIXELS)


def test_metadata_behind_the_pixels_is_left_out_too():
    data = encoded()
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 << 20)))
    np.testing.assert_array_equal(read(data[:-12] + text + data[-12:]), PIXELS)


@pytest.mark.parametrize("way", ["eXIf", "zTXt", "tEXt", "xmp", "packed xmp"])
def test_the_orientation_survives(way):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    profile = b"\nexif\n" + f"{len(raw):8d}\n".encode() + raw.hex().encode() + b"\n"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    chunks = {
        "eXIf": chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        "zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "tEXt": chunk(b"tEXt", b"Raw profile type exif\0" + profile),
        "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "packed xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    }
    np.testing.assert_array_equal(read(with_chunks(encoded(), chunks[way])), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "LA", "1"])
def test_transparency_and_palettes_survive(mode):
    image = PICTURE.convert(mode)
    options = {"transparency": 3} if mode in ("P", "L") else {}
    data = encoded(image, **options)
    expected = np.asarray(image_file.to_rgb(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(read(with_chunks(data, chunk(b"tEXt", b"a\0b"))), expected)


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 16])
def test_a_png_that_lacks_only_its_end(cut):
    np.testing.assert_array_equal(read(encoded()[:-cut]), PIXELS)


def test_an_animated_png_shows_its_still_picture():
    data = encoded(save_all=True, append_images=[PICTURE.rotate(180)])
    np.testing.assert_array_equal(read(data), PIXELS)


def test_a_png_of_an_ios_app_is_named():
    with pytest.raises(MediaError, match="a PNG in the way of iOS apps"):
        read(png.SIGNATURE + chunk(b"CgBI", b"\x50\0\x20\x02") + encoded()[8:])


# --- JPEG and its end (case 21) ---

JPEGS = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"quality": 30},
    {"restart_marker_rows": 1},
    {"progressive": True, "quality": 95},
]


def jpeg(options: dict, image: Image.Image = PICTURE) -> bytes:
    return encoded(image, "JPEG", **options)


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end(options, cut, mode):
    data = jpeg(options, PICTURE.convert(mode))
    np.testing.assert_array_equal(read(data[:-cut]), read(data))


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.9, 0.97])
def test_a_jpeg_that_was_cut_is_refused(options, share):
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    data = jpeg(options, noisy)
    with pytest.raises(MediaError, match="damaged or incomplete"):
        read(data[: int(len(data) * share)])


def test_how_much_of_a_jpeg_is_missing_is_said():
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8))
    data = jpeg({"subsampling": 0})
    with pytest.raises(MediaError, match=r"about \d+ of its 120 rows are missing; give a complete picture"):
        read(data[:-40])
    data = jpeg({"restart_marker_rows": 1}, noisy)
    middle = data.index(b"\xff\xd4") + 2  # five of ten rows of blocks, 16 pixels each, lie before
    with pytest.raises(MediaError, match=r"about 8[01] of its 160 rows are missing"):
        read(data[:middle])


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm():
    """Motion photos have a video there, and cameras whole previews."""
    for behind in (b"\0" * 100, jpeg({})[:-2], b"MotionPhoto_Data\0\0\0\x18ftypmp42" + bytes(500)):
        np.testing.assert_array_equal(read(jpeg({}) + behind), read(jpeg({})))


def test_a_picture_of_several_shows_its_first(tmp_path):
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.rotate(180)])
    np.testing.assert_array_equal(read(data), read(jpeg({})))


# --- TIFF, AVIF, HEIC, ICO, Netpbm, GIF and WebP in motion ---


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiff(compression):
    np.testing.assert_array_equal(read(encoded(kind="TIFF", compression=compression)), PIXELS)
    pages = encoded(kind="TIFF", save_all=True, append_images=[PICTURE.rotate(180)], compression=compression)
    np.testing.assert_array_equal(read(pages), PIXELS)


def plain_tiff(array: np.ndarray, photometric: int, big_endian: bool = False, formats: int = 1) -> bytes:
    """One uncompressed strip, by the TIFF 6.0 specification; Pillow does not write all of these."""
    order = ">" if big_endian else "<"
    array = array if array.ndim == 3 else array[..., None]
    height, width, samples = array.shape
    body = array.astype(array.dtype.newbyteorder(order)).tobytes()
    bits_at, strip = 8 + 2 + 10 * 12 + 4, 8 + 2 + 10 * 12 + 4 + 4 * samples
    bits = struct.pack(f"{order}{samples}H", *[8 * array.dtype.itemsize] * samples)
    kinds = struct.pack(f"{order}{samples}H", *[formats] * samples)

    def several(tag: int, values: bytes, place: int) -> bytes:
        short = samples * 2 <= 4
        return struct.pack(f"{order}HHI", tag, 3, samples) + (
            values.ljust(4, b"\0") if short else struct.pack(f"{order}I", place)
        )

    def one(tag: int, value: int) -> bytes:
        return struct.pack(f"{order}HHII", tag, 4, 1, value)

    tags = (
        one(256, width) + one(257, height) + several(258, bits, bits_at) + one(259, 1) + one(262, photometric)
        + one(273, strip) + one(277, samples) + one(278, height) + one(279, len(body))
        + several(339, kinds, bits_at + 2 * samples)
    )  # fmt: skip
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}IH", 8, 10) + tags + b"\0" * 4
    return head + bits + kinds + body


@pytest.mark.parametrize("big_endian", [False, True])
def test_tiffs_of_scanners_and_editors(big_endian):
    grey = PIXELS[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read(plain_tiff(grey, 1, big_endian)), as_rgb)
    np.testing.assert_array_equal(read(plain_tiff(255 - grey, 0, big_endian)), as_rgb)
    np.testing.assert_array_equal(read(plain_tiff(grey.astype(np.uint16) * 257, 1, big_endian)), as_rgb)
    np.testing.assert_array_equal(read(plain_tiff(PIXELS.astype(np.uint16) * 257, 2, big_endian)), PIXELS)
    floats = (grey / 255).astype(np.float32)
    np.testing.assert_array_equal(read(plain_tiff(floats, 1, big_endian, 3)), as_rgb)
    np.testing.assert_array_equal(read(plain_tiff(floats * 255, 1, big_endian, 3)), as_rgb)
    cmyk = np.asarray(PICTURE.convert("CMYK"))
    np.testing.assert_array_equal(read(plain_tiff(cmyk, 5, big_endian)), PIXELS)


def test_a_raw_picture_of_a_camera_is_not_its_preview():
    data = plain_tiff(PIXELS, 2)
    dng = data.replace(struct.pack("<HHI", 339, 3, 3), struct.pack("<HHI", 50706, 1, 3))
    with pytest.raises(MediaError, match="a camera's raw picture, which phirt does not read"):
        read(dng)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "AVIF", "GIF", "heic"])
def test_other_pictures_that_were_cut_are_refused(kind, share):
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    data = heic(noisy) if kind == "heic" else encoded(noisy, kind)
    with pytest.raises(MediaError, match="damaged or incomplete"):
        read(data[: int(len(data) * share)])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.open(io.BytesIO(encoded(PICTURE, "PNG", exif=exif)))
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    found = read(heic(exif=exif.tobytes())).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4


def test_what_libheif_says_of_a_cut_picture_is_one_line():
    data = heic()
    with pytest.raises(MediaError, match="is damaged or incomplete: its decoder says") as caught:
        read(data[: len(data) // 2])
    assert "\n" not in str(caught.value)


def test_heic_with_opacity_and_avif():
    clear = PICTURE.copy()
    clear.putalpha(0)
    assert read(heic(clear)).min() > 250
    assert np.abs(read(encoded(kind="AVIF", quality=95)).astype(int) - PIXELS).mean() < 4


def test_without_pillow_heif_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError) as caught:
        read(heic())
    message = str(caught.value)
    assert "is HEIC; reading it needs the package pillow-heif" in message
    assert "pip install pillow-heif" in message and "\n" not in message


def test_heic_leaves_pillows_readers_as_they_are():
    read(heic())
    assert "HEIF" not in Image.OPEN


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_moving_pictures_the_first(kind):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert read(data)[0, 0].tolist()[1:] == [0, 0]


def test_icons_and_netpbm():
    icon = encoded(PICTURE.resize((64, 64)).convert("RGBA"), "ICO", sizes=[(16, 16), (64, 64)])
    assert read(icon).shape == (64, 64, 3)
    for mode in ("RGB", "L", "1"):
        np.testing.assert_array_equal(
            read(encoded(PICTURE.convert(mode), "PPM")), np.asarray(PICTURE.convert(mode).convert("RGB"))
        )


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"%PDF-1.7\n", "is a PDF document, no picture"),
        (b"<html><body>", "is a web page"),
        (b"<svg xmlns='x'>", "is an SVG drawing, which phirt does not read"),
        (b"8BPS\0\x01", "is a Photoshop document"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx ", "is a camera's raw picture"),
        (b"RIFF\0\0\0\0WAVEfmt ", "is WAV, a recording and no picture; attach it as audio"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0", "is MPEG-4 audio \\(m4a\\), a recording"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01webm", "is WebM, no picture .* take a picture out of it"),
        (b"PK\x03\x04", "is a ZIP archive"),
        (b"\xc8\xc9\xca" * 9, "is of no format that phirt knows"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_named(head, words):
    with pytest.raises(MediaError, match=words) as caught:
        read(head)
    assert " at 0x" not in str(caught.value)


# --- what a caller holds ---


def test_arrays():
    for array in (PIXELS, np.asfortranarray(PIXELS), PIXELS[::-1][::-1]):
        np.testing.assert_array_equal(read(array), PIXELS)
    grey = PIXELS[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    for array in (grey, grey[..., None], grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(read(array), as_rgb)
    opaque = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(read(opaque), PIXELS)

    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return PIXELS

    np.testing.assert_array_equal(read(Tensor()), PIXELS)
    assert image_file.open_image(PIXELS, LIMITS)[1] == image_file.open_image(PICTURE, LIMITS)[1]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (PIXELS.transpose(2, 0, 1), r"colours first.*transpose\(1, 2, 0\)"),
        (PIXELS / 255, r"array of float64, accepted: uint8.*255 \* array"),
        (PIXELS.astype(np.int64), "array of int64"),
        (PIXELS[:0], "array of uint8"),
        (PIXELS[..., :2], "array of uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), "array of uint8"),
        (np.array(["x"], dtype=object), "array of object"),
    ],
)
def test_arrays_that_are_no_pictures(array, words):
    with pytest.raises(MediaError, match=words):
        read(array)


def test_every_way_to_hand_over_a_file(tmp_path):
    path = tmp_path / "a photo.png"
    path.write_bytes(encoded())
    with path.open("rb") as opened:
        for source in (
            path,
            str(path),
            path.as_uri(),
            path.read_bytes(),
            opened,
            io.BytesIO(path.read_bytes()),
        ):
            np.testing.assert_array_equal(read(source), PIXELS)


# --- the host's Pillow, libraries that write, memory ---


def test_pictures_beyond_pillows_own_limit_are_the_bundles_matter(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (encoded(), jpeg({}), encoded(kind="BMP"), heic()):
            assert read(data).shape == PIXELS.shape
        for kind in ("TIFF", "WEBP"):  # their readers ask for it themselves
            with pytest.raises(MediaError, match="more pixels than Pillow allows"):
                read(encoded(kind=kind))


def settings_of_pillow() -> tuple:
    text = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    return (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, text, list(warnings.filters))


def test_settings_of_pillow_stay():
    before = settings_of_pillow()
    handlers = tiff._handler_setter()
    previous = handlers(None)
    handlers(previous)
    threads = [
        threading.Thread(target=read, args=(encoded(kind="TIFF", compression="tiff_lzw"),)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read(jpeg({})[:-2])
    assert (handlers(None), handlers(previous)) == (previous, None)
    assert settings_of_pillow() == before


def test_decoders_write_nothing_themselves(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for kind in ("TIFF", "TIFF lzw", "TIFF deflate", "TIFF group4", "JPEG", "WEBP", "AVIF", "heic"):
        options = (
            {"compression": {"group4": "group4"}.get(kind[5:], f"tiff_{kind[5:]}")} if " " in kind else {}
        )
        image = PICTURE.convert("1") if "group4" in kind else PICTURE
        data = heic() if kind == "heic" else encoded(image, kind.split()[0], **options)
        for number in range(6):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 8):
                damaged[place] ^= int(rng.integers(1, 256))
            files.append(tmp_path / f"{kind}{number}")
            files[-1].write_bytes(damaged)
    program = (
        "import sys, warnings\nwarnings.simplefilter('ignore')\n"
        "from phirt.bundle.manifest import Limits\nfrom phirt.encoders import image_file\n"
        "from phirt.errors import MediaError\nlimits = Limits(10**6, 1.0, 1 << 24)\n"
        "for name in sys.argv[1:]:\n"
        "    try: image_file.decode_picture(image_file.open_image(name, limits)[0], name)\n"
        "    except MediaError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, files)], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_out_of_memory_is_called_so(monkeypatch):
    data = encoded(PICTURE.convert("L"))
    for error in (MemoryError(), OSError("out of memory when reading image file")):
        monkeypatch.setattr(Image.Image, "convert", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(MemoryError):
            read(data)


GOOD = {
    kind: encoded(kind=kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "ICO", "PPM")
}
GOOD |= {
    "heic": heic(),
    "JPEG without its end": jpeg({})[:-2],
    "progressive without its end": jpeg({"progressive": True})[:-2],
    "TIFF LZW": encoded(kind="TIFF", compression="tiff_lzw"),
    "profile": encoded(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
}


@given(
    kind=st.sampled_from(sorted(GOOD)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    near_start=st.booleans(),
    share=st.floats(0.01, 1),
)
@settings(deadline=None, max_examples=250)
def test_changed_files_are_seen_or_refused(kind, changes, near_start, share):
    data = bytearray(GOOD[kind])
    for place, value in changes:
        data[int(place * (100 if near_start else len(data)))] = value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata
            found = read(bytes(data[: int(len(data) * share) + 1] if share < 0.5 else data))
    except MediaError as error:
        assert " at 0x" not in str(error)
    else:
        assert found.dtype == np.uint8
