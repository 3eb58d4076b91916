"""Which execution provider runs the nodes of an opened graph, by onnxruntime's own word.

Knows onnxruntime's account of what it has assigned. Knows nothing of bundles.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

# Without it there is no account of a session.
RECORD = "session.record_ep_graph_assignment_info"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Nodes of one graph, those of branches included, by provider and kind. A provider that has taken a whole
    part of a graph is still listed with the part's nodes.
    """

    nodes: Mapping[str, Mapping[str, int]]

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes each provider runs, most first."""
        totals = {provider: sum(kinds.values()) for provider, kinds in self.nodes.items()}
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def kinds_on(self, provider: str) -> tuple[str, ...]:
        """The kinds of nodes that a provider runs, by name."""
        return tuple(sorted(self.nodes.get(provider, {})))


def placement_of(session: Any) -> Placement:
    """What became of a session's graph; it must have been opened with RECORD set to "1"."""
    nodes: dict[str, collections.Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        kinds = nodes.setdefault(part.ep_name, collections.Counter())
        kinds.update(node.op_type for node in part.get_nodes())
    return Placement({provider: dict(sorted(kinds.items())) for provider, kinds in nodes.items()})
