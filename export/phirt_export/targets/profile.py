"""What a target is: a name that manifests carry, and the rewrites that its graphs need.

Knows onnx_ir's models. Knows no target and nothing of how graphs are built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

GraphPass = Callable[[ir.Model], None]


@dataclasses.dataclass(frozen=True)
class TargetProfile:
    """One kind of machine that a bundle is made for.

    Attributes:
        description: one line for `phirt export --help` and messages.
        passes: rewrites of each finished graph, in their order; each lies in a file of its own.
    """

    description: str
    passes: tuple[GraphPass, ...] = ()
