"""A stranger's graph is refused before onnxruntime sees it: endless loops (attack 03a, 03b), trees of
branches (03c), weights that are not there. What exporters write passes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import GIGA, branch, external, floats, ints, model, node, refused, tensor, varint
from tiny_bundle import write_manifest

import phirt
from phirt.bundle.files import load_manifest
from phirt.bundle.graph_check import check_graph
from phirt.bundle.onnx_graph import read_model
from phirt.errors import BundleError

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "attack"


def loop(body: onnx.GraphProto) -> onnx.NodeProto:
    return node("Loop", ["", "choice", "x"], ["y"], body=body)


def test_a_graph_of_every_accepted_kind_passes(check):
    check(
        model(
            [
                node("MatMul", ["x", "w"], ["a"]),
                node("Shape", ["a"], ["shape"]),
                node("Gather", ["shape", "zero"], ["rows"]),
                node("Concat", ["rows", "four"], ["wanted"], axis=0),
                node("Expand", ["row", "wanted"], ["e"]),
                node("ConstantOfShape", ["wanted"], ["z"]),
                node("Pad", ["z", "pads"], ["p"]),
                node("Add", ["w", "row"], ["folded"]),
                node("Transpose", ["folded"], ["turned"]),
                node("MatMul", ["w", "turned"], ["computed"]),
                node("QuickGelu", ["e"], ["q"], domain="com.microsoft"),
                node(
                    "If", ["choice"], ["y"],
                    then_branch=branch([node("Add", ["q", "more"], ["inner"])], [floats("more", 4)]),
                    else_branch=branch([node("Constant", [], ["inner"], value=floats("c", 4))]),
                ),
            ],
            [
                floats("w", 4, 4), floats("row", 1, 4), ints("zero", 0), ints("four", 4),
                ints("pads", 0, 1, 0, 1),
            ],
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Loop", "Scan", "SequenceMap"])
def test_loops_are_refused_wherever_they_are(check, kind):
    looped = node(kind, ["x"], ["y"], body=branch([node("Relu", ["x"], ["inner"])]))
    inside = branch([node(kind, ["x"], ["inner"], body=branch([node("Relu", ["x"], ["inner"])]))])
    plain = branch([node("Relu", ["x"], ["inner"])])
    hidden = node("If", ["choice"], ["y"], then_branch=plain, else_branch=inside)
    for one in (looped, hidden):
        refused(check, model([one]), f"holds the operator '{kind}', which may never end")


@pytest.mark.parametrize(
    ("kind", "domain"),
    [
        ("Frobnicate", ""), ("Relu", "com.stranger"), ("BeamSearch", "com.microsoft"), ("", ""),
        ("EPContext", "com.microsoft"), ("StringConcat", ""), ("ImageDecoder", ""), ("RandomNormal", ""),
        ("PyOp", "ai.onnx.contrib"), ("TreeEnsemble", "ai.onnx.ml"),
    ],
)  # fmt: skip
def test_operators_that_no_exporter_writes_are_refused(check, kind, domain):
    refused(check, model([node(kind, ["x"], ["y"], domain=domain)]), "holds the operator '")


def test_graphs_inside_other_operators_are_refused(check):
    plain = branch([node("Relu", ["x"], ["inner"])])
    refused(check, model([node("Relu", ["x"], ["y"], body=plain)]), "'Relu' has 1 graphs inside")
    refused(check, model([node("If", ["choice"], ["y"], then_branch=plain)]), "'If' has 1 graphs inside")


def nested(depth: int, width: int) -> onnx.GraphProto:
    """A tree of Ifs."""
    if depth == 0:
        return branch([node("Relu", ["x"], ["inner"])])
    inner = nested(depth - 1, width)
    nodes = [
        node("If", ["choice"], ["inner" if i == 0 else f"o{i}"], then_branch=inner, else_branch=inner)
        for i in range(width)
    ]
    return branch(nodes)


@pytest.mark.parametrize(("depth", "width"), [(4, 1), (12, 1), (3, 10), (2, 70), (1, 5000)])
def test_trees_of_branches_are_refused(check, depth, width):
    made = model([*nested(depth, width).node, node("Identity", ["inner"], ["y"])])
    refused(check, made, "nests graphs more than 3 deep|more than 400000 fields|more than 8192 nodes")


def test_branches_nested_beyond_any_reader_are_refused(check):
    plain = branch([node("Relu", ["x"], ["inner"])])
    deep = plain
    for _ in range(20):
        deep = branch([node("If", ["choice"], ["inner"], then_branch=deep, else_branch=plain)])
    with pytest.raises(BundleError, match="nests graphs more than 3 deep"):
        check(model([*deep.node, node("Identity", ["inner"], ["y"])]))


def test_functions_and_sparse_weights_are_refused(check):
    function = helper.make_function(
        "com.stranger", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    refused(check, model([node("Relu", ["x"], ["y"])], functions=[function]), "functions of its own")
    sparse = model([node("Relu", ["x"], ["y"])])
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(floats("s", 1), ints("i", 0), [1 << 40]))
    refused(check, sparse, "sparse weights")


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (tensor(shape=[GIGA, GIGA]), "claims 4000000000000000000 bytes and has 0"),
        (tensor(shape=[5], raw=bytes(16)), "claims 20 bytes and has 16"),
        (tensor(kind=TensorProto.STRING), "is of a type that no weight has"),
        (tensor(kind=77), "is of a type that no weight has"),
        (external(location="/etc/passwd"), "lies in '/etc/passwd', which the manifest does not name"),
        (external(location="../g.data"), "which the manifest does not name"),
        (external(location="*/_ORT_MEM_ADDR_/*", offset=1234, length=16), "which the manifest does not name"),
        (external(offset=0), "which the manifest does not name"),
        (external(location="data", offset=10, length=16), "reaches past the end of data"),
        (external(location="data", offset=-16, length=16), "reaches past the end of data"),
        (external(location="data", offset=1 << 70, length=16), "reaches past the end of data"),
        (external(location="data", length=8), "reaches past the end of data"),
        (external(location="data", length=1 << 62), "reaches past the end of data"),
        (external(location="data", shape=[GIGA]), "reaches past the end of data"),
    ],
)
def test_weights_that_are_not_there_are_refused(check, weight, match):
    made = model([node("Add", ["x", "w"], ["y"])], [weight])
    refused(check, made, match, data=20)
    attribute = model([node("Constant", [], ["w"], value=weight), node("Add", ["x", "w"], ["y"])])
    refused(check, attribute, match, data=20)


def test_weights_in_a_listed_file_pass(check):
    weights = [external(location="data", offset=4, length=16), tensor("v", raw=bytes(16)), floats("u", 2)]
    typed = onnx.TensorProto(name="t", data_type=TensorProto.INT32, dims=[3], int32_data=[1, -2, 300])
    half = onnx.TensorProto(name="h", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[15360, 0])
    check(model([node("Add", ["x", "w"], ["y"])], [*weights, typed, half]), data=20)


def test_the_same_bytes_many_times_over_are_refused(check):
    weights = [external([25 << 18], location="data", offset=0, length=100 << 20) for _ in range(40)]
    for number, weight in enumerate(weights):
        weight.name = f"w{number}"
    made = model([node("Add", ["x", "w0"], ["y"])], weights)
    refused(check, made, "claim many times the bytes", data=100 << 20)
    del made.graph.initializer[4:]
    check(made, data=100 << 20)


# Each field takes two bytes: the file is small, the walk would be long.
@pytest.mark.parametrize("number", [1, 2, 5, 13])
def test_a_file_of_a_million_pieces_is_refused(check, number):
    pieces = bytes([number << 3 | 2, 0]) * 1_500_000
    body = b"\x3a" + varint(len(pieces)) + pieces
    with pytest.raises(BundleError, match=r"more than 400000 fields|two initializers"):
        check(body)


def _message(number: int, *parts: bytes) -> bytes:
    """A field that holds a message."""
    whole = b"".join(parts)
    return bytes([number << 3 | 2]) + varint(len(whole)) + whole


@pytest.mark.parametrize(
    ("hidden", "reason"),
    [
        pytest.param(bytes([4 << 3 | 5]) + b"Relu", "a number where a message", id="of fixed size"),
        pytest.param(
            varint(1 << 32 | 4 << 3 | 2) + b"\x04Relu", "a field's number is", id="of a long number"
        ),
    ],
)
def test_a_kind_of_node_that_others_would_not_see_is_refused(check, hidden, reason):
    """Other readers go by the field before, or by the one behind."""
    made = model([node("Scan", ["x"], ["y"])]).graph.node[0].SerializeToString()
    with pytest.raises(BundleError, match=reason):
        check(_message(7, _message(1, made, hidden)))


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(bytes([14 << 3 | 5]) + bytes(4), id="of fixed size"),
        pytest.param(bytes([14 << 3 | 2, 0]), id="a message"),
        pytest.param(bytes([14 << 3]) + varint(1 << 32 | 1), id="of more than 32 bits"),
    ],
)
def test_external_data_that_only_others_would_see_is_refused(check, place):
    weight = external((4,), location="/etc/passwd").SerializeToString() + place
    nodes = node("Add", ["x", "w"], ["y"]).SerializeToString()
    with pytest.raises(BundleError, match=r"integer belongs|expected 0 or 1"):
        check(_message(7, _message(1, nodes), _message(5, weight)))


def test_lists_of_graphs_are_refused(check):
    made = model([node("Neg", ["x"], ["y"])])
    made.graph.node[0].attribute.append(
        helper.make_attribute("several", [branch([node("Relu", ["x"], ["inner"])])])
    )
    with pytest.raises(BundleError, match="the attribute 'several' is a list of graphs"):
        check(made)


def test_attributes_that_are_there_twice_are_refused(check):
    made = model([node("Pad", ["x", "s"], ["y"])], [ints("s", 0)])
    for _ in range(2):
        made.graph.node[0].attribute.append(helper.make_attribute("pads", [0, 0]))
    with pytest.raises(BundleError, match="the attribute 'pads' is there twice"):
        check(made)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_refused_or_read(bundle, tmp_path, data):
    whole = bytearray((bundle / "decoder.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        read_model(path)
    except BundleError as error:
        assert "is no graph that can be read" in str(error)


@pytest.mark.parametrize("name", ["03a-loop-at-load", "03b-loop-at-run"])
def test_endless_loops_of_strangers_end_in_one_line(nano, tmp_path, name):
    if not CASES.is_dir():
        pytest.skip(f"the cases are not at {CASES}")
    folder = _over(nano, tmp_path, CASES / name / "decoder.onnx", CASES / name / "manifest.json")
    _ends_in_one_line(folder, "holds the operator 'Loop', which may never end")


# Attack 03c: a decoder with a tree of branches, which takes minutes and gigabytes to open.
def test_a_decoder_that_is_a_tree_ends_in_one_line(nano, tmp_path):
    folder = _over(nano, tmp_path)
    made = onnx.load(folder / "decoder.onnx", load_external_data=False)
    condition = next(one for one in made.graph.node if one.op_type == "If").input[0]
    tree = branch([node("Identity", ["logits"], ["inner"])])
    for _ in range(14):
        tree = branch([node("If", [condition], ["inner"], then_branch=tree, else_branch=tree)])
    made.graph.node.extend(tree.node)
    onnx.save(made, folder / "decoder.onnx")
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    assert (folder / "decoder.onnx").stat().st_size > 1 << 20
    _ends_in_one_line(folder, "nests graphs more than 3 deep")


def _over(nano: Path, tmp_path: Path, *files: Path) -> Path:
    folder = Path(shutil.copytree(nano, tmp_path / "bundle"))
    for file in files:
        (folder / file.name).chmod(0o644)
        shutil.copyfile(file, folder / file.name)
    return folder


# What a parent is told of its child's memory (ru_maxrss) begins with the parent's own.
_MEASURED = """
import os, re, sys, time
from pathlib import Path
from phirt_apps.cli import main
try:
    main()
finally:
    table = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\\s+(\\d+)", table.read_text())[1] if table.exists() else 0
    Path(os.environ["USED"]).write_text(f"{time.process_time()} {peak}")
"""


def _ends_in_one_line(folder: Path, cause: str) -> None:
    used = folder.parent / "used.txt"
    ended = subprocess.run(
        [sys.executable, "-c", _MEASURED, "chat", "-m", str(folder), "hi"],
        capture_output=True, text=True, check=False, env={**os.environ, "USED": str(used)},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert cause in line
    seconds, kilobytes = map(float, used.read_text().split())
    assert seconds < 5
    assert kilobytes < 1 << 20


def test_every_graph_of_the_trained_and_the_random_bundles_passes(bundle, nano):
    from phirt.model import embedded_bundle

    for folder in (bundle, nano, embedded_bundle()):
        manifest = load_manifest(folder)
        for spec in manifest.graphs.values():
            check_graph(manifest, spec)


def test_the_file_of_a_graph_is_looked_at_before_it_is_opened(own_bundle, monkeypatch):
    from phirt.runtime import session

    made = onnx.load(own_bundle / "decoder.onnx", load_external_data=False)
    made.graph.node.append(loop(branch([node("Relu", ["x"], ["inner"])])))
    onnx.save(made, own_bundle / "decoder.onnx")
    write_manifest(own_bundle, json.loads((own_bundle / "manifest.json").read_text()))
    monkeypatch.setattr(session.ort, "InferenceSession", None)
    with pytest.raises(BundleError, match="holds the operator 'Loop'"):
        phirt.load(own_bundle)


def test_the_reader_tells_what_the_package_onnx_tells(bundle):
    for path in sorted(bundle.glob("*.onnx")):
        read, reference = read_model(path).graph, onnx.load(path, load_external_data=False).graph
        assert read.inputs == tuple(one.name for one in reference.input)
        for mine, theirs in zip(read.nodes, reference.node, strict=True):
            assert (mine.kind, mine.domain, mine.inputs) == (
                theirs.op_type,
                theirs.domain,
                tuple(theirs.input),
            )
            lists = {a.name: tuple(a.ints) for a in theirs.attribute if a.ints}
            assert mine.integer_lists == lists
        for one in reference.initializer:
            weight = read.weights[one.name]
            assert (weight.shape, weight.data_type) == (tuple(one.dims), one.data_type)
            entries = {entry.key: entry.value for entry in one.external_data}
            if entries:
                assert (weight.location, str(weight.offset)) == (entries["location"], entries["offset"])
            elif weight.values is not None:
                np.testing.assert_array_equal(weight.values, numpy_helper.to_array(one).ravel())
