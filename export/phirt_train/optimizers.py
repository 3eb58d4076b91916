"""Optimisers of a stage: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

Knows parameters and their shapes. Knows nothing of steps or of what is trained on.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from phirt_train.stage import Schedule


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Rate at `step` of `steps`: linear warm-up, then a cosine down to `final_ratio`·peak."""
    if step < schedule.warmup_steps:
        return schedule.peak * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    low = schedule.final_ratio
    return schedule.peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


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
        super().__init__(
            self.matrices,
            lr=schedule.peak,
            weight_decay=schedule.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    @classmethod
    def suits(cls, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter maps a hidden vector to another: no table, no head, no depthwise filter."""
        if name.startswith("head.") or "embed_tokens." in name or "position_embedding" in name:
            return False
        if parameter.dim() < 2 or parameter.shape[0] == 1 or "bias_values" in name:
            return False
        return parameter[0].numel() >= cls.MIN_INPUTS

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for source, matrix in zip(self.sources, self.matrices, strict=True):
            matrix.grad = None if source.grad is None else source.grad.flatten(1)
        torch.optim.Muon.step(self, closure)

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
