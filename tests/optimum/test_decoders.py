"""Text decoders of families that phirt does not build, through optimum: transformers says the same."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="the extra optimum is not installed here")

import foreign_models
import torch
import transformers
import transformers_models as shared
from safetensors.torch import load_file, save_file

import phirt
from phirt.bundle.files import load_manifest
from phirt.errors import ConfigError
from phirt.generate.engine import Engine
from phirt.runtime.session import Session, SessionConfig
from phirt_export.exporter import export_bundle
from phirt_quant.blockwise import dequantize, quantize

SAID = "the sea is wide and old boats carry people over waves " * 6


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that several tests look at."""
    return foreign_models.save_decoder(tmp_path_factory.mktemp("gpt2") / "checkpoint", "gpt2")


@pytest.fixture(scope="module")
def in_float(gpt2: Path) -> Path:
    """Its bundle in float32."""
    return export_bundle(gpt2, gpt2.parent / "bundle", bits=32)


@pytest.mark.parametrize("family", ["gpt_neox", "bloom", "opt", "falcon", "granite"])
def test_greedy_answers_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    checkpoint = foreign_models.save_decoder(tmp_path / "checkpoint", family)
    with phirt.load(export_bundle(checkpoint, tmp_path / "bundle", bits=32), threads=1) as model:
        result = model.chat().send(SAID, max_new_tokens=40).result
    ids, answered = shared.answer(checkpoint, [{"role": "user", "content": SAID}], 40)
    assert (list(result.prompt_token_ids), list(result.token_ids)) == (ids, answered)


def test_a_second_turn_goes_on_from_the_cache(gpt2: Path, in_float: Path) -> None:
    """Prefill behind a past, decoding across the cache's first growth (256 positions)."""
    with phirt.load(in_float, threads=1) as model:
        chat = model.chat()
        first = chat.send(SAID * 2, max_new_tokens=40).result
        second = chat.send("old boats", max_new_tokens=40).result
    assert second.usage.cached_tokens > 100
    turns = [
        {"role": "user", "content": SAID * 2},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "old boats"},
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32).eval()
    for given, result in ((turns[:1], first), (turns, second)):
        ids, answered = shared.answer(gpt2, given, 40)
        if given == turns[:1]:
            assert (list(result.prompt_token_ids), list(result.token_ids)) == (ids, answered)
        # Text of random ids may be cut into others: the ids that phirt kept are what counts.
        kept = torch.tensor([result.prompt_token_ids])
        mask = torch.ones_like(kept)
        whole = model.generate(kept, do_sample=False, max_new_tokens=40, attention_mask=mask)
        ends = whole[0, kept.shape[1] :].tolist()
        assert list(result.token_ids) == (ends[:-1] if ends[-1] == tokenizer.eos_token_id else ends)


def _engine(bundle: Path) -> Engine:
    manifest = load_manifest(bundle)
    return Engine(Session(manifest, "decoder", SessionConfig()), manifest)


def test_every_position_is_scored_as_transformers_does(gpt2: Path, in_float: Path) -> None:
    """What `phirt eval` asks for: logits of many positions of one run."""
    ids = np.random.default_rng(1).integers(0, 390, 150)
    engine = _engine(in_float)
    from phirt.generate.sequence import BASE_WEIGHTS, Prompt

    rows = np.stack([row.copy() for row in engine.score_prompt(Prompt(ids, (), BASE_WEIGHTS), 20)])
    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0, 20:].numpy()
    np.testing.assert_allclose(rows, expected, atol=2e-3)


def _dequantized(folder: Path, copy: Path) -> Path:
    """The checkpoint with the weights that int4 blocks of 32 stand for."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weights in model.named_parameters():
        # GPT-2 stores its products transposed; positions stay as they are.
        if weights.ndim == 2 and "wpe" not in name:
            matrix = weights.data.numpy() if "wte" in name else weights.data.numpy().T
            values = dequantize(quantize(np.ascontiguousarray(matrix), 4, 32, "rtn"))
            weights.data = torch.from_numpy(values if "wte" in name else values.T.copy())
    model.save_pretrained(copy)
    return copy


def test_int4_computes_with_the_weights_that_its_codes_stand_for(tmp_path: Path) -> None:
    checkpoint = foreign_models.save_decoder(tmp_path / "checkpoint", "gpt2", std=0.06)
    errors: list[Any] = []
    bundle = export_bundle(checkpoint, tmp_path / "bundle", method="rtn", errors=errors.extend)
    ids = np.random.default_rng(2).integers(0, 390, 60)
    logits = _engine(bundle).prefill(ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        _dequantized(checkpoint, tmp_path / "copy")
    ).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    # What is left is the kernel's rounding of inputs to int8.
    cosine = float(logits @ expected / np.linalg.norm(logits) / np.linalg.norm(expected))
    assert cosine > 0.9995
    (part,) = [error for error in errors if error.part == "token table"]
    assert part.bits == (4,) and 0.05 < part.relative < 0.15
    graph = onnx.load(bundle / "decoder.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    # Four products in each of two layers, and the head, which reads the one stored copy of the token table.
    assert kinds.count("MatMulNBits") == 9 and kinds.count("GatherBlockQuantized") == 1
    sizes = load_manifest(bundle).quantization
    whole = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    # All but the copy that the tied head would be; equal vectors, as random models have, count once.
    assert sizes["weights"] == pytest.approx(sum(p.numel() for p in whole.parameters()), rel=0.01)
    assert sizes["parts"]["token table"] == {"weights": 400 * 64, "bytes": 400 * (32 + 8)}
    codes = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset" and tensor.dims[:1] == [shared.VOCAB] and tensor.data_type == 2
    }
    assert len(codes) == 1


def test_an_attention_window_ends_the_context(tmp_path: Path) -> None:
    checkpoint = foreign_models.save_decoder(tmp_path / "checkpoint", "gemma2")
    said: list[str] = []
    bundle = export_bundle(checkpoint, tmp_path / "bundle", bits=32, remarks=said.append)
    assert "the context ends where the attention's window does: 80 positions" in said
    with phirt.load(bundle, threads=1) as model:
        result = model.chat().send("old boats", max_new_tokens=60).result
    ids, answered = shared.answer(checkpoint, [{"role": "user", "content": "old boats"}], 60)
    assert (list(result.prompt_token_ids), list(result.token_ids)) == (ids, answered)


def test_a_configuration_without_a_context_is_told_of(tmp_path: Path) -> None:
    checkpoint = foreign_models.save_decoder(tmp_path / "checkpoint", "bloom")
    said: list[str] = []
    export_bundle(checkpoint, tmp_path / "bundle", remarks=said.append)
    assert "the configuration names no context: 2048 positions are taken" in said


def test_no_connection_is_opened(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    export_bundle(gpt2, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"method": "gptq"}, "method gptq"),
        ({"kv": "int8"}, "kv int8"),
        ({"bits_per_weight": 4.5}, "bits_per_weight"),
        ({"calibration": [Path("samples.txt")]}, "calibration"),
    ],
)
def test_what_needs_a_model_of_phirts_own_is_refused(
    gpt2: Path, tmp_path: Path, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"{named} cannot be had for a family that phirt does not build"):
        export_bundle(gpt2, tmp_path / "bundle", **asked)
    assert not (tmp_path / "bundle").exists()


def _changed(gpt2: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    for path in gpt2.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    shared.edit(folder / "config.json", **changes)
    return folder


def test_a_family_that_optimum_does_not_know_is_refused_in_one_line(gpt2: Path, tmp_path: Path) -> None:
    folder = _changed(gpt2, tmp_path / "c", model_type="nonesuch")
    with pytest.raises(ConfigError, match=r"optimum cannot read .*nonesuch") as caught:
        export_bundle(folder, tmp_path / "bundle")
    assert "\n" not in str(caught.value)


def test_what_neither_answers_nor_embeds_is_refused(gpt2: Path, tmp_path: Path) -> None:
    folder = _changed(gpt2, tmp_path / "c", architectures=["GPT2ForSequenceClassification"])
    with pytest.raises(ConfigError, match=r"'architectures' is .*accepted: text decoders"):
        export_bundle(folder, tmp_path / "bundle")


def test_code_of_a_checkpoint_is_not_run(gpt2: Path, tmp_path: Path) -> None:
    folder = _changed(
        gpt2,
        tmp_path / "c",
        model_type="nonesuch",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError):
        export_bundle(folder, tmp_path / "bundle")
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(gpt2: Path, tmp_path: Path) -> None:
    folder = _changed(gpt2, tmp_path / "c")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="pickled"):
        export_bundle(folder, tmp_path / "bundle")


def test_weights_that_are_no_numbers_are_refused(gpt2: Path, tmp_path: Path) -> None:
    folder = _changed(gpt2, tmp_path / "c")
    state = load_file(folder / "model.safetensors")
    state["transformer.h.1.mlp.c_fc.weight"][3, 4] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="no numbers"):
        export_bundle(folder, tmp_path / "bundle")


def test_the_commands(gpt2: Path, tmp_path: Path) -> None:
    def phirt_command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "phirt", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    exported = phirt_command("export", gpt2, "-o", tmp_path / "bundle", "--bits", "8")
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout == f"{tmp_path / 'bundle'}\n"
    assert "Warning" not in exported.stderr and "accelerate" not in exported.stderr
    said = phirt_command("chat", "-m", tmp_path / "bundle", "--json", "--max-new-tokens", "8", "old boats")
    assert said.returncode == 0 and len(json.loads(said.stdout)["ids"]) == 8, said.stderr
    shown = phirt_command("inspect", tmp_path / "bundle")
    assert shown.returncode == 0 and "optimum-onnx 0.1" in shown.stdout
