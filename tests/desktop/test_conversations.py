"""The list of kept conversations, of files that anybody may have put there."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import phirt
from phirt.errors import ConversationError
from phirt_apps.cli import app
from phirt_apps.desktop import conversations


def write(path: Path, document: Any, age: float) -> None:
    """A file as phirt would save it, with this document."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("conversation.json", json.dumps(document))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_latest_first_and_nothing_that_is_none(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "Hello\nthere \x1b[31m" + "x" * 100}
    write(tmp_path / "old.phirt", {"bundle": "b", "messages": [turn]}, 10)
    write(tmp_path / "new.phirt", {"bundle": "c", "messages": [{"role": "user", "content": ""}]}, 5)
    write(tmp_path / "wrong.phirt", ["no", "conversation"], 1)
    write(tmp_path / "deep.phirt", {"bundle": "b", "messages": [{"content": 1}]}, 1)
    (tmp_path / "text.phirt").write_text("no archive")
    (tmp_path / "folder.phirt").mkdir()
    (tmp_path / "other.txt").write_text("none of ours")
    found = conversations.saved_in(tmp_path)
    assert [(one.path.name, one.bundle) for one in found] == [("new.phirt", "c"), ("old.phirt", "b")]
    assert found[0].title == "new"
    assert found[1].title.startswith("Hello there") and len(found[1].title) == 60
    assert "\x1b" not in found[1].title
    assert conversations.saved_in(tmp_path / "gone") == []


def test_only_a_conversation_is_deleted(tmp_path: Path) -> None:
    write(tmp_path / "a.phirt", {}, 0)
    conversations.delete(tmp_path / "a.phirt")
    assert not (tmp_path / "a.phirt").exists()
    (tmp_path / "b.phirt").write_text("something else")
    with pytest.raises(ConversationError, match="is no saved conversation"):
        conversations.delete(tmp_path / "b.phirt")
    assert (tmp_path / "b.phirt").exists()


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_file_or_a_link_to_nowhere_hides_no_other(tmp_path: Path, packing: int) -> None:
    document = {"bundle": "b", "messages": [{"role": "user", "content": "Hello"}]}
    write(tmp_path / "good.phirt", document, 10)
    damaged = tmp_path / "damaged.phirt"
    with zipfile.ZipFile(damaged, "w", packing) as archive:
        archive.writestr("conversation.json", json.dumps(document) * 50)
    data = bytearray(damaged.read_bytes())
    begin = data.find(b"conversation.json") + len("conversation.json")
    data[begin : begin + 12] = bytes(byte ^ 0xFF for byte in data[begin : begin + 12])
    damaged.write_bytes(data)
    if os.name == "posix":
        (tmp_path / "link.phirt").symlink_to(tmp_path / "nowhere")
    assert [one.path.name for one in conversations.saved_in(tmp_path)] == ["good.phirt"]


def test_the_model_of_a_conversation_is_found_by_its_fingerprint(nano: Path, tmp_path: Path) -> None:
    with phirt.load(nano) as model:
        fingerprint = model.manifest.fingerprint
    broken, right = conversations.Choice("broken", tmp_path), conversations.Choice("nano", nano)
    assert conversations.choice_for(fingerprint, [broken, right]) == right
    assert conversations.choice_for("0" * 64, [broken, right]) is None


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConversationError, match=r"conversations cannot be kept in .*: Permission denied"):
        conversations.prepare(tmp_path / "kept")


def test_the_command_opens_a_window_with_what_it_was_told(
    monkeypatch: pytest.MonkeyPatch, nano: Path, tmp_path: Path
) -> None:
    from phirt_apps.desktop import app as desktop

    asked: list[Any] = []
    monkeypatch.setattr(desktop, "run", lambda setup, model: asked.append((setup, model)))
    line = ["desktop", "-m", str(nano), "--conversations", str(tmp_path / "kept"), "--system", "Be brief."]
    result = CliRunner().invoke(app, [*line, "--temperature", "0.5"])
    assert result.exit_code == 0, result.output
    ((setup, model),) = asked
    assert (model, setup.folder, setup.system) == (nano, tmp_path / "kept", "Be brief.")
    assert setup.settings["temperature"] == 0.5 and setup.settings["max_new_tokens"] == 2048
    assert (tmp_path / "kept").is_dir()
