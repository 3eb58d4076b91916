"""The options that several commands share, and the settings of an export, each spelled and explained once.

Knows names, ranges and help texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from phirt.errors import PhirtError

from .settings import EMBEDDED, load_settings, variable


def names(incomplete: str) -> list[str]:
    """The names of models that begin so, for the Tab key; none where the settings cannot be read."""
    try:
        models = [EMBEDDED, *load_settings().models]
    except PhirtError:
        return []
    return [name for name in models if name.startswith(incomplete)]


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether an option stands on the command line; otherwise its value is a default of some kind."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


Bundle = Annotated[
    Path | None,
    typer.Option(
        "-m",
        "--model",
        "--bundle",
        autocompletion=names,
        envvar=variable("model"),
        show_envvar=False,
        metavar="MODEL",
        help="A model: its folder, or a name that 'phirt list' shows. Default: see 'phirt list'.",
    ),
]
BundleArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        autocompletion=names,
        envvar=variable("model"),
        show_envvar=False,
        show_default=False,
        help="A model: its folder, or a name that 'phirt list' shows.",
    ),
]
Images = Annotated[
    list[Path] | None, typer.Option("--image", metavar="FILE", help="An image to look at. May be repeated.")
]
ImageDetail = Annotated[
    Literal["low", "auto", "high"],
    typer.Option(
        "--image-detail",
        metavar="LEVEL",
        envvar=variable("image_detail"),
        show_envvar=False,
        help="How closely to look: low one crop of each image, auto up to 12, high the model's maximum (for "
        "Phi-4-multimodal up to 545, 3537 or 10065 tokens).",
    ),
]
Audio = Annotated[
    list[Path] | None,
    typer.Option("--audio", metavar="FILE", help="A recording to listen to. May be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of text.")]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain", help="Show the answer on a terminal as it is: Markdown not rendered, lines not wrapped."
    ),
]
History = Annotated[
    bool,
    typer.Option(
        "--history/--no-history",
        help="Keep what is typed in a session for the next one, in a file that only you can read.",
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        envvar=variable("provider"),
        show_envvar=False,
        metavar="NAME",
        help="What computes, as listed by 'phirt devices'; options of its own go behind a colon: "
        "qnn:soc_model=57. Default: the CPU.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        envvar=variable("threads"),
        show_envvar=False,
        min=1,
        max=1024,
        metavar="N",
        help="CPU threads. Default: one per physical core.",
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        envvar=variable("system"),
        show_envvar=False,
        metavar="TEXT",
        help="Instructions for the whole conversation.",
    ),
]
Tools = Annotated[
    Path | None,
    typer.Option("--tools", metavar="FILE", help="JSON list of tools that the model may call."),
]
Schema = Annotated[
    Path | None,
    typer.Option(
        "--schema",
        metavar="FILE",
        help="JSON schema that every answer is kept to (needs the extra schema).",
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="FOLDER",
        help="LoRA adapter that PEFT has saved for the model; it adds to the bundle's own.",
        show_default=False,
    ),
]
Conversation = Annotated[
    Path | None,
    typer.Option(
        "--conversation",
        metavar="FILE",
        help="Go on with the conversation in FILE, saved after each answer; new if there is no FILE.",
    ),
]
Docs = Annotated[
    Path | None,
    typer.Option(
        "--docs",
        metavar="FOLDER",
        help="Answer from the text, Markdown and PDF files in FOLDER, and say where it stands.",
    ),
]
Embedder = Annotated[
    Path | None,
    typer.Option(
        "--embedder",
        autocompletion=names,
        envvar=variable("embedder"),
        show_envvar=False,
        metavar="MODEL",
        help="An embedding model, by which --docs finds what is said in other words, too.",
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        envvar=variable("max_new_tokens"),
        show_envvar=False,
        min=1,
        metavar="N",
        help="Longest answer, in tokens.",
        show_default=True,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        envvar=variable("temperature"),
        show_envvar=False,
        min=0.0,
        metavar="X",
        help="0 takes the likeliest token; higher varies more. Default: the model's, or 0.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        envvar=variable("top_p"),
        show_envvar=False,
        metavar="X",
        help="Choose among the likeliest tokens that make up this share. Default: the model's, or 1.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        envvar=variable("top_k"),
        show_envvar=False,
        min=0,
        metavar="N",
        help="Choose among the N likeliest tokens; 0: all. Default: the model's, or 0.",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        envvar=variable("min_p"),
        show_envvar=False,
        metavar="X",
        help="Drop tokens less likely than X times the likeliest; 0: none. Default: the model's, or 0.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        envvar=variable("repetition_penalty"),
        show_envvar=False,
        metavar="X",
        help="Above 1 discourages repeating; 1: off. Default: the model's, or 1.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        envvar=variable("seed"),
        show_envvar=False,
        min=0,
        metavar="N",
        help="Makes sampled answers repeatable.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text. May be repeated."),
]
Speculation = Annotated[
    bool,
    typer.Option(
        "--speculation/--no-speculation",
        help="Try several tokens at once where the text repeats itself; the answer is the same.",
    ),
]
Stats = Annotated[bool, typer.Option("--stats", help="Times, speeds, token counts and memory on stderr.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="What it is for: cpu, cuda, directml, openvino, qnn, webgpu. May be repeated. Or, alone, "
        "android, ios or web: a package for apps and pages. [default: cpu]",
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        "--device-memory",
        metavar="SIZE",
        help="Of the phones that a package is for, such as 6GB: what cannot fit is refused before the work, "
        "and the context is as long as it can be.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        metavar="N",
        help="Positions of a conversation, for targets whose graphs are of one size. Default: 1024.",
    ),
]
Chips = Annotated[
    list[str] | None,
    typer.Option(
        "--chip",
        metavar="NAME",
        help="Compile ahead for this chip, too, such as sm8650: needs onnxruntime-qnn. May be repeated.",
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits",
        metavar="N",
        help="Bits of every weight: 4, 6, 8, or 32 for unquantized. Default: quantized blocks of the "
        "checkpoint are kept bit for bit, finer ones get 8; else each matrix has 4, 6 or 8, by what rounding "
        "it costs.",
        show_default=False,
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option("--block-size", min=1, metavar="N", help="Weights that share a scale. Default: by width."),
]
AdapterBits = Annotated[int, typer.Option("--adapter-bits", metavar="N", help="Bits of the LoRA branches.")]
EncoderBits = Annotated[int, typer.Option("--encoder-bits", metavar="N", help="Bits of the encoders.")]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="rtn rounds to nearest, mse searches scales, gptq makes errors good by calibration. Default: "
        "gptq for 4 bits and chosen ones up to a billion weights, else mse.",
        show_default=False,
    ),
]
BitsPerWeight = Annotated[
    float | None,
    typer.Option(
        "--bits-per-weight",
        metavar="X",
        help="Size of decoder and token table, such as 4.3: each matrix gets longer or shorter blocks, 6 "
        "bits or 8, by what rounding it costs. Default: as few as cost little.",
    ),
]
KV = Annotated[
    str,
    typer.Option(
        "--kv",
        metavar="TYPE",
        help="Of cached keys and values: float32, or int8 for a quarter of the memory and faster answers "
        "behind long prompts, which themselves take longer: it needs --calibration.",
    ),
]
MaxImagePixels = Annotated[
    int | None,
    typer.Option(
        "--max-image-pixels",
        metavar="N",
        help="Pixels of the largest image that the bundle takes. Default: the model's.",
    ),
]
MaxAudioSeconds = Annotated[
    float | None,
    typer.Option(
        "--max-audio-seconds",
        metavar="SECONDS",
        help="The longest recording that the bundle takes. Default: the model's.",
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        metavar="TOKENS",
        help="The longest conversation that the bundle takes. Default: the model's.",
    ),
]
Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Text, images, recordings, JSON lines, or a folder of them. May be repeated.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="CHECKPOINT",
        show_default=False,
        help="Of an adapter: the model that it was trained for. Default: what it names itself.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="NAME", help="Branch, tag or commit of a published checkpoint. Default: main."
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        show_default=False,
        help="Access token of the hub, for what is private or gated. Default: HF_TOKEN, or the login of its "
        "own tools.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Open no connection: a published checkpoint is the copy that is kept."),
]
