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
from torch.distributed.tensor import DTensor

from phirt_train.objective import Loss
from phirt_train.processes import ALONE, Processes


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
    batches: Iterable[Any],
    loss_of: Callable[[Any], Loss],
    parameters: Sequence[nn.Parameter],
    processes: Processes = ALONE,
) -> StepFigures:
    """Leave the gradient of a step in its parameters, summed over all processes."""
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
    total, weight, items, everywhere = processes.sum([total, weight, units, reached])
    divisor = weight if weight > 0 else 1.0
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        factor = processes.count / divisor  # pieces hold the mean over the processes
    else:
        processes.sum_gradients(parameters)
        factor = 1 / divisor
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
    return StepFigures(total / divisor, int(items), everywhere > 0)
