"""The type in which a machine multiplies matrices while it trains or calibrates.

Knows devices and what their hardware can do. Knows nothing of models. bfloat16 halves the memory of
activations and is several times as fast where there are instructions for it; where there are none it is
emulated, which made a step six times as slow.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def _cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 (AVX512_BF16, AMX, or Arm's BF16 extension)."""
    return any(there and name.endswith("bf16") for name, there in torch.cpu.get_capabilities().items())


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_has_bfloat16()


def product_type(device: torch.device) -> torch.dtype:
    """What products are computed in: bfloat16 where the hardware has it, else float32."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """A context in which torch computes products in bfloat16, where that is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))
