"""Quantized checkpoints: each format is packed here by its published formula, exported, and compared with the
float model that it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import NO_TOKENS, DecoderRunner, session

from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_quant.blockwise import dequantize

transformers = pytest.importorskip("transformers", reason="transformers has the float model")

State = dict[str, torch.Tensor]
# Packs a float matrix [N, K] under a module's name; returns what is stored and what it stands for.
Pack = Callable[[str, np.ndarray], tuple[State, np.ndarray]]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32 [..., n] of codes [..., n * 32 / bits]: the first in the lowest bits."""
    each = 32 // bits
    split = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint64)
    packed = (split << (np.arange(each, dtype=np.uint64) * np.uint64(bits))).sum(axis=-1, dtype=np.uint64)
    return packed.astype(np.uint32).view(np.int32)


def codes_of(
    matrix: np.ndarray, bits: int, group: int, symmetric: bool, order: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, K], scales float16 and zero points [N, groups], and the float32 matrix that they are."""
    rows, columns = matrix.shape
    group = columns if group == -1 else group
    order = np.arange(columns) // group if order is None else order
    scales = np.zeros((rows, columns // group), np.float16)
    zeros = np.zeros(scales.shape, np.int64)
    for g in range(scales.shape[1]):
        part = matrix[:, order == g]
        if symmetric:
            scales[:, g] = np.abs(part).max(axis=1) / (2 ** (bits - 1) - 1)
            zeros[:, g] = 2 ** (bits - 1)
        else:
            low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
            scales[:, g] = (high - low) / (2**bits - 1)
            zeros[:, g] = np.clip(np.rint(-low / scales[:, g].astype(np.float32)), 1, 2**bits - 1)
    wide = scales.astype(np.float32)[:, order]
    codes = np.clip(np.rint(matrix / wide) + zeros[:, order], 0, 2**bits - 1).astype(np.int64)
    return codes, scales, zeros, (codes - zeros[:, order]).astype(np.float32) * wide


def gptq(bits: int, group: int, symmetric: bool, second: bool = False, order: bool = False) -> Pack:
    """AutoGPTQ: codes along the input in words, zero points along the output, one too low in version 1."""

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        columns = matrix.shape[1]
        size = columns if group == -1 else group
        places = np.arange(columns) // size
        if order:
            places = np.random.default_rng(7).permutation(places)
        codes, scales, zeros, values = codes_of(matrix, bits, group, symmetric, places)
        stored = {
            "qweight": words(codes, bits).T,
            "qzeros": words((zeros.T - (not second)) % 2**bits, bits),
            "scales": scales.T,
            "g_idx": places.astype(np.int32),
        }
        return named(name, stored), values

    return pack


def awq(group: int) -> Pack:
    """AutoAWQ's gemm: codes along the output in words, in an order of its own."""

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        codes, scales, zeros, values = codes_of(matrix, 4, group, symmetric=False)

        def interleaved(array: np.ndarray) -> np.ndarray:
            return words(array.reshape(array.shape[0], -1, 8)[..., AWQ_ORDER].reshape(array.shape), 4)

        stored = {"qweight": interleaved(codes.T), "qzeros": interleaved(zeros.T), "scales": scales.T}
        return named(name, stored), values

    return pack


def packed_rows(bits: int, group: int, symmetric: bool) -> Pack:
    """compressed-tensors: codes along the input in words, row by row; zero points along the output."""

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        codes, scales, zeros, values = codes_of(matrix, bits, group, symmetric)
        shape = np.array(matrix.shape, np.int64)
        stored = {"weight_packed": words(codes, bits), "weight_scale": scales, "weight_shape": shape}
        if not symmetric:
            stored["weight_zero_point"] = words(zeros.T, bits).T
        return named(name, stored), values

    return pack


def int8(scale_name: str) -> Pack:
    """One scale a row: compressed-tensors' int-quantized, and LLM.int8 (row maxima over 127)."""

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        largest = np.abs(matrix).max(axis=1).astype(np.float32)
        codes = np.rint(matrix / largest[:, None] * 127).astype(np.int8)
        scales = largest / np.float32(127)
        told = largest if scale_name == "SCB" else scales[:, None]
        return named(name, {"weight": codes, scale_name: told}), codes * scales[:, None]

    return pack


def fp8(tile: tuple[int, int] | None, scale_name: str) -> Pack:
    """8-bit floats, with a scale for each tile, row or matrix."""

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        rows, columns = matrix.shape
        high, wide = tile or (rows, columns)
        high, wide = min(high, rows), min(wide, columns)
        scales = np.zeros((-(-rows // high), -(-columns // wide)), np.float32)
        for i, j in np.ndindex(*scales.shape):
            part = matrix[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
            scales[i, j] = np.abs(part).max() / 448
        whole = np.repeat(np.repeat(scales, high, 0), wide, 1)[:rows, :columns]
        stored = torch.from_numpy(matrix / whole).to(torch.float8_e4m3fn)
        parts = {f"{name}.weight": stored, f"{name}.{scale_name}": torch.from_numpy(scales)}
        return parts, stored.float().numpy() * whole

    return pack


def four_bits(nested: bool) -> Pack:
    """bitsandbytes nf4 in blocks of 64: the first of two codes in the high bits; maxima maybe in 8 bits."""

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        table = np.sort(np.random.default_rng(2).uniform(-1, 1, 16)).astype(np.float32)
        blocks = matrix.reshape(-1, 64)
        maxima = np.abs(blocks).max(axis=1).astype(np.float32)
        told: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "shape": list(matrix.shape)}
        parts: dict[str, np.ndarray] = {"weight.quant_map": table}
        if nested:
            second = np.linspace(-1, 1, 256, dtype=np.float32)
            offset = np.float32(maxima.mean())
            count = -(-len(maxima) // 256)
            largest = [np.abs(maxima - offset)[256 * i : 256 * (i + 1)].max() for i in range(count)]
            wide = np.repeat(np.array(largest, np.float32), 256)[: len(maxima)]
            small = np.abs((maxima - offset)[:, None] / wide[:, None] - second).argmin(axis=1)
            maxima = second[small] * wide + offset
            told |= {"nested_blocksize": 256, "nested_offset": float(offset)}
            parts |= {"weight.absmax": small.astype(np.uint8), "weight.nested_quant_map": second}
            parts["weight.nested_absmax"] = np.array(largest, np.float32)
        else:
            parts["weight.absmax"] = maxima
        codes = np.abs(blocks[..., None] / maxima[:, None, None] - table).argmin(axis=-1)
        flat = codes.reshape(-1).astype(np.uint8)
        parts["weight"] = (flat[0::2] << 4 | flat[1::2])[:, None]
        state = np.frombuffer(json.dumps(told).encode(), np.uint8).copy()
        parts["weight.quant_state.bitsandbytes__nf4"] = state
        return named(name, parts), (table[codes] * maxima[:, None]).reshape(matrix.shape)

    return pack


def named(module: str, parts: dict[str, np.ndarray]) -> State:
    """Tensors under a module's name."""
    return {f"{module}.{key}": torch.from_numpy(np.ascontiguousarray(v)) for key, v in parts.items()}


def write(folder: Path, pack: Pack, **quantization: Any) -> Any:
    """A small random Llama whose projections are packed; returns the float model that it stands for."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=80, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
        initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    values = dict(state)
    for key in [key for key in state if "_proj" in key]:
        stored, values_of = pack(key.removesuffix(".weight"), state.pop(key).numpy())
        state |= stored
        values[key] = torch.from_numpy(np.ascontiguousarray(values_of.astype(np.float32)))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    document = json.loads((folder / "config.json").read_text())
    if quantization:
        document["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "tokenizer.json").write_text(NO_TOKENS)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    model.load_state_dict(values)
    return model


GPTQ = {"quant_method": "gptq", "desc_act": False, "sym": True}
KEPT = {
    "gptq 4 bits": (gptq(4, 32, True), {**GPTQ, "bits": 4}),
    "gptq 4 bits, zeros": (gptq(4, 64, False), {**GPTQ, "bits": 4, "checkpoint_format": "gptq"}),
    "gptq 4 bits, a row": (gptq(4, -1, False), {**GPTQ, "bits": 4}),
    "gptq 8 bits": (gptq(8, 128, True), {**GPTQ, "bits": 8}),
    "gptq 8 bits, zeros": (gptq(8, 32, False), {**GPTQ, "bits": 8}),
    "gptq v2": (gptq(4, 128, False, second=True), {**GPTQ, "bits": 4, "checkpoint_format": "gptq_v2"}),
    "awq": (awq(32), {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}),
    "awq 128": (awq(128), {"quant_method": "awq", "bits": 4, "group_size": 128}),
    "packed": (packed_rows(4, 128, True), {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "packed zeros": (packed_rows(4, 32, False), {"quant_method": "compressed-tensors"}),
    "packed a row": (packed_rows(8, -1, True), {"quant_method": "compressed-tensors"}),
    "int8": (int8("weight_scale"), {"quant_method": "compressed-tensors", "format": "int-quantized"}),
    "LLM.int8": (int8("SCB"), {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}
DEQUANTIZED = {
    "gptq order": (gptq(4, 32, False, order=True), {**GPTQ, "bits": 4, "desc_act": True}),
    "fp8 tiles": (
        fp8((128, 128), "weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "fp8 tiles 64": (
        fp8((64, 32), "weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [64, 32]},
    ),
    "fp8 rows": (fp8((1, 1 << 20), "weight_scale"), {"quant_method": "fbgemm_fp8"}),
    "fp8 whole": (fp8(None, "weight_scale"), {"quant_method": "compressed-tensors"}),
    "nf4": (four_bits(nested=False), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "nf4 nested": (four_bits(nested=True), {"load_in_4bit": True}),
}


def logits(model: Any, ids: list[int]) -> np.ndarray:
    """Of the float model."""
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


IDS = list(range(2, 42))


@pytest.mark.parametrize("name", KEPT)
def test_codes_are_taken_over(tmp_path: Path, name: str) -> None:
    pack, quantization = KEPT[name]
    model = write(tmp_path / "checkpoint", pack, **quantization)
    remarks: list[str] = []
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", remarks=remarks.append)
    opened = Checkpoint(tmp_path / "checkpoint")
    for key, tensor in model.state_dict().items():
        if "o_proj" in key or "down_proj" in key:
            published = next(n for n in opened.shapes if key.rpartition(".")[0] in n and n.endswith("weight"))
            blocks = opened.kept_rows(published, 0, tensor.shape[0])
            np.testing.assert_allclose(dequantize(blocks), tensor.numpy(), atol=1e-6)
            np.testing.assert_array_equal(opened.rows(published, 8, 24), tensor.numpy()[8:24])
    assert len(opened.kept) == 4 and "4 of" in remarks[0] and "kept bit for bit" in remarks[0]
    # Head and table are not quantized in the checkpoint, and are here; they are compared with floats below.
    floats = export_bundle(tmp_path / "checkpoint", tmp_path / "floats", bits=32)
    decoder = opened.config.decoder
    exact = DecoderRunner(session(floats / "decoder.onnx"), decoder).run(IDS)
    np.testing.assert_allclose(exact, logits(model, IDS), atol=2e-4)
    entry = json.loads((bundle / "manifest.json").read_text())["quantization"]
    assert sum(entry["kept"].values()) == 4


@pytest.mark.parametrize("name", KEPT)
def test_the_graph_computes_with_those_codes(tmp_path: Path, name: str) -> None:
    pack, quantization = KEPT[name]
    model = write(tmp_path / "checkpoint", pack, **quantization)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", embedding_bits=32)
    runner = DecoderRunner(
        session(bundle / "decoder.onnx"), Checkpoint(tmp_path / "checkpoint").config.decoder
    )
    expected = logits(model, IDS)
    # In 8 bits inputs are rounded twice over, in 4 not at all.
    tolerance = 2e-3 if "8" in name or "a row" in name else 2e-4
    np.testing.assert_allclose(runner.run(IDS), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", DEQUANTIZED)
def test_what_no_operator_holds_is_dequantized(tmp_path: Path, name: str) -> None:
    pack, quantization = DEQUANTIZED[name]
    model = write(tmp_path / "checkpoint", pack, **quantization)
    remarks: list[str] = []
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", bits=32)
    opened = Checkpoint(tmp_path / "checkpoint")
    assert not opened.kept
    runner = DecoderRunner(session(bundle / "decoder.onnx"), opened.config.decoder)
    np.testing.assert_allclose(runner.run(IDS), logits(model, IDS), atol=2e-4)
    key = "model.layers.0.mlp.down_proj.weight"
    published = next(n for n in opened.shapes if "down_proj" in n)
    np.testing.assert_array_equal(opened.rows(published, 3, 70), model.state_dict()[key].numpy()[3:70])
    export_bundle(tmp_path / "checkpoint", tmp_path / "again", remarks=remarks.append)
    assert remarks[0].startswith("quantized by phirt: 4 of ") and remarks[0].endswith(" in 8 bits")


def test_older_configurations_lie_beside(tmp_path: Path) -> None:
    for method, pack, document in (
        ("quantize_config.json", gptq(4, 32, True), {"bits": 4, "group_size": 32}),
        ("quant_config.json", awq(32), {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}),
    ):
        folder = tmp_path / method
        write(folder, pack)
        (folder / method).write_text(json.dumps(document))
        assert len(Checkpoint(folder).kept) == 4


def test_modules_that_were_left_as_they_are(tmp_path: Path) -> None:
    inner = gptq(4, 32, True)

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        if "down_proj" in name:
            return named(name, {"weight": matrix}), matrix
        return inner(name, matrix)

    model = write(tmp_path, pack, **GPTQ, bits=4)
    opened = Checkpoint(tmp_path)
    assert len(opened.kept) == 3 and not any("down_proj" in name for name in opened.kept)
    name = next(name for name in opened.shapes if "down_proj" in name)
    expected = model.state_dict()["model.layers.0.mlp.down_proj.weight"].numpy()
    np.testing.assert_array_equal(opened.tensor(name), expected)


def damaged(change: Callable[[State], Any]) -> Pack:
    """A good GPTQ module with something wrong."""
    good = gptq(4, 32, True)

    def pack(name: str, matrix: np.ndarray) -> tuple[State, np.ndarray]:
        stored, values = good(name, matrix)
        parts = {key.removeprefix(f"{name}."): tensor for key, tensor in stored.items()}
        change(parts)
        return {f"{name}.{key}": tensor.contiguous() for key, tensor in parts.items()}, values

    return pack


@pytest.mark.parametrize(
    ("change", "quantization", "message"),
    [
        (None, {"quant_method": "mxfp4"}, r"\(mxfp4\), which is not read \(accepted: gptq, awq, "),
        (None, {"quant_method": "quark"}, r"\(quark\), which is not read"),
        (None, {**GPTQ, "checkpoint_format": "marlin"}, "has the layout 'marlin'; gptq and gptq_v2 are read"),
        (None, {"quant_method": "awq", "version": "gemv"}, "has the layout 'gemv' in 4 bits; 'gemm' in 4 is"),
        (lambda parts: parts.pop("qzeros"), GPTQ, "lacks 'qzeros'"),
        (lambda parts: parts.update(scales=parts["scales"][:, 1:]), GPTQ, "has scales of "),
        (lambda parts: parts.update(qzeros=parts["qzeros"][:-1]), GPTQ, "has qzeros of "),
        (lambda parts: parts["g_idx"].add_(9), GPTQ, "has a g_idx that names no group"),
        (
            lambda parts: parts.update(qweight=parts["qweight"].float()),
            GPTQ,
            r"has codes of type F32 .*; 32-bit words are read",
        ),
        (lambda parts: parts.update(g_idx=parts["g_idx"][:64]), GPTQ, "has "),
        (lambda parts: parts.pop("g_idx"), {**GPTQ, "bits": 3}, "has codes of 3 bits; 4 and 8 are read"),
    ],
)
def test_what_is_not_read_is_one_short_line(
    tmp_path: Path, change: Callable[[State], Any] | None, quantization: dict[str, Any], message: str
) -> None:
    write(tmp_path / "k", damaged(change or (lambda parts: None)), **quantization)
    with pytest.raises(ConfigError, match=message) as error:
        Checkpoint(tmp_path / "k")
    said = str(error.value).replace(str(tmp_path), "")
    assert said.startswith("/k is already quantized (") and len(said) < 240
    assert said.endswith("; export the original that it was made from")


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    def change(parts: State) -> None:
        parts["scales"][0, 0] = float("nan")

    write(tmp_path / "k", damaged(change), **GPTQ, bits=4)
    with pytest.raises(ConfigError, match=r"not finite, in model\.layers\.0.*; the checkpoint is damaged"):
        export_bundle(tmp_path / "k", tmp_path / "bundle")


def test_an_adapter_of_a_quantized_base(tmp_path: Path) -> None:
    """QLoRA: what the adapter changes is float32, what it leaves keeps its codes."""
    peft = pytest.importorskip("peft", reason="PEFT makes the adapter")
    model = write(tmp_path / "base", gptq(4, 32, True), **GPTQ, bits=4)
    torch.manual_seed(2)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["o_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    opened = Checkpoint(tmp_path / "adapter", tmp_path / "base")
    assert len(opened.kept) == 3 and not any("o_proj" in name for name in opened.kept)
    expected = adapted.merge_and_unload().state_dict()["model.layers.0.self_attn.o_proj.weight"].numpy()
    name = next(name for name in opened.shapes if "o_proj" in name)
    np.testing.assert_allclose(opened.tensor(name), expected, atol=1e-6)
