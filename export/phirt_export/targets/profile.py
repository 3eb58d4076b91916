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


@dataclasses.dataclass(frozen=True)
class TargetProfile:
    """One kind of machine that a bundle is made for.

    Attributes:
        description: one line for `phirt export --help` and messages.
        providers: onnxruntime's names of those that run the graphs, in order of preference.
        io_dtype: of features, logits, and keys and values where these are floats.
        activations: 16, the bits of what is computed between nodes, calibrated on data; None for floats.
        passes: rewrites of each graph, in their order; each lies in a file of its own.
        static: sizes, where graphs have one size, in standard operators alone, with weights of 8 bits and a
            scale for each output, or of 4 in blocks as fixed-point machines take them; None where they are
            the bundle's own, rewritten.
        compiles_for: chips that graphs can be compiled for ahead, with the provider's options for each.
    """

    description: str
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    io_dtype: Literal["float32", "float16"] = "float32"
    activations: Literal[16] | None = None
    passes: tuple[Rules, ...] = ()
    static: StaticDefaults | None = None
    compiles_for: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def check_static(self, options: StaticOptions, original_context: int) -> None:
        """Raises ConfigError where graphs of one size cannot have what is asked for."""
        if self.static is not None:
            self.static.shapes(options, original_context)

    def shapes_for(self, options: StaticOptions, original_context: int) -> StaticShapes:
        """The sizes of a target that has such. Raises ConfigError."""
        assert self.static is not None
        return self.static.shapes(options, original_context)
