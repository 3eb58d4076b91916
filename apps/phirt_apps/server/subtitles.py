"""Segments of speech as subtitles: SubRip (srt) and WebVTT.

Knows both formats. Knows nothing of how segments come about.
"""

from __future__ import annotations

from collections.abc import Sequence

import phirt


def srt(segments: Sequence[phirt.Segment]) -> str:
    """The segments as a SubRip file."""
    return "".join(
        f"{number}\n{_time(one.start, ',')} --> {_time(one.end, ',')}\n{_cue(one.text)}\n\n"
        for number, one in enumerate(segments, 1)
    )


def vtt(segments: Sequence[phirt.Segment]) -> str:
    """The segments as a WebVTT file."""
    cues = (f"{_time(one.start, '.')} --> {_time(one.end, '.')}\n{_cue(one.text)}\n\n" for one in segments)
    return "WEBVTT\n\n" + "".join(cues)


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _cue(text: str) -> str:
    """The text as a cue takes it: on one line, and without the arrow that times have."""
    return " ".join(text.split()).replace("-->", "→")
