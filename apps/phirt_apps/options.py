"""The options that several commands share, and the settings of an export, each spelled and explained once.

Knows names, ranges and help texts. Does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Bundle = Annotated[
    Path | None,
    typer.Option(
        "-m", "--bundle", metavar="BUNDLE", help="Folder of an exported model. Default: the embedded one."
    ),
]
BundleArgument = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", show_default=False, help="Folder of an exported model.")
]
Images = Annotated[
    list[Path] | None, typer.Option("--image", metavar="FILE", help="An image to look at. May be repeated.")
]
ImageDetail = Annotated[
    Literal["low", "auto", "high"],
    typer.Option(
        "--image-detail",
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
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider", metavar="NAME", help="What computes, as listed by 'phirt devices'. Default: the CPU."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=1024, metavar="N", help="CPU threads. Default: one per physical core."
    ),
]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="Instructions for the whole conversation.")
]
Tools = Annotated[
    Path | None,
    typer.Option("--tools", metavar="FILE", help="JSON list of tools that the model may call."),
]
Conversation = Annotated[
    Path | None,
    typer.Option(
        "--conversation",
        metavar="FILE",
        help="Go on with the conversation in FILE, saved after each answer; new if there is no FILE.",
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens", min=1, metavar="N", help="Longest answer, in tokens.", show_default=True
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", min=0.0, metavar="X", help="0 takes the likeliest token; higher varies more."
    ),
]
TopP = Annotated[
    float,
    typer.Option("--top-p", metavar="X", help="Choose among the likeliest tokens that make up this share."),
]
TopK = Annotated[
    int, typer.Option("--top-k", min=0, metavar="N", help="Choose among the N likeliest tokens; 0: all.")
]
MinP = Annotated[
    float,
    typer.Option("--min-p", metavar="X", help="Drop tokens less likely than X times the likeliest; 0: none."),
]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition-penalty", metavar="X", help="Above 1 discourages repeating; 1: off.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, metavar="N", help="Makes sampled answers repeatable.")
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
    list[str] | None, typer.Option("--target", metavar="NAME", help="What it is for. [default: cpu]")
]
Bits = Annotated[
    int, typer.Option("--bits", metavar="N", help="Bits of a weight: 4, 8, or 32 for unquantized.")
]
BlockSize = Annotated[
    int | None,
    typer.Option("--block-size", min=1, metavar="N", help="Weights that share a scale. Default: by width."),
]
AdapterBits = Annotated[
    int, typer.Option("--adapter-bits", metavar="N", help="The same for the LoRA branches.")
]
EncoderBits = Annotated[int, typer.Option("--encoder-bits", metavar="N", help="The same for the encoders.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="rtn rounds to nearest, mse searches scales, gptq calibrates: it needs --calibration.",
    ),
]
BitsPerWeight = Annotated[
    float | None,
    typer.Option(
        "--bits-per-weight",
        metavar="X",
        help="Size of decoder and token table, such as 4.3: each matrix gets longer or shorter blocks or 8 "
        "bits by what rounding it costs. It needs --calibration. Default: all alike.",
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
Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Text, images, recordings, JSON lines, or a folder of them. May be repeated.",
    ),
]
