"""The gradient of a whole step, summed over the parts that a forward pass takes.

Knows parts, sums and weights. Knows nothing of optimisers or of what a batch holds. A step's loss is the sum
of all totals over the sum of all weights; so is its gradient, whatever the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from phirt_train.objective import Loss


class StepFigures(NamedTuple):
    """What a step's forward passes came to.

    Attributes:
        loss: per unit of weight.
        units: items that were learnt from.
        reached: whether any trained parameter has a part in the loss.
    """

    loss: float
    units: int
    reached: bool


def sum_gradients(
    batches: Iterable[Any], loss_of: Callable[[Any], Loss], parameters: Sequence[nn.Parameter]
) -> StepFigures:
    """Leave the gradient of a step in its parameters."""
    totals: list[Tensor] = []
    weight, units, reached = 0.0, 0, False
    for batch in batches:
        loss = loss_of(batch)
        totals.append(loss.total.detach())
        weight += loss.weight
        units += loss.units
        if loss.total.requires_grad:
            reached = True
            loss.total.backward()
    total = math.fsum(one.item() for one in totals)
    divisor = weight if weight > 0 else 1.0
    scale_gradients(parameters, 1 / divisor)
    return StepFigures(total / divisor, units, reached)


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
