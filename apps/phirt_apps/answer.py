"""One request to a conversation: the answer as it comes, Ctrl-C, the figures afterwards.

Knows a phirt.Chat, its reply and the streams. Does not know how the request was put together.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .interrupts import interrupts
from .output import Output, one_line

if TYPE_CHECKING:
    import phirt
    from phirt.encoders.encoder import ImageDetail
    from phirt.runtime.placement import Placement
    from phirt_apps.rendering.display import AnswerDisplay

_WORTH_A_BAR = 512  # positions; fewer are read while one looks


@dataclass(frozen=True)
class Request:
    """One user turn: its text, its media files in order, and how to generate the answer."""

    text: str
    settings: Mapping[str, Any]
    images: tuple[Path | bytes, ...] = ()
    audio: tuple[Path | bytes, ...] = ()
    image_detail: ImageDetail = "auto"

    def send(self, chat: phirt.Chat, on_progress: Callable[[phirt.Progress], None]) -> phirt.Reply:
        """The reply, not begun yet."""
        return chat.send(
            self.text,
            images=self.images,
            audio=self.audio,
            image_detail=self.image_detail,
            on_progress=on_progress,
            **self.settings,
        )

    @property
    def label(self) -> str:
        """What is going on, for whoever waits."""
        parts = []
        for verb, paths in (("looking at", self.images), ("listening to", self.audio)):
            if paths:
                parts.append(f"{verb} {', '.join(Path(media_name(source)).name for source in paths)}")
        return ", ".join(parts) or "thinking"


def media_name(source: Path | bytes) -> str:
    """What to call a medium in a line for people."""
    return one_line(str(source)) if isinstance(source, Path) else "standard input"


@dataclass(frozen=True)
class ToolResults:
    """A turn with what the tools returned that the last answer called."""

    values: list[Any]
    settings: Mapping[str, Any]
    label: str = "thinking"

    def send(self, chat: phirt.Chat, on_progress: Callable[[phirt.Progress], None]) -> phirt.Reply:
        """The reply, not begun yet."""
        return chat.send_tool_results(self.values, on_progress=on_progress, **self.settings)


@dataclass(frozen=True)
class Answer:
    """What came back, and whether Ctrl-C ended it."""

    result: phirt.Result
    interrupted: bool


@dataclass
class _Cancel:
    """Cancels a reply when it is called, and remembers that it was."""

    reply: phirt.Reply
    called: bool = False

    def __call__(self) -> None:
        if not self.called:  # a second Ctrl-C could come in the middle of the first one's cancel()
            self.called = True
            self.reply.cancel()


def stream_answer(
    chat: phirt.Chat, request: Request | ToolResults, out: Output, display: AnswerDisplay
) -> Answer:
    """Sends the request and shows the answer as it comes.

    Ctrl-C cancels it; before there is a reply, while media are read, it raises KeyboardInterrupt. The answer
    ends with a newline, also when it is cut short. Errors of the runtime pass through; the conversation is
    then as it was before.
    """
    with out.busy(request.label) as busy:

        def on_progress(step: phirt.Progress) -> None:
            if step.done == 0 and step.reason in ("long_context", "short_context"):
                busy.stop()
                display.break_line()
                out.hint(_regime_notice(step, chat.generator.manifest.geometry.original_context))
            if step.reason != "prompt" or step.total >= _WORTH_A_BAR:
                busy.advance("reading", step.done, step.total)

        try:
            reply = request.send(chat, on_progress)
            cancel = _Cancel(reply)
            with interrupts.cancelling(cancel):
                for piece in reply:
                    if piece:
                        busy.stop()
                        display.write(piece)
            return Answer(reply.result, cancel.called)
        finally:
            busy.stop()
            display.finish()


def _regime_notice(step: phirt.Progress, original_context: int) -> str:
    if step.reason == "long_context":
        return (
            f"the conversation has grown past {original_context} tokens, the model's original context: "
            f"it is read once more in the model's way for long texts ({step.total} tokens)"
        )
    return (
        f"the conversation is back within {original_context} tokens, the model's original context: "
        f"it is read once more in the model's way for short texts ({step.total} tokens)"
    )


def as_object(result: phirt.Result, **more: Any) -> dict[str, Any]:
    """The result as the one object of `phirt chat --json`, with `more` behind its text; `route` is the
    bundle's own adapter, and `adapter` there where the user brought one.
    """
    brought = {} if result.user_adapter is None else {"adapter": result.user_adapter}
    return {
        "text": result.text,
        **more,
        "ids": [int(i) for i in result.token_ids],
        "prompt_ids": [int(i) for i in result.prompt_token_ids],
        "route": result.adapter,
        **brought,
        "finish_reason": result.finish_reason,
        "usage": dataclasses.asdict(result.usage),
        "timings": dataclasses.asdict(result.timings),
        "tokens_per_second": float(result.tokens_per_second),
        "tool_calls": [dataclasses.asdict(call) for call in result.tool_calls],
    }


def figures(result: phirt.Result, placements: Mapping[str, Placement]) -> str:
    """The figures of one answer on a few lines: times, speeds, what the prompt was made of, peak memory, and
    which provider runs the nodes of which graph.
    """
    usage, timings = result.usage, result.timings
    fresh = usage.prompt_tokens - usage.cached_tokens
    text = usage.prompt_tokens - usage.image_tokens - usage.audio_tokens
    lines = [
        f"first token  {timings.first_token:.2f} s"
        + (f" (media {timings.media:.2f} s)" if timings.media else ""),
        f"prefill      {_speed(fresh, timings.prefill)}",
        f"decode       {result.tokens_per_second:.1f} tokens/s, {usage.new_tokens} tokens, "
        f"{result.finish_reason}",
        f"speculation  {usage.drafted_tokens} tokens drafted, {usage.accepted_tokens} accepted",
        f"prompt       {usage.prompt_tokens} tokens: {text} text, {usage.image_tokens} image, "
        f"{usage.audio_tokens} audio; {usage.cached_tokens} cached; route {result.adapter}",
    ]
    memory = peak_memory()
    if memory is not None:
        lines.append(f"peak memory  {memory / 1e6:.0f} MB")
    lines.append(f"nodes        {_placed(placements)}")
    return "\n".join(lines)


def _placed(placements: Mapping[str, Placement]) -> str:
    """How many nodes of each open graph every provider runs, and which kinds are left to the CPU."""
    if not placements:
        return "all on the CPU"
    parts = []
    for graph, placement in placements.items():
        counts = ", ".join(f"{count} on {provider}" for provider, count in placement.counts.items())
        left = placement.kinds_on("CPUExecutionProvider")
        parts.append(f"{graph}: {counts}" + (f" ({', '.join(left)})" if left else ""))
    return "; ".join(parts)


def _speed(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s, {tokens} tokens" if seconds > 0 else f"{tokens} tokens"


def peak_memory() -> int | None:
    """The largest resident size of this process so far, in bytes; None where it is not told (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
