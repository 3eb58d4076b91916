"""A model whose weights, gradients and moments are dealt out among processes (FSDP; Zhao et al., arXiv
2304.11277).

Knows modules and their pieces. Knows nothing of steps or files. Each decoder layer is whole only while it is
computed; all else (embedding, towers, heads) while a forward pass and its gradient last. Processes need not
use the same adapters and towers, nor make as many passes.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from phirt.errors import ConfigError
from phirt_export.reference import Model
from phirt_train.objective import DecoderPasses, Loss, Objective
from phirt_train.processes import Processes
from phirt_train.stage import StageConfig

Sharding = Literal["none", "fsdp"]
_REMEDY = "train it with --sharding none"


def check_sharded(stage: StageConfig) -> None:
    """Refuses a stage whose weights cannot be dealt out.

    Raises:
        ConfigError: its weights lie on a grid.
    """
    if stage.quantize_aware:
        raise ConfigError(
            f"stage {stage.name} trains on the int4 grid, whose blocks are not dealt out; {_REMEDY}"
        )


class ShardedObjective(nn.Module):
    """An objective as a module: what deals out modules makes them whole around `forward` and `validate`."""

    def __init__(self, model: nn.Module, objective: Objective, processes: Processes) -> None:
        super().__init__()
        self.model, self.head = model, objective.head
        self._objective, self._processes = objective, processes
        self._passes = objective if isinstance(objective, DecoderPasses) else None
        self._watched: set[str] = set()
        self._reached: set[str] = set()

    @property
    def is_uneven(self) -> bool:
        """Whether processes may use other parameters than each other, and pass the layers as often."""
        return self._passes is not None

    def forward(self, batch: Any) -> Loss:
        """The loss of a batch."""
        if self._passes is None or not isinstance(self.model, Model):
            return self._objective.loss(batch)
        self.watch("", self)
        # Layers are gathered in every pass, by all: who has fewer passes makes empty ones.
        own = self._passes.decoder_passes(batch)
        most = self._processes.most(own)
        loss = self._objective.loss(batch)
        return loss._replace(total=sum((_empty_pass(self.model) for _ in range(most - own)), loss.total))

    def watch(self, prefix: str, module: nn.Module) -> None:
        """Note from now on which of a module's parameters get gradients; it is whole while it is computed."""
        for name, parameter in module.named_parameters(prefix):
            if parameter.requires_grad and not isinstance(parameter, DTensor) and name not in self._watched:
                self._watched.add(name)
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._reached.add(name))

    def drop_unreached(self) -> bool:
        """Leave no gradient where no process has any: an optimiser would take a zero for one. Returns whether
        there are any.
        """
        trained = {name: one for name, one in self.named_parameters() if one.requires_grad}
        counts = self._processes.sum([float(name in self._reached) for name in trained])
        self._reached.clear()
        for parameter, count in zip(trained.values(), counts, strict=True):
            if not count:
                parameter.grad = None
        return any(counts)

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; every process must ask for them."""
        return self._objective.validate()


def _empty_pass(model: Model) -> Tensor:
    """Nothing, by way of all layers."""
    token_ids = torch.full((1, 1), model.config.tokens.pad, device=model.model.embed_tokens.weight.device)
    return 0.0 * model.hidden_states(token_ids).sum()


def shard(model: nn.Module, objective: Objective, processes: Processes) -> ShardedObjective:
    """Deal out the parameters of a model and of its objective's head, in place."""
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    sharded = ShardedObjective(model, objective, processes)
    layers = (
        {f"model.model.layers.{n}": one for n, one in enumerate(model.model.layers)}
        if isinstance(model, Model)
        else {}
    )
    for layer in layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    register_fsdp_forward_method(sharded, "validate")
    if sharded.is_uneven:
        _sum_unused(cast(FSDPModule, sharded))
        for name, layer in layers.items():  # which is whole by then
            layer.register_forward_pre_hook(lambda layer, _, name=name: sharded.watch(name, layer))
        for layer in list(layers.values())[:1]:  # before the layer's pieces are gathered
            layer.register_forward_pre_hook(_with_gradient, prepend=True)
    return sharded


def _sum_unused(sharded: FSDPModule) -> None:
    """Sum gradients of all parameters: an adapter or a tower that one process uses another may not."""
    if not hasattr(sharded, "set_reduce_scatter_unused_params"):
        raise ConfigError(
            f"processes that deal out weights may not have passes of several kinds with torch "
            f"{torch.__version__}, as they do with 2.13; update torch, or {_REMEDY}"
        )
    sharded.set_reduce_scatter_unused_params(True)


def _with_gradient(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first layer's input as one that has a gradient, so that a layer's gradient is due at the same place
    of each pass, whether or not there is anything trained before it.
    """
    x, *rest = inputs
    if torch.is_grad_enabled() and not x.requires_grad:
        x = x.detach().requires_grad_()
    return (x, *rest)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes' pieces; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, dealt out as another is."""
    if not isinstance(wanted, DTensor):
        return tensor.to(wanted.device)
    local = tensor.to(wanted.to_local().device)
    return distribute_tensor(local, wanted.device_mesh, wanted.placements, src_data_rank=None)
