"""Attention over short rows as plain products, for a compiled pass on a CPU.

Knows queries, keys, values and masks. torch's fused attention for CPUs is slower than plain products of
matrices are in bfloat16, and a compiler cannot join its exponentials and masks with what stands around. Plain
products keep the scores [B, heads, T, T]: for short rows alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phirt_export.reference import Documents, Model
from phirt_export.reference.decoder import Layer

LONGEST = 1024  # tokens of a row whose scores may be kept
_QUERIES = 64  # at once: what follows them is left out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Documents | None) -> Tensor:
    """Causal attention [B, heads, T, head_dim] within a mask [B, 1, T, T], whose upper triangle is not
    read.
    """
    assert not isinstance(mask, Documents), "documents are given to a compiled pass as a mask"
    length, scaled, parts = q.shape[2], q * q.shape[-1] ** -0.5, []
    for begin in range(0, length, _QUERIES):
        end = min(length, begin + _QUERIES)
        scores = (scaled[:, :, begin:end] @ k[:, :, :end].mT).float()
        seen = torch.ones(end - begin, end, dtype=torch.bool, device=q.device).tril(begin)
        if mask is not None:
            seen = seen & mask[:, :, begin:end, :end]
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append(shares.to(v.dtype) @ v[:, :, :end])
    return torch.cat(parts, 2)


def attend_by_products(model: Model) -> None:
    """Let every decoder layer attend this way, from now on."""
    for layer in model.model.layers:
        assert isinstance(layer, Layer)
        layer.self_attn.attend = attend  # type: ignore[method-assign]
