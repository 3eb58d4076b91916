"""Small ONNX models made by hand, and the check of a bundle's graphs on them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from phirt.bundle.graph_check import check_graph
from phirt.bundle.manifest import FileEntry, GraphSpec
from phirt.errors import BundleError

GIGA = 10**9
node = helper.make_node


def varint(number: int) -> bytes:
    """As protocol buffers write an integer."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def floats(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype=np.float32), name)


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape) or None)


def graph(nodes, initializers=(), output: str = "y") -> onnx.GraphProto:
    inputs = [value("x", "n", 4), value("choice", 1, kind=TensorProto.BOOL)]
    return helper.make_graph(list(nodes), "g", inputs, [value(output)], list(initializers))


def branch(nodes, initializers=(), output: str = "inner") -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "b", [], [value(output)], list(initializers))


def model(nodes, initializers=(), **fields) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph(nodes, initializers), opset_imports=opsets, ir_version=10, **fields)


class Folder:
    """A bundle's folder as far as the check looks at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def check(tmp_path):
    """Checks a model, or the bytes of one, beside data files of these sizes."""

    def run(made: onnx.ModelProto | bytes, **data: int) -> None:
        folder = Folder(tmp_path)
        content = made if isinstance(made, bytes) else made.SerializeToString()
        (tmp_path / "g.onnx").write_bytes(content)
        for name, size in {"g.onnx": len(content), **data}.items():
            folder.files[name] = FileEntry(size, "")
        check_graph(folder, GraphSpec("g.onnx", tuple(data), "cpu", (), ()))  # type: ignore[arg-type]

    return run


def refused(check, made, match: str, **data: int) -> None:
    begin = time.process_time()
    with pytest.raises(BundleError, match=match) as error:
        check(made, **data)
    assert time.process_time() - begin < 3
    assert "\n" not in str(error.value)
    assert "run 'phirt verify'" in str(error.value)


def tensor(name: str = "w", kind: int = TensorProto.FLOAT, shape=(4,), raw: bytes = b"") -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=raw)


def external(shape=(4,), **entries: object) -> onnx.TensorProto:
    made = tensor(shape=shape)
    made.data_location = TensorProto.EXTERNAL
    for key, entry in entries.items():
        made.external_data.add(key=key, value=str(entry))
    return made
