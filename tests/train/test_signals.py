"""What signals do to a stage that trains: the first saves its state, a second does not wait for that."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from phirt_train.batches import Batches
from phirt_train.loop import StageRun
from phirt_train.progress import ignore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@pytest.fixture
def former() -> Iterator[list[int]]:
    """Signals that reach whoever handled them before the stage began."""
    seen: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, handler)


class _Stopped(Exception):  # noqa: N818 - it is no error
    """The steps have ended as the test wants it."""


def _run_steps(monkeypatch: pytest.MonkeyPatch, kills: int) -> StageRun:
    """A stage whose one step is `kills` signals."""
    run = StageRun.__new__(StageRun)
    run.step, run._stop, run._former_handlers = 0, None, {}
    run._batches = Batches(None, (), 0, 0)

    def steps(self: StageRun, report: object) -> None:
        for _ in range(kills):
            os.kill(os.getpid(), signal.SIGTERM)
        raise _Stopped

    monkeypatch.setattr(StageRun, "_steps", steps)
    with pytest.raises(_Stopped):
        run.run(ignore)
    return run


def test_the_first_signal_asks_the_stage_to_stop(former: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run_steps(monkeypatch, 1)._stop == signal.SIGTERM and former == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert former == [signal.SIGTERM]  # the handler is the former one again


def test_a_second_signal_goes_to_whoever_handled_it_before(
    former: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_steps(monkeypatch, 2)
    assert former == [signal.SIGTERM]


def test_a_signal_that_is_to_be_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup phirt train …`."""
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert _run_steps(monkeypatch, 1)._stop is None
    finally:
        signal.signal(signal.SIGTERM, former)
