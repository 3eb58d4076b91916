"""A LoRA branch of its own on every projection of the decoder, beside the adapter of a conversation's route.

At inference a user's adapter adds to what the bundle's own does with a picture or a recording; so it does
here. Knows modules and PEFT's names of tensors. Knows nothing of data or steps. Source: LoRA (Hu et al.,
arXiv 2106.09685); files as PEFT documents them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.bundle.peft import WEIGHTS_NAME
from phirt.bundle.peft_config import CONFIG_NAME
from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint
from phirt_export.reference import Model
from phirt_export.reference.decoder import RoutedLinear
from phirt_train.state_file import save_tensors

DOWN, UP = "user_A", "user_B"
TRAINED = (f"*.{DOWN}.", f"*.{UP}.")
_BASE = ".base_layer"


@dataclasses.dataclass(frozen=True)
class Branch:
    """Sizes of the branches."""

    rank: int
    alpha: float
    dropout: float

    @property
    def scale(self) -> float:
        """What a branch's output is multiplied by."""
        return self.alpha / self.rank


def add_branches(model: Model, branch: Branch, seed: int) -> None:
    """Give every projection of every layer a branch, which changes nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    for module in list(model.model.layers.modules()):
        if not isinstance(module, RoutedLinear):
            continue
        inputs, outputs = module.base_layer.in_features, module.base_layer.out_features
        down, up = nn.Linear(inputs, branch.rank, bias=False), nn.Linear(branch.rank, outputs, bias=False)
        with torch.no_grad():
            down.weight.normal_(0.0, inputs**-0.5, generator=generator)
            up.weight.zero_()
        module.add_module(DOWN, down)
        module.add_module(UP, up)

        def added(
            layer: nn.Module, given: tuple[Tensor, ...], y: Tensor, down: nn.Linear = down, up: nn.Linear = up
        ) -> Tensor:
            x = F.dropout(given[0], branch.dropout, layer.training)
            change: Tensor = up(down(x))
            return y + change * branch.scale

        module.register_forward_hook(added)


def branch_tensors(model: Model) -> dict[str, Tensor]:
    """The branches' matrices by name, copied."""
    state = model.state_dict()
    return {n: t.detach().cpu().clone() for n, t in state.items() if f".{DOWN}." in n or f".{UP}." in n}


def write_peft(
    folder: Path, tensors: Mapping[str, Tensor], branch: Branch, checkpoint: Checkpoint, base: str
) -> None:
    """An adapter folder as PEFT saves one. Where the checkpoint keeps the parts of a fused projection one by
    one, each part has its rows, and the first matrix is that of all.

    Args:
        folder: an existing one.
        tensors: as `branch_tensors` gives them.
        base: what the adapter says it belongs to.

    Raises:
        ConfigError: the checkpoint's tensors have no names that an adapter could be kept under.
    """
    saved: dict[str, Tensor] = {}
    targets: set[str] = set()
    for name in [name for name in tensors if f".{DOWN}." in name]:
        module = name.removesuffix(f".{DOWN}.weight")
        down, up = tensors[name], tensors[name.replace(f".{DOWN}.", f".{UP}.")]
        first = 0
        for published, rows in checkpoint.stored_parts(f"{module}{_BASE}.weight"):
            key = published.removesuffix(".weight").removesuffix(_BASE)
            if key == published:
                raise ConfigError(f"{published} has no name that an adapter could have")
            saved[f"base_model.model.{key}.lora_A.weight"] = down.clone()
            saved[f"base_model.model.{key}.lora_B.weight"] = up[first : first + rows].contiguous()
            targets.add(key.rpartition(".")[2])
            first += rows
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": branch.rank,
        "lora_alpha": branch.alpha,
        "lora_dropout": branch.dropout,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    save_tensors(saved, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def sensible_rate(hidden_size: int) -> float:
    """A peak rate that suits LoRA at this width: what serves at the width of a 4B model, higher for narrower
    ones, whose updates are smaller.
    """
    return min(4e-3, max(1e-4, 2e-4 * 3072 / hidden_size))
