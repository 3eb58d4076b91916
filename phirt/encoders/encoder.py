"""What an encoder kind is, and how the manifest's name of one becomes its code.

A kind is a module of this folder, named as the manifest names it, with a class `Encoder` as described here.
Knows where kinds lie, and none of them: a new one is a new module. Knows nothing of sessions or caches.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

import phirt.encoders
from phirt.bundle.manifest import MANIFEST_NAME, REMEDY, EncoderSpec, GraphSpec, Limits, Manifest
from phirt.bundle.relations import Wanted, misfit
from phirt.errors import BundleError, ConfigError
from phirt.fields import Fields
from phirt.prompt.messages import Features, Inputs

ImageDetail = Literal["low", "auto", "high"]  # how closely a picture is looked at, where a kind can choose


# Names of a graph's inputs or of what is prepared for it, with dtypes and shapes.
InputSpecs = Mapping[str, tuple[str, Wanted]]


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """One picture or recording, read and measured, but not processed yet.

    Attributes:
        key: names what the encoder makes of it: the same key, the same features.
        num_tokens: the rows that its features will have.
        make_inputs: processes it; returns what `run` takes. Raises MediaError where it is damaged.
    """

    key: str
    num_tokens: int
    make_inputs: Callable[[], Inputs]


class GraphRunner(Protocol):
    """An opened graph."""

    def run(self, inputs: Inputs) -> Sequence[npt.NDArray[Any]]:
        """All outputs, in the graph's order."""
        ...


class Encoder(Protocol):
    """One kind with one bundle's constants. The constructor takes these, the graph as the manifest describes
    it, and the decoder's width; it raises BundleError where they are not as the kind needs them.

    Attributes:
        inputs: what `prepare` makes and `run` takes, a size of None for any.
    """

    inputs: InputSpecs

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None: ...

    def prepare(self, source: Any, limits: Limits, detail: ImageDetail) -> Prepared:
        """Reads a picture or a recording as far as is needed to measure it. Raises MediaError for what cannot
        be used.
        """
        ...

    def count(self, inputs: Inputs) -> int:
        """The rows that the features of these inputs have, which are as `inputs` says. Raises ValueError for
        such as `prepare` does not make.
        """
        ...

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [tokens, hidden_size] under a projector, by its number."""
        ...


def open_encoders(manifest: Manifest) -> dict[str, Encoder]:
    """The bundle's encoders by name. Raises BundleError for a kind that is not known, or cannot work so."""
    return {name: _open(manifest, name, spec) for name, spec in manifest.encoders.items()}


def known_kinds() -> tuple[str, ...]:
    """The kinds that this installation has."""
    modules = (module.name for module in pkgutil.iter_modules(phirt.encoders.__path__))
    return tuple(sorted(name for name in modules if _class_of(name) is not None))


def require_tensors(graph: GraphSpec, where: str, inputs: InputSpecs, output: tuple[str, Wanted]) -> None:
    """Raises BundleError unless an encoder graph takes exactly these inputs, by name with dtype and shape,
    and perhaps `projector`, int64 [1], and its first output has this name and shape, in float32.
    """
    taken = {tensor.name: tensor for tensor in graph.inputs}
    problems = [misfit(taken, name, (dtype,), shape) for name, (dtype, shape) in inputs.items()]
    if "projector" in taken:
        problems.append(misfit(taken, "projector", ("int64",), (1,)))
    strange = [name for name in taken if name not in (*inputs, "projector")]
    problems += [f"the input {name!r} is not known to this kind" for name in strange]
    given = {tensor.name: tensor for tensor in graph.outputs[:1]}
    problems.append(misfit(given, output[0], ("float32",), output[1]))
    for problem in problems:
        if problem is not None:
            raise BundleError(f"{where}: {graph.file}: {problem}; {REMEDY}")


def first_output(graph: GraphRunner, inputs: Inputs, projector: int | None = None) -> Features:
    """The first output as float32, of a graph that is told its projector where one is given."""
    if projector is not None:
        inputs = {**inputs, "projector": np.array([projector], dtype=np.int64)}
    return np.ascontiguousarray(graph.run(inputs)[0], dtype=np.float32)


def check_detail(detail: ImageDetail) -> ImageDetail:
    """`detail` as given. Raises ConfigError where it is no ImageDetail."""
    accepted = get_args(ImageDetail)
    if detail not in accepted:
        raise ConfigError(f"image_detail is {detail!r}, accepted: {', '.join(accepted)}")
    return detail


def _open(manifest: Manifest, name: str, spec: EncoderSpec) -> Encoder:
    where = f"{MANIFEST_NAME}: encoders[{name!r}]"
    kind = _class_of(spec.kind)
    if kind is None:
        raise BundleError(
            f"{where}: kind {spec.kind!r} is not known, accepted: {', '.join(known_kinds())}; update phirt"
        )
    constants = Fields(dict(spec.constants), f"{where}: constants", BundleError, REMEDY)
    return kind(constants, manifest.graphs[spec.graph], manifest.geometry.hidden_size)


def _class_of(kind: str) -> type[Encoder] | None:
    """The class of a kind, or None for what is none."""
    if kind not in {module.name for module in pkgutil.iter_modules(phirt.encoders.__path__)}:
        return None
    found = getattr(importlib.import_module(f"phirt.encoders.{kind}"), "Encoder", None)
    return found if isinstance(found, type) and found is not Encoder else None
