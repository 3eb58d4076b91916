"""`phirt chat`: one answer to a prompt, or an interactive session.

Knows its options and how a request is put together from them. The answer is `answer`'s, the session
`interactive`'s.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from phirt.errors import SchemaError
from phirt_apps import options
from phirt_apps.errors import INTERRUPTED, UsageError
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output

if TYPE_CHECKING:
    from pathlib import Path

    import phirt
    from phirt_apps.answer import Answer, Request
    from phirt_apps.arguments import Inputs
    from phirt_apps.documents.library import Library
    from phirt_apps.documents.prompt import Citation

SUMMARY = "Answer a prompt, or start an interactive session."
SECTION = "Use a model"


def command(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", show_default=False, help="What to say to the model.")
    ] = None,
    bundle: options.Bundle = None,
    image: options.Images = None,
    audio: options.Audio = None,
    image_detail: options.ImageDetail = "auto",
    adapter: options.Adapter = None,
    conversation: options.Conversation = None,
    docs: options.Docs = None,
    embedder: options.Embedder = None,
    system: options.System = None,
    tools: options.Tools = None,
    schema: options.Schema = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    speculation: options.Speculation = True,
    json: options.Json = False,
    stats: options.Stats = False,
    plain: options.Plain = False,
    history: options.History = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Answers PROMPT, or starts an interactive session when there is none.

    What is piped into stdin is the prompt, or follows PROMPT behind an empty line; `-` stands for stdin as
    PROMPT or FILE. The answer goes to stdout as it comes, everything else to stderr. Ctrl-C stops the answer;
    what was written stays.

    \b
      phirt chat --image photo.jpg "What is this?"
      phirt chat --image a.jpg --image b.jpg "What differs?"
      phirt chat --audio question.wav --image photo.jpg "Answer the question."
      phirt chat --json --stats --temperature 0.7 --seed 1 "Write a line about rain." > answer.json
      git diff | phirt chat "Review this."
      curl https://example.org/photo.jpg | phirt chat --image - "What is this?"
      phirt chat -- "-5 + 3 = ?"                     a prompt that begins with a dash
      phirt chat --conversation trip.phirt "And the second day?"
      phirt chat -m bundle --adapter my-lora "And in your own words?"
      phirt chat --docs ~/manuals "How is the filter cleaned?"
      phirt chat --schema person.schema.json "Who wrote this?" < letter.txt
      phirt chat --system "Answer briefly."          interactive; /help lists its commands
    """
    from phirt_apps.answer import Request
    from phirt_apps.arguments import (
        gather,
        generation_settings,
        schema_document,
        tool_list,
        valid_text,
    )
    from phirt_apps.conversation import held, open_chat
    from phirt_apps.models import load

    out = Output(markdown=not plain)
    settings = generation_settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(map(valid_text, stop or ())),
        speculation=speculation,
    )
    if schema is not None:
        settings["schema"] = schema_document(schema)
    tool_specs = tool_list(tools)
    system = None if system is None else valid_text(system)
    inputs = gather(prompt, image, audio, out)
    _require_something(inputs, json)
    if docs is None and inputs.text is not None and options.is_given(context, "embedder"):
        raise UsageError("--embedder finds passages in documents; name their folder with --docs")

    def open_one() -> tuple[phirt.Model, phirt.Chat]:
        begun = conversation is not None and conversation.exists()
        # What the settings say is for new conversations.
        text = None if begun and not options.is_given(context, "system") else system
        model = load(bundle, out, provider, threads, adapter)
        return model, open_chat(model, conversation, text, tool_specs)

    with held(conversation, out):
        if inputs.text is None:
            from phirt_apps.interactive.session import Setup
            from phirt_apps.interactive.start import run_session

            setup = Setup(settings, conversation, image_detail, stats, embedder)
            media = {"images": image or (), "audio": audio or ()}
            run_session(open_one, setup, out, **media, history=history, docs=docs)
            return
        request = Request(inputs.text, settings, inputs.images, inputs.audio, image_detail)
        with _library(docs, embedder, out) as library:
            _, chat = open_one()
            found = _Found(request, None) if library is None else _Found(*library.ask(request, chat))
        interrupted = _answer(chat, found, out, as_json=json, stats=stats, kept_in=conversation)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


class _Found(NamedTuple):
    """A request, and the passages in it; None where no documents were named."""

    request: Request
    citations: tuple[Citation, ...] | None


def _library(
    docs: Path | None, embedder: Path | None, out: Output
) -> contextlib.AbstractContextManager[Library | None]:
    if docs is None:
        return contextlib.nullcontext()
    from phirt_apps.documents.library import Library  # its database and what reads files take a moment

    return Library(docs, embedder, out)


def _require_something(inputs: Inputs, json: bool) -> None:
    if inputs.text is None and json:
        raise UsageError("--json needs a PROMPT, or text on stdin; an interactive session has no one answer")
    if inputs.text is not None and not (inputs.text.strip() or inputs.images or inputs.audio):
        raise UsageError(
            "the prompt is empty; give PROMPT, pipe text into stdin, or attach --image or --audio"
        )


def _answer(
    chat: phirt.Chat, found: _Found, out: Output, *, as_json: bool, stats: bool, kept_in: Path | None
) -> bool:
    """Answers and saves. Returns whether a signal stopped the answer."""
    from phirt_apps.answer import as_object, figures, stream_answer
    from phirt_apps.remarks import remarks
    from phirt_apps.rendering.display import NoDisplay

    answer = stream_answer(chat, found.request, out, NoDisplay() if as_json else out.answer_display())
    value, cut = _value(answer, found.request, chat)
    if as_json:
        out.json(as_object(answer.result, **value, **_citations(answer, found)))
    elif found.citations:
        from phirt_apps.documents.prompt import source_lines

        out.hint(source_lines(answer.result.text, found.citations))
    for line in remarks(answer.result, chat) if cut is None else ():
        out.hint(line)
    if stats:
        out.hint(figures(answer.result, chat.generator.placements))
    if kept_in is not None:
        with interrupts.patient():
            chat.save(kept_in)
    if cut is not None:
        raise cut
    return answer.interrupted


def _citations(answer: Answer, found: _Found) -> dict[str, Any]:
    """The passages that the answer was given, for the one object; nothing where no documents were named."""
    if found.citations is None:
        return {}
    from phirt_apps.documents.prompt import as_objects

    return {"citations": as_objects(answer.result.text, found.citations)}


def _value(answer: Answer, request: Request, chat: phirt.Chat) -> tuple[dict[str, Any], SchemaError | None]:
    """What an answer under a schema says, and why it says nothing whole; nothing of it without a schema."""
    from phirt_apps.remarks import why_cut

    if "schema" not in request.settings:
        return {}, None
    try:
        return {"value": answer.result.json()}, None
    except SchemaError as error:
        why = why_cut(answer.result, chat.generator.manifest.geometry.context) or str(error)
        failure = SchemaError(f"the answer is no whole JSON: {why}")
        return {"value": None}, None if answer.interrupted else failure
