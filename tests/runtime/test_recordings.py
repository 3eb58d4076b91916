"""Recordings as pipes, phones, browsers and cut downloads leave them: by soundfile, PyAV or by hand."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import threading
from pathlib import PurePosixPath

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.bundle.manifest import Limits
from phirt.encoders import audio_file
from phirt.encoders.formats import mpeg, pcm, signatures
from phirt.errors import MediaError

LIMITS = Limits(image_pixels=1000, audio_seconds=10.0, media_bytes=1 << 24)
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32)


def encoded(
    samples: np.ndarray = TONE, rate: int = 16000, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def by_libav(kind: str, codec: str, rate: int = 48000, samples: np.ndarray = TONE) -> bytes:
    """The samples (16 kHz) as PyAV writes them."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 16000
        resampler = av.AudioResampler(track.format, "mono", rate, track.codec_context.frame_size or 0)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(piece))
        container.mux(track.encode(None))
    return stream.getvalue()


def read(data: bytes) -> tuple[np.ndarray, int]:
    return audio_file.decode(data, "x", LIMITS)


def patched(data: bytes, **places: int) -> bytes:
    changed = bytearray(data)
    for place, value in places.items():
        struct.pack_into("<I", changed, int(place[1:]), value)
    return bytes(changed)


# --- WAV whose sizes are not true (case 02) ---


@pytest.mark.parametrize(
    "size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF - 36, 0x7FFFFFDB]
)
@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_read_to_its_end(size, riff):
    plain = encoded()
    np.testing.assert_array_equal(read(patched(plain, _4=riff, _40=size))[0], read(plain)[0])


@pytest.mark.parametrize("more", [1, 2, 3, 36, 44, 58, 200])
def test_a_wav_that_says_a_little_more_than_it_has(more):
    plain = encoded()
    np.testing.assert_array_equal(read(patched(plain, _40=32000 + more))[0], read(plain)[0])


@pytest.mark.parametrize("less", [1, 2, 44])
def test_a_wav_that_says_a_little_less_than_it_has(less):
    assert len(read(patched(encoded(), _40=32000 - less))[0]) == (32000 - less) // 2


@pytest.mark.parametrize("more", [3200, 1 << 20, 1 << 30])
def test_a_wav_that_was_cut_is_refused(more):
    with pytest.raises(
        MediaError, match=f"declares {32000 + more} bytes of sound and holds 32000; it is damaged"
    ):
        read(patched(encoded(), _40=32000 + more))


def test_an_empty_wav_with_chunks_behind_is_empty():
    data = patched(encoded(TONE[:0]), _40=0) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(MediaError, match="holds no samples"):
        read(data)


def test_a_byte_of_padding_that_was_forgotten():
    plain = encoded()
    for padding in (b"", b"\0"):
        data = plain[:36] + b"LIST" + struct.pack("<I", 5) + b"INFO!" + padding + plain[36:]
        np.testing.assert_array_equal(read(data)[0], read(plain)[0])


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_long_wavs_have_their_sizes_elsewhere(magic):
    plain = encoded()
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 32072, 32000, 16000, 0)
    data = magic + b"\xff" * 4 + b"WAVE" + sizes + plain[12:40] + b"\xff" * 4 + plain[44:]
    np.testing.assert_array_equal(read(data)[0], read(plain)[0])
    with pytest.raises(MediaError, match="declares 32000 bytes of sound and holds 30000"):
        read(data[:-2000])


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "AIFF", "AU", "CAF", "RF64"])
@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_plain_samples_equal_libsndfile(kind, subtype, endian):
    stream = io.BytesIO()
    stereo = np.stack([TONE, np.roll(TONE, 9) * 0.7], axis=1)[:4001]
    try:
        soundfile.write(stream, stereo, 16000, format=kind, subtype=subtype, endian=endian)
    except (soundfile.LibsndfileError, ValueError):
        pytest.skip("libsndfile does not write that")
    data = stream.getvalue()
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(read(data)[0], expected.mean(axis=1))


def test_the_tables_of_g711_are_odd_and_rise():
    for table in (pcm._ulaw(), pcm._alaw()):
        assert np.array_equal(np.sort(table), -np.sort(table)[::-1])
        assert 0.95 < table.max() < 1


@pytest.mark.parametrize("subtype", ["MS_ADPCM", "IMA_ADPCM", "GSM610"])
@pytest.mark.parametrize("size", [None, 0xFFFFFFFF])
def test_rarer_codecs_of_wav(subtype, size):
    data = encoded(subtype=subtype)
    if size is not None:
        place = data.index(b"data") + 4
        data = data[:place] + struct.pack("<I", size) + data[place + 4 :]
    expected, _ = soundfile.read(io.BytesIO(encoded(subtype=subtype)), dtype="float32")
    np.testing.assert_array_equal(read(data)[0], expected)


def test_an_mp3_inside_a_wav():
    sound = encoded(kind="MP3")
    header = struct.pack("<HHIIHHH", 0x55, 1, 16000, 4000, 1, 0, 0)
    chunks = (
        b"WAVEfmt "
        + struct.pack("<I", len(header))
        + header
        + b"data"
        + struct.pack("<I", len(sound))
        + sound
    )
    np.testing.assert_array_equal(read(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)[0], read(sound)[0])


# --- FLAC, Ogg, MP3 (cases 06 and 18) ---


def without_length(flac: bytes) -> bytes:
    """What an encoder writes that cannot go back: the 36 bits of the total number of samples are zero."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + b"\0" * 4 + flac[26:]


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 96000])
@pytest.mark.parametrize("samples", [100, 16000, 70_001])
def test_a_flac_of_unknown_length(rate, samples):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
    data = encoded(sound, rate, "FLAC")
    expected = read(data)[0]
    assert len(expected) == samples
    for variant in (
        without_length(data),
        without_length(data) + b"TAG" + b"\0" * 125,
        without_length(data) + b"\0" * 9,
    ):
        np.testing.assert_array_equal(read(variant)[0], expected)


def with_length(flac: bytes, total: int) -> bytes:
    """The FLAC with another total of samples: 36 bits from the lower half of byte 21 on (RFC 9639, 8.2)."""
    return flac[:21] + ((flac[21] >> 4) << 36 | total).to_bytes(5, "big") + flac[26:]


@pytest.mark.parametrize("total", [1, 100, TONE.size - 1, 2**36 - 1])
def test_a_flac_that_says_less_than_it_has_or_a_placeholder(total):
    flac = encoded(kind="FLAC")
    np.testing.assert_array_equal(read(with_length(flac, total))[0], read(flac)[0])


@pytest.mark.parametrize("more", [1, 10 * TONE.size])
def test_a_flac_that_says_more_than_it_has_is_damaged(more):
    total = TONE.size + more
    with pytest.raises(MediaError, match=f"declares {total} samples and holds {TONE.size}"):
        read(with_length(encoded(kind="FLAC"), total))


def test_what_stands_behind_a_flac_of_known_length_does_no_harm():
    flac = encoded(kind="FLAC")
    np.testing.assert_array_equal(read(flac + b"APETAGEX" * 40)[0], read(flac)[0])


def test_a_flac_of_libav_into_a_pipe():
    data = without_length(by_libav("flac", "flac", 48000))
    assert len(read(data)[0]) == 48000


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    "kind", ["flac", "flac of unknown length", "ogg", "opus", "mp3", "aiff", "au", "caf"]
)
def test_what_was_cut_is_refused(kind, share):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 48000).astype(np.float32)
    data = {
        "flac": lambda: encoded(noise, kind="FLAC"),
        "flac of unknown length": lambda: without_length(encoded(noise, kind="FLAC")),
        "ogg": lambda: encoded(noise, kind="OGG"),
        "opus": lambda: encoded(noise, kind="OGG", subtype="OPUS"),
        "mp3": lambda: encoded(noise, kind="MP3"),
        "aiff": lambda: encoded(noise, kind="AIFF"),
        "au": lambda: encoded(noise, kind="AU"),
        "caf": lambda: encoded(noise, kind="CAF"),
    }[kind]()
    assert abs(len(read(data)[0]) - 48000) <= 2000
    if share > 0.99 and kind in ("mp3", "aiff", "au", "caf"):
        return  # a frame or a few samples: within what may lie
    with pytest.raises(MediaError, match=r"damaged or incomplete|can be read"):
        read(data[: int(len(data) * share)])


@pytest.mark.parametrize("keep", ["whole", "cut"])
def test_an_mp3_that_announces_nothing_is_mentioned_where_it_ends_in_a_frame(keep, caplog):
    data = encoded(kind="MP3")
    first = mpeg.parse(data[:4])
    plain = data[first.size :]  # without the first frame, which holds the length
    assert first is not None and b"Xing" not in plain and b"Info" not in plain
    with caplog.at_level(logging.WARNING, "phirt"):
        samples, _ = read(plain if keep == "whole" else plain[:-70])
    assert len(samples) > 12000
    assert [record.getMessage() for record in caplog.records] == (
        [] if keep == "whole" else ["x: it ends inside a frame; it may have been cut"]
    )


def test_an_ogg_without_an_end_mark_is_mentioned(caplog):
    data = encoded(np.tile(TONE, 5), kind="OGG", subtype="OPUS")
    with caplog.at_level(logging.WARNING, "phirt"):
        read(data[: data.rindex(b"OggS")])
    assert "no end mark" in caplog.text


@pytest.mark.parametrize("junk", [b"", b"\0" * 700, b"some words before the sound" * 9])
def test_mp3s_with_tags_and_junk_around(junk):
    data = encoded(kind="MP3")
    expected = read(data)[0]
    picture = b"APIC" + struct.pack(">I", 5000) + b"\0\0" + b"\xff\xfb\x90\x00" * 1250
    size = len(picture)
    tag = b"ID3\x03\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + picture
    ape = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0)
    for variant in (
        tag + junk + data,
        junk + data + b"TAG" + b"\0" * 125,
        junk + data + ape + b"TAG" + b"x" * 125,
    ):
        np.testing.assert_array_equal(read(variant)[0], expected)


def test_other_formats_behind_an_id3_tag():
    for kind in ("FLAC", "WAV", "AIFF"):
        data = encoded(kind=kind)
        np.testing.assert_array_equal(read(b"ID3\x04\0\0\0\0\0\x04abcd" + data)[0], read(data)[0])


def test_frames_of_mpeg_audio_by_hand():
    """Sizes by ISO 11172-3 and 13818-3: 144 or 72 times the bitrate by the rate; layer I in steps of 4."""
    assert mpeg.parse(b"\xff\xfb\x90\x00")[:4] == (417, 1152, 44100, 2)
    assert mpeg.parse(b"\xff\xfb\x92\xc0")[:4] == (418, 1152, 44100, 1)
    assert mpeg.parse(b"\xff\xf3\x88\xc4")[:4] == (288, 576, 16000, 1)
    assert mpeg.parse(b"\xff\xfd\x84\x00")[:4] == (384, 1152, 48000, 2)
    assert mpeg.parse(b"\xff\xff\x10\x00")[:4] == (32, 384, 44100, 2)
    for nothing in (
        b"\xff\xe8\x90\x00",
        b"\xff\xfb\xf0\x00",
        b"\xff\xfb\x9c\x00",
        b"\xff\xf9\x90\x00",
        b"ID3\x03",
    ):
        assert mpeg.parse(nothing) is None


def test_decoders_write_nothing_themselves(shared_data, tmp_path):
    """Case 18 and attack 09: what a library writes goes past Python, so another process is watched."""
    files = []
    for folder in ("use/18-mp3-chatter-and-cut", "attack/09-stdout-from-libsndfile"):
        files += [
            path
            for path in (shared_data.parent / "cases" / folder).iterdir()
            if path.suffix in (".mp3", ".sds")
        ]
    rng = np.random.default_rng(0)
    for kind in ("MP3", "FLAC", "OGG", "SDS", "CAF", "AIFF"):
        for number in range(8):
            data = bytearray(encoded(kind=kind))
            for place in rng.integers(0, len(data), 12):
                data[place] ^= int(rng.integers(1, 256))
            files.append(tmp_path / f"{kind}{number}")
            files[-1].write_bytes(data[: int(rng.integers(len(data) // 2, len(data) + 1))])
    program = (
        "import logging, sys\nlogging.disable()\n"
        "from phirt.bundle.manifest import Limits\nfrom phirt.encoders import audio_file\n"
        "from phirt.errors import MediaError\n"
        "for name in sys.argv[1:]:\n"
        "    try: audio_file.read_clip(name, Limits(1, 60.0, 1 << 24))\n"
        "    except MediaError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, files)], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# --- phones, browsers, cameras: PyAV ---

PHONES = [
    ("ipod", "aac", 44100, "MPEG-4 audio (m4a)"),
    ("mp4", "aac", 48000, "MPEG-4 (a video, or m4a)"),
    ("mov", "aac", 48000, "a QuickTime video"),
    ("3gp", "aac", 16000, "a 3GPP recording"),
    ("webm", "libopus", 48000, "WebM"),
    ("matroska", "aac", 48000, "a Matroska video"),
    ("amr", "libopencore_amrnb", 8000, "AMR"),
    ("adts", "aac", 48000, "AAC"),
    ("avi", "mp3", 48000, "an AVI video"),
    ("w64", "pcm_s16le", 16000, "Wave64"),
    ("mpegts", "aac", 48000, "an MPEG transport stream"),
    ("caf", "alac", 48000, "CAF"),
    ("wv", "wavpack", 48000, "WavPack"),
    ("tta", "tta", 48000, "True Audio"),
]


@pytest.mark.parametrize(("kind", "codec", "rate", "name"), PHONES)
def test_formats_of_phones_and_browsers(kind, codec, rate, name):
    data = by_libav(kind, codec, rate)
    assert signatures.identify(data[: signatures.HEAD]).name == name
    samples, found = read(data)
    assert found == rate
    assert 0.97 < len(samples) / rate < 1.1
    assert abs(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples) - 440) < 5


@pytest.mark.parametrize(("kind", "codec", "rate", "name"), PHONES)
def test_without_pyav_one_line_says_what_to_install(kind, codec, rate, name, monkeypatch):
    data = by_libav(kind, codec, rate)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError) as caught:
        read(data)
    message = str(caught.value)
    assert message.startswith(f"x is {name}; reading it needs")
    assert "pip install av" in message and "ffmpeg -i IN OUT.wav" in message and "\n" not in message


def test_mp3_without_miniaudio(monkeypatch):
    data = encoded(kind="MP3")
    expected = read(data)[0]
    monkeypatch.setitem(sys.modules, "miniaudio", None)
    samples, _ = read(data)
    assert abs(len(samples) - len(expected)) <= 2304
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"x is MP3; reading it needs .*: pip install av"):
        read(data)


@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska", "avi"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_cut_videos_are_refused(kind, share):
    codec = "mp3" if kind == "avi" else "aac"
    data = by_libav(kind, codec, samples=np.tile(TONE, 5))
    with pytest.raises(MediaError):
        read(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("kind", "codec", "rate"), [("adts", "aac", 48000), ("amr", "libopencore_amrnb", 8000)]
)
def test_frames_without_a_header_that_end_inside_one_are_mentioned(kind, codec, rate, caplog):
    data = by_libav(kind, codec, rate)
    with caplog.at_level(logging.WARNING, "phirt"):
        read(data[:-5])
    assert "it ends inside a frame" in caplog.text


def test_a_video_without_sound():
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width, track.height = 32, 32
        for _ in range(3):
            container.mux(
                track.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24"))
            )
        container.mux(track.encode(None))
    with pytest.raises(MediaError, match="no sound track"):
        read(stream.getvalue())


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x00\x00\x00\x1cftypheic\0\0\0\0mif1heic", "HEIC, a picture"),
        (b"\x89PNG\r\n\x1a\n", "PNG, a picture"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP, a picture"),
        (b"MThd\0\0\0\x06", "MIDI"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\0" * 5000, "nothing but zeros"),
        (b"just words", "is text"),
        (bytes(range(200, 250)) * 3, "of no format that phirt knows"),
    ],
)
def test_what_is_no_recording_is_named(head, name):
    with pytest.raises(MediaError) as caught:
        read(head)
    assert name in str(caught.value)
    assert " object at 0x" not in str(caught.value)


# --- channels, arrays, sources ---


def test_channels_that_cancel_are_heard():
    both = np.stack([TONE, -TONE], axis=1)
    np.testing.assert_allclose(np.abs(read(encoded(both, subtype="FLOAT"))[0]), np.abs(TONE), atol=1e-6)
    nearly = np.stack([0.9 * TONE, -TONE, TONE * 0], axis=1)
    np.testing.assert_allclose(read(encoded(nearly, subtype="FLOAT"))[0], -TONE, atol=1e-6)


def test_one_channel_of_two_is_still_averaged():
    np.testing.assert_allclose(
        read(encoded(np.stack([TONE, TONE * 0], axis=1), subtype="FLOAT"))[0], TONE / 2, atol=1e-6
    )


def test_a_host_that_raises_on_every_floating_point_doubt():
    wide = TONE.astype(np.float64)
    tiny = encoded(np.stack([wide, -wide], axis=1) * 1e-38, subtype="FLOAT")
    huge = encoded(wide * 1e300, subtype="DOUBLE")
    samples = wide * 1e-300
    with np.errstate(all="raise"):
        assert len(read(tiny)[0]) == len(read(huge)[0]) == 16000
        assert len(audio_file.read_clip((samples, 16000), LIMITS).samples) == 16000


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
@pytest.mark.parametrize("shape", ["mono", "one channel", "stereo"])
def test_samples_with_their_rate(dtype, shape):
    samples = TONE if np.issubdtype(dtype, np.floating) else TONE * (np.iinfo(dtype).max // 2)
    samples = samples.astype(dtype)
    given_ = {"mono": samples, "one channel": samples[:, None], "stereo": np.stack([samples] * 2, axis=1)}[
        shape
    ]
    clip = audio_file.read_clip((given_, 16000), LIMITS)
    scale = 1 if np.issubdtype(dtype, np.floating) else 0.5
    np.testing.assert_allclose(clip.samples, TONE * scale, atol=1e-4)
    assert clip.rate == 16000
    swapped = audio_file.read_clip((np.int64(16000), given_), LIMITS)
    assert (swapped.key, swapped.rate) == (clip.key, 16000)
    assert audio_file.read_clip((given_, 8000), LIMITS).key != clip.key


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TONE, r"samples need their rate; give a pair: \(samples, 16000\)"),
        ((TONE, 16000, 1), "samples need their rate"),
        ((TONE, "16000"), "the rate is '16000'"),
        ((TONE, 16000.5), "the rate is 16000.5"),
        ((TONE[None], 16000), r"look like \[channels, n\].*samples.T"),
        ((TONE * 32767, 16000), "float samples reach 16383.*give int16"),
        ((TONE.astype(np.uint8), 16000), "samples are uint8, accepted"),
        ((np.zeros((2, 2, 2)), 16000), "have 3 dimensions"),
        ((TONE[:0], 16000), "holds no samples"),
        ((np.tile(TONE, 11), 16000), r"the given samples is longer than 10 seconds \(it lasts 11.0\)"),
        (7, "got int, accepted"),
        (io.StringIO("x"), "opened as text; open it with mode 'rb'"),
        ("https://example.org/a.wav", "opens no network addresses"),
        (PurePosixPath("https://example.org/a.wav"), "opens no network addresses"),  # it keeps one slash
    ],
)  # fmt: skip
def test_sources_that_cannot_be_meant(source, message):
    with pytest.raises(MediaError, match=message):
        audio_file.read_clip(source, LIMITS)


def test_every_way_to_hand_over_a_file(tmp_path):
    path = tmp_path / "a clip.wav"
    path.write_bytes(encoded())
    with path.open("rb") as opened:
        sources = [path, str(path), path.as_uri(), path.read_bytes(), bytearray(path.read_bytes()), opened]
        keys = {
            audio_file.read_clip(source, LIMITS).key for source in [*sources, io.BytesIO(path.read_bytes())]
        }
    assert len(keys) == 1


def test_a_stream_that_was_read_already_is_empty():
    stream = io.BytesIO(encoded())
    stream.read()
    with pytest.raises(MediaError, match="the given audio is empty"):
        audio_file.read_clip(stream, LIMITS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for reader in (audio_file.read_clip, audio_file.open_audio):
        writer = threading.Thread(target=path.write_bytes, args=(encoded(kind="FLAC"),))
        writer.start()
        found = reader(path, LIMITS)
        writer.join()
        assert found.rate == 16000
    found.close()


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices here")  # noqa: PTH110
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_devices_are_refused(name):
    with pytest.raises(MediaError, match="is no regular file but a device"):
        audio_file.read_clip(name, LIMITS)


def test_a_pipe_that_never_ends_is_bounded():
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    with pytest.raises(MediaError, match="more than 16777216 bytes"):
        audio_file.read_clip(Endless(), LIMITS)


def test_a_recording_in_pieces(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(encoded(np.tile(TONE, 30)))
    with audio_file.open_audio(path, LIMITS) as recording:
        assert (recording.rate, recording.seconds) == (16000, 30.0)
        pieces = list(recording.blocks())
    assert len(pieces) > 5
    assert sum(map(len, pieces)) == 30 * 16000


def test_out_of_memory_is_called_so(monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr("phirt.encoders.formats.pcm.np.frombuffer", refuse)
    with pytest.raises(MemoryError):
        read(encoded())


# --- files that mean harm ---

GOOD = {
    "WAV": encoded(TONE[:3000]),
    "ADPCM": encoded(TONE[:3000], subtype="MS_ADPCM"),
    "AIFF": encoded(TONE[:3000], kind="AIFF"),
    "AU": encoded(TONE[:3000], kind="AU"),
    "CAF": encoded(TONE[:3000], kind="CAF"),
    "FLAC": encoded(TONE[:3000], kind="FLAC"),
    "endless FLAC": without_length(encoded(TONE[:3000], kind="FLAC")),
    "Vorbis": encoded(TONE[:3000], kind="OGG"),
    "Opus": encoded(TONE[:3000], kind="OGG", subtype="OPUS"),
    "MP3": encoded(TONE[:3000], kind="MP3"),
    "m4a": by_libav("ipod", "aac", samples=TONE[:3000]),
    "webm": by_libav("webm", "libopus", samples=TONE[:3000]),
    "amr": by_libav("amr", "libopencore_amrnb", 8000, samples=TONE[:3000]),
    "aac": by_libav("adts", "aac", samples=TONE[:3000]),
}


@given(
    kind=st.sampled_from(sorted(GOOD)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    near_start=st.booleans(),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=250)
def test_changed_files_are_heard_or_refused(kind, changes, near_start, share):
    data = bytearray(GOOD[kind])
    for place, value in changes:
        data[int(place * (100 if near_start else len(data)))] = value
    try:
        samples, rate = read(bytes(data[: max(1, int(len(data) * share))] if share < 0.5 else data))
    except MediaError as error:
        assert " object at 0x" not in str(error)
    else:
        assert samples.dtype == np.float32 and samples.ndim == 1 and 8000 <= rate <= 384_000


@pytest.mark.parametrize(
    "words", [b"\xff\xfb\x90\x00", b"\xff\xe0\xff\xff", b"OggS", b"fLaC", b"\xff\xf8\xff"]
)
def test_files_made_of_sync_words_end_soon(words):
    with pytest.raises(MediaError):
        read(words * (2_000_000 // len(words)))


def test_a_stick_that_is_pulled_out_is_one_line(monkeypatch):
    class Stick(io.BytesIO):
        gone = False

        def read(self, size: int | None = -1, /) -> bytes:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().read(size)

    stick = Stick(encoded())
    monkeypatch.setattr(audio_file, "open_source", lambda *arguments: (stick, "memo.wav"))
    with audio_file.open_audio("memo.wav", LIMITS) as recording:
        stick.gone = True
        with pytest.raises(MediaError, match=r"memo\.wav cannot be read: Input/output error; check the file"):
            list(recording.blocks())
