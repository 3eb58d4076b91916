"""`phirt export`: from a checkpoint to a bundle, as somebody sees it who waits for it.

Knows its options, progress, time left, the table of errors, and when the bundle is compared with its
checkpoint. The work is phirt_export's, the comparison that of `phirt eval`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, TextColumn

from phirt.errors import ConfigError
from phirt_apps import options
from phirt_apps.errors import INTERRUPTED
from phirt_apps.extras import needs_extra
from phirt_apps.fetching import local_base, local_checkpoint
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output, one_line, plain_table

if TYPE_CHECKING:
    from phirt_apps import evaluation
    from phirt_export.progress import Step
    from phirt_quant.weight_error import PartError

_LOG_EVERY_SECONDS = 60.0
_NAME_CHARACTERS = 44
_COMPARED_TOKENS = 2048

SUMMARY = "Turn a checkpoint into a bundle (needs the export extra)."
SECTION = "Make a model"


def command(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            show_default=False,
            help="Folder of a checkpoint, a GGUF file, or the id of a published one: owner/name.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="BUNDLE", help="The folder to write; a bundle is replaced."),
    ],
    target: options.Targets = None,
    bits: options.Bits = None,
    block_size: options.BlockSize = None,
    adapter_bits: options.AdapterBits = 8,
    encoder_bits: options.EncoderBits = 8,
    method: options.Method = None,
    bits_per_weight: options.BitsPerWeight = None,
    kv: options.KV = "float32",
    calibration: options.Calibration = None,
    window: options.Window = None,
    chip: options.Chips = None,
    device_memory: options.DeviceMemory = None,
    max_image_pixels: options.MaxImagePixels = None,
    max_audio_seconds: options.MaxAudioSeconds = None,
    max_context: options.MaxContext = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The bundle's name. Default: the checkpoint's."),
    ] = None,
    base: options.Base = None,
    revision: options.Revision = None,
    token: options.Token = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Writes CHECKPOINT as a bundle that phirt runs: graphs, quantized weights, tokenizer, manifest.

    The bundle appears under its name when it is complete; memory stays bounded however large the checkpoint.
    Ctrl-C keeps the weights that are finished; the same command goes on where it stopped, once it has looked
    at the calibration data again.

    A bundle is given more targets, from its own weights.

    A published checkpoint is fetched from its hub (HF_ENDPOINT, by default https://huggingface.co) into the
    hub's cache (HF_HOME): configuration, tokenizer, template and safetensors alone. This is the only command
    that opens a connection, and it says so before; a folder of that name is used instead.

    The folder of an adapter that PEFT has saved is merged into its base in float32: LoRA, DoRA, biases, and
    modules that are saved whole.

    Calibration data should be like what the model will see: text for its text, images and recordings for
    their routes. A line of JSON lines is {"text": ...}, or a turn {"system": ..., "prompt": ...,
    "image": ..., "audio": ..., "answer": ...}. With it, the finished bundle is compared with the checkpoint
    as 'phirt eval' does it. --json has the error of each tensor.

    \b
      phirt export runs/nano/checkpoint -o nano
      phirt export microsoft/Phi-4-mini-instruct -o phi4-mini
      phirt export Phi-4-multimodal-instruct -o phi4 --method gptq --calibration samples/
      phirt export runs/nano/checkpoint -o nano-fp32 --bits 32
      phirt export my-lora -o tuned --base Phi-4-mini-instruct
      phirt export SmolLM2-135M-Instruct.Q4_1.gguf -o smol
      phirt export my-bundle -o for-npu --target cpu --target qnn
      phirt export Phi-4-multimodal-instruct -o phi4-app --target android --device-memory 12GB
    """
    from phirt_apps.sources import note_source  # knows manifests, which take a moment

    out = Output()
    source = local_checkpoint(checkpoint, out, revision=revision, token=token, offline=offline)
    if not export(
        source,
        output,
        out,
        base=local_base(source, base, out, token=token, offline=offline),
        targets=target or ["cpu"],
        bits=bits,
        block_size=block_size,
        adapter_bits=adapter_bits,
        encoder_bits=encoder_bits,
        method=method,
        bits_per_weight=bits_per_weight,
        kv=kv,
        calibration=calibration or (),
        limits=(max_image_pixels, max_audio_seconds, max_context),
        window=window,
        chips=chip or (),
        device_memory=device_memory,
        name=name,
        as_json=json,
    ):
        raise typer.Exit(INTERRUPTED)
    note_source(output, checkpoint)


def export(
    checkpoint: Path,
    output: Path,
    out: Output,
    *,
    limits: tuple[int | None, float | None, int | None],
    window: int | None,
    device_memory: str | None,
    as_json: bool,
    **settings: Any,
) -> bool:
    """Writes the checkpoint as a bundle, and the bundle's folder to stdout; or one JSON object, in which the
    error of each tensor stands. False when it was interrupted.

    On stderr: progress tensor by tensor on a terminal and otherwise one line a minute, and at the end what
    quantization has cost the weights and, where it was calibrated, the predictions. An interrupted export
    keeps what is finished; a later call with the same settings continues.
    """
    with needs_extra("export"), out.busy("loading torch"):
        from phirt_export.bundle import LimitOptions
        from phirt_export.exporter import export_bundle
        from phirt_export.mobile.exporting import export_package, is_for_package
        from phirt_export.variants.sizes import StaticOptions
    settings["limits"] = LimitOptions(*limits)
    bits = settings["bits"]
    settings["static"] = StaticOptions(bits=bits if bits in (4, 8) else 8, window=window)
    errors: list[PartError] = []
    try:
        with interrupts.patient(), _progress(out) as report:
            settings |= {"progress": report, "errors": errors.extend, "remarks": out.notice}
            if is_for_package(settings["targets"], device_memory):
                (target,) = settings.pop("targets")
                export_package(checkpoint, output, target, device_memory, out.notice, **settings)
                folder = output
            else:
                folder = export_bundle(checkpoint, output, **settings)
    except KeyboardInterrupt:
        out.notice(f"stopped; {one_line(str(output))} is not complete: the same command goes on from here")
        return False
    if errors:
        out.notice_table(_error_table(errors))
    if not as_json:
        out.answer(f"{folder}\n")
    base = settings.get("base")
    calibrated = settings["calibration"] or _is_calibrated(folder)
    comparison = (
        _compare(folder, checkpoint, base, out) if calibrated and _is_new(folder, checkpoint) else None
    )
    if as_json:
        quantized = [part.as_object() for part in errors]
        compared = None if comparison is None else comparison.as_object()
        out.json({"bundle": str(folder), "quantized": quantized, "comparison": compared})
    return True


def _is_new(bundle: Path, checkpoint: Path) -> bool:
    """Whether there is something to compare: graphs for the CPU, made from a checkpoint."""
    from phirt.bundle.files import load_any
    from phirt.bundle.manifest import MANIFEST_NAME

    return bool(load_any(bundle).graphs) and not (checkpoint / MANIFEST_NAME).is_file()


def _is_calibrated(bundle: Path) -> bool:
    """Whether text of phirt's own has served: for the choice of bits, or for gptq."""
    from phirt.bundle.files import load_any

    quantization = load_any(bundle).quantization
    is_chosen = "matrices" in quantization and "kept" not in quantization
    return is_chosen or quantization.get("method") == "gptq"


def _compare(bundle: Path, checkpoint: Path, base: Path | None, out: Output) -> evaluation.Report | None:
    """The table of `phirt eval` on stderr, on the program's own samples: calibration has not seen them. None
    where the checkpoint is too large for that.
    """
    from phirt_apps import evaluation

    inputs = evaluation.Inputs(None, _COMPARED_TOKENS, (), ())
    try:
        report = evaluation.measure(bundle, checkpoint, inputs, out, base)
    except ConfigError as error:  # the bundle is finished; a model that is too large is no failure of it
        out.notice(f"not compared with the checkpoint: {one_line(str(error))}")
        return None
    for table in report.tables():
        out.notice("")
        out.notice_table(table)
    out.notice("")
    for line in report.lines():
        out.notice(line)
    return report


def _error_table(errors: list[PartError]) -> Any:
    table = plain_table("quantized", "#tensors", "#bits", "#relative error", "#largest", "in")
    for part in errors:
        whole, worst = (f"{100 * relative:.2f} %" for relative in (part.relative, part.worst.relative))
        bits = ", ".join(map(str, part.bits))
        table.add_row(part.part, str(len(part.tensors)), bits, whole, worst, one_line(part.worst.tensor))
    return table


@contextlib.contextmanager
def _progress(out: Output) -> Iterator[Callable[[Step], None]]:
    figures = Figures(time.monotonic)
    if not out.notices_on_terminal:
        yield _LogLines(out, figures)
        return
    columns = (BarColumn(), TextColumn("{task.fields[figures]}"), TextColumn("{task.description}"))
    with out.bars(*columns) as bars:
        task = bars.add_task("", total=None, figures="")

        def report(step: Step) -> None:
            name = one_line(step.tensor)
            shown = name if len(name) <= _NAME_CHARACTERS else f"…{name[1 - _NAME_CHARACTERS :]}"
            total = step.weights or None
            bars.update(task, completed=step.done, total=total, description=shown, figures=figures.of(step))

        yield report


class Figures:
    """Tensors, share of the weights, and the time that is left at the speed so far.

    Weights that an interrupted export had finished cost no time and are left out of the speed.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._start = clock, clock()

    def of(self, step: Step) -> str:
        """One short line."""
        if not step.tensors:  # nothing is counted yet
            return ""
        share = 100 * step.done // max(1, step.weights)
        text = f"{step.begun}/{step.tensors} tensors, {share} %"
        fresh = step.done - step.kept
        if fresh <= 0:  # calibration before the first tensor is no measure of the tensors' speed
            self._start = self._clock()
            return text
        seconds = self._clock() - self._start
        if seconds < 1 or 100 * fresh < step.weights - step.kept:  # too little to go by
            return text
        minutes, rest = divmod(int((step.weights - step.done) * seconds / fresh), 60)
        return f"{text}, {minutes // 60}:{minutes % 60:02}:{rest:02} left"


class _LogLines:
    """Writes a line when an interrupted export is taken up, and then once a minute."""

    def __init__(self, out: Output, figures: Figures) -> None:
        self._out, self._figures = out, figures
        self._taken_up = False
        self._written = time.monotonic()

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if step.kept and not self._taken_up:
            self._taken_up = True
            self._out.notice("an interrupted export goes on from where it stopped")
        elif now - self._written >= _LOG_EVERY_SECONDS:
            self._out.notice(f"{self._figures.of(step)}: {one_line(step.tensor)}")
            self._written = now
