"""Optimisers of a stage: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

Knows parameters, their shapes and the rate of each part. Knows nothing of steps or of what is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from phirt_export.precision import product_type
from phirt_train.sharding import like, whole
from phirt_train.stage import Schedule

_COEFFICIENTS, _ITERATIONS, _SMALLEST_NORM = (3.4445, -4.7750, 2.0315), 5, 1e-7
_RMS_OF_ADAMW = 0.2  # of an update's elements (Liu et al. 2025)
_MOMENTUM = 0.95
_RATE_OF_PART = "rate_of_part"  # what a group's rate is multiplied by


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix with its singular values brought near 1 by Newton-Schulz's iteration, with the coefficients of
    Jordan et al. (2024), computed in `dtype`.
    """
    x = matrix.to(dtype)
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    x = x / x.norm().clamp(min=_SMALLEST_NORM)
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    turned: Tensor = x.mT if is_tall else x
    return turned.to(matrix.dtype)


class HiddenMuon(torch.optim.Optimizer):
    """Muon for hidden matrices and for convolutions, a convolution taken as the matrix of its flattened
    filters.

    Its updates are scaled to AdamW's root mean square (Liu et al. 2025), so that one rate serves both.
    """

    MIN_INPUTS = 16

    def __init__(self, parameters: Iterable[Any], schedule: Schedule) -> None:
        super().__init__(parameters, {"lr": schedule.peak, "weight_decay": schedule.weight_decay})

    @classmethod
    def suits(cls, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter maps a hidden vector to another: no table, no head, no depthwise filter."""
        if name.startswith("head.") or "embed_tokens." in name or "position_embedding" in name:
            return False
        if parameter.dim() < 2 or parameter.shape[0] == 1 or "bias_values" in name:
            return False
        return parameter[0].numel() >= cls.MIN_INPUTS

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, as torch's Muon does, its products in the type that the
        machine is fast in.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, parameter: nn.Parameter, rate: float, decay: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
        joined = whole(gradient.lerp(mean, _MOMENTUM))
        matrix = joined.flatten(1)
        # Rounded products would make of sums in another order another update: processes would drift from one.
        exact = torch.distributed.is_initialized()
        dtype = torch.float32 if exact else product_type(matrix.device)
        direction = like(orthogonalized(matrix, dtype).view_as(joined), parameter)
        parameter.mul_(1 - rate * decay)
        parameter.add_(direction, alpha=-rate * _RMS_OF_ADAMW * math.sqrt(max(matrix.shape)))


def make_optimizers(
    parameters: Mapping[str, nn.Parameter], schedule: Schedule, rates: Mapping[str, float]
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

    Args:
        parameters: what is trained, by name.
        schedule: which of the two, and their constants.
        rates: what the rate is multiplied by, by name, where that is not 1.
    """
    matrices: dict[float, list[nn.Parameter]] = {}
    others: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = rates.get(name, 1.0)
        if schedule.muon and HiddenMuon.suits(name, parameter):
            matrices.setdefault(rate, []).append(parameter)
        else:
            others.setdefault((rate, parameter.dim() >= 2), []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if others:
        groups = [
            {"params": some, "weight_decay": schedule.weight_decay if decays else 0.0, _RATE_OF_PART: rate}
            for (rate, decays), some in others.items()
        ]
        optimizers.append(torch.optim.AdamW(groups, betas=(0.9, schedule.beta2), fused=True))
    if matrices:
        optimizers.append(
            HiddenMuon([{"params": some, _RATE_OF_PART: rate} for rate, some in matrices.items()], schedule)
        )
    return optimizers


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Let the next step of each part take its multiple of a rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group[_RATE_OF_PART]


def moments_of(
    optimizers: Iterable[torch.optim.Optimizer], names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """What the optimisers remember of each parameter, as NAME/MOMENT."""
    return {
        f"{names[parameter]}/{moment}": whole(tensor)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for moment, tensor in optimizer.state.get(parameter, {}).items()
    }


def set_moments(
    optimizers: Iterable[torch.optim.Optimizer],
    names: Mapping[nn.Parameter, str],
    moments: Mapping[str, Tensor],
) -> None:
    """Let the optimisers go on from what `moments_of` has given; parameters without any begin anew."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        name, _, moment = key.rpartition("/")
        by_name.setdefault(name, {})[moment] = tensor
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if found := by_name.get(names[parameter]):
                    optimizer.state[parameter] = {
                        moment: like(tensor, parameter) if tensor.dim() else tensor.to(parameter.device)
                        for moment, tensor in found.items()
                    }
