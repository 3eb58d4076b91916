"""Bad input costs one clear line on stderr and exit status 1; stdout stays empty and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import phirt
from phirt_apps.cli import app


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail as agreed, without a word from native code; returns its one line."""

    def check(*arguments: object, **options: object) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)), **options)
        assert (result.exit_code, result.stdout) == (1, "")
        assert capfd.readouterr() == ("", "")
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr and "a fault in phirt" not in result.stderr
        return result.stderr

    return check


MEDIA = [
    ("--image", "missing.jpg", "does not exist"),
    ("--image", "folder.jpg", "folder"),
    ("--image", "empty.jpg", "empty"),
    ("--image", "text.jpg", "no picture"),
    ("--image", "truncated.jpg", "damaged or incomplete"),
    ("--image", "huge.png", "pixels"),
    ("--image", "pixel.png", "1 x 1"),
    ("--audio", "missing.wav", "does not exist"),
    ("--audio", "folder.wav", "folder"),
    ("--audio", "empty.wav", "empty"),
    ("--audio", "text.wav", "no recording"),
    ("--audio", "lying.wav", "declares 1073741824 bytes"),
    ("--audio", "silence.wav", "silent"),
    ("--audio", "long.wav", "longer than 60 seconds"),
    ("--audio", "nan.wav", "NaN"),
]


@pytest.mark.parametrize(("option", "name", "reason"), MEDIA, ids=[name for _, name, _ in MEDIA])
def test_bad_media(bundle: Path, bad_media: Path, refused, option: str, name: str, reason: str) -> None:
    line = refused("chat", "-m", bundle, option, bad_media / name, "What is this?")
    assert name in line and reason in line
    if name == "long.wav":  # a chat takes what the model takes; recordings of any length are transcribed
        assert "phirt transcribe" in line
        assert reason in refused("tokens", "-m", bundle, option, bad_media / name)
        return
    if option == "--audio":
        assert reason in refused("transcribe", "-m", bundle, bad_media / name)
        assert reason in refused("transcribe", "-m", bundle, "--json", bad_media / name)
    if name != "truncated.jpg":  # tokens are counted from a picture's header alone
        assert reason in refused("tokens", "-m", bundle, option, bad_media / name)


def test_a_huge_header_allocates_nothing(bundle: Path, bad_media: Path, run) -> None:
    limited = {"preexec_fn": _limit_memory} if os.name == "posix" else {}
    done = run("chat", "-m", bundle, "--image", bad_media / "huge.png", "x", **limited)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"pixels" in done.stderr and done.stderr.count(b"\n") == 1


def _limit_memory() -> None:
    import resource

    resource.setrlimit(
        resource.RLIMIT_DATA, (2_000_000_000, 2_000_000_000)
    )  # 60,000 x 60,000 RGB are 10.8 GB


def _edit(bundle: Path, change: Callable[[dict], None]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_wrong_hash(broken_bundle: Path, refused) -> None:
    _edit(broken_bundle, lambda m: m["files"]["vision.data"].update(sha256="0" * 64))
    assert "vision.data" in refused("chat", "-m", broken_bundle, "hi")
    result = CliRunner().invoke(app, ["verify", str(broken_bundle)])
    assert result.exit_code == 1
    assert re.search(r"vision\.data +bad", result.stdout) and re.search(r"decoder\.data +ok", result.stdout)
    assert result.stderr.startswith("error: 1 of 9 files") and "vision.data" in result.stderr
    value = json.loads(CliRunner().invoke(app, ["verify", str(broken_bundle), "--json"]).stdout)
    assert value["ok"] is False and value["files"]["vision.data"] != value["files"]["decoder.data"] == "ok"


def test_one_changed_bit(broken_bundle: Path, refused) -> None:
    data = bytearray((broken_bundle / "decoder.data").read_bytes())
    data[len(data) // 2] ^= 1
    (broken_bundle / "decoder.data").write_bytes(data)
    assert "decoder.data" in refused("chat", "-m", broken_bundle, "hi")


def test_a_missing_weight_file(broken_bundle: Path, refused) -> None:
    (broken_bundle / "decoder.data").unlink()
    for command in (["chat", "-m", broken_bundle, "hi"], ["inspect", broken_bundle]):
        line = refused(*command)
        assert "decoder.data" in line and "missing" in line


def test_a_truncated_weight_file(broken_bundle: Path, refused) -> None:
    path = broken_bundle / "vision.data"
    path.write_bytes(path.read_bytes()[:1000])
    assert "vision.data has 1000 bytes" in refused("chat", "-m", broken_bundle, "hi")


@pytest.mark.parametrize(
    "name", ["../outside.data", "/etc/hostname", "a/../../outside.data", "C:\\x", "link.data"]
)
def test_a_path_that_leaves_the_bundle(broken_bundle: Path, refused, name: str) -> None:
    outside = broken_bundle.parent / "outside.data"
    shutil.copy(broken_bundle / "decoder.data", outside)
    if name == "link.data":
        (broken_bundle / name).symlink_to(outside)

    def point_outside(manifest: dict) -> None:
        manifest["files"][name] = manifest["files"].pop("decoder.data")
        for graph in ("decoder", "decoder_lora"):
            manifest["graphs"][graph]["data"] = [name]

    _edit(broken_bundle, point_outside)
    assert "leaves the bundle" in refused("chat", "-m", broken_bundle, "hi")
    assert "leaves the bundle" in refused("inspect", broken_bundle)


def test_an_unknown_version(broken_bundle: Path, refused) -> None:
    _edit(broken_bundle, lambda m: m.update(version=7))
    line = refused("chat", "-m", broken_bundle, "hi")
    assert "version 7" in line and "accepted: 1" in line
    assert "version 7" in refused("verify", broken_bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "x"}', b"[" * 200_000])
def test_a_manifest_that_is_none(broken_bundle: Path, refused, content: bytes) -> None:
    (broken_bundle / "manifest.json").write_bytes(content)
    for command in (
        ["chat", "-m", broken_bundle, "hi"],
        ["inspect", broken_bundle],
        ["verify", broken_bundle],
    ):
        assert "manifest.json" in refused(*command)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("decoder.onnx", "decoder.onnx is no graph"),
        ("vision.onnx", "vision.onnx is no graph"),
        ("tokenizer.json", "tokenizer.json"),
        ("chat_template.jinja", "the chat template"),
    ],
)
def test_a_file_of_garbage_with_a_right_hash(
    broken_bundle: Path, examples: Path, refused, name: str, told: str
) -> None:
    import hashlib

    garbage = b"\x00{{ garbage %}" * 100
    (broken_bundle / name).write_bytes(garbage)
    entry = {"size": len(garbage), "sha256": hashlib.sha256(garbage).hexdigest()}
    _edit(broken_bundle, lambda m: m["files"].update({name: entry}))
    assert told in refused("chat", "-m", broken_bundle, "--image", examples / "shapes.png", "hi")


@pytest.mark.parametrize("name", ["\ud800", "<|end|>\udfff"])
def test_a_control_token_that_is_no_text(broken_bundle: Path, refused, name: str) -> None:
    """attack/05: its files are whole, but no terminal can show such a token and no tokenizer hold it."""
    import hashlib

    path = broken_bundle / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"][4]["content"] = name
    path.write_text(json.dumps(document))
    raw = path.read_bytes()
    entry = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    _edit(broken_bundle, lambda m: m["files"].update({"tokenizer.json": entry}))
    for command in (["chat", "-m", broken_bundle, "hi"], ["tokens", "-m", broken_bundle, "hi"]):
        assert "lone surrogate" in refused(*command)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(name="\ud800"),
        lambda m: m.update(description="\udcff"),
        lambda m: m["adapters"].update({"\ud800": {"id": 9}}),
        lambda m: m["graphs"]["decoder"]["inputs"][0].update(name="\ud800"),
        lambda m: m["encoders"]["vision"].update(kind="\ud800"),
    ],
)
def test_a_name_in_the_manifest_that_is_no_text(broken_bundle: Path, refused, edit) -> None:
    _edit(broken_bundle, edit)
    for command in (("chat", "-m", broken_bundle, "hi"), ("inspect", broken_bundle)):
        assert "manifest.json" in refused(*command)


def test_no_bundle_there(tmp_path: Path, refused) -> None:
    assert "not a folder" in refused("chat", "-m", tmp_path / "nowhere", "hi")
    assert "manifest.json" in refused("chat", "-m", tmp_path, "hi")


def test_a_prompt_longer_than_the_context(bundle: Path, refused) -> None:
    line = refused("chat", "-m", bundle, input="x " * 40_000)
    assert "context has 32768" in line


def test_an_unknown_provider(bundle: Path, refused) -> None:
    line = refused("chat", "-m", bundle, "--provider", "abacus", "hi")
    assert "abacus" in line and "CPUExecutionProvider" in line


def test_bytes_that_are_not_utf8(bundle: Path, run) -> None:
    done = run("chat", "-m", bundle, os.fsdecode(b"caf\xe9")) if os.name == "posix" else None
    if done is None:
        pytest.skip("arguments are Unicode there")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"UTF-8" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_full_disk_while_saving(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the moment when the system is asked to keep the bytes."""
    model = phirt.load(bundle)
    chat = model.chat()
    config = phirt.GenerationConfig(max_new_tokens=5)
    chat.send("the quick", config=config).text()
    path = tmp_path / "talk.phirt"
    chat.save(path)
    earlier = path.read_bytes()
    chat.send("brown fox", config=config).text()
    messages = chat.messages

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(phirt.ConversationError, match="No space left on device"):
            chat.save(path)
    assert path.read_bytes() == earlier and [entry.name for entry in tmp_path.iterdir()] == ["talk.phirt"]
    assert chat.messages == messages
    chat.save(path)
    assert len(model.load_chat(path).messages) == 4


def _small_disk(folder: Path) -> tuple[str, ...]:
    """A command prefix that mounts a file system of 64 kB at `folder`; skips where that is not allowed."""
    script = f'mount -t tmpfs -o size=64k tmpfs "{folder}" && exec "$@"'
    prefix = ("unshare", "-rm", "sh", "-c", script, "sh")
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("no small file system can be mounted here")
    return prefix


def test_a_really_full_disk_in_a_session(bundle: Path, tmp_path: Path, terminal) -> None:
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "300", wrapper=_small_disk(tmp_path))
    path = tmp_path / "talk.phirt"
    screen.wait("Ctrl-D or /quit leaves")
    screen.type(f"/save {path}\n")
    screen.wait("saved to")
    screen.type("the quick brown fox\n")
    screen.wait("cut at 300 new tokens")
    screen.type(f"/save {path}\n")
    seen = screen.wait("unchanged")
    assert "error: " in seen and "No space left on device" in seen
    screen.type("and then\n")
    screen.wait("cut at 300 new tokens")
    screen.type(f"/load {path}\n")
    screen.wait("0 messages from")
    screen.type("/quit\n")
    assert screen.finish() == 0
