"""The page in a real browser, on WebAssembly: golden conversations, pictures and sound, stopping, what it
asks for, and a second start without a server's model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from web_host import Host

import phirt

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="not installed: chromium")


@pytest.fixture(scope="module")
def seen(host: Host, nano_package: Path) -> Any:
    """What was seen in one visit and the next."""
    clip = nano_package / "golden-voice.wav"
    flags = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={clip}",
    ]
    done = host.node("page", nano_package, json.dumps({"chromium": _CHROMIUM, "flags": flags}))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_every_golden_conversation(seen: Any) -> None:
    assert seen["golden"]["said"] == "7 of 7 conversations identical", seen["golden"]["cases"]


def test_answers_stream_and_can_be_stopped(seen: Any) -> None:
    assert seen["text"]["pieces"] == int(seen["text"]["note"].split()[0]) > 3
    assert "stopped" in seen["stop"]["note"]


def test_pictures_and_sound(seen: Any) -> None:
    """By a file picker, dropped, and by a microphone that plays the recording in a circle."""
    assert all(seen[one]["text"] for one in ("image", "drop", "clip", "record"))
    assert seen["recorded"]["attached"].startswith("recording, ")


def test_nothing_else_is_asked_for(seen: Any) -> None:
    assert seen["others"] == [] and seen["problems"] == []
    assert seen["policy"]["refused"] == "connect-src"


def test_a_second_start_needs_no_server(seen: Any, nano_package: Path) -> None:
    assert seen["fetched"] == len(json.loads((nano_package / "manifest.json").read_text())["files"]) + 1
    with phirt.load(nano_package) as model:
        wanted = model.chat().send("Tell me about the sea.").text()
    assert seen["again"]["answer"] == seen["text"]["text"]
    assert seen["text"]["text"].split()[:3] == wanted.split()[:3]


def test_a_folder_can_be_picked(seen: Any) -> None:
    """What the browser keeps already is not read again."""
    assert seen["picked"]["text"] == seen["text"]["text"]
