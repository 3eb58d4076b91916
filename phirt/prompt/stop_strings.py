"""Ends an answer before a stop string, however its text comes in pieces.

Knows characters. Knows nothing of tokens or of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cuts a stream of text before the first stop string, holding back what could still become one.

    The earliest end counts; of several that end there, the longest. The result does not depend on how the
    text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """The text that is safe to show now. After a hit nothing more comes."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        buffer = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := buffer.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return buffer[: min(found)[1]]
        keep = next(
            (n for n in range(min(self._longest - 1, len(buffer)), 0, -1) if self._could_begin(buffer[-n:])),
            0,
        )
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def finish(self) -> str:
        """What was held back, when the stream ends without a hit."""
        held, self._held = self._held, ""
        return held

    def _could_begin(self, tail: str) -> bool:
        return any(len(tail) < len(stop) and stop.startswith(tail) for stop in self._stops)
