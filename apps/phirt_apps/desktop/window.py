"""The window: what a person presses, drops and chooses, and what is shown of it.

Knows widgets, and which job of the runtime answers which button. Knows nothing of models: the runtime is
asked by signals, which reach it in its own thread, and one job is under way at a time. The window waits for
nothing, not even when it is closed: it goes at once, and `ended` follows when the runtime has ended too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from PySide6.QtCore import QMimeData, QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QPushButton,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from phirt.errors import MediaError
from phirt_apps.desktop import attachments
from phirt_apps.desktop.composer import Composer, picture_of
from phirt_apps.desktop.conversations import Choice, Saved
from phirt_apps.desktop.recorder import RATE, Recorder
from phirt_apps.desktop.sidebar import Sidebar
from phirt_apps.desktop.transcript import Transcript
from phirt_apps.desktop.worker import Outcome, Question, Runtime, Turn
from phirt_apps.output import size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_OTHER_FOLDER = "Another folder …"
_MEMORY_EVERY = 1000  # milliseconds
_FITTING = QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon


class Window(QWidget):
    """One conversation, the list of the others, and where to ask."""

    ended = Signal()
    _wants_model = Signal(object)
    _wants_new = Signal()
    _wants_saved = Signal(object)
    _wants_deletion = Signal(object)
    _wants_answer = Signal(object)
    _wants_end = Signal()

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.setWindowTitle("phirt")
        self.resize(900, 640)
        self.setAcceptDrops(True)
        self.question: Question | None = None  # the one that is being answered
        self._busy = self._closing = False
        self._model: Choice | None = None
        self.sidebar = Sidebar()
        self.models = QComboBox(sizeAdjustPolicy=_FITTING)
        self.transcript = Transcript()
        self.composer = Composer()
        self.recorder = Recorder(self)
        self.line = QLabel(textFormat=Qt.TextFormat.PlainText, wordWrap=True)
        self.line.setStyleSheet("color: #b3261e")
        self.line.hide()
        self.status, self.figures = QLabel(), QLabel()
        self.memory = QLabel()
        self.models.setToolTip("The model")
        self.memory.setToolTip("Memory of this program")
        for label in (self.status, self.figures, self.memory):
            label.setTextFormat(Qt.TextFormat.PlainText)
        self.attach_button = QPushButton("Attach …")
        self.record_button = QPushButton("Record")
        self.record_button.setCheckable(True)
        self.send_button, self.stop_button = QPushButton("Send"), QPushButton("Stop")
        self._arrange()
        self._connect_runtime(runtime)
        self._connect_widgets()
        self._show_state()

    def load(self, model: Path | None) -> None:
        """Asks for a model, None for the embedded one."""
        self._begin_job("loading the model …")
        self._wants_model.emit(model)

    def send(self) -> None:
        """Asks what is typed and attached."""
        text, attached = self.composer.text, tuple(self.composer.attached)
        if self._busy or not (text or attached):
            return
        self.question = Question(text, attached)
        self.composer.clear()
        self.transcript.add_question(text, tuple(one.label for one in attached))
        self._begin_job("thinking …")
        self.figures.clear()
        self._wants_answer.emit(self.question)

    def stop(self) -> None:
        """Ends the answer within a step; what there is of it stays."""
        if self.question is not None:
            self.question.cancel.set()

    def take(self, mime: QMimeData) -> None:
        """Attaches what was dropped or pasted, or says why not; the good files among others are taken."""
        if not mime.hasUrls():
            picture = picture_of(mime)
            if picture is not None:
                self.composer.attach(picture)
            return
        for url in mime.urls():
            if not url.isLocalFile():
                self.fail(str(attachments.of_address(url.toString())))
                continue
            self._attach_file(Path(url.toLocalFile()))

    def fail(self, line: str) -> None:
        """Shows what went wrong, until the next thing is done."""
        self.line.setText(line)
        self.line.show()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802  # Qt's name
        """Files and pictures may be dropped anywhere."""
        if event.mimeData().hasUrls() or event.mimeData().hasImage():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802  # Qt's name
        """They become attachments."""
        self.line.hide()
        self.take(event.mimeData())
        event.acceptProposedAction()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802  # Qt's name
        """Stops what is under way and goes; the runtime ends behind it."""
        event.accept()
        if self._closing:
            return
        self._closing = True
        self.recorder.stop()
        self.stop()
        self._wants_end.emit()

    def _attach_file(self, path: Path) -> None:
        try:
            self.composer.attach(attachments.of_file(path))
        except MediaError as error:
            self.fail(str(error))

    def _arrange(self) -> None:
        top = QHBoxLayout()
        top.addWidget(self.models, 1)
        top.addWidget(self.status, 2)
        buttons = QHBoxLayout()
        for button in (self.attach_button, self.record_button):
            buttons.addWidget(button)
        buttons.addWidget(self.figures, 1)
        buttons.addWidget(self.memory)
        for button in (self.stop_button, self.send_button):
            buttons.addWidget(button)
        right = QWidget()
        column = QVBoxLayout(right)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(top)
        column.addWidget(self.transcript, 1)
        column.addWidget(self.line)
        column.addWidget(self.composer)
        column.addLayout(buttons)
        splitter = QSplitter()
        splitter.addWidget(self.sidebar)
        splitter.addWidget(right)
        splitter.setStretchFactor(1, 1)
        splitter.setSizes([210, 690])
        QVBoxLayout(self).addWidget(splitter)
        self.composer.editor.setFocus()

    def _connect_runtime(self, runtime: Runtime) -> None:
        self._wants_model.connect(runtime.load)
        self._wants_new.connect(runtime.begin)
        self._wants_saved.connect(runtime.open)
        self._wants_deletion.connect(runtime.delete)
        self._wants_answer.connect(runtime.ask)
        self._wants_end.connect(runtime.close)
        runtime.listed.connect(self._show_models)
        runtime.loaded.connect(self._show_model)
        runtime.kept.connect(self.sidebar.show_saved)
        runtime.status.connect(self.status.setText)
        runtime.opened.connect(self._show_turns)
        runtime.written.connect(self._show_written)
        runtime.speed.connect(lambda speed: self.figures.setText(f"{speed:.0f} tokens/s"))
        runtime.answered.connect(self._show_outcome)
        runtime.withdrawn.connect(self._withdraw)
        runtime.failed.connect(self.fail)
        runtime.idle.connect(self._end_job)
        runtime.closed.connect(self._end)

    def _connect_widgets(self) -> None:
        self.composer.editor.sent.connect(self.send)
        self.composer.editor.pasted.connect(self.take)
        self.send_button.clicked.connect(self.send)
        self.stop_button.clicked.connect(self.stop)
        self.attach_button.clicked.connect(self._choose_files)
        self.record_button.toggled.connect(self._record)
        self.recorder.recorded.connect(self._take_recording)
        self.recorder.failed.connect(self._fail_recording)
        self.models.activated.connect(self._choose_model)
        self.sidebar.new.clicked.connect(self._start_new)
        self.sidebar.chosen.connect(self._open_saved)
        self.sidebar.unwanted.connect(self._confirm_deletion)
        timer = QTimer(self)
        timer.timeout.connect(self._show_memory)
        timer.start(_MEMORY_EVERY)
        self._show_memory()

    def _begin_job(self, status: str) -> None:
        self.line.hide()
        self.status.setText(status)
        self._busy = True
        self._show_state()

    def _end_job(self) -> None:
        self._busy, self.question = False, None
        self.status.clear()
        self._show_state()

    def _show_state(self) -> None:
        answering = self.question is not None
        self.stop_button.setEnabled(answering)
        self.send_button.setEnabled(not self._busy)
        self.models.setEnabled(not self._busy)
        self.sidebar.setEnabled(not self._busy)

    def _show_models(self, choices: list[Choice]) -> None:
        shown = self._model
        self.models.clear()
        for choice in choices:
            self.models.addItem(choice.label, str(choice.folder))
        self.models.addItem(_OTHER_FOLDER, None)
        self.models.setCurrentIndex(-1)
        if shown is not None:
            self._show_model(shown)

    def _show_model(self, choice: Choice | None) -> None:
        self._model = choice
        if choice is None:
            self.models.setCurrentIndex(-1)
            self.setWindowTitle("phirt")
            return
        index = self.models.findData(str(choice.folder))
        if index < 0:
            index = self.models.count() - 1  # before the last, which asks for a folder
            self.models.insertItem(index, choice.label, str(choice.folder))
        self.models.setCurrentIndex(index)
        self.setWindowTitle(f"phirt: {choice.label}")

    def _choose_model(self, index: int) -> None:
        folder = self.models.itemData(index)
        self._show_model(self._model)  # until another one is loaded
        if folder is None:
            chosen = QFileDialog.getExistingDirectory(self, "The folder of a model")
            if not chosen:
                return
            folder = chosen
        self.load(Path(folder))

    def _show_turns(self, turns: list[Turn]) -> None:
        self.transcript.restart(turns)
        self.figures.clear()

    def _show_written(self, settled: list[str], open_html: str) -> None:
        self.transcript.add(settled, open_html)

    def _show_outcome(self, outcome: Outcome) -> None:
        shown = [f"{outcome.tokens:,} token{'s' if outcome.tokens != 1 else ''}"]
        if outcome.tokens_per_second:
            shown.append(f"{outcome.tokens_per_second:.1f} tokens/s")
        shown.append(f"the first after {outcome.first_token:.1f} s")
        self.figures.setText(", ".join([*shown, "stopped"] if outcome.stopped else shown))
        if outcome.remarks:
            self.fail(" · ".join(outcome.remarks))
        self.status.setText("keeping the conversation …")

    def _withdraw(self) -> None:
        """The question did not count: it is back where it was typed, to be mended."""
        self.transcript.withdraw()
        if self.question is not None:
            self.composer.put(self.question.text, self.question.attachments)

    def _choose_files(self) -> None:
        self.line.hide()
        names, _ = QFileDialog.getOpenFileNames(self, "Pictures and recordings", "", attachments.FILE_FILTER)
        for name in names:
            self._attach_file(Path(name))

    def _record(self, wanted: bool) -> None:
        self.line.hide()
        self.record_button.setText("Stop recording" if wanted else "Record")
        if wanted:
            self.recorder.start()
        else:
            self.record_button.setEnabled(False)  # until the device has given what it recorded
            self.recorder.stop()

    def _end_recording(self) -> None:
        with QSignalBlocker(self.record_button):  # it has ended by itself: nothing is to be stopped
            self.record_button.setChecked(False)
        self.record_button.setText("Record")
        self.record_button.setEnabled(True)

    def _take_recording(self, samples: npt.NDArray[np.int16]) -> None:
        self._end_recording()
        self.composer.attach(attachments.of_samples(samples, RATE))

    def _fail_recording(self, line: str) -> None:
        self._end_recording()
        self.fail(line)

    def _start_new(self) -> None:
        self._begin_job("")
        self._wants_new.emit()

    def _open_saved(self, saved: Saved) -> None:
        if self._busy:  # where one click activates, it says so twice
            return
        self._begin_job("opening the conversation …")
        self._wants_saved.emit(saved)

    def _confirm_deletion(self, saved: Saved) -> None:
        box = QMessageBox(
            QMessageBox.Icon.Question, "phirt", f"Delete “{saved.title}” for good?", parent=self
        )
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setStandardButtons(QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.Cancel)
        box.accepted.connect(lambda: self.delete(saved))
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.open()

    def delete(self, saved: Saved) -> None:
        """Deletes a kept conversation; the person has confirmed it."""
        self._begin_job("")
        self._wants_deletion.emit(saved)

    def _show_memory(self) -> None:
        self.memory.setText(size(psutil.Process().memory_info().rss))

    def _end(self) -> None:
        self.recorder.wait()
        self.ended.emit()
