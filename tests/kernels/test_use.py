"""When the kernels are taken, and for which nodes: everything else of a graph means the same afterwards; and
models answer as they do without.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from kernel_cases import NAMES
from onnx import TensorProto, helper

import phirt
from phirt.bundle.files import load_manifest
from phirt.runtime import kernels
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_apps.machine import products

EXAMPLES = Path(__file__).resolve().parents[2] / "apps" / "examples"


def product(
    name: str, domain: str = "com.microsoft", kind: str = "MatMulNBits", **attributes
) -> onnx.NodeProto:
    sizes = {"K": 64, "N": 16, "bits": 4, "block_size": 32}
    return helper.make_node(kind, ["A", "B", "s"], [name], name, domain=domain, **sizes, **attributes)


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "inner", [], [])


def example() -> onnx.ModelProto:
    """Nodes of all kinds: those that are taken are called so."""
    loop = helper.make_node(
        "Loop", ["", "", "x"], ["y"], body=body(product("taken twice inside", accuracy_level=4))
    )
    inside = body(product("taken inside", accuracy_level=4), product("exact", accuracy_level=1))
    branch = helper.make_node("If", ["A"], ["x"], then_branch=inside, else_branch=body(loop))
    nodes = [
        product("taken", accuracy_level=4),
        product("default"),
        product("half", accuracy_level=2),
        product("another's", domain="another.domain", accuracy_level=4),
        product("another kind", kind="QMoE", accuracy_level=4),
        branch,
        product("taken last", accuracy_level=4, doc_string="com.microsoft MatMulNBits accuracy_level"),
    ]
    graph = helper.make_graph(nodes, "com.microsoft", [value("A")], [value("taken")])
    graph.initializer.append(helper.make_tensor("com.microsoft", TensorProto.FLOAT, [3], [1.0, -2.0, 4.0]))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def take(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.name.startswith("taken"):
            node.domain = "phirt.kernels"
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                take(attribute.g)


def test_products_over_int8_activations_are_taken_and_nothing_else_changes():
    before = example().SerializeToString()
    after = kernels.with_kernels(before)
    assert after is not None
    right = example()
    take(right.graph)
    right.opset_import.append(helper.make_opsetid("phirt.kernels", 1))
    assert onnx.load_from_string(after) == right


def test_a_graph_without_such_products_is_left_alone():
    graph = helper.make_graph([product("exact", accuracy_level=1)], "g", [value("A")], [value("exact")])
    assert kernels.with_kernels(helper.make_model(graph).SerializeToString()) is None
    assert kernels.with_kernels(b"") is None


def test_a_damaged_type_of_an_input_leaves_the_graph_as_it_is(caplog):
    """What the check of graphs does not read."""
    damaged = bytes(
        [7 << 3 | 2, 4, 11 << 3 | 2, 2, 2 << 3 | 2, 9]
    )  # a type of nine bytes, of which none is there
    with caplog.at_level(logging.WARNING, "phirt.kernels"):
        assert kernels.with_kernels(damaged) is None
    (line,) = lines(caplog)
    assert "a graph cannot be read: a field reaches past the end" in line


@pytest.fixture
def installed(tmp_path, monkeypatch, caplog):
    """Installs a package with the library at a path, and asks for it."""
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "phirt_kernels", raising=False)
    package = tmp_path / "phirt_kernels"
    package.mkdir()
    caplog.set_level(logging.WARNING, "phirt.kernels")

    def ask(path: Path) -> Path | None:
        text = f"from pathlib import Path\ndef library_path(): return Path({str(path)!r})\n"
        (package / "__init__.py").write_text(text)
        kernels.library.cache_clear()
        return kernels.library()

    yield ask
    kernels.library.cache_clear()
    sys.modules.pop("phirt_kernels", None)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_installed_library_is_found(installed, library, caplog):
    assert installed(library) == library
    assert lines(caplog) == []
    assert kernels.instructions() in NAMES
    assert products() == f"phirt-kernels with {kernels.instructions()}"


@pytest.mark.parametrize("content", [None, b"", b"no library"])
def test_a_library_that_cannot_be_loaded_is_done_without(installed, tmp_path, caplog, content):
    path = tmp_path / "damaged.so"
    if content is not None:
        path.write_bytes(content)
    assert installed(path) is None
    assert kernels.library() is None
    (line,) = lines(caplog)
    assert line.startswith(f"phirt-kernels is not used: {path} cannot be loaded: ")


def test_a_library_with_other_operators_is_done_without(installed, library, caplog, monkeypatch):
    monkeypatch.setattr(kernels, "_INTERFACE", 1000)
    assert installed(library) is None
    (line,) = lines(caplog)
    assert line == f"phirt-kernels is not used: {library} is of another version than phirt; install it again"


def test_plain_loops_are_no_faster_and_that_is_said_once(installed, library, caplog, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "generic")
    assert installed(library) is None
    assert kernels.library() is None
    assert lines(caplog) == ["phirt-kernels is not used: PHIRT_KERNELS is 'generic'"]


def test_instructions_that_a_cpu_has_not_are_said(installed, library, caplog, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "avx1024")
    assert installed(library) == library
    (line,) = lines(caplog)
    assert line.startswith("PHIRT_KERNELS is 'avx1024', which this CPU has not; phirt-kernels uses ")


def test_switched_off_it_is_not_even_looked_at(installed, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "off")
    assert installed(tmp_path / "missing.so") is None
    assert lines(caplog) == []
    assert kernels.instructions() is None
    assert products() == "onnxruntime"


TEXT = [("Who are you?", {}), ("Tell me about the sea.", {})]
PICTURE = [("What is this?", {"images": [EXAMPLES / "shoes.jpg"]})]
SOUND = [(TRANSCRIBE_PROMPT, {"audio": [EXAMPLES / "seven.flac"]})]


def answers(bundle: Path, *conversations: list[tuple[str, dict[str, Any]]]) -> list[tuple[int, ...]]:
    """Greedy tokens. A seed has each run take the same rows."""
    short = phirt.GenerationConfig(max_new_tokens=8, seed=0)
    found = []
    with phirt.load(bundle, threads=2) as model:
        for asked in conversations:
            chat = model.chat()
            for text, media in asked:
                found.append(tuple(chat.send(text, config=short, **media).result.token_ids))
    return found


# Rounding decides near ties, of which the free answers of the embedded model have some.
@pytest.mark.parametrize("embedded, asked", [(False, (TEXT, PICTURE, SOUND)), (True, (PICTURE, SOUND))])
def test_models_answer_as_without(nano, embedded, asked, monkeypatch, request):
    bundle = phirt.model.embedded_bundle() if embedded else nano
    graphs = load_manifest(bundle).graphs.values()
    assert any(kernels.with_kernels((bundle / spec.file).read_bytes()) for spec in graphs)
    monkeypatch.setattr(kernels, "library", lambda: None)
    without = answers(bundle, *asked)
    request.getfixturevalue("use_kernels")
    assert answers(bundle, *asked) == without
    assert any(without)


@pytest.mark.parametrize("rows", [2, 3, 4, 8])
def test_several_tokens_in_a_run_give_the_bits_of_one_at_a_time(nano, use_kernels, rows):
    """So that what is drafted changes no answer."""
    rng = np.random.default_rng(rows)
    ids = rng.integers(10, 1900, 200 + 16).tolist()
    with phirt.load(nano, threads=2) as model:
        engine = model.generator.new_engine()
        engine.prefill(ids[:200])
        single = [np.array(engine.decode_step(token)) for token in ids[200:]]
        engine.truncate(200)
        for first in range(0, 16 - rows + 1, rows):
            together = engine.prefill(ids[200 + first : 200 + first + rows])
            assert np.array_equal(together, single[first + rows - 1])
