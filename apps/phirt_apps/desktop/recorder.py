"""The microphone: records until it is told to stop.

Knows miniaudio, which phirt reads recordings with anyway, and threads: a device may take its time to open,
and the window does not wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import numpy as np
from PySide6.QtCore import QObject, Signal

RATE = 16_000  # what speech encoders take
_MOST_SECONDS = 600
_MOST_BYTES = _MOST_SECONDS * RATE * 2
_MOST_WAITED = 2.0  # seconds for a device at the end; the process goes without one that hangs


class Recorder(QObject):
    """Records mono speech. One recording at a time; `recorded` gives int16 [n], `failed` one line."""

    recorded = Signal(object)
    failed = Signal(str)

    def __init__(self, parent: QObject | None = None, backends: list[Any] | None = None) -> None:
        super().__init__(parent)
        self._backends = backends  # None is the system's own
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_recording(self) -> bool:
        """Whether the microphone is open, or being opened."""
        return self._thread is not None and self._thread.is_alive() and not self._stop.is_set()

    def start(self) -> None:
        """Begins to record; the one before must have given its result."""
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._record, args=(self._stop,), name="phirt-microphone", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the recording; `recorded` follows."""
        self._stop.set()

    def wait(self) -> None:
        """Waits until the device is closed, but not for one that hangs."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_MOST_WAITED)

    def _record(self, stop: threading.Event) -> None:
        heard = bytearray()
        try:
            import miniaudio

            with miniaudio.CaptureDevice(
                input_format=miniaudio.SampleFormat.SIGNED16,
                nchannels=1,
                sample_rate=RATE,
                backends=self._backends,
                app_name="phirt",
            ) as device:
                collector = _collect(heard, stop)
                next(collector)
                device.start(collector)
                stop.wait()
        except ModuleNotFoundError:
            self.failed.emit("recording needs the package miniaudio: pip install miniaudio; or drop a file")
            return
        except Exception as error:  # miniaudio's own, without a common base: no device, no permission
            self.failed.emit(f"the microphone cannot be used: {error}; drop a recording instead")
            return
        samples = np.frombuffer(bytes(heard[: len(heard) // 2 * 2]), np.int16)
        if len(samples) < RATE // 10:
            self.failed.emit("nothing was recorded; check the microphone, and record for a second at least")
        else:
            self.recorded.emit(samples)


def _collect(heard: bytearray, stop: threading.Event) -> Generator[None, bytes, None]:
    """Takes what the device sends, as far as a recording may go."""
    while not stop.is_set():
        heard += yield
        if len(heard) >= _MOST_BYTES:
            stop.set()
    while True:  # what still comes is not wanted
        yield
