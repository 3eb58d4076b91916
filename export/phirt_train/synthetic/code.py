"""Code to continue and to fill in, cut from the functions of Python's own standard library.

The source is that of the interpreter that runs this (licence: PSF), without its tests, so what is made
depends on the version of Python.

Knows source files. Knows nothing of models. Everything is a function of the files and a seed.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from phirt_train.data.records import Conversation, Document, TrainingMessage

GAP = "# ... missing ..."
_LEAST_LINES, _MOST_LINES = 5, 40
_MOST_LINE = 100  # characters: what is longer is a table
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "__pycache__", "ensurepip"}


def library_files(folder: Path | None = None) -> list[Path]:
    """The source files of the standard library, or of another folder, in order."""
    root = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    inside = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(inside) if not _LEFT_OUT & set(path.parts)]


def library_code(folder: Path | None = None) -> Iterator[Document]:
    """Whole files, to learn as they are."""
    for path in library_files(folder):
        source = _read(path)
        if source is not None and source.strip():
            yield Document(source)


def functions(folder: Path | None = None) -> Iterator[str]:
    """The source of functions of a handy length, without the indentation that they share; each once."""
    seen = set()
    for path in library_files(folder):
        source = _read(path)
        for text in () if source is None else _functions_of(source):
            if text not in seen:
                seen.add(text)
                yield text


def completions(count: int, seed: int, folder: Path | None = None) -> Iterator[Conversation]:
    """At most so many requests to continue a function, or to fill in lines of one, half of each."""
    rng = np.random.default_rng(seed)
    known = list(functions(folder))
    for number, index in enumerate(rng.permutation(len(known))[:count]):
        lines = known[index].splitlines()
        yield _continuation(lines, rng) if number % 2 else _filling(lines, rng)


def _continuation(lines: list[str], rng: np.random.Generator) -> Conversation:
    cut = int(rng.integers(max(2, len(lines) // 3), len(lines)))
    return _conversation("Complete the function. Write only what follows.", lines[:cut], lines[cut:])


def _filling(lines: list[str], rng: np.random.Generator) -> Conversation:
    length = int(rng.integers(1, min(4, len(lines) - 2)))
    start = int(rng.integers(1, len(lines) - length))
    missing = lines[start : start + length]
    indent = missing[0][: len(missing[0]) - len(missing[0].lstrip())]
    shown = [*lines[:start], f"{indent}{GAP}", *lines[start + length :]]
    return _conversation(f'Write the lines that belong in the place of "{GAP}".', shown, missing)


def _conversation(asked: str, shown: list[str], answer: list[str]) -> Conversation:
    code, rest = "\n".join(shown), "\n".join(answer)
    prompt = f"{asked}\n\n```python\n{code}\n```"
    return Conversation(
        (TrainingMessage("user", prompt), TrainingMessage("assistant", f"```python\n{rest}\n```"))
    )


def _read(path: Path) -> str | None:
    """The text of a file; None where it is no UTF-8, as a few of the library's are not."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def _functions_of(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # the library has templates that are no Python
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            text = [line[node.col_offset :].rstrip() for line in lines[node.lineno - 1 : node.end_lineno]]
            filled = _LEAST_LINES <= len(text) <= _MOST_LINES and "```" not in "".join(text)
            if filled and max(map(len, text)) <= _MOST_LINE and all(line.strip() for line in text[-1:]):
                yield "\n".join(text)
