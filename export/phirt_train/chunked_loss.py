"""Cross-entropy over a large vocabulary without the scores of all tokens in memory at once.

Knows hidden states, the matrix that scores tokens, and targets. Knows nothing of models or of where targets
come from. Scores are made for some tokens at a time, in the type of the products around; exponentials and
sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the target of a token that is not learnt, as torch's cross-entropy has it
_SCORES_AT_ONCE = 1 << 22  # 16 MiB of float32
_LEAST_TOKENS = 128


def _tokens_at_once(vocabulary: int) -> int:
    return max(_LEAST_TOKENS, _SCORES_AT_ONCE // vocabulary)


def _product_type(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made beside the loss, chunk by chunk, so that no scores are made twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        dtype, count = _product_type(hidden), _tokens_at_once(len(weight))
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros(weight.shape, device=weight.device) if wants_weight else None
        total = torch.zeros((), device=hidden.device)
        for begin in range(0, len(hidden), count):
            some, wanted = rows[begin : begin + count], targets[begin : begin + count, None]
            is_learnt = wanted != IGNORED
            wanted = wanted.clamp(min=0)
            scores = (some @ matrix.T).float()
            scores -= scores.amax(-1, keepdim=True)
            own = scores.gather(1, wanted)
            sums = scores.exp_().sum(-1, keepdim=True)
            total += ((sums.log() - own) * is_learnt).sum()
            if not wants_hidden and not wants_weight:
                continue
            shares = is_learnt / sums
            scores.scatter_add_(1, wanted, -sums)  # the probabilities less one at the target, times the sum
            products = scores.mul_(shares).to(dtype)
            if to_hidden is not None:
                to_hidden[begin : begin + count] = products @ matrix
            if to_weight is not None:
                to_weight += products.T @ some
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return (
            None if to_hidden is None else to_hidden * outer[0],
            None if to_weight is None else (to_weight * outer[0]).to(ctx.dtype),
            None,
        )


def chunked_cross_entropy(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """The sum of the cross-entropy over the tokens that are learnt, float32.

    Args:
        hidden: [tokens, hidden].
        head_weight: [vocabulary, hidden].
        targets: int64 [tokens], `IGNORED` where nothing is learnt.
    """
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, head_weight, targets)  # type: ignore[no-untyped-call]
    return total


def chunked_log_probabilities(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """The logarithm of each target's probability, float32 [tokens]; 0 where nothing is learnt. Arguments as
    those of `chunked_cross_entropy`. Scores are made a second time for the gradients, whose weights are not
    known yet.
    """
    count = _tokens_at_once(len(head_weight))
    parts = [
        checkpoint(_log_probabilities, some, head_weight, wanted, use_reentrant=False)
        for some, wanted in zip(hidden.split(count), targets.split(count), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _log_probabilities(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    scores = F.linear(hidden, head_weight).float()
    return -F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="none")
