"""A model whose weights, gradients and moments are dealt out among processes (FSDP; Zhao et al., arXiv
2304.11277).

Knows modules and their pieces. Knows nothing of steps or files. Each decoder layer is whole only while it is
computed; all else (embedding, towers, heads) while a forward pass and its gradient last.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from phirt.errors import ConfigError
from phirt_export.reference import Model
from phirt_train.objective import Loss, Objective
from phirt_train.objectives.mixture import MixtureData
from phirt_train.processes import Processes
from phirt_train.stage import StageConfig

Sharding = Literal["none", "fsdp"]
_REMEDY = "train it with --sharding none"


def check_sharded(stage: StageConfig) -> None:
    """Refuses a stage whose weights cannot be dealt out. Every process gathers each layer in each of its
    forward passes, so that all must make as many; the objectives of a mixture do not.

    Raises:
        ConfigError: weights on a grid, or a mixture of other objectives than `language_modeling`.
    """
    if stage.quantize_aware:
        raise ConfigError(
            f"stage {stage.name} trains on the int4 grid, whose blocks are not dealt out; {_REMEDY}"
        )
    if isinstance(stage.data, MixtureData):
        kinds = sorted({part.objective for part in stage.data.parts.values()} - {"language_modeling"})
        if kinds:
            raise ConfigError(
                f"stage {stage.name} mixes in {', '.join(kinds)}, whose forward passes differ in number "
                f"among processes that deal out weights; {_REMEDY}"
            )


def check_routes(stage: StageConfig, objective: Objective) -> None:
    """Refuses conversations of several routes: a process makes a forward pass for each that its share has.

    Raises:
        ConfigError: the stage's sources have more than one.
    """
    routes: frozenset[str] = getattr(objective, "routes", frozenset())
    if len(routes) > 1:
        raise ConfigError(
            f"stage {stage.name} learns conversations of several routes ({', '.join(sorted(routes))}), and "
            f"processes that deal out weights must make as many forward passes each; {_REMEDY}, or give it "
            "conversations of one route"
        )


class ShardedObjective(nn.Module):
    """An objective as a module: what deals out modules makes them whole around `forward` and `validate`."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.head = model, objective.head
        self._objective = objective

    def forward(self, batch: Any) -> Loss:
        """The loss of a batch."""
        return self._objective.loss(batch)

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; every process must ask for them."""
        return self._objective.validate()


def shard(model: nn.Module, objective: Objective, processes: Processes) -> ShardedObjective:
    """Deal out the parameters of a model and of its objective's head, in place."""
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    if isinstance(model, Model):
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
    sharded = ShardedObjective(model, objective)
    fully_shard(sharded, mesh=mesh)
    register_fsdp_forward_method(sharded, "validate")
    return sharded


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes' pieces; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, dealt out as another is."""
    if not isinstance(wanted, DTensor):
        return tensor.to(wanted.device)
    local = tensor.to(wanted.to_local().device)
    return distribute_tensor(local, wanted.device_mesh, wanted.placements, src_data_rank=None)
