"""The audio processor against an independent log-mel, scipy's resampling, and recordings that mean harm."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.bundle.manifest import Limits
from phirt.encoders import phi4mm_audio as processor
from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.errors import MediaError

SPEC = AudioConstants(sample_rate=16000, num_mels=80, subsampling=8, window_tokens=50)
LIMITS = Limits(image_pixels=1000, audio_seconds=10.0, media_bytes=1 << 24)


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def wav(samples: np.ndarray, rate: int = 16000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def frames_of(data: bytes) -> np.ndarray:
    return processor.process_audio(data, SPEC, LIMITS)[0]


def naive_log_mel(samples: np.ndarray, rate: int = 16000) -> np.ndarray:
    """Section C once more, frame by frame and bin by bin."""
    window, hop, size = (400, 160, 512) if rate == 16000 else (200, 80, 256)
    hamming = scipy.signal.get_window("hamming", window, fftbins=False)
    rows = []
    for start in range(0, len(samples) - window + 1, hop):
        x = samples[start : start + window].astype(np.float64)
        previous = np.concatenate([[x[0]], x[:-1]])
        y = (x - 0.97 * previous) * 32768
        power = np.abs(scipy.fft.rfft(y * hamming, size)) ** 2
        if rate == 8000:
            power = np.concatenate([power[:128], np.zeros(129)])
        row = []
        edges = np.linspace(0, 1127 * np.log(1 + 7690 / 700), 82)
        for m in range(80):
            total = 0.0
            for k in range(1, 246):
                mel = 1127 * np.log(1 + k * 31.25 / 700)
                if edges[m] < mel <= edges[m + 1]:
                    total += power[k] * (mel - edges[m]) / (edges[m + 1] - edges[m])
                elif edges[m + 1] < mel < edges[m + 2]:
                    total += power[k] * (edges[m + 2] - mel) / (edges[m + 2] - edges[m + 1])
            row.append(np.log(max(total, 1.0)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_log_mel_equals_the_formula(rate):
    samples = (np.random.default_rng(0).standard_normal(rate // 8) * 0.1).astype(np.float32)
    found = processor.log_mel(samples, rate, 80)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive_log_mel(samples, rate), atol=1e-4)


def test_the_first_sample_stands_for_its_predecessor():
    """The spec's prev[0] = x[0] is roll, then prev[0] = prev[1]; both say the same."""
    samples = np.full(400, 0.25, dtype=np.float32)
    np.testing.assert_allclose(processor.log_mel(samples, 16000, 80), naive_log_mel(samples), atol=1e-4)


def test_the_eight_kilohertz_path_has_an_empty_upper_half():
    found = processor.log_mel(tone(8000).astype(np.float32), 8000, 80)
    edges = np.linspace(0, 1127 * np.log(1 + 7690 / 700), 82)
    above = 700 * (np.exp(edges[:-2] / 1127) - 1) > 4000
    assert above.sum() > 10
    assert (found[:, above] == 0).all()
    assert (found[:, :20].max(axis=1) > 5).all()


def test_filters_leave_out_dc_and_everything_from_bin_246():
    filters = processor.mel_filters(80)
    assert filters.shape == (257, 80)
    assert (filters[0] == 0).all()
    assert (filters[246:] == 0).all()
    assert (filters[245] > 0).any()
    assert filters.max() <= 1


@given(samples=st.integers(400, 40000))
def test_frame_and_token_counts(samples):
    frames = (samples - 400) // 160 + 1
    assert len(np.lib.stride_tricks.sliding_window_view(np.zeros(samples), 400)[::160]) == frames
    assert processor.count_tokens(frames, SPEC) == -(-frames // 8)


@pytest.mark.parametrize(
    ("frames", "tokens"), [(1098, 138), (1332, 167), (1344, 168), (1, 1), (8, 1), (9, 2)]
)
def test_token_counts_by_hand(frames, tokens):
    assert processor.count_tokens(frames, SPEC) == tokens


@pytest.mark.parametrize("rate", [11025, 22050, 24000, 44100, 48000, 96000, 12000])
def test_other_rates_are_resampled_to_16_kilohertz(rate):
    samples = tone(rate, 1.0, 440.0) + tone(rate, 1.0, 3000.0, 0.2)
    found = frames_of(wav(samples.astype(np.float32), rate, subtype="FLOAT"))
    expected = processor.log_mel(
        (tone(16000, 1.0) + tone(16000, 1.0, 3000.0, 0.2)).astype(np.float32), 16000, 80
    )
    assert found.shape == expected.shape
    loud = expected[5:-5] > 12
    np.testing.assert_allclose(found[5:-5][loud], expected[5:-5][loud], atol=0.02)


def test_resampling_does_not_alias():
    high = tone(48000, 1.0, 12000.0)  # above 8 kHz: nothing may be left of it
    found = frames_of(wav(high, 48000, subtype="FLOAT"))[5:-5]
    assert found.max() < 8
    assert frames_of(wav(tone(48000, 1.0, 1000.0), 48000, subtype="FLOAT")).max() > 20


def test_resampling_agrees_with_scipy():
    rng = np.random.default_rng(1)
    low = scipy.signal.firwin(801, 6000, fs=48000)
    samples = (scipy.signal.lfilter(low, 1, rng.standard_normal(48000)) * 0.3).astype(np.float32)
    found = frames_of(wav(samples, 48000, subtype="FLOAT"))
    expected = processor.log_mel(scipy.signal.resample_poly(samples, 1, 3).astype(np.float32), 16000, 80)
    np.testing.assert_allclose(found[5:-5, :60], expected[5:-5, :60], atol=0.1)


def test_eight_kilohertz_is_not_resampled():
    samples = tone(8000).astype(np.float32)
    np.testing.assert_allclose(
        frames_of(wav(samples, 8000, subtype="FLOAT")), processor.log_mel(samples, 8000, 80), atol=1e-5
    )


def test_stereo_is_averaged():
    left, right = tone(16000), tone(16000, hertz=900.0)
    found = frames_of(wav(np.stack([left, right], axis=1), subtype="FLOAT"))
    expected = processor.log_mel(((left + right) / 2).astype(np.float32), 16000, 80)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("FLAC", None), ("OGG", None), ("MP3", None)],
)
def test_formats(tmp_path, kind, subtype):
    samples = tone(16000, 1.0)
    data = wav(samples, kind=kind, subtype=subtype)
    (tmp_path / "x").write_bytes(data)
    found = processor.process_audio(tmp_path / "x", SPEC, LIMITS)[0]
    assert abs(len(found) - 98) <= 12  # an MP3 pads its ends
    assert abs(np.median(found[20:80].max(axis=1)) - np.median(frames_of(wav(samples)).max(axis=1))) < 0.2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(value):
    samples = tone(16000).astype(np.float32)
    samples[100] = value
    with pytest.raises(MediaError, match="no numbers"):
        frames_of(wav(samples, subtype="FLOAT"))


@pytest.mark.parametrize("level", [0.0, 1e-6, 3e-5])
def test_silence_is_refused(level):
    with pytest.raises(MediaError, match="is silent: no sample reaches -90 dBFS"):
        frames_of(wav(np.full(8000, level, np.float32), subtype="FLOAT"))


def test_a_whisper_is_not_silence():
    assert len(frames_of(wav(tone(16000, level=1e-4), subtype="FLOAT"))) == 48


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_too_long_is_refused_with_the_limit(rate):
    with pytest.raises(
        MediaError, match=r"is longer than 10 seconds \(it lasts 10.1\), the limit of this bundle; cut it"
    ):
        frames_of(wav(tone(rate, 10.1), rate))
    assert len(frames_of(wav(tone(rate, 10.0), rate))) == 998


def test_a_long_recording_is_not_read_to_its_end():
    data = wav(np.tile(tone(8000, 1.0), 600), 8000, subtype="PCM_16")
    tracemalloc.start()
    with pytest.raises(MediaError, match="longer than 10 seconds"):
        frames_of(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data) + (8 << 20)


@pytest.mark.parametrize(("samples", "rate"), [(399, 16000), (199, 8000), (1, 16000), (500, 48000)])
def test_less_than_one_frame_is_refused(samples, rate):
    with pytest.raises(MediaError, match=r"samples at .* at least \d+ are needed"):
        frames_of(wav(np.full(samples, 0.5), rate))


@pytest.mark.parametrize("rate", [4000, 7999, 400000])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(MediaError, match=f"has {rate} samples a second, accepted: 8000 to 384000"):
        frames_of(wav(tone(8000), rate))


def lying(samples: np.ndarray, **changes: int) -> bytes:
    """A 16-bit WAV whose header is changed: `data` bytes, `channels`, `rate`, `bits`."""
    data = bytearray(wav(samples, subtype="PCM_16"))
    places = {
        "riff": ("<I", 4),
        "channels": ("<H", 22),
        "rate": ("<I", 24),
        "align": ("<H", 32),
        "bits": ("<H", 34),
        "data": ("<I", 40),
    }
    for name, value in changes.items():
        struct.pack_into(places[name][0], data, places[name][1], value)
    return bytes(data)


@pytest.mark.parametrize("claimed", [17026, 1 << 20, 0x7FFE0000, 0xFFFE0000])
def test_a_header_that_claims_more_than_there_is(claimed):
    tracemalloc.start()
    with pytest.raises(MediaError, match=f"declares {claimed} bytes of sound and holds 16000"):
        frames_of(lying(tone(16000), data=claimed))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "changes",
    [{"channels": 0}, {"channels": 65535}, {"rate": 0}, {"rate": 0xFFFFFFFF}, {"bits": 0}, {"bits": 255}],
)
def test_absurd_headers_are_refused(changes):
    with pytest.raises(MediaError):
        frames_of(lying(tone(16000), **changes))


def test_a_header_that_claims_less_reads_less():
    assert len(frames_of(lying(tone(16000), data=6400))) == (3200 - 400) // 160 + 1


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share):
    data = wav(np.random.default_rng(0).standard_normal(16000) * 0.1, kind=kind)
    with pytest.raises(MediaError):
        frames_of(data[: int(len(data) * share)])


def test_files_that_are_no_recordings(tmp_path):
    (tmp_path / "text.wav").write_text("I am not a recording")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "none.wav").write_bytes(wav(np.zeros(0)))
    cases = {
        "text.wav": "is text, no recording that can be read",
        "empty.wav": "is empty",
        "folder.wav": "is a folder",
        "missing.wav": "does not exist",
        "none.wav": "holds no samples",
    }
    for name, expected in cases.items():
        with pytest.raises(MediaError, match=expected):
            processor.process_audio(tmp_path / name, SPEC, LIMITS)


@given(
    kind=st.sampled_from(["WAV", "FLAC", "OGG"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=5),
)
@settings(deadline=None, max_examples=60)
def test_changed_bytes_are_refused_or_heard(kind, changes):
    data = bytearray(wav(tone(16000, 0.2), kind=kind))
    for place, mask in changes:
        data[int(place * len(data))] ^= mask
    try:
        frames = frames_of(bytes(data))
    except MediaError as error:
        assert changes, error
    else:
        assert frames.shape[1] == 80 and np.isfinite(frames).all()
