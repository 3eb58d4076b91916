"""What the quantization of each layer costs alone: the reference model with that layer's matrices as the
bundle stores them, all else as in the checkpoint.

Knows the names under which the decoder graph keeps quantized blocks, and the reference's layers. Knows
nothing of kernels: how they round activations is not in these figures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.bundle.manifest import Manifest
from phirt_export.graphs.linear import row_name
from phirt_export.reference import Model
from phirt_export.reference.decoder import RoutedLinear
from phirt_quant.blockwise import SPLIT_BITS, BlockQuantized, dequantize
from phirt_quant.fidelity import kl_divergence

TABLE, HEAD = "token table", "head"
_PROJECTIONS = {
    "attn.qkv": "self_attn.qkv_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate_up": "mlp.gate_up_proj",
    "mlp.down": "mlp.down_proj",
}
_ROWS = 64  # positions whose logits exist at a time


class StoredMatrices:
    """The quantized matrices of a bundle's decoder graph, by name."""

    def __init__(self, manifest: Manifest) -> None:
        graph = ir.load(manifest.path(manifest.graphs["decoder"].file)).graph
        self._values: dict[str, ir.TensorProtocol] = {}
        self._nodes: dict[str, ir.Node] = {}
        # By the names of their codes: routes have nodes of their own over the same ones.
        for node in graph.all_nodes():
            for value in node.inputs if node.op_type in ("MatMulNBits", "GatherBlockQuantized") else ():
                if value is not None and value.name is not None and value.name.endswith(".codes"):
                    self._nodes.setdefault(value.name, node)
        for owner in (graph, *graph.subgraphs()):
            for name, value in owner.initializers.items():
                if value.const_value is not None:
                    self._values.setdefault(name, value.const_value)
        # Embedding and head share their bytes; scales in float16 stand under the name of one of them alone.
        self._users: dict[object, list[str]] = {}
        for name in self._nodes:
            self._users.setdefault(self._place(name), []).append(name.removesuffix(".codes"))

    def matrix(self, name: str, columns: int) -> Tensor | None:
        """The matrix float32 [N, columns]; None where it is not quantized."""
        if f"{name}.codes" in self._nodes:
            return self._rows(name, columns)
        # Rows of several formats are nodes of their own.
        prefix, suffix = row_name(name, ""), ".codes"
        firsts = [
            int(node[len(prefix) : -len(suffix)])
            for node in self._nodes
            if node.startswith(prefix) and node[len(prefix) : -len(suffix)].isdigit()
        ]
        rows = [self._rows(row_name(name, first), columns) for first in sorted(firsts)]
        return torch.cat(rows) if rows else None

    def _rows(self, name: str, columns: int) -> Tensor:
        node = self._nodes[f"{name}.codes"]
        bits, block = (node.attributes[key].as_int() for key in ("bits", "block_size"))
        scales, minimums = self._floats(name, "scales"), self._floats(name, "minimums")
        assert scales is not None
        codes = self._values[f"{name}.codes"].numpy().reshape(*scales.shape, -1)
        low_codes = None
        if (low := self._values.get(f"{name}.low_codes")) is not None:
            low_codes, bits = low.numpy().reshape(*scales.shape, -1), SPLIT_BITS
        stored = BlockQuantized(codes, scales, columns, bits, block, minimums, low_codes)
        return torch.from_numpy(dequantize(stored))

    def _floats(self, name: str, part: str) -> np.ndarray | None:
        users = self._users[self._place(f"{name}.codes")]
        found = (self._values.get(f"{user}.{part}") for user in users)
        return next((value.numpy() for value in found if value is not None), None)

    def _place(self, codes: str) -> object:
        """Where codes lie in the data file."""
        stored = self._values[codes]
        assert isinstance(stored, ir.ExternalTensor)
        return stored.offset


def layer_divergences(
    model: Model, manifest: Manifest, ids: Sequence[int], on_layer: Callable[[int, int], None]
) -> list[tuple[str, float]]:
    """The mean KL divergence in nats, over the positions of `ids`, that the token table, each layer and the
    head cost alone, by name; those that are not quantized cost nothing. `on_layer` is called with how many
    are done and how many there are.
    """
    stored, decoder = StoredMatrices(manifest), model.config.decoder
    count = decoder.num_layers
    with torch.no_grad():
        mask = model.window_mask(len(ids), torch.device("cpu"))
        rotary = model.model.rotary(len(ids))

        def through(x: Tensor, first: int) -> Iterator[Tensor]:
            """What stands before each layer from `first` on, and before the norm."""
            for layer in model.model.layers[first:]:
                yield x
                x = layer(x, *rotary, mask, None)
            yield x

        embedding = model.embedding_weight()
        before = list(through(F.embedding(torch.tensor([ids]), embedding), 0))
        costs: list[tuple[str, float]] = []

        def add(name: str, x: Tensor | None, head: Tensor | None = None) -> None:
            costs.append((name, 0.0 if x is None else _divergence(model, before[-1], x, head)))

        on_layer(0, count + 2)
        table = stored.matrix("embed", decoder.hidden_size)
        changed = None if table is None else F.embedding(torch.tensor([ids]), table)
        add(TABLE, None if changed is None else list(through(changed, 0))[-1])
        for index, layer in enumerate(model.model.layers):
            on_layer(index + 1, count + 2)
            with _Replaced(layer, stored, f"layers.{index}") as replaced:
                x = layer(before[index], *rotary, mask, None) if replaced.any else None
            add(str(index), None if x is None else list(through(x, index + 1))[-1])
        on_layer(count + 1, count + 2)
        head = stored.matrix("head", decoder.hidden_size)
        add(HEAD, None if head is None else before[-1], head)
        on_layer(count + 2, count + 2)
    return costs


def _stored_instead(stored: Tensor, _: Tensor) -> Tensor:
    return stored


class _Replaced:
    """A block in which a layer's projections are those that are stored; `any` says whether one is."""

    def __init__(self, layer: nn.Module, stored: StoredMatrices, prefix: str) -> None:
        self._changes: list[tuple[RoutedLinear, Tensor]] = []
        for name, path in _PROJECTIONS.items():
            projection = layer.get_submodule(path)
            assert isinstance(projection, RoutedLinear)
            matrix = stored.matrix(f"{prefix}.{name}", projection.base_layer.in_features)
            if matrix is not None:
                self._changes.append((projection, matrix))
        self.any = bool(self._changes)

    def __enter__(self) -> _Replaced:
        for projection, matrix in self._changes:
            projection.transform = functools.partial(_stored_instead, matrix)
        return self

    def __exit__(self, *error: object) -> None:
        for projection, _ in self._changes:
            projection.transform = None


def _divergence(model: Model, reference: Tensor, changed: Tensor, head: Tensor | None) -> float:
    """The mean KL of what the reference's last states [1, T, hidden] predict to what changed ones do, which a
    `head` of its own may score.
    """
    own = model.head_weight()
    total = []
    for one, other in zip(reference[0].split(_ROWS), changed[0].split(_ROWS), strict=True):
        p = F.linear(model.model.norm(one), own).numpy()
        q = F.linear(model.model.norm(other), own if head is None else head).numpy()
        total.append(kl_divergence(p, q))
    return float(np.concatenate(total).mean())
