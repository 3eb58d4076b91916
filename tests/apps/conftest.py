"""A bundle with random weights, media that must be refused, and ways to run the command line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyte
import pytest
import soundfile
import torch
from click.testing import Result
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

from phirt_apps.cli import app
from phirt_export.exporter import export_bundle
from phirt_export.reference import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    Model,
    ModelConfig,
    RopeConfig,
    TokenConfig,
    VisionConfig,
)
from phirt_train.chat_format import SPECIAL_TOKENS
from phirt_train.state_file import save_tensors

CONTEXT = 32768  # long enough that an answer runs for seconds, to be stopped
TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- if message.get('tools') -%}{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{%- endif -%}"
    "{{ '<|end|>' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS.tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog, then what is this?"] * 9, trainer
    )
    return tokenizer


ONES = (1.0,) * 8
ONE_REGIME = RopeConfig(1e4, 16, CONTEXT, CONTEXT, ONES, ONES)
TWO_REGIMES = RopeConfig(1e4, 16, 64, 1024, ONES, (4.0,) * 8)


def _config(vocab_size: int, rope: RopeConfig) -> ModelConfig:
    return ModelConfig(
        decoder=DecoderConfig(2, 64, 4, 2, 32, 128, vocab_size, 1e-5, rope),
        tokens=TokenConfig(bos=0, pad=0, eos=(0, 4), image=1, audio=2),
        vision=VisionConfig(
            crop_size=64,
            patch_size=16,
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=2,
            norm_eps=1e-6,
            max_crops=1,
        ),
        audio=AudioConfig(
            num_mels=80,
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=2,
            kernel_size=3,
            bias_max_distance=100,
            window_tokens=100,
        ),
        adapters={"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(4, 8.0)},
    )


def _random_weights(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Random weights, but only printable ASCII can be likeliest: answers are visible and never end."""
    model = Model(config)
    generator = torch.Generator().manual_seed(5)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.dim() >= 2:
            spread = 0.1 if "embed_tokens" in name else 3.0 * tensor[0].numel() ** -0.5
            tensor.copy_(spread * torch.randn(tensor.shape, generator=generator))
        if "embed_tokens" in name:
            for row in range(len(tensor)):
                text = tokenizer.decode([row])
                if not (text and text.isascii() and text.isprintable()):
                    tensor[row] = 0.0
    return state


def _bundle(folder: Path, rope: RopeConfig) -> Path:
    tokenizer = _tokenizer()
    config = _config(tokenizer.get_vocab_size(), rope)
    checkpoint = folder / "checkpoint"
    with torch.no_grad():
        save_tensors(_random_weights(config, tokenizer), checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text(config.to_json())
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    return export_bundle(
        checkpoint, folder / "tiny", bits=8, name="tiny", description="random weights", method="rtn"
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle with random weights: text, images and audio. Do not change it; see `broken_bundle`."""
    return _bundle(tmp_path_factory.mktemp("bundle"), ONE_REGIME)


@pytest.fixture(scope="session")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other rotary factors past 64 tokens."""
    return _bundle(tmp_path_factory.mktemp("long"), TWO_REGIMES)


@pytest.fixture
def invoke(bundle: Path):
    """Runs a command on the bundle inside this process."""

    def run_command(command: str, *arguments: object, **options: object) -> Result:
        return CliRunner().invoke(app, [command, "-m", str(bundle), *map(str, arguments)], **options)

    return run_command


@pytest.fixture
def broken_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "broken"))


@pytest.fixture(scope="session")
def examples() -> Path:
    """The repository's example picture and clip."""
    return Path(__file__).parents[2] / "apps" / "examples"


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_png(side: int) -> bytes:
    """A valid PNG header that claims side x side RGB pixels, and a few bytes of them."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", data)
        + _png_chunk(b"IEND", b"")
    )


def _lying_wav() -> bytes:
    """A WAV whose header claims a gigabyte of sound and that holds a tenth of a second."""
    samples = np.full(1600, 1000, dtype="<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
    head = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", 1 << 30)
    return b"RIFF" + struct.pack("<I", (1 << 30) + 36) + head + samples


@pytest.fixture(scope="session")
def bad_media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images and recordings that must be refused, each for its own reason."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.wav").mkdir()
    (folder / "empty.jpg").touch()
    (folder / "empty.wav").touch()
    (folder / "text.jpg").write_text("This is a text, whatever its name says.\n" * 20)
    (folder / "text.wav").write_text("This is a text, whatever its name says.\n" * 20)
    photo = Image.effect_noise((320, 240), 60).convert("RGB")
    photo.save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "huge.png").write_bytes(_huge_png(60_000))
    Image.new("RGB", (1, 1), (200, 0, 0)).save(folder / "pixel.png")
    (folder / "lying.wav").write_bytes(_lying_wav())
    soundfile.write(folder / "silence.wav", np.zeros(32000, dtype=np.float32), 16000)
    time = np.arange(600 * 8000) / 8000
    soundfile.write(folder / "long.wav", 0.3 * np.sin(2 * np.pi * 440 * time), 8000, subtype="PCM_U8")
    tone = np.sin(np.arange(16000) / 10).astype(np.float32)
    tone[8000:8010] = np.nan
    soundfile.write(folder / "nan.wav", tone, 16000, subtype="FLOAT")
    return folder


COMMAND = [sys.executable, "-c", "from phirt_apps.cli import main; main()"]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs `phirt` as a process of its own; stdin is empty unless `input` is given."""

    def run_phirt(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        if "stdin" not in options:
            options.setdefault("input", b"")
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.run(command, timeout=60, check=False, **options)  # type: ignore[call-overload]

    return run_phirt


class Terminal:
    """`phirt` on a pseudo-terminal, as a person sees it: type into it, wait for what appears.

    `seen` is everything that was written; `lines` are what stands on the screen now.
    """

    def __init__(self, command: list[str], environment: dict[str, str], size: tuple[int, int]) -> None:
        self.seen = ""
        self._mark = 0
        self._screen = pyte.HistoryScreen(*size, history=5000)
        self._stream = pyte.ByteStream(self._screen)
        child, self._master = pty.fork()
        if child == 0:
            columns, rows = size
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.environ.update({"TERM": "xterm", **environment})
            os.execvp(command[0], command)
        self.pid = child
        self.status: int | None = None

    @property
    def lines(self) -> list[str]:
        """The lines on the screen, without blank ones at its end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip("\n").split("\n")

    @property
    def modes(self) -> list[Any]:
        """What tcgetattr tells of the terminal."""
        return termios.tcgetattr(self._master)

    def resize(self, columns: int, rows: int) -> None:
        """Gives the window another size, as dragging its corner does."""
        self._screen.resize(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_line(self, pattern: str, seconds: float = 30.0) -> str:
        """Waits until the line with the cursor matches the pattern as a whole; returns it."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._screen.display[self._screen.cursor.y][: self._screen.cursor.x]
            if re.fullmatch(pattern, line):
                return line
            left = deadline - time.monotonic()
            assert left > 0 and self._read(left), f"{pattern!r} is not {line!r}; the screen: {self.lines}"

    def type(self, text: str) -> None:
        """Types the text as it is; a message needs its newline, "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        self._mark = len(self.seen)
        os.write(self._master, text.encode())

    def wait(self, pattern: str, seconds: float = 30.0) -> str:
        """Waits until the pattern appears after the last typing; returns all that came since then."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen[self._mark :]):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not appear in {self.seen[self._mark :][-2000:]!r}"
            if not self._read(left):
                assert re.search(pattern, self.seen[self._mark :]), (
                    f"ended before {pattern!r}: {self.seen[-2000:]!r}"
                )
        return self.seen[self._mark :]

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program closed the terminal
            return False
        self.seen += data.decode("utf-8", "replace")
        self._stream.feed(data)
        return bool(data)

    def finish(self, seconds: float = 20.0) -> int:
        """Waits until the program ends; returns its exit status."""
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())) and time.monotonic() < deadline:
            pass
        self.close()
        assert self.status is not None
        return self.status

    def close(self) -> None:
        """Ends the program if it still runs."""
        if self.status is not None:
            return
        for _ in range(100):
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.02)
        else:
            os.kill(self.pid, 9)
            _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Opens `phirt` on a pseudo-terminal; what still runs at the end is closed."""
    opened: list[Terminal] = []

    def open_terminal(
        *arguments: object,
        wrapper: tuple[str, ...] = (),
        size: tuple[int, int] = (200, 50),
        **environment: str,
    ) -> Terminal:
        opened.append(Terminal([*wrapper, *COMMAND, *map(str, arguments)], environment, size))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()
