"""The window, driven as a person drives it, with nano answering."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PySide6.QtWidgets", reason="needs the extra desktop (PySide6)", exc_type=ImportError)

from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

import phirt
from phirt.errors import ConversationError
from phirt.generate.sampling import Logits
from phirt_apps.desktop import conversations
from phirt_apps.desktop.attachments import of_file, of_samples

EXAMPLES = Path(__file__).parents[2] / "apps" / "examples"


def _helpers() -> ModuleType:
    """The conftest beside this file: under `importlib` it has no name to import it by."""
    spec = importlib.util.spec_from_file_location("desktop_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_HELPERS = _helpers()
ask, close, drain, wait_for = _HELPERS.ask, _HELPERS.close, _HELPERS.drain, _HELPERS.wait_for
until, wait_idle = _HELPERS.until, _HELPERS.wait_idle


class Endless:
    """Keeps an answer from ending, and counts its steps."""

    def __init__(self, nano: Path) -> None:
        model = phirt.load(nano)
        self.ends = list(model.manifest.tokens.eos)
        model.close()
        self.steps = 0
        self.at_step: dict[int, Callable[[], None]] = {}

    def __call__(self, logits: Logits, ids: Any) -> Logits:
        """The logits without any end of the answer."""
        self.steps += 1
        self.at_step.pop(self.steps, lambda: None)()
        logits = np.array(logits)
        logits[..., self.ends] = -np.inf
        return logits


def drop(window: Any, mime: QMimeData) -> None:
    """Drops data in the middle of the window."""
    held = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPoint(450, 300), Qt.DropAction.CopyAction, mime, *held)
    QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(window, QDropEvent(QPointF(450, 300), Qt.DropAction.CopyAction, mime, *held))


def files(*paths: Path | str) -> QMimeData:
    """What a file manager drops."""
    mime = QMimeData()
    mime.setUrls([QUrl(p) if isinstance(p, str) else QUrl.fromLocalFile(str(p)) for p in paths])
    return mime


def test_an_answer_is_that_of_the_runtime_and_is_kept(open_desktop: Any, nano: Path, tmp_path: Path) -> None:
    desktop = open_desktop()
    ask(desktop, "Hello, who are you?")
    drain(desktop)
    with phirt.load(nano) as model:
        expected = model.chat().send("Hello, who are you?", max_new_tokens=100).text().strip()
        (file,) = (tmp_path / "kept").glob("*.phirt")
        close(desktop)
        assert [m.content.strip() for m in model.load_chat(file).messages] == [
            "Hello, who are you?",
            expected,
        ]
    lines = [line.strip() for line in desktop.window.transcript.toPlainText().splitlines()]
    assert lines == ["You", "Hello, who are you?", "phirt", expected]
    assert "tokens/s" in desktop.window.figures.text()
    assert re.fullmatch(r"[\d.,]+ [MG]B", desktop.window.memory.text())
    assert desktop.window.line.isHidden()


def test_a_dropped_picture_and_a_recording_are_answered(open_desktop: Any) -> None:
    desktop = open_desktop()
    drop(desktop.window, files(EXAMPLES / "shapes.png", EXAMPLES / "seven.flac"))
    assert [one.kind for one in desktop.window.composer.attached] == ["image", "audio"]
    ask(desktop, "What is this?")
    chat = desktop.runtime._chat
    assert [item.modality for item in chat.messages[0].media] == ["image", "audio"]
    assert desktop.window.composer.attached == []


def test_a_picture_from_the_clipboard_and_samples_of_the_microphone(open_desktop: Any) -> None:
    desktop = open_desktop()
    picture, mime = QImage(40, 30, QImage.Format.Format_RGB32), QMimeData()
    picture.fill(Qt.GlobalColor.red)
    mime.setImageData(picture)
    drop(desktop.window, mime)
    desktop.window.recorder.recorded.emit(np.full(16_000, 500, np.int16))
    assert [one.label for one in desktop.window.composer.attached] == ["pasted picture", "recording, 1.0 s"]
    ask(desktop, "")
    assert [item.modality for item in desktop.runtime._chat.messages[0].media] == ["image", "audio"]


def test_drop_of_a_wrong_file_is_one_line_and_the_good_one_is_taken(
    open_desktop: Any, tmp_path: Path
) -> None:
    desktop = open_desktop()
    wrong = tmp_path / "notes.txt"
    wrong.write_text("no picture")
    drop(desktop.window, files(wrong, EXAMPLES / "shoes.jpg"))
    assert desktop.window.line.text() == (
        "notes.txt is no picture or recording; accepted: JPEG, PNG, WebP and the like, WAV, FLAC, MP3, Ogg"
    )
    assert [one.label for one in desktop.window.composer.attached] == ["shoes.jpg"]
    for mime, line in (
        (files(tmp_path), f"{tmp_path.name} is a folder; drop the pictures or recordings in it"),
        (files(tmp_path / "gone.png"), "gone.png is not there"),
        (
            files("https://example.org/a.png"),
            "https://example.org/a.png is not on this machine; save it first, then drop the file",
        ),
    ):
        drop(desktop.window, mime)
        assert desktop.window.line.text() == line


def test_a_question_that_fails_is_back_where_it_was_typed(open_desktop: Any, tmp_path: Path) -> None:
    desktop = open_desktop()
    ask(desktop, "Hello")
    drain(desktop)
    before = desktop.window.transcript.toPlainText()
    cut = tmp_path / "cut.png"
    cut.write_bytes((EXAMPLES / "shapes.png").read_bytes()[:200])
    desktop.window.composer.attach(of_file(cut))
    ask(desktop, "What is this?")
    drain(desktop)
    assert "cut.png" in desktop.window.line.text() and "\n" not in desktop.window.line.text()
    assert desktop.window.transcript.toPlainText() == before
    assert desktop.window.composer.text == "What is this?"
    assert [one.label for one in desktop.window.composer.attached] == ["cut.png"]
    desktop.window.composer.clear()
    ask(desktop, "Hello again")
    assert desktop.window.line.isHidden()


def test_stop_ends_within_a_step_and_keeps_what_there_is(open_desktop: Any, nano: Path) -> None:
    endless = Endless(nano)
    desktop = open_desktop(max_new_tokens=2000, logits_processors=(endless,))
    endless.at_step[20] = desktop.window.stop  # what the button calls; it takes effect in any thread
    ask(desktop, "Hello")
    assert endless.steps <= 21
    assert "stopped" in desktop.window.figures.text()
    assert [m.role for m in desktop.runtime._chat.messages] == ["user", "assistant"]
    assert desktop.window.send_button.isEnabled() and not desktop.window.stop_button.isEnabled()


def test_closing_during_an_answer_ends_cleanly_and_keeps_it(
    open_desktop: Any, nano: Path, tmp_path: Path
) -> None:
    endless = Endless(nano)
    desktop = open_desktop(max_new_tokens=2000, logits_processors=(endless,))
    desktop.window.composer.editor.setPlainText("Hello")
    desktop.window.send()
    wait_for(desktop.runtime.written)
    close(desktop)
    assert desktop.thread.isFinished() and not desktop.window.isVisible()
    assert endless.steps < 2000
    assert [thread.name for thread in threading.enumerate() if "phirt" in thread.name] == []
    (file,) = (tmp_path / "kept").iterdir()  # the conversation, and no lock beside it
    with phirt.load(nano) as model:
        assert [m.role for m in model.load_chat(file).messages] == ["user", "assistant"]


def test_a_conversation_goes_on_after_a_restart(open_desktop: Any) -> None:
    first = open_desktop()
    ask(first, "Hello, who are you?")
    drain(first)
    shown = first.window.transcript.toPlainText().strip()
    close(first)
    second = open_desktop()
    sidebar = second.window.sidebar
    assert sidebar.list.item(0).text().splitlines()[0] == "Hello, who are you?"
    sidebar.list.itemClicked.emit(sidebar.list.item(0))
    wait_idle(second)
    drain(second)
    assert second.window.transcript.toPlainText().strip() == shown
    ask(second, "Hello")
    assert len(second.runtime._chat.messages) == 4
    assert sidebar.list.count() == 1  # it went on in its own file
    sidebar.new.click()
    wait_idle(second)
    ask(second, "Play some jazz.")
    assert sidebar.list.count() == 2
    second.window.delete(sidebar._saved[0])
    wait_idle(second)
    assert sidebar.list.count() == 1 and second.runtime._chat.messages == ()


def test_two_windows_do_not_share_a_conversation(open_desktop: Any) -> None:
    first = open_desktop()
    ask(first, "Hello")
    second = open_desktop()
    sidebar = second.window.sidebar
    sidebar.list.itemClicked.emit(sidebar.list.item(0))
    wait_idle(second)
    assert "is being used by another phirt" in second.window.line.text()
    assert second.runtime._chat.messages == ()


def test_another_model_that_is_none_leaves_the_one_in_use(open_desktop: Any, tmp_path: Path) -> None:
    desktop = open_desktop()
    assert desktop.window.models.currentText() == "nano"
    assert [desktop.window.models.itemText(i) for i in range(3)] == ["mini", "nano", "Another folder …"]
    desktop.window.load(tmp_path)
    wait_idle(desktop)
    assert str(tmp_path) in desktop.window.line.text()
    assert desktop.window.models.currentText() == "nano"
    ask(desktop, "Hello")
    assert len(desktop.runtime._chat.messages) == 2


def test_no_model_at_all_is_one_line(open_desktop: Any, tmp_path: Path) -> None:
    desktop = open_desktop(model=tmp_path)
    assert str(tmp_path) in desktop.window.line.text()
    ask(desktop, "Hello")
    assert desktop.window.line.text() == "no model is loaded; choose one above"
    assert desktop.window.composer.text == "Hello"


def test_a_recording_by_a_device_that_there_is_not(
    open_desktop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import miniaudio

    def refuse(*_: Any, **__: Any) -> None:
        raise miniaudio.MiniaudioError("no device")

    monkeypatch.setattr(miniaudio, "CaptureDevice", refuse)
    desktop = open_desktop()
    desktop.window.record_button.setChecked(True)
    desktop.window.recorder._thread.join()
    QApplication.processEvents()
    assert desktop.window.line.text() == (
        "the microphone cannot be used: no device; drop a recording instead"
    )
    assert not desktop.window.record_button.isChecked()


def test_a_label_says_how_long_a_recording_is() -> None:
    assert of_samples(np.zeros(24_000, np.int16), 16_000).label == "recording, 1.5 s"


class SlowDevice:
    """A microphone that opens when it is told to, with a second of sound."""

    opens = threading.Event()

    def __init__(self, **_: Any) -> None:
        assert self.opens.wait(60)

    def __enter__(self) -> SlowDevice:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def start(self, collector: Any) -> None:
        """Sends it at once."""
        collector.send(b"\x01\x00" * 16_000)


def test_recording_again_waits_for_the_one_before(open_desktop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import miniaudio

    monkeypatch.setattr(miniaudio, "CaptureDevice", SlowDevice)
    monkeypatch.setattr(SlowDevice, "opens", threading.Event())
    desktop = open_desktop()
    window = desktop.window
    window.record_button.click()
    first = window.recorder._thread
    window.record_button.click()
    assert not window.record_button.isEnabled()  # the device has not even opened
    window.record_button.click()
    assert window.recorder._thread is first
    SlowDevice.opens.set()
    until(window.record_button.isEnabled)
    assert window.record_button.text() == "Record" and not window.record_button.isChecked()
    window.record_button.click()
    assert window.recorder.is_recording and window.record_button.isChecked()
    window.record_button.click()
    until(window.record_button.isEnabled)


def test_a_conversation_that_cannot_be_opened_leaves_its_model_to_be_asked(
    open_desktop: Any, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop = open_desktop(model=tmp_path)
    monkeypatch.setattr(conversations, "choice_for", lambda *_: conversations.Choice("nano", nano))
    damaged = conversations.Saved(tmp_path / "gone.phirt", "gone", "0" * 64, 0.0)
    desktop.window._open_saved(damaged)
    wait_idle(desktop)
    assert "gone.phirt" in desktop.window.line.text()
    ask(desktop, "Hello")
    assert len(desktop.runtime._chat.messages) == 2


def test_the_window_ends_though_its_model_does_not_close(
    open_desktop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop = open_desktop()
    model = desktop.runtime._model

    def refuse() -> None:
        raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(model, "close", refuse)
        close(desktop)
    model.close()
    assert desktop.thread.isFinished()


def test_a_copied_address_is_pasted_as_text(open_desktop: Any, tmp_path: Path) -> None:
    desktop = open_desktop(model=tmp_path)
    mime = files("https://example.org/page")
    mime.setText("https://example.org/page")
    desktop.window.composer.editor.insertFromMimeData(mime)
    assert desktop.window.composer.text == "https://example.org/page"
    assert desktop.window.line.text().find("is not on this machine") < 0
    local = files(EXAMPLES / "shapes.png")
    local.setText("shapes.png")
    desktop.window.composer.editor.insertFromMimeData(local)
    assert [one.label for one in desktop.window.composer.attached] == ["shapes.png"]


def test_the_delete_key_means_a_conversation_only_in_the_list(open_desktop: Any, tmp_path: Path) -> None:
    desktop = open_desktop(model=tmp_path)
    window, meant = desktop.window, []
    saved = conversations.Saved(tmp_path / "a.phirt", "a", "b", 0.0)
    window.sidebar.show_saved([saved], saved.path)
    window.sidebar.unwanted.disconnect(window._confirm_deletion)
    window.sidebar.unwanted.connect(meant.append)
    window.activateWindow()
    until(window.isActiveWindow)
    for widget, expected in (
        (window.transcript, []),
        (window.record_button, []),
        (window.sidebar.list, [saved]),
    ):
        widget.setFocus()
        QTest.keyClick(widget, Qt.Key.Key_Delete)
        assert meant == expected


def test_a_click_that_also_activates_opens_once(open_desktop: Any, tmp_path: Path) -> None:
    desktop = open_desktop(model=tmp_path)
    asked: list[Any] = []
    desktop.window._wants_saved.connect(asked.append)
    saved = conversations.Saved(tmp_path / "a.phirt", "a", "b", 0.0)
    desktop.window.sidebar.show_saved([saved], None)
    item = desktop.window.sidebar.list.item(0)
    desktop.window.sidebar.list.itemClicked.emit(item)
    desktop.window.sidebar.list.itemActivated.emit(item)
    wait_idle(desktop)
    assert len(asked) == 1


def test_a_conversation_that_another_has_open_is_not_deleted(open_desktop: Any, tmp_path: Path) -> None:
    desktop = open_desktop()
    ask(desktop, "Hello")
    (file,) = (tmp_path / "kept").glob("*.phirt")
    with pytest.raises(ConversationError, match="is being used by another phirt"):
        conversations.delete(file)
    assert file.exists()


def test_a_conversation_with_a_picture_opens_no_socket(open_desktop: Any) -> None:
    opened: list[str] = []
    watching = [True]

    def hook(event: str, _: tuple[Any, ...]) -> None:  # it cannot be taken away again
        if watching and event.startswith("socket."):
            opened.append(event)

    sys.addaudithook(hook)
    desktop = open_desktop()
    desktop.window.composer.attach(of_file(EXAMPLES / "shapes.png"))
    ask(desktop, "What is this?")
    close(desktop)
    watching.clear()
    assert opened == []
