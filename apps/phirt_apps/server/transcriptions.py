"""POST /v1/audio/transcriptions: what a recording says.

Knows the fields and shapes of that protocol. A transcription comes segment by segment, as the runtime cuts a
recording of any length.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from starlette.responses import Response

import phirt
from phirt.bundle.adapters import encoder_name
from phirt.fields import Range

from .bodies import Form
from .chat_request import read_body_as
from .endpoint import Exchange
from .errors import BadRequestError, as_api_error, stopping
from .jobs import Emit, Job
from .serving import Serving
from .sse import EventStream, data_event
from .subtitles import srt, vtt

_Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


@dataclass(frozen=True)
class TranscriptionBody:
    """The fields of a request. The last group has no effect: the model has no use for it."""

    model: str | None = None
    response_format: _Format | None = None
    temperature: Annotated[float, Range(0, 1)] | None = None
    stream: bool | None = None
    granularities: tuple[str, ...] = ()

    language: str | None = None
    prompt: str | None = None
    chunking_strategy: str | None = None

    def __post_init__(self) -> None:
        if "word" in self.granularities:
            raise BadRequestError(
                "times of single words are not known here; ask for segments", param="timestamp_granularities"
            )
        if self.stream and self.response_format not in (None, "json", "text"):
            raise BadRequestError("a stream has no other format than json and text", param="response_format")


async def transcriptions(serving: Serving, exchange: Exchange) -> None:
    """Answers the request."""
    form = await exchange.form()
    body, recording = _read(form)
    serving.require_model(body.model, serving.model.manifest.name)
    encoder_name(serving.model.manifest, "audio")  # raises BundleError where the model hears nothing
    overrides: dict[str, Any] = {"max_new_tokens": min(512, serving.settings.max_new_tokens)}
    if body.temperature:
        overrides["temperature"] = body.temperature

    def work(emit: Emit[phirt.Segment | phirt.Transcript], cancel: threading.Event) -> None:
        with serving.model.transcribe_segments(recording, cancel=cancel, **overrides) as transcription:
            for segment in transcription:
                emit(segment)
            emit(transcription.result)

    async with serving.job(exchange.receive, work) as job:
        if body.stream:
            await EventStream(_stream(job)).send(exchange.send, after=None)
            return
        async for event in job.events():
            if isinstance(event, phirt.Transcript):
                transcript = event
    if transcript.finish_reason == "cancelled":
        raise stopping()
    await _reply(exchange, transcript, body)


def _read(form: Form) -> tuple[TranscriptionBody, bytes]:
    """The fields of the form, and the recording. Raises BadRequestError."""
    document: dict[str, Any] = {}
    granularities = []
    for name, value in form.fields:
        if name in ("timestamp_granularities[]", "timestamp_granularities"):
            granularities.append(value)
        elif name in ("include[]", "include"):
            raise BadRequestError("include is not taken: probabilities are not told", param="include")
        elif name in document:
            raise BadRequestError(f"the field {name[:40]!r} is there twice", param=name[:40])
        else:
            document[name] = _value(name, value)
    document["granularities"] = granularities
    name_and_data = form.files.get("file")
    if name_and_data is None or len(form.files) > 1:
        raise BadRequestError("the form needs the recording as the one file, in the field file", param="file")
    if not name_and_data[1]:
        raise BadRequestError("the recording is empty", param="file")
    return read_body_as(TranscriptionBody, document), name_and_data[1]


def _value(name: str, value: str) -> Any:
    """A field of a form as JSON would have it."""
    if name == "stream" and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if name == "temperature":
        try:
            return float(value)
        except ValueError:
            return value
    return value


async def _reply(exchange: Exchange, transcript: phirt.Transcript, body: TranscriptionBody) -> None:
    kind = body.response_format or "json"
    if kind == "json":
        await exchange.reply({"text": transcript.text, "usage": _usage(transcript)})
    elif kind == "verbose_json":
        await exchange.reply(_verbose(transcript, body.language))
    else:
        text = {
            "text": f"{transcript.text}\n",
            "srt": srt(transcript.segments),
            "vtt": vtt(transcript.segments),
        }[kind]
        await exchange.respond(Response(text, media_type=_TYPES[kind]))


def _verbose(transcript: phirt.Transcript, language: str | None) -> dict[str, Any]:
    """With the times of segments; what no such model tells (the language, probabilities) is not made up."""
    segments = [
        {"id": number, "start": one.start, "end": one.end, "text": one.text}
        for number, one in enumerate(transcript.segments)
    ]
    return {
        "task": "transcribe",
        "language": language or "unknown",
        "duration": transcript.seconds,
        "text": transcript.text,
        "segments": segments,
        "usage": _usage(transcript),
    }


def _usage(transcript: phirt.Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": transcript.seconds}


async def _stream(job: Job[phirt.Segment | phirt.Transcript]) -> AsyncIterator[bytes | None]:
    begun = False
    try:
        async for event in job.events():
            if not begun:
                begun = True
                yield None
            if isinstance(event, phirt.Segment):
                yield data_event({"type": "transcript.text.delta", "delta": f"{event.text} "})
            elif event.finish_reason == "cancelled":
                raise stopping()
            else:
                yield data_event({"type": "transcript.text.done", "text": event.text, "usage": _usage(event)})
    except Exception as error:
        if not begun:
            raise
        yield data_event(as_api_error(error).document)
