"""A variant of graphs of any size for a GPU: the bundle's own, rewritten by the target's passes, in float16.

Codes of weights stay in the bundle's files, which both share; what becomes float16 lies in a file of its own.
Knows the order of work and names of files. What passes do, they know themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from phirt.bundle.lora import DECODER, LORA_DECODER
from phirt.bundle.manifest import GraphSpec, Manifest, Variant
from phirt.errors import ConfigError
from phirt_export.bundle import describe
from phirt_export.calibration.samples import Sample
from phirt_export.graphs.data_file import DataFile
from phirt_export.targets.passes.float16 import to_float16
from phirt_export.targets.profile import TargetProfile
from phirt_export.variants.kernels import objections
from phirt_export.variants.rewriter import rewritten
from phirt_export.variants.static_variant import Note
from phirt_export.variants.storing import store_graph


class DynamicVariant:
    """Builds the variant from the bundle in the manifest's folder, and writes its files there."""

    def __init__(self, manifest: Manifest, target: str, profile: TargetProfile, note: Note) -> None:
        self._manifest, self._target, self._profile, self._note = manifest, target, profile, note

    def write(self, generator: object, samples: Sequence[Sample], *, own_files: bool) -> Variant:
        """Writes all graphs. `own_files`: with what they share with the bundle's other graphs copied."""
        folder, graphs = self._manifest.folder, {}
        with DataFile(folder / f"{self._target}.data") as data:
            for name, spec in self._manifest.graphs.items():
                self._note(f"writing the {name} graph")
                model = self.rewritten(ir.load(folder / spec.file), name in (DECODER, LORA_DECODER))
                self._check(name, model)
                file = f"{self._target}_{name}.onnx"
                taken, given = describe(model.graph.inputs), describe(model.graph.outputs)
                files = store_graph(model, folder / file, data, copies=own_files)
                graphs[name] = GraphSpec(file, files, self._target, taken, given)
        return Variant(self._profile.providers, graphs)

    def _check(self, name: str, model: ir.Model) -> None:
        """Raises ConfigError where a node would run on the CPU, or compute something else than it says."""
        for provider in self._profile.providers:
            for objection in objections(model, provider):
                raise ConfigError(f"the {name} graph cannot be made for {self._target}: {objection}")

    def rewritten(self, model: ir.Model, is_decoder: bool) -> ir.Model:
        """A graph as the target wants it. Decoders take and give the target's floats, encoders float32."""
        for rules in self._profile.passes:
            model = rewritten(model, rules)
        if self._profile.io_dtype == "float16":
            model = to_float16(model, keeps_interface=not is_decoder)
        return model
