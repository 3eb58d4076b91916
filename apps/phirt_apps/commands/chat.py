"""`phirt chat`: one answer to a prompt, or an interactive session.

Knows its options and how a request is put together from them. The answer is `answer`'s, the session
`interactive`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from phirt_apps import options
from phirt_apps.errors import INTERRUPTED, UsageError
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output

if TYPE_CHECKING:
    import phirt

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
    system: options.System = None,
    tools: options.Tools = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
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
      phirt chat --system "Answer briefly."          interactive; /help lists its commands
    """
    from phirt_apps.answer import Request, as_object, figures, stream_answer
    from phirt_apps.arguments import gather, generation_config, tool_list, valid_text
    from phirt_apps.conversation import held, open_chat
    from phirt_apps.models import load
    from phirt_apps.remarks import why_cut
    from phirt_apps.rendering.display import NoDisplay

    out = Output(markdown=not plain)
    config = generation_config(
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
    tool_specs = tool_list(tools)
    system = None if system is None else valid_text(system)
    if conversation is not None and conversation.exists() and not options.is_given(context, "system"):
        system = None  # that of the settings is for new conversations
    inputs = gather(prompt, image, audio, out)
    if inputs.text is None and json:
        raise UsageError("--json needs a PROMPT, or text on stdin; an interactive session has no one answer")
    if inputs.text is not None and not (inputs.text.strip() or inputs.images or inputs.audio):
        raise UsageError(
            "the prompt is empty; give PROMPT, pipe text into stdin, or attach --image or --audio"
        )
    with held(conversation, out):
        if inputs.text is None:
            from phirt_apps.interactive.session import Setup
            from phirt_apps.interactive.start import run_session

            def open_it() -> tuple[phirt.Model, phirt.Chat]:
                model = load(bundle, out, provider, threads, adapter)
                return model, open_chat(model, conversation, system, tool_specs)

            run_session(
                open_it,
                Setup(config, conversation, image_detail, stats),
                out,
                images=image or (),
                audio=audio or (),
                history=history,
            )
            return
        request = Request(inputs.text, config, inputs.images, inputs.audio, image_detail)
        model = load(bundle, out, provider, threads, adapter)
        talk = open_chat(model, conversation, system, tool_specs)
        answer = stream_answer(talk, request, out, NoDisplay() if json else out.answer_display())
        if json:
            out.json(as_object(answer.result))
        cut = why_cut(answer.result, model.manifest.geometry.context)
        if cut is not None:
            out.hint(cut)
        if stats:
            out.hint(figures(answer.result))
        if conversation is not None:
            with interrupts.patient():
                talk.save(conversation)
    if answer.interrupted:
        raise typer.Exit(INTERRUPTED)
