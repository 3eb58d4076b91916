"""The one place that imports optimum: a checkpoint becomes an ONNX graph as transformers' class computes it.

Knows optimum's exporter, transformers' configurations, and how to keep both from the network, from code that
comes with a checkpoint, and from the terminal. Knows nothing of bundles or weight formats.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

from phirt.errors import ConfigError, first_line, out_of_memory
from phirt_export.graphs.builder import OPSET

Task = Literal["text-generation-with-past", "feature-extraction"]

_OPSET = 18  # the highest that the tracer writes; what it has of it means the same in the builder's own
_TRACERS = ("optimum-onnx", "transformers", "torch")


def is_available() -> bool:
    """Whether the extra `optimum` is installed here."""
    try:
        return importlib.util.find_spec("optimum.exporters.onnx") is not None
    except ModuleNotFoundError:  # no optimum at all
        return False


def tracer_versions() -> dict[str, str]:
    """What the bytes of a traced graph depend on."""
    return {name: importlib.metadata.version(name) for name in _TRACERS}


def read_sizes(folder: Path) -> Any:
    """The checkpoint's configuration as transformers completes it: names of sizes are the same for all.

    Raises:
        ConfigError: transformers has no such class, or the configuration does not fit it.
    """
    import transformers

    with _quiet(), _refused(folder, "read"):
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def traced(folder: Path, task: Task) -> Iterator[ir.Model]:
    """The graph of the model in `folder`, in float32, without what repeats itself or is never used. Weights
    are mapped from files that are gone when the block ends.

    Raises:
        ConfigError: optimum cannot trace this model, or not for this task.
    """
    assert _OPSET <= OPSET
    with tempfile.TemporaryDirectory(prefix="phirt-optimum-") as made:
        with _quiet(), _refused(folder, "trace"):
            from optimum.exporters.onnx import main_export  # noqa: TID251 - the one place

            main_export(
                str(folder),
                output=made,
                task=task,
                opset=_OPSET,
                dtype="fp32",
                library_name="transformers",
                framework="pt",
                do_validation=False,
                local_files_only=True,
                trust_remote_code=False,
            )
        model = ir.load(Path(made) / "model.onnx")
        _TIDIED(model)
        yield model


_TIDIED = Sequential(
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    passes.IdentityEliminationPass(),
    passes.DeduplicateInitializersPass(),
    passes.CommonSubexpressionEliminationPass(),
    passes.RemoveUnusedNodesPass(),
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings and log lines of the libraries, which a user can do nothing about, off the terminal."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(level, logging.WARNING))  # some of them set the levels of their own loggers
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def _refused(folder: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries raise whatever a configuration leads them to
        raise out_of_memory(error, f"{doing} {folder}") or ConfigError(
            f"optimum cannot {doing} {folder}: {first_line(error)}; accepted are models whose class "
            "transformers itself has, and whose family optimum-onnx lists"
        ) from error
