"""`phirt bench`: how fast a bundle is on this machine.

Knows its options. What is measured, and how it is shown, is in the folder `bench`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phirt_apps import options
from phirt_apps.models import bundle_folder
from phirt_apps.output import Output

SUMMARY = "Measure how fast a bundle is here."
SECTION = "This machine"


def command(
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
    compare_threads: Annotated[
        str | None,
        typer.Option("--compare-threads", metavar="N,...", help="Measure with so many threads as well."),
    ] = None,
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
      phirt bench --compare-threads 1,2,4
    """
    from phirt_apps.bench.measure import Request, lengths, measure
    from phirt_apps.bench.report import as_object, show

    request = Request(
        prompt_tokens=lengths(prompt_tokens, "--prompt-tokens"),
        new_tokens=new_tokens,
        depths=lengths(depth, "--depth"),
        repeats=repeats,
        sustained=sustained,
        image=image,
        audio=audio,
        threads=threads,
        compare_threads=lengths(compare_threads, "--compare-threads"),
    )
    out = Output()
    report = measure(bundle_folder(bundle), request, out)
    if json:
        out.json(as_object(report))
    else:
        show(report, out)
