"""What a target is, as data: which providers it is for, and what their graphs are like.

Knows the choices that there are. Knows no target, and nothing of how graphs are made: `variants` does what is
said here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from phirt.bundle.manifest import StaticShapes
from phirt_export.variants.rewriter import Rules
from phirt_export.variants.sizes import StaticDefaults, StaticOptions

Operators = Literal["fused", "standard"]
Shapes = Literal["dynamic", "static"]
Weights = Literal["blocks", "channels"]


@dataclasses.dataclass(frozen=True)
class TargetProfile:
    """One kind of machine that a bundle is made for.

    Attributes:
        description: one line for `phirt export --help` and messages.
        providers: onnxruntime's names of those that run the graphs, in order of preference.
        io_dtype: of features, logits, and keys and values where these are floats.
        operators: onnxruntime's own where it has faster ones, or the standard's alone.
        shapes: of any size, or of one.
        weights: blocks as the bundle has them, or 8 bits a weight with a scale for each output, or 4 bits in
            blocks in the form that fixed-point machines take.
        activations: bits of what is computed between nodes, calibrated on data; None for floats.
        passes: rewrites of each graph, in their order; each lies in a file of its own.
        static: sizes, where shapes are static.
        compiles_for: chips that graphs can be compiled for ahead, with the provider's options for each.
    """

    description: str
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    io_dtype: Literal["float32", "float16"] = "float32"
    operators: Operators = "fused"
    shapes: Shapes = "dynamic"
    weights: Weights = "blocks"
    activations: int | None = None
    passes: tuple[Rules, ...] = ()
    static: StaticDefaults | None = None
    compiles_for: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert (self.shapes == "static") == (self.static is not None)

    def check_static(self, options: StaticOptions, original_context: int) -> None:
        """Raises ConfigError where graphs of one size cannot have what is asked for."""
        if self.static is not None:
            self.static.shapes(options, original_context)

    def shapes_for(self, options: StaticOptions, original_context: int) -> StaticShapes:
        """The sizes of a target that has such. Raises ConfigError."""
        assert self.static is not None
        return self.static.shapes(options, original_context)
