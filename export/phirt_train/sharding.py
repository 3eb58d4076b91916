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

from phirt_export.reference import Model
from phirt_train.objective import Loss, Objective
from phirt_train.processes import Processes

Sharding = Literal["none", "fsdp"]


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
