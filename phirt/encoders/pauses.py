"""Long recordings in pieces that a model takes: cut where nobody speaks, or else at the quietest place.

Knows loudness. Knows nothing of files, models or words. Works on a recording as it comes: it keeps no more
than a piece and a half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]

_FRAMES = 100  # a second: loudness is looked at every 10 ms
_PAUSE = 20  # frames; a stop consonant is silent for up to 15
_WORD = 10  # frames over which a click is averaged away, and which a cut should find quiet
_CLICK = 4  # frames; whatever is shorter is no word
_BELOW_SPEECH = 50.0  # dB under the loudest word may a far voice be, where the room is silent
_LEAST_BELOW = 15.0  # and so far under it is a pause, however loud the room
_ABOVE_ROOM = 6.0  # dB over what is always there
_ABOVE_PAUSE = 3.0  # dB over the pause beside it: a word is followed until it sinks into that
_FORGOTTEN = 20.0  # dB under the loudest word so far, which the loudest of what is at hand may be
_LONGEST_JOINED = 2 * _FRAMES  # pauses that a piece of several utterances may hold
_OVERLAP = 1 * _FRAMES
_INAUDIBLE, _SILENCE = -90.0, -120.0


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Samples float32 [n] from `start` on (a number of samples).

    Where there was no pause to cut at, the last second of a piece that `goes_on` is the first of the next,
    which `repeats` it.
    """

    start: int
    samples: Samples
    repeats: bool = False
    goes_on: bool = False


class PauseSplitter:
    """Feed it the blocks of one recording, then call `finish`. Both give the pieces that are ready, in order.

    No piece is longer than `longest` seconds. Utterances between pauses are pieces of their own, or are
    joined up to `fill` seconds. A recording that is no longer than `longest` and holds one utterance is one
    piece, and that whole; in all others the pauses around an utterance are left out.
    """

    def __init__(self, rate: int, longest: float, fill: float = 0.0) -> None:
        self._hop = rate // _FRAMES
        self._longest = max(3, int(longest * _FRAMES))
        self._overlap = min(_OVERLAP, self._longest // 3)
        self._fill = min(int(fill * _FRAMES), self._longest)
        self._samples = np.zeros(0, np.float32)  # what is not given yet
        self._start = 0  # the first of them, in the recording
        self._repeats = False
        self._loudest = _SILENCE

    def feed(self, block: Samples) -> Iterator[Piece]:
        """Takes the next samples."""
        enough = (self._longest + _PAUSE) * self._hop
        for start in range(0, len(block), enough):
            self._samples = np.concatenate([self._samples, block[start : start + enough]])
            while len(self._samples) >= enough and (piece := self._take(ended=False)) is not None:
                yield piece

    def finish(self) -> Iterator[Piece]:
        """The recording has ended."""
        while (piece := self._take(ended=True)) is not None:
            yield piece

    def _take(self, ended: bool) -> Piece | None:
        """The first piece of what is at hand. None where there is none, or more samples are needed for it."""
        if not len(self._samples):
            return None
        levels = _levels(self._samples, self._hop)
        utterances = self._utterances(levels)
        if ended and self._start == 0 and len(levels) <= self._longest and len(utterances) <= 1:
            return self._given(0, len(self._samples), len(self._samples))
        if not utterances:
            self._drop(len(self._samples) - (0 if ended else min(len(self._samples), _PAUSE * self._hop)))
            return None
        first, last = self._joined(utterances)
        if last - first > self._longest:
            return self._cut(levels, first)
        grows = len(levels) - last < _PAUSE or (self._fill and len(levels) - first < self._fill)
        if grows and not ended:
            self._drop(first * self._hop)
            return None
        start, stop = self._edges(levels, first, last)
        return self._given(start, stop, last * self._hop)

    def _given(self, start: int, stop: int, keep_from: int) -> Piece:
        piece = Piece(self._start + start, self._samples[start:stop].copy(), self._repeats)
        self._drop(keep_from)
        self._repeats = False
        return piece

    def _drop(self, count: int) -> None:
        self._samples = self._samples[count:].copy()
        self._start += count

    def _utterances(self, levels: Levels) -> list[tuple[int, int]]:
        """Frames (first, after last) of what stands between pauses."""
        smooth = _smoothed(levels)
        self._loudest = max(self._loudest, float(smooth.max()))
        loudest = max(float(smooth.max()), self._loudest - _FORGOTTEN)
        room = float(np.percentile(levels, 10))
        limit = min(max(loudest - _BELOW_SPEECH, room + _ABOVE_ROOM), self._loudest - _LEAST_BELOW)
        limit = max(limit, _INAUDIBLE)
        loud = np.flatnonzero(levels >= limit)
        if not len(loud):
            return []
        ends = np.flatnonzero(np.diff(loud) > _PAUSE)
        firsts = loud[np.concatenate([[0], ends + 1])].tolist()
        lasts = (loud[np.concatenate([ends, [len(loud) - 1]])] + 1).tolist()
        words = [(first, last) for first, last in zip(firsts, lasts, strict=True) if last - first >= _CLICK]
        found = []
        for index, (first, last) in enumerate(words):
            before = levels[(words[index - 1][1] if index else 0) : first][::-1]
            after = levels[last : (words[index + 1][0] if index + 1 < len(words) else len(levels))]
            found.append((first - _sinking(before), last + _sinking(after)))
        return found

    def _joined(self, utterances: list[tuple[int, int]]) -> tuple[int, int]:
        """The first utterance with as many of the next as fit into a piece."""
        first, last = utterances[0]
        for start, stop in utterances[1:]:
            if start - last > _LONGEST_JOINED or stop - first > self._fill:
                break
            last = stop
        return first, last

    def _cut(self, levels: Levels, first: int) -> Piece:
        """A piece of an utterance that is too long: up to the quietest place of its last third."""
        smooth = _smoothed(levels[first : first + self._longest])
        earliest = self._longest * 2 // 3
        cut = earliest + int(smooth[earliest:].argmin())
        quiet = bool(smooth[cut] < smooth.max() - _LEAST_BELOW)
        begin, stop = first * self._hop, (first + cut) * self._hop
        piece = self._given(begin, stop, stop if quiet else stop - self._overlap * self._hop)
        self._repeats = not quiet
        return dataclasses.replace(piece, goes_on=not quiet)

    def _edges(self, levels: Levels, first: int, last: int) -> tuple[int, int]:
        """The samples of an utterance; where the pause beside it is dead silent, to the sample."""
        start, stop = first * self._hop, min(last * self._hop, len(self._samples))
        sound = np.flatnonzero(self._samples[start:stop])
        if first and levels[first - 1] <= _SILENCE and len(sound):
            start += int(sound[0])
        if last < len(levels) and levels[last] <= _SILENCE and len(sound):
            stop = first * self._hop + int(sound[-1]) + 1
        return start, stop


def _levels(samples: Samples, hop: int) -> Levels:
    """Loudness in dB of every frame; silence follows the last sample."""
    frames = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
    with np.errstate(all="ignore"):
        energies = np.einsum("fn,fn->f", frames, frames, dtype=np.float64)
        levels: Levels = 10 * np.log10(np.maximum(np.nan_to_num(energies / hop), 1e-12))
    return levels


def _smoothed(levels: Levels) -> Levels:
    """The same averaged over a word's length, as energies."""
    width = min(_WORD, len(levels))
    smooth: Levels = 10 * np.log10(np.convolve(10 ** (levels / 10), np.ones(width) / width, "same"))
    return smooth


def _sinking(levels: Levels) -> int:
    """Frames of a pause, from a word on, until the word has sunk into it. What is too short for a pause, at
    an end of a recording, is a part of the word.
    """
    if len(levels) < _PAUSE:
        return len(levels)
    below = np.flatnonzero(levels <= np.percentile(levels, 20) + _ABOVE_PAUSE)
    return int(below[0]) if len(below) else len(levels)
