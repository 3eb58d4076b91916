"""`phirt transcribe` with recordings of any length, from files, pipes and standard input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

import phirt

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")
COMMAND = [sys.executable, "-m", "phirt", "transcribe"]
RATE = 8000


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute and a half with a tone every second."""
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
    path = tmp_path_factory.mktemp("long") / "talk.wav"
    soundfile.write(path, np.tile(np.concatenate([tone, np.zeros(RATE // 2)]), 90), RATE)
    return path


def test_a_long_recording_is_a_line_for_each_part(invoke, long_recording: Path) -> None:
    result = invoke("transcribe", "--max-new-tokens", 4, long_recording)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 90
    file = json.loads(invoke("transcribe", "--json", "--max-new-tokens", 4, long_recording).stdout)["files"][
        0
    ]
    assert [round(segment["start"]) for segment in file["segments"]] == list(range(90))
    assert file["text"] == " ".join(segment["text"] for segment in file["segments"] if segment["text"])
    assert file["finish_reason"] in ("stop", "length")


def test_words_that_were_cut_are_told(invoke, examples: Path) -> None:
    """Case 04."""
    clip = examples / "seven.flac"
    result = invoke("transcribe", "--max-new-tokens", 1, clip)
    assert result.exit_code == 0
    assert result.stderr == f"{clip}, 0:00 to 0:01: cut at 1 new tokens; --max-new-tokens N allows more\n"
    value = json.loads(invoke("transcribe", "--max-new-tokens", 1, "--json", clip).stdout)
    assert value["files"][0]["finish_reason"] == "length"


@posix
def test_standard_input_and_pipes(bundle: Path, examples: Path, tmp_path: Path) -> None:
    clip = examples / "seven.flac"
    arguments = [*COMMAND, "-m", bundle, "--max-new-tokens", "5"]
    expected = subprocess.run([*arguments, clip], capture_output=True, check=True, timeout=60).stdout
    piped = subprocess.run(
        [*arguments, "-"], input=clip.read_bytes(), capture_output=True, check=True, timeout=60
    )
    assert piped.stdout == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(clip.read_bytes(),))
    writer.start()
    named = subprocess.run([*arguments, pipe], capture_output=True, check=True, timeout=60)
    writer.join()
    assert named.stdout == expected


def test_standard_input_is_read_once(invoke) -> None:
    result = invoke("transcribe", "-", "-")
    assert result.exit_code == 2
    assert "standard input can be read only once" in result.stderr


@posix
def test_ctrl_c_keeps_what_was_done(bundle: Path, long_recording: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "-m", bundle, "--max-new-tokens", "40", long_recording, long_recording],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors and b"error" not in errors
    every = [*lines, *rest.splitlines(keepends=True)]
    assert all(line.startswith(f"{long_recording}: ".encode()) and line.endswith(b"\n") for line in every)
    assert len(every) < 180


@posix
def test_ctrl_c_ends_the_wait_for_a_pipe_that_nobody_writes(bundle: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [*COMMAND, "-m", bundle, pipe],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in errors


def test_what_is_no_recording_is_named_in_one_line(invoke, examples: Path, tmp_path: Path) -> None:
    (tmp_path / "memo.wav").write_bytes(b"%PDF-1.7 ...")
    result = invoke("transcribe", tmp_path / "memo.wav", examples / "shapes.png")
    assert result.exit_code == 1
    pdf, png = result.stderr.splitlines()
    assert "is a PDF document, no recording" in pdf
    assert "is PNG, a picture and no recording; attach it as an image" in png


def test_ctrl_c_while_a_recording_is_opened_keeps_the_ones_before(
    invoke, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = phirt.Model.transcribe_segments

    def interrupted(model: phirt.Model, source: object, **arguments: object) -> object:
        if Path(str(source)).name == "second.flac":
            raise KeyboardInterrupt
        return hear(model, source, **arguments)

    monkeypatch.setattr(phirt.Model, "transcribe_segments", interrupted)
    result = invoke("transcribe", "--json", examples / "seven.flac", examples / "second.flac")
    assert result.exit_code == 130
    assert [Path(one["path"]).name for one in json.loads(result.stdout)["files"]] == ["seven.flac"]
