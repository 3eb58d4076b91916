"""`phirt bench`: which figures there are, what a token costs, and what is refused. No time is judged."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import phirt
from phirt.bundle.manifest import Manifest
from phirt.bundle.onnx_graph import read_graph
from phirt.errors import BundleError, ConfigError
from phirt.runtime import prepared as prepacked
from phirt.runtime.cpus import thread_count
from phirt_apps.bench import opening, peaks, speed
from phirt_apps.bench.spread import Spread
from phirt_apps.bench.work import decoder_work
from phirt_apps.cli import app
from phirt_apps.extras import install_line
from phirt_apps.output import Busy
from phirt_export.exporter import export_bundle

SHORT = ["--prompt-tokens", "16,40", "--depth", "8,40", "--new-tokens", "4", "--repeats", "2"]


@pytest.fixture(scope="module")
def tiny_bundle() -> ModuleType:
    """The maker of bundles without quantization, which the runtime's tests use."""
    path = Path(__file__).parents[1] / "runtime" / "tiny_bundle.py"
    spec = importlib.util.spec_from_file_location("tiny_bundle_for_bench", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text_bundle(tiny_bundle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle without encoders."""
    folder = tmp_path_factory.mktemp("text")
    return Path(tiny_bundle.write_bundle(folder, vision=False, speech=False))


@pytest.fixture
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose reading is measured on a small buffer, and whose products cannot be."""
    monkeypatch.setattr(peaks, "measure_reading", lambda threads: peaks.read_bandwidth(threads, 1 << 22))
    monkeypatch.setattr(peaks, "measure_multiplying", lambda threads: None)


def _check_spread(value: dict[str, Any], takes: int) -> None:
    assert len(value["takes"]) == takes and value["deviation"] >= 0
    assert 0 < value["min"] <= value["mean"] <= value["max"]


def test_json_has_every_figure(bundle: Path, quick_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = {"operations_per_second": 2e9, "block_size": 128, "rows": 64, "threads": 1}
    monkeypatch.setattr(peaks, "measure_multiplying", lambda threads: peak)
    done = CliRunner().invoke(app, ["bench", "-m", str(bundle), "--json", "--sustained", "1", *SHORT])
    assert (done.exit_code, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert set(value) == {
        "bundle", "machine", "versions", "load", "prefill", "decode", "media", "by_threads", "sustained",
        "peak_memory",
    }  # fmt: skip
    machine, load = value["machine"], value["load"]
    assert machine["read"]["bytes_per_second"] > 0 and machine["multiply"] == peak
    assert machine["threads"] == thread_count(None)
    assert value["by_threads"] == []
    assert (load["cold"] is None) != (load["why_not_cold"] is None) and load["preparing"] is None
    for name in ("warm", "imports"):
        _check_spread(load[name], 2)
    assert [row["prompt_tokens"] for row in value["prefill"]] == [16, 40]
    for row in value["prefill"]:
        _check_spread(row["first_token"], 2)
        _check_spread(row["tokens_per_second"], 2)
        rate = row["operations"] / row["first_token"]["mean"]
        assert row["share_of_multiply_peak"] == pytest.approx(rate / 2e9)
    assert [(row["depth"], row["new_tokens"]) for row in value["decode"]] == [(8, 4), (40, 4)]
    for row in value["decode"]:
        _check_spread(row["tokens_per_second"], 2)
        rate = row["bytes_per_token"] * row["tokens_per_second"]["mean"]
        assert row["bandwidth_utilisation"] == pytest.approx(rate / machine["read"]["bytes_per_second"])
    for row in (value["media"]["image"], value["media"]["audio"]):
        assert row["tokens"] > 0 and "made by the program" in row["source"]
        _check_spread(row["prepare"], 2)
        _check_spread(row["encode"], 2)
    times = [sample["seconds"] for sample in value["sustained"]]
    assert times == sorted(times) and times[-1] >= 1.0
    assert all(sample["tokens_per_second"] > 0 for sample in value["sustained"])


def test_the_table_says_what_is_left_out(
    text_bundle: Path, quick_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "drop_from_cache", lambda paths: "this system cannot drop files")
    shown = CliRunner().invoke(app, ["bench", "-m", str(text_bundle), *SHORT])
    assert shown.exit_code == 0
    assert "load is warm only: this system cannot drop files" in shown.stdout
    assert install_line("export") in shown.stdout and "of int8 peak" not in shown.stdout
    assert "encoder" not in shown.stdout  # the bundle has none
    lines = shown.stdout.splitlines()
    assert any(line.split()[:1] == ["40"] and line.endswith("%") for line in lines)


@pytest.mark.parametrize("sustained", [[], ["--sustained", "1"]])
def test_one_bar_for_all_of_it(
    text_bundle: Path, quick_machine: None, monkeypatch: pytest.MonkeyPatch, sustained: list[str]
) -> None:
    shown: list[tuple[str, int, int]] = []
    monkeypatch.setattr(Busy, "advance", lambda busy, *step: shown.append(step))
    assert CliRunner().invoke(app, ["bench", "-m", str(text_bundle), *SHORT, *sustained]).exit_code == 0
    labels, done, totals = zip(*shown, strict=True)
    assert done == tuple(range(len(shown))) and set(totals) == {len(shown)}
    assert labels[0] == "measuring the machine" and labels[-1] == "measuring the machine again"
    assert "prefill of 40 tokens" in labels and "decoding at depth 8" in labels


def test_files_of_the_user_are_encoded(bundle: Path, examples: Path, quick_machine: None) -> None:
    media = ["--image", str(examples / "shapes.png"), "--audio", str(examples / "seven.flac")]
    shown = CliRunner().invoke(app, ["bench", "-m", str(bundle), "--json", *SHORT, *media])
    value = json.loads(shown.stdout)["media"]
    assert [Path(value[kind]["source"]).name for kind in ("image", "audio")] == ["shapes.png", "seven.flac"]
    model = phirt.load(bundle)
    counted = model.count_tokens("", [examples / "shapes.png"], [examples / "seven.flac"])
    assert (value["image"]["tokens"],) == counted.images and (value["audio"]["tokens"],) == counted.audio


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--depth", "1020"], 1, "context has 1024 positions; accepted: 1 to 992"),
        (["--prompt-tokens", "1025"], 1, "context has 1024 positions; accepted: 1 to 1024"),
        (["--new-tokens", "1024"], 1, "give fewer --new-tokens"),
        (["--depth", "8,many"], 2, "--depth is '8,many', accepted: whole numbers"),
        (["--prompt-tokens", "0"], 2, "--prompt-tokens is '0', accepted: whole numbers"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--image", "photo.jpg"], 1, "takes no images"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    text_bundle: Path, quick_machine: None, options: list[str], status: int, said: str
) -> None:
    shown = CliRunner().invoke(app, ["bench", "-m", str(text_bundle), *options])
    assert (shown.exit_code, shown.stdout) == (status, "")
    assert said in " ".join(shown.stderr.split())


def test_steps_across_two_rotary_regimes_are_refused(long_bundle: Path) -> None:
    geometry = phirt.load(long_bundle).manifest.geometry
    assert geometry.rope.original_context == 64
    with pytest.raises(ConfigError, match=r"passes 64.* at most 60, or 64 and more"):
        speed.make_plan(geometry, None, 4, [61], 1, None)
    assert speed.make_plan(geometry, None, 4, [60, 64, 60], 1, None).depths == (60, 64)
    assert speed.make_plan(geometry, None, 32, None, 1, None).depths == (128,)  # of the usual ones


def test_usual_lengths_are_those_that_fit(text_bundle: Path) -> None:
    geometry = phirt.load(text_bundle).manifest.geometry
    plan = speed.make_plan(geometry, None, 32, None, 5, None)
    assert (plan.prompt_tokens, plan.depths) == ((128, 1024), (128,))


@pytest.mark.parametrize("depth", [60, 64])
def test_every_take_starts_at_its_depth(
    long_bundle: Path, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = phirt.load(long_bundle)
    engine, prompts = model.generator.new_engine(), speed.Prompts(model.manifest)
    rerun: list[int] = []
    steps: list[int] = []
    plain_prefill, plain_step = engine.prefill, engine.decode_step

    def prefill(ids: Any, *rest: Any, **named: Any) -> Any:
        rerun.append(len(steps))
        return plain_prefill(ids, *rest, **named)

    def step(token: int) -> Any:
        steps.append(engine.length)
        return plain_step(token)

    monkeypatch.setattr(engine, "prefill", prefill)
    monkeypatch.setattr(engine, "decode_step", step)
    figures = speed.decode(engine, prompts, depth, 3, 2)
    assert steps == [depth, *([depth, depth + 1, depth + 2] * 3)]  # one apart, one left out, two takes
    assert all(before <= 1 for before in rerun)  # the other regime was entered before anything was timed
    assert (figures.mean_depth, len(figures.tokens_per_second.takes)) == (depth + 1, 2)


def test_prompts_have_no_special_ids(bundle: Path) -> None:
    manifest = phirt.load(bundle).manifest
    prompts, tokens = speed.Prompts(manifest), manifest.tokens
    ids = prompts.of(5000)
    assert not set(ids.tolist()) & {*manifest.placeholders, *tokens.eos}
    np.testing.assert_array_equal(ids, prompts.of(5000))
    logits = np.zeros(manifest.geometry.vocab_size, np.float32)
    logits[manifest.placeholders[0]] = 9
    assert prompts.choose(logits) not in manifest.placeholders
    logits[7] = 10
    assert prompts.choose(logits) == 7


def _manifest(folder: Path) -> Manifest:
    return phirt.load(folder).manifest


def test_work_of_an_unquantized_decoder(text_bundle: Path) -> None:
    work = decoder_work(_manifest(text_bundle))
    # Hidden 32, 4 and 2 heads of 16, FFN 48 with two matrices, vocabulary 512, two layers; four bytes each.
    layer = 32 * (64 + 32 + 32) + 64 * 32 + 32 * 48 + 48 * 32
    assert work.matrices == 2 * layer and work.head == 512 * 32
    norms = 5 * 4  # one scalar each
    assert work.weight_bytes == 4 * (2 * layer + 512 * 32) + norms
    adapters = 2 * 4 * (32 * 4 + 4 * 128)  # of one route in each layer: a row of their tables
    assert work.row_bytes == 4 * 32 + adapters
    assert work.cache_bytes == 2 * 2 * 2 * 16 * 4
    assert work.bytes_per_token(100) == work.weight_bytes + work.row_bytes + 100 * 512
    attention = 4 * 2 * 64 * (1 + 2 + 3)  # two products, multiply and add; layers; query width; pairs
    assert work.prefill_operations(3) == 3 * 2 * 2 * layer + 2 * 512 * 32 + attention


def test_work_of_a_quantized_decoder_on_route_none(bundle: Path) -> None:
    manifest = _manifest(bundle)
    vocab = manifest.geometry.vocab_size
    work = decoder_work(manifest)
    # Hidden 64, 4 and 2 heads of 32, FFN 128, two layers, a tied head; a code of one byte and a float32 scale
    # for each block. The graph itself says how long the blocks are, so they are looked up with `onnx`.
    blocks = {64: _block_size(manifest, 64), 128: _block_size(manifest, 128)}
    shapes = [(64, 128 + 2 * 64), (128, 64), (64, 2 * 128), (128, 64)] * 2
    assert work.matrices == sum(math.prod(shape) for shape in shapes)

    def stored(inputs: int, outputs: int) -> int:
        per_row = math.ceil(inputs / blocks[inputs])
        return outputs * per_row * (blocks[inputs] + 4)

    norms = 5 * 64 * 4
    assert work.weight_bytes == sum(stored(*shape) for shape in shapes) + stored(64, vocab) + norms
    assert work.row_bytes == stored(64, 1)
    assert work.cache_bytes == 2 * 2 * 2 * 32 * 4


def test_work_is_the_same_wherever_adapters_branch_off(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phirt_export.graphs.lora._WIDE", 1)  # an If at each projection, not around the stack
    wide = export_bundle(
        bundle.with_name("checkpoint"),
        tmp_path / "wide",
        bits=8,
        name="wide",
        description="random weights",
        method="rtn",
    )
    branching = [
        sum(bool(node.graphs) for node in read_graph(f / "decoder.onnx").nodes) for f in (bundle, wide)
    ]
    assert branching[0] < branching[1]
    assert decoder_work(_manifest(wide)) == decoder_work(_manifest(bundle))


def _block_size(manifest: Manifest, inputs: int) -> int:
    model = onnx.load(manifest.path("decoder.onnx"), load_external_data=False)
    found: set[int] = set()

    def look(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            values = {attribute.name: attribute for attribute in node.attribute}
            if node.op_type == "MatMulNBits" and values["K"].i == inputs and "lora" not in node.input[1]:
                found.add(values["block_size"].i)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    look(attribute.g)

    look(model.graph)
    assert len(found) == 1
    return found.pop()


def test_the_reader_agrees_with_onnx(bundle: Path) -> None:
    path = bundle / "decoder.onnx"
    graph, reference = read_graph(path), onnx.load(path, load_external_data=False).graph
    assert [(node.kind, node.inputs, node.outputs) for node in graph.nodes] == [
        (node.op_type, tuple(node.input), tuple(node.output)) for node in reference.node
    ]
    sizes = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.UINT8: 1, onnx.TensorProto.INT64: 8,
             onnx.TensorProto.INT32: 4, onnx.TensorProto.FLOAT16: 2}  # fmt: skip
    assert {name: (weight.shape, weight.nbytes) for name, weight in graph.weights.items()} == {
        tensor.name: (tuple(tensor.dims), math.prod(tensor.dims) * sizes[tensor.data_type])
        for tensor in reference.initializer
    }
    assert any(node.graphs for node in graph.nodes)


def test_a_damaged_graph_is_refused_or_read(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "decoder.onnx").read_bytes()
    path = tmp_path / "graph.onnx"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole[: rng.integers(len(whole))])
        for at in rng.integers(0, max(1, len(damaged)), 3):
            if damaged:
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_graph(path)
        except BundleError as error:
            refused += 1
            assert "phirt verify" in str(error)
    assert refused > 30
    with pytest.raises(BundleError, match="cannot be read"):
        read_graph(tmp_path / "nowhere.onnx")


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="Linux tells what is in the page cache")
def test_a_cache_that_keeps_the_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    path.read_bytes()
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: None)
    assert opening.drop_from_cache([path]) == "the system kept 100% of the files in the page cache"


def test_preparing_a_graph_is_told_apart(
    text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, dropped = _manifest(text_bundle), []
    script = tmp_path / "sitecustomize.py"  # in the processes that open it, a bundle of this size is worth it
    script.write_text("import phirt.runtime.prepared as prepared\nprepared._WORTHWHILE_BYTES = 1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(prepacked, "_WORTHWHILE_BYTES", 1)
    monkeypatch.setenv("PHIRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "drop_from_cache", lambda paths: dropped.append([p.name for p in paths]))
    first, second = opening.measure(manifest, 1, 1), opening.measure(manifest, 1, 1)
    assert first.preparing is not None and second.preparing is None
    assert first.cold is not None and len(first.warm.takes) == 1
    for names in dropped:  # of the bundle and of what was prepared
        assert {"decoder.data", "tokenizer.json", "model.onnx", "model.data"} <= set(names)


def test_opening_fails_with_the_reason(broken_bundle: Path) -> None:
    manifest = _manifest(broken_bundle)
    (broken_bundle / "decoder.onnx").write_bytes(b"\x00" * manifest.files["decoder.onnx"].size)
    with pytest.raises(BundleError, match="could not be opened in a process of its own"):
        opening.measure(manifest, 1, 1)


def test_the_fastest_way_to_read_is_named() -> None:
    found = peaks.read_bandwidth(2, 1 << 22)
    assert found["method"] in ("dot product", "maximum", "bitwise or")
    assert (found["threads"], found["buffer_bytes"]) == (2, 1 << 22)
    assert 1e8 < found["bytes_per_second"] < 1e13


def test_products_are_measured_in_a_process_of_their_own() -> None:
    found = peaks.measure_multiplying(1)
    assert found is not None and found["block_size"] in (64, 128, 256) and found["rows"] in (64, 128, 256)
    assert 1e8 < found["operations_per_second"] < 1e15 and found["threads"] == 1


def test_products_need_the_export_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert peaks.int4_product(1) is None


def test_a_spread() -> None:
    spread = Spread((2.0, 4.0, 9.0))
    assert (spread.mean, spread.deviation) == (5.0, pytest.approx(math.sqrt(13)))
    assert spread.map(lambda value: 1 / value).takes == (0.5, 0.25, 1 / 9)
    assert Spread((3.0,)).text(str) == "3.0" and Spread((3.0,)).deviation == 0.0
    assert spread.text(lambda value: f"{value:.1f}") == "5.0 ± 3.6"


def test_numbers_of_threads_are_compared(bundle: Path, quick_machine: None) -> None:
    command = ["bench", "-m", str(bundle), *SHORT, "--compare-threads", "1,2"]
    value = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [row["threads"] for row in value["by_threads"]] == [1, 2]
    for row in value["by_threads"]:
        _check_spread(row["prefill"], 2)
        _check_spread(row["decode"], 2)
    shown = CliRunner().invoke(app, command).stdout
    assert re.search(r"threads +prefill of 16 +decode at 8 *\n", shown)
    refused = CliRunner().invoke(app, [*command[:-1], "0"])
    assert refused.exit_code == 2
