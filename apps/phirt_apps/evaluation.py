"""How far a bundle's predictions are from its checkpoint's, or from another bundle's, and how
large it is.

Knows what the comparison runs on and how its figures are shown. The comparison is phirt_quant's, the
reference model phirt_export's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import ConfigError

from .examinations import TaskInputs, examine, task_table
from .extras import needs_extra
from .output import Output, one_line, plain_table
from .retrieval import NeedleInputs, needle_table, needles_object, seek_needles
from .size_table import size_table

if TYPE_CHECKING:
    import phirt
    from phirt_quant.evaluation import Case, Reference, RouteFidelity, TextScore
    from phirt_quant.sizes import BundleSizes


CHECKPOINT = "the checkpoint in float32"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the user gave to compare on; what is empty is made by the program. Text is cut into windows of so
    many tokens, each `stride` after the one before; None is the program's choice.
    """

    text: Path | None
    tokens: int
    images: Sequence[Path]
    audio: Sequence[Path]
    window: int | None = None
    stride: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """Figures by route, the bundle's sizes, what the reference was (`kind`) and what was compared on
    (`used`).
    """

    bundle: Path
    against: Path
    kind: str
    used: dict[str, str]
    results: dict[str, RouteFidelity]
    sizes: BundleSizes

    def as_object(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "bundle": str(self.bundle),
            "against": {"path": str(self.against), "kind": self.kind},
            "inputs": self.used,
            "routes": {route: _as_object(result) for route, result in self.results.items()},
            "size": self.sizes.as_object(),
        }

    def tables(self) -> tuple[Any, ...]:
        """Agreement by route, and sizes."""
        return _table(self.results), size_table(self.sizes)

    def lines(self) -> list[str]:
        """What stands below the tables."""
        lines = _text_lines(self.results)
        lines.append(f"reference: {one_line(str(self.against))}, {self.kind}")
        return lines + [f"{name}: {one_line(detail)}" for name, detail in self.used.items()]


@dataclasses.dataclass(frozen=True)
class Alone:
    """What a bundle without a reference makes of a text, and its sizes."""

    bundle: Path
    text: str
    score: TextScore
    sizes: BundleSizes

    def as_object(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "bundle": str(self.bundle),
            "inputs": {"text": self.text},
            "text": dataclasses.asdict(self.score),
            "size": self.sizes.as_object(),
        }

    def tables(self) -> tuple[Any, ...]:
        """Sizes."""
        return (size_table(self.sizes),)

    def lines(self) -> list[str]:
        """What stands below the tables."""
        score = self.score
        figures = f"perplexity {score.perplexity:.4g}, {score.bits_per_byte:.4g} bits per byte"
        return [f"text: {figures}, over {score.positions} tokens", f"text: {one_line(self.text)}"]


def evaluate(
    bundle: Path,
    against: Path | None,
    inputs: Inputs | None,
    tasks: TaskInputs | None,
    needles: NeedleInputs | None,
    out: Output,
    *,
    plot: Path | None = None,
    as_json: bool,
) -> None:
    """Writes what was measured as tables, or as one JSON object: on each route of `bundle` that takes what is
    given, for each of its parts, for each task, and for needles. `inputs` None is tasks and needles alone.
    `plot` is a picture of the comparison to write.
    """
    if plot is not None:
        _require_plot(plot, compares=against is not None and inputs is not None)
    candidate, kind, reference = _open(bundle, against, out)
    document: dict[str, Any] = {"bundle": str(bundle), "against": None}
    if against is not None:
        document["against"] = {"path": str(against), "kind": kind}
    tables: list[Any] = []
    lines: list[str] = []
    if inputs is not None:
        section: Report | Alone = (
            _measure_alone(bundle, candidate, inputs, out)
            if against is None or reference is None
            else _measure(bundle, against, candidate, kind, reference, inputs, out)
        )
        if plot is not None and isinstance(section, Report) and reference is not None:
            _draw(plot, section, candidate, reference, inputs, out)
        document |= section.as_object()
        tables += section.tables()
        lines += section.lines()
    elif against is not None:
        lines.append(f"reference: {one_line(str(against))}, {kind}")
    if tasks is not None or needles is not None:
        from phirt_quant.evaluation import BundleScorer
        from phirt_quant.examiner import text_form

        form, scorers = text_form(candidate), [BundleScorer(candidate), *([reference] if reference else [])]
        if tasks is not None:
            results = examine(form, scorers, tasks, out)
            document["tasks"] = {name: result.as_object() for name, result in results.items()}
            tables.append(task_table(results))
        if needles is not None:
            found = seek_needles(form, scorers, needles, out)
            document["needles"] = needles_object(found)
            tables.append(needle_table(found))
    out.results(document, tables, lines, as_json=as_json)


def _require_plot(plot: Path, *, compares: bool) -> None:
    """Said before minutes of work: what a picture needs."""
    if not compares:
        raise ConfigError("a picture shows a comparison; name what to compare with by --against, and a text")
    if not plot.parent.is_dir():
        raise ConfigError(f"{plot.parent} is not a folder, so {plot} cannot be written there")
    with needs_extra("eval --plot"):
        import matplotlib  # noqa: F401


def _draw(
    plot: Path, report: Report, candidate: phirt.Model, reference: Reference, inputs: Inputs, out: Output
) -> None:
    """The picture; by layer where the reference is a checkpoint."""
    from phirt_apps.fidelity_plot import Divergences, draw

    by_layer = None
    if report.kind == CHECKPOINT:
        from phirt_export.checkpoint_scores import CheckpointReference
        from phirt_export.layer_divergence import layer_divergences

        assert isinstance(reference, CheckpointReference)
        label = "quantizing layer by layer"
        first = _cases(candidate, inputs)[0]["none"][0].forced
        assert first is not None
        with out.busy(label) as display:
            on_layer = functools.partial(display.advance, label)
            by_layer = layer_divergences(reference.whole_model(), candidate.manifest, first, on_layer)
    routes = {route: result.divergences for route, result in report.results.items()}
    names = f"{report.bundle.name} beside {report.against.name}"
    draw(Divergences(f"KL of {one_line(names)}", routes, by_layer), plot)


def measure(bundle: Path, against: Path, inputs: Inputs, out: Output, base: Path | None = None) -> Report:
    """The comparison's figures; `base` is that of an adapter, unless it names its own. Raises ConfigError
    where the two cannot be compared, or not in this machine's memory.
    """
    candidate, kind, reference = _open(bundle, against, out, base)
    assert reference is not None
    return _measure(bundle, against, candidate, kind, reference, inputs, out)


def _open(
    bundle: Path, against: Path | None, out: Output, base: Path | None = None
) -> tuple[phirt.Model, str, Reference | None]:
    """The bundle, and what it is compared with: in words, and the model; none where there is nothing."""
    import phirt

    with out.busy("loading the models"):
        candidate = phirt.load(bundle)
        return candidate, *(("", None) if against is None else _reference(against, candidate, base))


def _measure(
    bundle: Path,
    against: Path,
    candidate: phirt.Model,
    kind: str,
    reference: Reference,
    inputs: Inputs,
    out: Output,
) -> Report:
    from phirt_quant.evaluation import compare
    from phirt_quant.sizes import bundle_sizes

    cases, used = _cases(candidate, inputs)
    results = {}
    for route, batch in cases.items():
        label = f"comparing on route {route}"
        with out.busy(label) as display:
            on_progress = functools.partial(display.advance, label)
            results[route] = compare(candidate, reference, batch, route, on_progress)
    return Report(bundle, against, kind, used, results, bundle_sizes(candidate.manifest))


def _measure_alone(bundle: Path, candidate: phirt.Model, inputs: Inputs, out: Output) -> Alone:
    from phirt_quant.evaluation import score_text
    from phirt_quant.sizes import bundle_sizes

    label = "predicting the text"
    cases, used = _cases(candidate, dataclasses.replace(inputs, images=(), audio=()))
    with out.busy(label) as display:
        score = score_text(candidate, cases["none"], functools.partial(display.advance, label))
    return Alone(bundle, used["text"], score, bundle_sizes(candidate.manifest))


def _reference(against: Path, candidate: phirt.Model, base: Path | None) -> tuple[str, Reference]:
    """The reference at a path, and what it is in words."""
    from phirt.bundle.manifest import MANIFEST_NAME
    from phirt_quant.evaluation import BundleReference

    if (against / MANIFEST_NAME).is_file():
        import phirt

        return "another bundle", BundleReference(phirt.load(against), candidate)
    with needs_extra("eval"):
        from phirt_export.checkpoint_scores import CheckpointReference
    return CHECKPOINT, CheckpointReference(against, candidate.manifest, base)


def _cases(candidate: phirt.Model, inputs: Inputs) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """Cases by route, and what they are made of in words."""
    from phirt_quant import samples
    from phirt_quant.evaluation import PASSAGE_TOKENS, media_cases, passages
    from phirt_quant.text_files import read_documents

    texts = samples.SENTENCES if inputs.text is None else read_documents(inputs.text)
    images: Sequence[Any] = inputs.images or samples.pictures()
    clips: Sequence[Any] = inputs.audio or samples.clips()
    cases = {
        "none": passages(candidate, texts, inputs.tokens, inputs.window or PASSAGE_TOKENS, inputs.stride),
        **media_cases(candidate, images, clips),
    }
    takes = candidate.manifest.modalities
    used = {
        "text": "sentences of the program" if inputs.text is None else str(inputs.text),
        "images": _media_words("pictures rendered", inputs.images, len(images), "image" in takes),
        "audio": _media_words("clips synthesised", inputs.audio, len(clips), "audio" in takes),
    }
    return cases, used


def _media_words(made: str, given: Sequence[Path], count: int, taken: bool) -> str:
    if not taken:
        return "none, the bundle takes none"
    return ", ".join(path.name for path in given) if given else f"{count} {made} by the program"


def _as_object(result: RouteFidelity) -> dict[str, Any]:
    return {
        **dataclasses.asdict(result.fidelity),
        "reference_bits_per_byte": result.reference_bits_per_byte,
        "candidate_bits_per_byte": result.candidate_bits_per_byte,
    }


def _table(results: dict[str, RouteFidelity]) -> Any:
    table = plain_table(
        "route",
        "#positions",
        "#mean KL",
        "#median",
        "#p99 KL",
        "#top-1 agreement",
        "#logits differ by",
        "#at most",
    )
    for route, result in results.items():
        f = result.fidelity
        table.add_row(
            route, str(f.positions), f"{f.mean_kl:.3g}", f"{f.median_kl:.3g}", f"{f.p99_kl:.3g}",
            f"{100 * f.top1_agreement:.1f} %", f"{f.mean_difference:.3g}", f"{f.max_difference:.3g}",
        )  # fmt: skip
    return table


def _text_lines(results: dict[str, RouteFidelity]) -> list[str]:
    """Perplexity and bits per byte, of the routes whose continuation is a given text."""
    lines = []
    for route, result in results.items():
        f = result.fidelity
        if result.reference_bits_per_byte is not None and f.reference_perplexity is not None:
            lines.append(
                f"text on route {route}: perplexity {f.reference_perplexity:.4g} of the reference, "
                f"{f.candidate_perplexity:.4g} of the bundle; bits per byte "
                f"{result.reference_bits_per_byte:.4g} and {result.candidate_bits_per_byte:.4g}"
            )
    return lines
