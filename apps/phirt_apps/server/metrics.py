"""Counts and times of a server, in the text that Prometheus reads.

Knows names of figures. Knows nothing of what is counted; nothing of a request's content is in any of them.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time for each figure, of no use here
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU time, open files
        self.requests = self._counter("requests", "Requests by address and status.", ("path", "status"))
        self.seconds = self._histogram("request_seconds", "Seconds until a request was answered.", ("path",))
        self.first_token = self._histogram(
            "first_token_seconds", "Seconds until the first token of an answer."
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = self._counter("cached_prompt_tokens", "Those of them that were not run again.")
        self.new_tokens = self._counter("new_tokens", "Tokens of answers.")
        self.cancelled = self._counter("cancelled", "Answers that were ended because nobody wanted them.")

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A figure that is asked for when somebody looks."""
        Gauge(f"phirt_{name}", help_text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"phirt_{name}", help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"phirt_{name}", help_text, labels, buckets=_SECONDS, registry=self._registry)
