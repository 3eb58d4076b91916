"""The words of a recording of any length: piece by piece, each a request of its own.

Knows the generator, pieces of recordings, and how their texts join. Knows nothing of conversations or of the
terminal.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import threading
from collections.abc import Callable, Generator, Iterator

from phirt import generator as answers
from phirt.bundle.adapters import encoder_name
from phirt.encoders.audio_file import AudioSource, Clip, is_silent, open_audio
from phirt.encoders.pauses import PauseSplitter, Piece
from phirt.encoders.source import content_key
from phirt.errors import MediaError, PhirtError, RequestCancelledError
from phirt.generate.results import FinishReason
from phirt.generate.sampling import GenerationConfig

TRANSCRIBE_PROMPT = "Transcribe the audio clip into text."  # Phi-4-multimodal's own wording

_LONGEST = 30.0  # seconds of one piece, where the bundle takes so many: what Whisper's kind is trained on
_OVERLAP_WORDS = 12  # looked at on both sides where two pieces share a second
_PLAIN = re.compile(r"[^\w]+")


@dataclasses.dataclass(frozen=True)
class Segment:
    """Words between two times of a recording, in seconds. `finish_reason` as of any answer: "stop" is all."""

    start: float
    end: float
    text: str
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What a recording says. `seconds` is how much of it was heard.

    `finish_reason` is "stop" where every segment is whole and the recording was heard to its end; otherwise
    "cancelled", or the limit that a segment was cut at.
    """

    text: str
    segments: tuple[Segment, ...]
    seconds: float
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class TranscriptionProgress:
    """Seconds of the recording that are done, of `total` (None: it does not say how long it is)."""

    done: float
    total: float | None


OnTranscriptionProgress = Callable[[TranscriptionProgress], None]


class Transcription(Iterator[Segment]):
    """A transcription in the making: iterate it for segments, each given when it is done, then read `result`.

    Used from one thread at a time, but for `cancel`. The recording is closed when it ends, or is closed.
    """

    def __init__(
        self,
        generator: answers.Generator,
        audio: AudioSource,
        config: GenerationConfig,
        on_progress: OnTranscriptionProgress | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        limits = generator.manifest.limits
        encoder_name(generator.manifest, "audio")  # raises BundleError where the bundle hears nothing
        self._generator = generator
        self._config = config
        self._on_progress = on_progress
        self._cancel = threading.Event() if cancel is None else cancel
        self._reader = open_audio(audio, limits)
        longest = min(limits.audio_seconds, _LONGEST)
        self._splitter = PauseSplitter(self._reader.rate, longest, limits.transcribe_seconds or 0.0)
        self._segments: list[Segment] = []
        self._heard = 0.0
        self._finish_reason: FinishReason | None = None
        self._steps = self._run()

    def __iter__(self) -> Transcription:
        return self

    def __next__(self) -> Segment:
        return next(self._steps)

    def __enter__(self) -> Transcription:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The recording's name, for messages."""
        return self._reader.name

    @property
    def seconds(self) -> float | None:
        """How long the recording is by its header; None where that is not known."""
        return self._reader.seconds

    def cancel(self) -> None:
        """Ends it within a step; what it has is kept. Safe from any thread, at any time."""
        self._cancel.set()

    def close(self) -> None:
        """Ends it and closes the recording. Segments that were given stay."""
        self._steps.close()
        self._reader.close()

    @property
    def transcript(self) -> Transcript:
        """What there is so far."""
        reasons = [segment.finish_reason for segment in self._segments if segment.finish_reason != "stop"]
        reason: FinishReason = reasons[0] if reasons else "stop"
        return Transcript(
            text=" ".join(segment.text for segment in self._segments if segment.text),
            segments=tuple(self._segments),
            seconds=self._heard,
            finish_reason="cancelled" if self._finish_reason in (None, "cancelled") else reason,
        )

    @property
    def result(self) -> Transcript:
        """The whole; runs to the end if it has not yet."""
        for _ in self:
            pass
        return self.transcript

    def _run(self) -> Generator[Segment, None, None]:
        """Yields segments. One whose piece goes on waits for the next, to be joined with it."""
        waiting: Segment | None = None
        anything = False
        try:
            for piece in self._pieces():
                anything = True
                segment = self._segment(piece)
                if segment is None:
                    break
                if waiting is not None:
                    waiting, segment = joined(waiting, segment) if piece.repeats else (waiting, segment)
                    yield from self._give(waiting)
                waiting = segment
                if not piece.goes_on:
                    yield from self._give(waiting)
                    waiting = None
                self._report(segment.end)
            if waiting is not None:
                yield from self._give(waiting)
        except PhirtError:  # the rest is damaged, say: what was heard before is given first
            if waiting is not None:
                yield from self._give(waiting)
            raise
        finally:
            self._reader.close()
        if not anything and not self._cancel.is_set():
            raise MediaError(f"{self.name} is silent: no sample reaches -90 dBFS; check the recording")
        self._finish_reason = "cancelled" if self._cancel.is_set() else "stop"

    def _pieces(self) -> Iterator[Piece]:
        """Pieces in which something can be heard, while nobody cancels."""
        count = 0
        for block in self._reader.blocks():
            count += len(block)
            yield from self._audible(self._splitter.feed(block))
            if self._cancel.is_set():
                return
            self._report(self._heard)
        if count == 0:
            raise MediaError(f"{self.name} holds no samples; give a complete recording")
        yield from self._audible(self._splitter.finish())
        self._report(count / self._reader.rate)

    def _audible(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if self._cancel.is_set():
                return
            if not is_silent(piece.samples):
                yield piece

    def _segment(self, piece: Piece) -> Segment | None:
        """What is said in one piece; None where it was cancelled before the first word."""
        rate = self._reader.rate
        key = content_key(b"samples", str(rate).encode(), piece.samples.tobytes())
        clip = Clip(piece.samples, rate, key, self.name)
        try:
            message = self._generator.message(TRANSCRIBE_PROMPT, audio=[clip], cancel=self._cancel)
            answer = self._generator.stream([message], config=self._config, cancel=self._cancel)
            result = answer.result
        except RequestCancelledError:
            return None
        self._generator.encoder.cache.forget(message.media[0].key)  # or an hour of them would fill it
        start, end = piece.start / rate, (piece.start + len(piece.samples)) / rate
        return Segment(start, end, result.text.strip(), result.finish_reason)

    def _give(self, segment: Segment) -> Iterator[Segment]:
        """Keeps a segment and hands it over, if there is anything to it."""
        if segment.text or segment.finish_reason in ("length", "context"):
            self._segments.append(segment)
            yield segment

    def _report(self, done: float) -> None:
        self._heard = max(self._heard, done)
        if self._on_progress is not None:
            self._on_progress(TranscriptionProgress(self._heard, self._reader.seconds))


def joined(first: Segment, second: Segment) -> tuple[Segment, Segment]:
    """Two segments that share a second of sound, without the words that both have.

    The longest run of equal words near the seam stands for both; what the first heard after it and the second
    before it was cut off in the middle.
    """
    left, right = first.text.split(), second.text.split()
    before, after = left[-_OVERLAP_WORDS:], right[:_OVERLAP_WORDS]
    matcher = difflib.SequenceMatcher(a=_compared(before), b=_compared(after), autojunk=False)
    match = matcher.find_longest_match()
    near = match.b + match.size <= _OVERLAP_WORDS // 2 and len(before) - match.a <= _OVERLAP_WORDS // 2
    if match.size and near:
        left = left[: len(left) - len(before) + match.a + match.size]
        right = right[match.b + match.size :]
    return (
        dataclasses.replace(first, text=" ".join(left)),
        dataclasses.replace(second, text=" ".join(right)),
    )


def _compared(words: list[str]) -> list[str]:
    """Words without case and punctuation; one that is nothing else stays as it is."""
    return [_PLAIN.sub("", word).casefold() or word for word in words]
