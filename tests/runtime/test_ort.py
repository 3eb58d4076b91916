"""onnxruntime as phirt uses it: what it would print stays away from the program's stdout."""

from __future__ import annotations

import threading

from phirt.runtime import ort as own


def test_looking_for_cudas_libraries_prints_nothing_and_is_done_once(monkeypatch, capsys) -> None:
    """Whoever prints meanwhile, in another thread, is heard."""
    calls, inside, go_on = [], threading.Event(), threading.Event()

    def preload(**_: bool) -> None:
        calls.append(1)
        vars(own.ort).get("print", print)("Failed to load libcudart.so")
        inside.set()
        go_on.wait(10)

    monkeypatch.setattr(own.ort, "preload_dlls", preload)
    own._load_once.cache_clear()
    threads = [threading.Thread(target=own.load_cuda_libraries) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    print("an answer")
    go_on.set()
    for thread in threads:
        thread.join(10)
    own._load_once.cache_clear()
    assert capsys.readouterr().out == "an answer\n"
    assert calls == [1] and "print" not in vars(own.ort)
