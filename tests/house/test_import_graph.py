"""The house as a graph: packages and rooms import one way, and nothing imports in a circle.

Every import counts, also those inside functions and those that only a type checker reads.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "phirt": ROOT / "phirt",
    "phirt_quant": ROOT / "quant" / "phirt_quant",
    "phirt_export": ROOT / "export" / "phirt_export",
    "phirt_train": ROOT / "export" / "phirt_train",
    "phirt_apps": ROOT / "apps" / "phirt_apps",
}
# From the ground up; each may import what stands before it.
ROOMS = (
    "errors", "annotations", "fields", "bundle", "runtime", "prompt", "encoders", "generate", "generator",
    "chat", "transcription", "embedder", "model",
)  # fmt: skip


def _modules() -> dict[str, Path]:
    """Every module of the five packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """The modules of the house that a module imports; a package's own names count as the package."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            named |= {f"{base}.{alias.name}" for alias in node.names}
    found = set()
    for word in named:
        while word and word not in MODULES:
            word = word.rpartition(".")[0]
        found |= {word} if word else set()
    return found - {name}


GRAPH = {name: _imports(name) for name in MODULES}


def test_there_is_no_circle() -> None:
    # `import phirt` names the whole package for its users in the outer ones; nothing inside may.
    assert [name for name in GRAPH if name.startswith("phirt.") and "phirt" in GRAPH[name]] == []
    try:
        order = list(graphlib.TopologicalSorter(GRAPH).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")
    assert len(order) == len(MODULES)


def test_packages_import_one_way() -> None:
    order = list(PACKAGES)
    wrong = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if order.index(other.split(".")[0]) > order.index(name.split(".")[0])
    ]
    assert wrong == []


def test_rooms_import_one_way() -> None:
    def floor(name: str) -> int:
        return ROOMS.index(name.split(".")[1])

    inside = [name for name in GRAPH if name.startswith("phirt.") and not name.startswith("phirt.__")]
    assert {name.split(".")[1] for name in inside} <= set(ROOMS)
    wrong = [
        f"{name} imports {other}"
        for name in inside
        for other in GRAPH[name]
        if other.startswith("phirt.") and floor(other) > floor(name)
    ]
    assert wrong == []


def test_the_graph_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made.py"
    path.write_text(
        "import phirt.errors\nfrom phirt import fields\nfrom phirt.bundle.manifest import Manifest\n"
        "def f():\n    from .bundle import files\n"
        "import json\n",
        encoding="utf-8",
    )
    monkeypatch.setitem(MODULES, "phirt.made", path)
    assert _imports("phirt.made") == {
        "phirt.errors", "phirt.fields", "phirt.bundle.manifest", "phirt.bundle.files",
    }  # fmt: skip
