"""Less memory for more work: a decoder layer keeps its input alone and runs again when its gradient is due
(Chen et al., arXiv 1604.06174).

Knows the layers of the reference model, which itself knows nothing of this. Names of weights stay.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from phirt_export.reference import Model


def checkpoint_layers(model: Model) -> None:
    """Let every decoder layer run again for its gradient, from now on."""
    for layer in model.model.layers:
        layer.forward = functools.partial(_again, type(layer).forward, layer)


def _again(forward: Any, layer: nn.Module, *inputs: Any) -> Any:
    return checkpoint(forward, layer, *inputs, use_reentrant=False)
