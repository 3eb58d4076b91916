"""`phirt transcribe`: what recordings say.

Knows its options, a phirt.Model and the streams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phirt.errors import PhirtError
from phirt_apps import options
from phirt_apps.errors import FAILED, INTERRUPTED, UsageError
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output, one_line

if TYPE_CHECKING:
    import phirt

SUMMARY = "Write what recordings say."
SECTION = "Use a model"

_AT_ONCE = 30.0  # seconds of a recording whose words are written together; of a longer one as they come


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            show_default=False,
            help="Recordings, and videos for their sound; - is standard input.",
        ),
    ],
    bundle: options.Bundle = None,
    max_new_tokens: options.MaxNewTokens = 512,
    json: options.Json = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Writes what is said in each FILE, one line per file (`path: text` when there are several).

    A recording may have any length. What a long one says is written as it comes, a line for each part of it,
    and Ctrl-C keeps what was written. A file that cannot be used costs one line on stderr, the others are
    still transcribed, and the exit status is 1.

    \b
      phirt transcribe memo.flac
      phirt transcribe --json *.wav
      ffmpeg -i talk.mkv -f wav - | phirt transcribe -
    """
    from phirt_apps.arguments import STDIN, generation_config, piped_file
    from phirt_apps.models import load

    out = Output()
    config = generation_config(max_new_tokens=max_new_tokens)
    if list(map(str, files)).count(STDIN) > 1:
        raise UsageError(f"{STDIN} is given more than once; standard input can be read only once")
    piped = piped_file(out) if Path(STDIN) in files else b""
    recordings = [Recording(str(path), piped if str(path) == STDIN else path) for path in files]
    status = transcribe(load(bundle, out, provider, threads), recordings, config, out, as_json=json)
    if status:
        raise typer.Exit(status)


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording, and what the command line calls it."""

    name: str
    source: Path | bytes


def transcribe(
    model: phirt.Model,
    recordings: Sequence[Recording],
    config: phirt.GenerationConfig,
    out: Output,
    *,
    as_json: bool,
) -> int:
    """Writes lines (`path: text` for several recordings), or one JSON object; returns the exit status.

    A recording that cannot be used costs one line on stderr; the others are still transcribed.
    """
    results: list[dict[str, Any]] = []
    status = 0
    for recording in recordings:
        prefix = f"{recording.name}: " if len(recordings) > 1 else ""

        def write(text: str, prefix: str = prefix) -> None:
            if not as_json:
                out.answer(f"{prefix}{one_line(text)}\n")

        try:
            result, error = _transcribe_one(model, recording, config, out, write)
        except KeyboardInterrupt:  # before its first word: what the others said is kept
            status = INTERRUPTED
            break
        results.append({"path": recording.name, **_as_object(result)})
        if error is not None:
            status = FAILED
            out.error(str(error))
            results[-1]["error"] = str(error)
        elif result is not None and result.finish_reason == "cancelled":
            status = INTERRUPTED
            break
    if as_json and (status != FAILED or len(recordings) > 1):
        out.json({"files": results})
    return status


def _transcribe_one(
    model: phirt.Model,
    recording: Recording,
    config: phirt.GenerationConfig,
    out: Output,
    write: Callable[[str], None],
) -> tuple[phirt.Transcript | None, PhirtError | None]:
    """What one recording says, and what went wrong with it. A long one is written as it comes."""
    label = f"listening to {Path(recording.name).name}"
    transcription = None
    with out.busy(label) as busy:

        def on_progress(progress: phirt.TranscriptionProgress) -> None:
            if progress.total is not None and progress.total > _AT_ONCE:
                busy.advance(label, progress.done, progress.total)

        try:
            with (
                model.transcribe_segments(
                    recording.source, config=config, on_progress=on_progress
                ) as transcription,
                interrupts.cancelling(transcription.cancel),
            ):
                as_it_comes = transcription.seconds is None or transcription.seconds > _AT_ONCE
                for segment in transcription:
                    if as_it_comes:
                        if out.answers_on_terminal:
                            busy.stop()
                        write(segment.text)
                    _remark(transcription.name, segment, config, out)
            result = transcription.transcript
            busy.stop()
            if not as_it_comes and (result.text or result.finish_reason != "cancelled"):
                write(result.text)
            return result, None
        except PhirtError as error:
            heard = None if transcription is None else transcription.transcript
            return (heard if heard is not None and heard.segments else None), error


def _remark(name: str, segment: phirt.Segment, config: phirt.GenerationConfig, out: Output) -> None:
    """A line on stderr where the words of a segment are not all."""
    where = f"{one_line(name)}, {_clock(segment.start)} to {_clock(segment.end)}"
    if segment.finish_reason == "length":
        out.hint(f"{where}: cut at {config.max_new_tokens} new tokens; --max-new-tokens N allows more")
    elif segment.finish_reason == "context":
        out.hint(f"{where}: cut, as the model's context is full")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _as_object(result: phirt.Transcript | None) -> dict[str, Any]:
    """What `--json` says of a recording."""
    if result is None:
        return {}
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "segments": [dataclasses.asdict(segment) for segment in result.segments],
    }
