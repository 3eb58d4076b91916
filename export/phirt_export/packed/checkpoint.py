"""A quantized checkpoint's tensors under the names that its original has.

Knows how configurations say that, and by what, a checkpoint is quantized, and which stored tensors make up
one matrix. What the codes mean is `integers`' and `numbers`' matter.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from phirt.bundle.tensor_file import StoredTensor
from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.containers import PublishedTensor, read_json
from phirt_export.packed import integers, numbers
from phirt_export.packed.arrays import floats

# Beside config.json, where the tools that quantize have put the same once.
_OLDER = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_PARTS = re.compile(
    r"(?P<module>.+)\.(?P<part>qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_shape"
    r"|weight_zero_point|weight_g_idx|weight_scale_inv|weight_format|SCB"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+))"
)
# Scales of activations and caches: what is computed here needs none.
_ACTIVATIONS = (
    ".input_scale",
    ".input_activation_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
)
_GPTQ_FORMATS = {"gptq": False, "gptq_v2": True}
_STATE = "weight.quant_state.bitsandbytes__"


@dataclasses.dataclass(frozen=True)
class Module:
    """The stored tensors of one linear layer, by the part of the name that follows its own."""

    parts: Mapping[str, StoredTensor]
    config: Fields


def original_tensors(
    folder: Path, document: Fields, stored: Mapping[str, StoredTensor]
) -> Mapping[str, PublishedTensor]:
    """The tensors as the original names them; those of a checkpoint that is not quantized as they are.

    Raises:
        ConfigError: it is quantized in a way that is not read, said in one line that asks for the original.
    """
    config, method = _configuration(folder, document, stored)
    if method == "":
        return stored
    read = _METHODS.get(method)
    if read is None:
        raise _refusal(folder, method, f"which is not read (accepted: {', '.join(_METHODS)})")
    found: dict[str, PublishedTensor] = {}
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        if match := _PARTS.fullmatch(name):
            modules.setdefault(match["module"], {})[match["part"]] = tensor
        elif not name.endswith(_ACTIVATIONS):
            found[name] = tensor
    for module, parts in modules.items():
        if (weight := stored.get(f"{module}.weight")) is not None:
            parts["weight"] = weight
        try:
            found[f"{module}.weight"] = read(Module(parts, config))
        except KeyError as error:
            raise _refusal(folder, method, f"and {module} lacks {error}") from error
        except (ValueError, IndexError, TypeError, StopIteration) as error:
            raise _refusal(folder, method, f"and {module} has {error!s:.120}") from error
    return found


def _configuration(folder: Path, document: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Fields, str]:
    """What is said about quantization, and the method: an empty one where there is none."""
    if document.has("quantization_config"):
        config = document.child("quantization_config")
        method = config.raw("quant_method")
        if method is None and any(config.raw(key) for key in ("load_in_4bit", "load_in_8bit")):
            method = "bitsandbytes"
        return config, str(method).lower()[:40]
    for name, method in _OLDER.items():
        if (folder / name).is_file() and any(key.endswith(".qweight") for key in stored):
            return read_json(folder / name, f"fetch the checkpoint's own {name}"), method
    return document, ""


def _refusal(folder: Path, method: str, why: str) -> ConfigError:
    return ConfigError(
        f"{folder} is already quantized ({method}), {why}; export the original that it was made from"
    )


def _gptq(module: Module) -> PublishedTensor:
    form = str(module.config.raw("checkpoint_format") or "gptq")
    if form not in _GPTQ_FORMATS or module.config.raw("is_marlin_format"):
        raise ValueError(f"the layout {form[:20]!r}; {' and '.join(_GPTQ_FORMATS)} are read")
    bits = module.config.integer("bits", 1, 32) if module.config.has("bits") else 4
    return integers.gptq(module.parts, bits, _GPTQ_FORMATS[form])


def _awq(module: Module) -> PublishedTensor:
    version = str(module.config.raw("version") or module.config.raw("checkpoint_format") or "gemm").lower()
    bits = module.config.raw("bits") or module.config.raw("w_bit") or 4
    if version != "gemm" or bits != 4:
        raise ValueError(f"the layout {version[:20]!r} in {bits!r:.8} bits; 'gemm' in 4 is read")
    return integers.awq(module.parts)


def _compressed(module: Module) -> PublishedTensor:
    if "weight_packed" in module.parts:
        return integers.packed_rows(module.parts)
    if module.parts["weight"].dtype == "I8":
        return integers.int8_rows(module.parts, floats(module.parts["weight_scale"]), "int8")
    return _fp8(module)


def _fp8(module: Module) -> PublishedTensor:
    weight = module.parts["weight"]
    if weight.dtype in ("F16", "BF16", "F32"):  # a module that was left as it is
        return weight
    tile = module.config.raw("weight_block_size")
    return numbers.fp8(module.parts, tile if isinstance(tile, list) and len(tile) == 2 else None)


def _bitsandbytes(module: Module) -> PublishedTensor:
    state = next((part for name, part in module.parts.items() if name.startswith(_STATE)), None)
    if state is not None:
        return numbers.four_bits(module.parts, state)
    steps = floats(module.parts["SCB"]).astype(np.float32) / np.float32(127)
    return integers.int8_rows(module.parts, steps, "bitsandbytes int8")


_METHODS: dict[str, Callable[[Module], PublishedTensor]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "bitsandbytes": _bitsandbytes,
}
