"""What a decoder sequence means: ids, the media behind placeholders, the adapter; where two sequences agree.

Knows positions, features and content keys. Knows nothing of sessions, caches or text.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import NO_ADAPTER

Ids = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class MediaSpan:
    """A run of placeholder ids: where it starts, its features float32 [N, hidden], and a key that names the
    content.
    """

    start: int
    features: Features
    key: str

    @property
    def stop(self) -> int:
        """The position after the run."""
        return self.start + len(self.features)

    def before(self, position: int) -> MediaSpan:
        """What lies before a position: the whole span, or a part of it under a name of its own."""
        if self.stop <= position:
            return self
        rows = position - self.start
        return MediaSpan(self.start, self.features[:rows], f"{self.key}:{rows}")

    def same_as(self, other: MediaSpan) -> bool:
        """Whether both put the same content at the same positions."""
        return (self.start, self.stop, self.key) == (other.start, other.stop, other.key)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is added to the base weights: the bundle's own adapter by its name ("none" for none), and beside
    it a user's LoRA by the digest of what it computes.
    """

    name: str = NO_ADAPTER
    lora: str | None = None


BASE_WEIGHTS = Adapter()


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A whole sequence to be cached: ids int64 [T], the media behind its placeholders in order, and the
    adapter under which it is run.
    """

    ids: Ids
    spans: tuple[MediaSpan, ...] = ()
    adapter: Adapter = BASE_WEIGHTS


def common_prefix(old: Prompt, new: Prompt) -> int:
    """Positions at the start that mean the same in both: equal ids and, under placeholders, equal media."""
    shortest = min(len(old.ids), len(new.ids))
    differing = np.flatnonzero(old.ids[:shortest] != new.ids[:shortest])
    length = int(differing[0]) if len(differing) else shortest
    for one, other in ((old, new), (new, old)):
        for span in one.spans:
            if span.start < length and not any(span.same_as(candidate) for candidate in other.spans):
                length = span.start
    return length


def feature_rows(spans: tuple[MediaSpan, ...], start: int, stop: int, empty: Features) -> Features:
    """The rows that stand at positions `start` to `stop`; spans are in order and do not overlap."""
    parts = [
        span.features[max(start - span.start, 0) : stop - span.start]
        for span in spans
        if span.start < stop and span.stop > start
    ]
    return np.concatenate(parts) if parts else empty


def extended(
    known: Prompt, ids: Ids, rows: Features, placeholders: Sequence[int], adapter: Adapter
) -> Prompt:
    """`known`, which may end inside a medium, and then `ids` with the feature rows of their placeholders."""
    length = len(known.ids)
    spans = tuple(span.before(length) for span in known.spans)
    spans += _anonymous_spans(ids, rows, placeholders, length)
    return Prompt(np.concatenate([known.ids, ids]), spans, adapter)


def _anonymous_spans(
    ids: Ids, rows: Features, placeholders: Sequence[int], offset: int
) -> tuple[MediaSpan, ...]:
    """One span for each run of placeholders in `ids`, which begin at `offset`, named by the content of its
    rows.
    """
    positions = np.flatnonzero(np.isin(ids, placeholders))
    assert len(positions) == len(rows), "one feature row for each placeholder"
    if not len(positions):
        return ()
    spans = []
    runs = np.split(np.arange(len(positions)), np.flatnonzero(np.diff(positions) > 1) + 1)
    for run in runs:
        features = rows[run[0] : run[-1] + 1]
        key = hashlib.sha256(features.tobytes()).hexdigest()
        spans.append(MediaSpan(offset + int(positions[run[0]]), features, key))
    return tuple(spans)
