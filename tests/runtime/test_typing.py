"""What type checkers see of the public names: `__init__.pyi`, the same list that is fetched at run time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USAGE = """
import asyncio
import threading
from collections.abc import Sequence
import numpy as np
import phirt

def halve(logits: np.ndarray[tuple[int], np.dtype[np.float32]], token_ids: Sequence[int]) -> phirt.Logits:
    return logits * np.float32(0.5)

def use(model: phirt.Model, cancel: threading.Event) -> str:
    chat: phirt.Chat = model.chat(system="x", tools=({"name": n} for n in "ab"))
    reply = chat.send("x", images=["a.png"], max_new_tokens=3, stop="x", wait=True, cancel=cancel)
    result: phirt.Result = reply.result
    again: phirt.Reply = chat.send_tool_results([1], config=phirt.GenerationConfig())
    reason: phirt.FinishReason = result.finish_reason
    tokens: int = result.usage.new_tokens + len(result.token_ids)
    seconds: float = result.timings.total
    calls: list[tuple[str, bool]] = [(call.name, call.offered) for call in result.tool_calls]
    stream = model.generator.stream([phirt.Message("user", "x")], logits_processors=[halve], temperature=0.5)
    return "".join(stream) + reason + str((tokens, seconds, calls, again))

async def main() -> None:
    with phirt.load() as model:
        async for piece in model.chat().asend("x", images=["a.png"], wait=True, max_new_tokens=3):
            print(piece.upper())

asyncio.run(main())
"""


MISTAKES = """
import phirt
model = phirt.load()
phirt.nothing
model.chat().send("x", max_tokens=3)
model.chat().send("x", max_new_tokens="3")
result = model.chat().send("x").result
result.usage["new_tokens"]
result.finish_reason == "stopped"
result.tool_calls[0]["name"]
phirt.GenerationConfig().seed = 3
model.chat(tools=5)
model.chat().asend("x", max_tokens=3)
model.generator.astream([], images=[])
"""


def check(code: str, folder: Path) -> list[str]:
    """What mypy says, in its strictest way."""
    (folder / "program.py").write_text(code, "utf-8")
    flags = ["--config-file=", "--strict", "--ignore-missing-imports", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", *flags, "--no-error-summary", str(folder / "program.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_program_that_uses_everything(tmp_path: Path) -> None:
    assert check(USAGE, tmp_path) == []


def test_mistakes_are_type_errors(tmp_path: Path) -> None:
    said = [line for line in check(MISTAKES, tmp_path) if " error: " in line]
    wrong = [int(line.split(":")[1]) for line in said]
    assert sorted(set(wrong)) == [4, 5, 6, 8, 9, 10, 11, 12, 13, 14]
