"""Cross-entropy over a large vocabulary without the scores of all tokens in memory at once.

Knows hidden states, the matrix that scores tokens, and targets. Knows nothing of models or of where targets
come from. Scores are made for some tokens at a time, in the type of the products around; exponentials and
sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the target of a token that is not learnt, as torch's cross-entropy has it
_SCORES_AT_ONCE = 1 << 21  # 8 MiB of float32, which caches hold
_LEAST_TOKENS = 128


def _tokens_at_once(vocabulary: int) -> int:
    return max(_LEAST_TOKENS, _SCORES_AT_ONCE // vocabulary)


def _product_type(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def loss_and_change(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the loss of some tokens, and its gradient for their scores [tokens, vocabulary], in the type
    of these. `torch.compile` makes two passes over the scores of it.
    """
    wanted, is_learnt = targets.clamp(min=0)[:, None], (targets != IGNORED)[:, None]
    raised = scores.float()
    raised = raised - raised.amax(-1, keepdim=True)
    own = raised.gather(1, wanted)
    powers = raised.exp()
    sums = powers.sum(-1, keepdim=True)
    total = ((sums.log() - own) * is_learnt).sum()
    is_target = torch.arange(scores.shape[1], device=scores.device) == wanted
    change = (torch.where(is_target, powers - sums, powers) * (is_learnt / sums)).to(scores.dtype)
    return total, change


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made beside the loss, chunk by chunk, so that no scores are made twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, change_of: Change) -> Tensor:
        dtype, count = _product_type(hidden), _tokens_at_once(len(weight))
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros(weight.shape, device=weight.device) if wants_weight else None
        total = torch.zeros((), device=hidden.device)
        for begin in range(0, len(hidden), count):
            some = rows[begin : begin + count]
            loss, change = change_of(some @ matrix.T, targets[begin : begin + count])
            total += loss
            if to_hidden is not None:
                to_hidden[begin : begin + count] = change @ matrix
            if to_weight is not None:
                to_weight += change.T @ some
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return (
            None if to_hidden is None else to_hidden * outer[0],
            None if to_weight is None else (to_weight * outer[0]).to(ctx.dtype),
            None,
            None,
        )


def chunked_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, change_of: Change = loss_and_change
) -> Tensor:
    """The sum of the cross-entropy over the tokens that are learnt, float32.

    Args:
        hidden: [tokens, hidden].
        head_weight: [vocabulary, hidden].
        targets: int64 [tokens], `IGNORED` where nothing is learnt.
        change_of: `loss_and_change`, perhaps compiled.
    """
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, head_weight, targets, change_of)  # type: ignore[no-untyped-call]
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
