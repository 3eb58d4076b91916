"""Importing and using phirt: no torch, no socket, no changed global state, quickly."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import phirt


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_changes_nothing_and_imports_nothing_heavy():
    assert (
        run(
            """
        import os, signal, sys, threading, warnings, logging, locale
        def state():
            return (
                dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGINT), sys.excepthook,
                threading.active_count(), list(logging.root.handlers), list(sys.path),
                locale.setlocale(locale.LC_ALL), os.getcwd(),
            )
        before = state()
        import phirt
        assert state() == before
        heavy = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "soundfile", "jinja2", "tokenizers"}
        print(sorted(heavy & set(sys.modules)))
        """
        )
        == "[]"
    )


def test_every_module_imports_without_torch_and_opens_no_socket(bundle, photo, clip):
    assert (
        run(
            f"""
        import sys
        opened = []
        sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
        import phirt
        model = phirt.load({str(bundle)!r}, threads=1)
        media = dict(images=[{str(photo)!r}], audio=[{str(clip)!r}])
        reply = model.chat().send("x", **media, config=phirt.GenerationConfig(max_new_tokens=3))
        assert len(reply.result.token_ids) == 3
        banned = {{"torch", "onnx", "transformers", "phirt_export", "phirt_quant", "phirt_apps"}}
        print(opened, sorted(banned & set(sys.modules)))
        """
        )
        == "[] []"
    )


def test_telemetry_is_off_unless_somebody_decided_otherwise():
    code = "import os; {}; import phirt.runtime.session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run(code.format("os.environ.pop('ORT_DISABLE_TELEMETRY', None)")) == "1"
    assert run(code.format("os.environ['ORT_DISABLE_TELEMETRY'] = '0'")) == "0"


# In CPU seconds, beside onnxruntime's own in the same process: no busy or slow machine decides.
def test_importing_takes_less_than_three_times_as_long_as_onnxruntime():
    """Which is 0.3 seconds on a machine of its own."""
    ratios = [
        float(
            run(
                """
                import time
                begin = time.process_time()
                import onnxruntime
                between = time.process_time()
                import phirt; phirt.load, phirt.Chat, phirt.GenerationConfig
                print((time.process_time() - between) / (between - begin))
                """
            )
        )
        for _ in range(3)
    ]
    assert min(ratios) < 3


@pytest.mark.parametrize("name", phirt.__all__)
def test_the_public_names_are_there(name):
    assert getattr(phirt, name) is not None
    assert name in dir(phirt)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="attribute frobnicate"):
        phirt.frobnicate  # noqa: B018
