"""A program that ends while phirt computes in daemon threads ends as it would without them (case 09: aborted
by the C++ library, with status 134).
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest

from phirt.runtime.native_calls import NativeCalls


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


ANSWERING = """
    import sys, threading, phirt
    model = phirt.load(sys.argv[1], threads=2)
    config = phirt.GenerationConfig(max_new_tokens=100, temperature=2.0, seed=1)
    answering = threading.Barrier(4)
    def work():
        first = True
        while True:
            for _ in model.chat().send("Tell me about the sea.", config=config):
                if first:
                    answering.wait()
                first = False
    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    answering.wait()
    print("main ends")
"""

ENCODING = """
    import sys, threading, numpy, phirt
    from phirt.bundle.files import load_manifest
    from phirt.runtime.device import Device
    from phirt.runtime.session import LazySession, SessionConfig
    encoder = LazySession(load_manifest(sys.argv[1]), "speech", SessionConfig(Device.cpu(1)))
    feed = {"audio_embeds": numpy.ones((1, 90000, 80), "float32"), "projector": numpy.zeros(1, "int64")}
    encoder.run(feed)
    began = threading.Event()
    def work():
        while True:
            began.set()
            encoder.run(feed)
    threading.Thread(target=work, daemon=True).start()
    began.wait()
    print("main ends")
"""

RESAMPLING = """
    import io, sys, threading, numpy, soundfile, phirt
    model = phirt.load(sys.argv[1], threads=1)
    wav = io.BytesIO()
    soundfile.write(wav, numpy.sin(numpy.arange(44100 * 9) / 20), 44100, format="WAV")
    began = threading.Event()
    def work():
        while True:
            model.count_tokens("what", audio=[wav.getvalue()])
            began.set()
    threading.Thread(target=work, daemon=True).start()
    began.wait()
    print("main ends")
"""


@pytest.mark.parametrize("code", [ANSWERING, ENCODING, RESAMPLING], ids=["answer", "encoder", "resampler"])
def test_a_daemon_thread_that_computes_does_not_abort_the_process(bundle, code):
    ended = run(code, bundle)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "main ends\n", "")


def test_an_exit_status_and_an_error_are_kept(bundle):
    assert run(ANSWERING + "\n    sys.exit(7)", bundle).returncode == 7
    failed = run(ANSWERING + "\n    1 / 0", bundle)
    assert failed.returncode == 1
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "terminate" not in failed.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="forks are POSIX")
def test_the_child_of_a_fork_does_not_wait_for_the_parents_threads(bundle):
    code = """
    import os
    child = os.fork()
    if child == 0:
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    """
    ended = run(ANSWERING + code, bundle)
    assert ended.returncode == 0
    assert "main ends\n" in ended.stdout


def test_the_main_thread_may_still_compute_while_the_program_ends(bundle):
    code = """
    import atexit, sys
    @atexit.register
    def last():
        print(len(model.chat().send("x", config=phirt.GenerationConfig(max_new_tokens=3)).result.token_ids))
    import phirt
    model = phirt.load(sys.argv[1], threads=1)
    """
    assert run(code, bundle).stdout == "3\n"


class Work:
    """A call that comes out when it is told to."""

    def __init__(self, calls: NativeCalls) -> None:
        self._calls = calls
        self.under_way, self.may_end, self.came_back = threading.Event(), threading.Event(), threading.Event()
        calls.register(self)

    def stop(self) -> None:
        self.may_end.set()

    def run(self) -> None:
        with self._calls:
            self.under_way.set()
            self.may_end.wait()
        self.came_back.set()


def test_calls_under_way_are_told_to_stop_and_waited_for():
    calls = NativeCalls()
    work = [Work(calls) for _ in range(5)]
    for one in work:
        threading.Thread(target=one.run, daemon=True).start()
        assert one.under_way.wait(10)
    calls.end()  # returns once all have come out
    assert all(one.may_end.is_set() for one in work)
    assert calls._under_way == []
    assert not any(one.came_back.is_set() for one in work)  # they sleep where they came out


def test_no_call_begins_after_the_end():
    calls = NativeCalls()
    calls.end()
    work = Work(calls)
    thread = threading.Thread(target=work.run, daemon=True)
    thread.start()
    assert calls._one_came_out.wait(10)
    assert calls._under_way == []
    assert not work.under_way.is_set()
    with calls:  # the main thread goes on
        pass


def test_a_call_that_never_comes_out_is_not_waited_for_without_end(monkeypatch, caplog):
    from phirt.runtime import native_calls

    monkeypatch.setattr(native_calls, "_LONGEST_WAIT", 0.05)
    calls = NativeCalls()
    work = Work(calls)
    work.stop = lambda: None
    threading.Thread(target=work.run, daemon=True).start()
    assert work.under_way.wait(10)
    calls.end()
    assert "the program ends while phirt still computes" in caplog.text
    work.may_end.set()
