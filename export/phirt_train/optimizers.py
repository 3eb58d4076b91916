"""Optimisers of a stage: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

Knows parameters and their shapes. Knows nothing of steps or of what is trained on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from phirt_export.precision import product_type
from phirt_train.stage import Schedule

_COEFFICIENTS, _ITERATIONS, _SMALLEST_NORM = (3.4445, -4.7750, 2.0315), 5, 1e-7
_RMS_OF_ADAMW = 0.2  # of an update's elements (Liu et al. 2025)


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Rate at `step` of `steps`: linear warm-up, then a cosine down to `final_ratio`·peak."""
    if step < schedule.warmup_steps:
        return schedule.peak * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    low = schedule.final_ratio
    return schedule.peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix with its singular values brought near 1 by Newton-Schulz's iteration, with the coefficients of
    Jordan et al. (2024), computed in `dtype`.
    """
    x = matrix.to(dtype)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = _COEFFICIENTS[0] * x + (_COEFFICIENTS[1] * gram + _COEFFICIENTS[2] * (gram @ gram)) @ x
    turned: Tensor = x.T if is_tall else x
    return turned.to(matrix.dtype)


class HiddenMuon(torch.optim.Muon):
    """Muon for hidden matrices and for convolutions, a convolution taken as the matrix of its flattened
    filters.

    Its updates are scaled to AdamW's root mean square (Liu et al. 2025), so that one rate serves both.
    """

    MIN_INPUTS = 16

    def __init__(self, sources: list[nn.Parameter], schedule: Schedule) -> None:
        self.sources = sources
        self.matrices = [nn.Parameter(source.detach().flatten(1)) for source in sources]
        assert all(m.data_ptr() == s.data_ptr() for m, s in zip(self.matrices, sources, strict=True))
        super().__init__(self.matrices, lr=schedule.peak, weight_decay=schedule.weight_decay)

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
        (group,) = self.param_groups
        rate, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        for source, matrix in zip(self.sources, self.matrices, strict=True):
            if source.grad is None:
                continue
            gradient, state = source.grad.flatten(1), self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            direction = orthogonalized(gradient.lerp(mean, momentum), product_type(gradient.device))
            matrix.mul_(1 - rate * decay)
            matrix.add_(direction, alpha=-rate * _RMS_OF_ADAMW * math.sqrt(max(matrix.shape)))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters and of their matrices."""
        super().zero_grad(set_to_none)
        for source in self.sources:
            source.grad = None


def make_optimizers(parameters: dict[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""
    hidden = [p for n, p in parameters.items() if schedule.muon and HiddenMuon.suits(n, p)]
    taken = {id(p) for p in hidden}
    rest = [p for p in parameters.values() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(
            torch.optim.AdamW(groups, lr=schedule.peak, betas=(0.9, schedule.beta2), fused=True)
        )
    if hidden:
        optimizers.append(HiddenMuon(hidden, schedule))
    return optimizers


def moment_keys(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Each parameter of the model with the one that the optimiser keeps its moments under."""
    if isinstance(optimizer, HiddenMuon):
        return list(zip(optimizer.sources, optimizer.matrices, strict=True))
    return [(p, p) for group in optimizer.param_groups for p in group["params"]]
