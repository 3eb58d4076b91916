"""The command `phirt`: subcommands with options, help and wiring; those for checkpoints are in `making`.

Knows which function answers which command. The work is in the modules beside this one, which are imported
when their command runs, so that `phirt --help` stays fast.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import making, options
from .border import FAILED, INTERRUPTED, WRONG_USAGE, Border, UsageError
from .show import Output, size

if TYPE_CHECKING:
    import phirt

    from .interactive import Setup

app = typer.Typer(
    name="phirt",
    cls=Border,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """The entry point of the installed script."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for good
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # refused later, in one line
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a question mark instead of ending the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if os.environ.get("PHIRT_DEBUG") != "1" and not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings speak to developers
    app(prog_name="phirt")


def _version(wanted: bool) -> None:
    if wanted:
        Output().answer(f"phirt {version('phirt')}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Answers about text, images and recordings on your own machine: offline, nothing leaves it.

    \b
      phirt chat "Tell me about the sea."
      phirt chat --image photo.jpg "What is this?"
      phirt chat                                     an interactive session
      phirt transcribe memo.flac

    Exit status: 0 done, 1 the request failed (stderr says why in one line), 2 wrong usage, 130 stopped with
    Ctrl-C. PHIRT_DEBUG=1 shows where an error comes from; NO_COLOR is respected.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(WRONG_USAGE)


def _load(
    bundle: Path | None, out: Output, provider: str | None = None, threads: int | None = None
) -> phirt.Model:
    with out.busy("loading the model"):
        import phirt

        from .bundles import small_enough_to_hash

        return phirt.load(
            bundle,
            providers=None if provider is None else [provider],
            threads=threads,
            verify=small_enough_to_hash(bundle),
            on_prepare=lambda graph, weights: out.hint(
                f"preparing the {graph} graph for this machine, once ({size(weights)} of weights)"
            ),
        )


@app.command(short_help="Answer a prompt, or start an interactive session.")
def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", show_default=False, help="What to say to the model.")
    ] = None,
    bundle: options.Bundle = None,
    image: options.Images = None,
    audio: options.Audio = None,
    image_detail: options.ImageDetail = "auto",
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
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Answers PROMPT, or starts an interactive session when there is none.

    Without PROMPT the text is read from stdin when that is not a terminal. The answer goes to stdout as it
    comes, everything else to stderr. Ctrl-C stops the answer; what was written stays.

    \b
      phirt chat --image photo.jpg "What is this?"
      phirt chat --image a.jpg --image b.jpg "What differs?"
      phirt chat --audio question.wav --image photo.jpg "Answer the question."
      phirt chat --json --stats --temperature 0.7 --seed 1 "Write a line about rain." > answer.json
      echo "Say hello." | phirt chat
      phirt chat --conversation trip.phirt "And the second day?"
      phirt chat --system "Answer briefly."          interactive; /help lists its commands
    """
    from .ask import Request, as_object, ask, figures
    from .interactive import Setup
    from .kept import open_chat
    from .prompt import generation_config, piped_text, tool_list, valid_text

    out = Output()
    text = prompt if prompt is not None else piped_text()
    media = bool(image or audio)
    if text is not None and not text.strip() and not media:
        raise UsageError(
            "the prompt is empty; give PROMPT, pipe text into stdin, or attach --image or --audio"
        )
    if text is None and json:
        raise UsageError("--json needs a PROMPT, or text on stdin; an interactive session has no one answer")
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
    if text is None:
        model = _load(bundle, out, provider, threads)
        talk = open_chat(model, conversation, system, tool_specs)
        setup = Setup(config, conversation, image_detail, stats)
        _interactive(model, talk, out, image, audio, setup)
        return
    request = Request(valid_text(text), config, tuple(image or ()), tuple(audio or ()), image_detail)
    talk = open_chat(_load(bundle, out, provider, threads), conversation, system, tool_specs)
    answer = ask(talk, request, out, silent=json)
    if json:
        out.json(as_object(answer.result))
    if stats:
        out.hint(figures(answer.result))
    if conversation is not None:
        talk.save(conversation)
    if answer.interrupted:
        raise typer.Exit(INTERRUPTED)


def _interactive(model: Any, talk: Any, out: Output, image: Any, audio: Any, setup: Setup) -> None:
    from .interactive import Session

    session = Session(model, talk, setup, out)
    for path in image or ():
        session.attach(image=path)
    for path in audio or ():
        session.attach(audio=path)
    session.run(session.reader())


@app.command(short_help="Write what recordings say.")
def transcribe(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", show_default=False, help="Recordings: wav, flac, ogg, mp3."),
    ],
    bundle: options.Bundle = None,
    json: options.Json = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Writes what is said in each FILE, one line per file (`path: text` when there are several).

    A file that cannot be used costs one line on stderr, the others are still transcribed, and the exit status
    is 1.

    \b
      phirt transcribe memo.flac
      phirt transcribe --json *.wav
    """
    from . import media

    out = Output()
    if not media.transcribe(_load(bundle, out, provider, threads), files, out, as_json=json):
        raise typer.Exit(FAILED)


@app.command(short_help="Count what a prompt takes of the context.")
def tokens(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", show_default=False, help="The text of the message.")
    ] = None,
    bundle: options.Bundle = None,
    image: options.Images = None,
    audio: options.Audio = None,
    image_detail: options.ImageDetail = "auto",
    system: options.System = None,
    json: options.Json = False,
) -> None:
    """Counts what a prompt takes of the context, part by part, and names its route. Answers nothing.

    Without TEXT and media the text is read from stdin.

    \b
      phirt tokens "How long is this?"
      phirt tokens --image photo.jpg --json "What is this?"
    """
    from . import media
    from .prompt import piped_text, valid_text

    out = Output()
    if text is None:
        text = piped_text()
    if text is None and (image or audio):
        text = ""
    if text is None:
        raise UsageError("nothing to count; give TEXT, pipe text into stdin, or attach --image or --audio")
    media.tokens(
        _load(bundle, out),
        valid_text(text),
        image or [],
        audio or [],
        out,
        system=system,
        image_detail=image_detail,
        as_json=json,
    )


def _folder(bundle: Path | None) -> Path:
    if bundle is not None:
        return bundle
    from phirt.model import embedded_bundle

    return embedded_bundle()


BundleArgument = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", show_default=False, help="Folder of an exported model.")
]


@app.command(short_help="Show what a bundle is made of.")
def inspect(bundle: BundleArgument = None, json: options.Json = False) -> None:
    """Shows what BUNDLE is made of: sizes, graphs, files, quantization, routes, limits.

    Without BUNDLE: the embedded one.

    \b
      phirt inspect
      phirt inspect phi4-int4 --json
    """
    from . import bundles

    bundles.inspect(_folder(bundle), Output(), as_json=json)


@app.command(short_help="Check a bundle's files against its manifest.")
def verify(bundle: BundleArgument = None, json: options.Json = False) -> None:
    """Hashes every file of BUNDLE and compares it with the manifest. Exit status 1 when a file is bad.

    Without BUNDLE: the embedded one.

    \b
      phirt verify phi4-int4
    """
    from . import bundles

    bundles.verify(_folder(bundle), Output(), as_json=json)


@app.command(short_help="List what can compute here.")
def devices(json: options.Json = False) -> None:
    """Lists what can compute on this machine, and which of it would be used.

    \b
      phirt devices
    """
    from .machine import devices as show

    show(Output(), as_json=json)


@app.command(short_help="Measure how fast a bundle is here.")
def bench(
    bundle: options.Bundle = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option("--prompt-tokens", metavar="N,...", help="Lengths to prefill. Default: 128,1024."),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=1, metavar="N", help="Tokens to decode at each depth.")
    ] = 32,
    depth: Annotated[
        str | None,
        typer.Option("--depth", metavar="N,...", help="Depths to decode at. Default: 128,1024,4096."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="An image to encode. Default: a drawn one.")
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option("--audio", metavar="FILE", help="A recording to encode. Default: a synthesised one."),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=1000, metavar="N", help="How often each figure is taken.")
    ] = 5,
    sustained: Annotated[
        float | None,
        typer.Option("--sustained", min=1.0, metavar="SECONDS", help="Decode that long: speed over time."),
    ] = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measures load time, time to first token, prefill, decoding, encoders and memory of a bundle.

    Beside them: which share of the machine's read bandwidth decoding takes, and which share of its int8
    products prefill makes (needs the export extra); both peaks are measured as well. Figures are means over
    the repeats with their standard deviation. Leave the machine alone meanwhile.

    \b
      phirt bench
      phirt bench -m phi4-int4 --prompt-tokens 1024 --depth 128,4096
      phirt bench -m phi4-int4 --sustained 300 --json
    """
    from .bench.command import Request, lengths
    from .bench.command import bench as run

    request = Request(
        prompt_tokens=lengths(prompt_tokens, "--prompt-tokens"),
        new_tokens=new_tokens,
        depths=lengths(depth, "--depth"),
        repeats=repeats,
        sustained=sustained,
        image=image,
        audio=audio,
        threads=threads,
    )
    run(_folder(bundle), request, Output(), as_json=json)


app.command(short_help="Turn a checkpoint into a bundle (needs the export extra).")(making.export)
app.command("eval", short_help="Measure how far a bundle is from its checkpoint or another bundle.")(
    making.evaluate
)
app.command(short_help="Train a model from a recipe (needs the export extra).")(making.train)
