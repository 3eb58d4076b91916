"""The operators that a package's graphs need, as a reduced build of onnxruntime takes them.

Knows onnxruntime's configuration file (a line a domain and version: `domain;opset;names`). What onnxruntime
makes of a graph when it opens it needs operators of its own, so these are asked for as well.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime

_DOMAIN = "ai.onnx"

Operators = Mapping[tuple[str, int], set[str]]


def required_operators(graphs: Iterable[Path]) -> Operators:
    """Names by (domain, version of the operator set), of graphs as they lie there and as onnxruntime runs
    them.
    """
    found: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    for graph in graphs:
        for model in (ir.load(graph), _optimized(graph)):
            for node in ir.traversal.RecursiveGraphIterator(model.graph):
                domain = node.domain or _DOMAIN
                version = model.opset_imports.get(node.domain)
                if version is not None:
                    found[domain, version].add(node.op_type)
    return found


def config_text(operators: Operators) -> str:
    """The file's content."""
    head = "# Operators of this package, for onnxruntime's build.py --include_ops_by_config.\n"
    lines = [
        f"{domain};{version};{','.join(sorted(names))}" for (domain, version), names in operators.items()
    ]
    return head + "\n".join(sorted(lines)) + "\n"


def _optimized(path: Path) -> ir.Model:
    """The graph after onnxruntime's own passes for a CPU; weights are not looked at."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return ir.load(Path(folder) / "optimized.onnx")
