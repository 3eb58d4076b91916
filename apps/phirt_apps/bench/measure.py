"""Runs all measurements of `phirt bench` in an order in which none disturbs another.

Knows that order: what must happen before this process opens the bundle, and that the machine is measured
beside it, before and after. The measurements are in the modules beside this one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import phirt
from phirt.bundle.files import load_manifest
from phirt.bundle.manifest import Modality
from phirt.runtime.cpus import thread_count
from phirt.runtime.device import check_threads
from phirt_apps.answer import peak_memory
from phirt_apps.errors import UsageError
from phirt_apps.output import Busy, Output

from . import opening, peaks, speed
from .report import Report
from .work import decoder_work

_MEDIA: tuple[Modality, ...] = ("image", "audio")


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for; lengths are None where the usual ones are meant."""

    prompt_tokens: tuple[int, ...] | None
    new_tokens: int
    depths: tuple[int, ...] | None
    repeats: int
    sustained: float | None
    image: Path | None
    audio: Path | None
    threads: int | None
    compare_threads: tuple[int, ...] | None = None


def lengths(text: str | None, option: str) -> tuple[int, ...] | None:
    """The numbers of a list such as `128,1024`. Raises UsageError."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{option} is {text[:80]!r}, accepted: whole numbers from 1 on, such as 128,1024")
    return numbers


def measure(folder: Path, request: Request, out: Output) -> Report:
    """Measures the bundle.

    Raises BundleError, MediaError, ConfigError for what cannot be measured, PhirtError where a process for a
    measurement fails.
    """
    threads = check_threads(request.threads)
    manifest = load_manifest(folder)
    plan = speed.make_plan(
        manifest.geometry, request.prompt_tokens, request.new_tokens, request.depths, request.repeats,
        request.sustained,
    )  # fmt: skip
    work = decoder_work(manifest)
    with out.busy("measuring the machine") as busy:
        steps = _Steps(busy, _count_steps(plan) + len(request.compare_threads or ()))
        probe_threads = thread_count(threads)
        steps.begin("measuring the machine")
        read = peaks.measure_reading(probe_threads)
        steps.begin("measuring the machine")
        multiply = peaks.measure_multiplying(probe_threads)
        steps.begin("opening the model in processes of their own")
        opened = opening.measure(manifest, threads, plan.repeats)
        steps.begin("loading the model")
        model = phirt.load(folder, threads=threads)
        media = _media(model, request, steps)
        model.release_encoders()
        engine, prompts = model.generator.new_engine(), speed.Prompts(manifest)
        prefills, decodes = [], []
        for count in plan.prompt_tokens:
            steps.begin(f"prefill of {count} tokens")
            prefills.append(speed.prefill(engine, prompts, count, plan.repeats))
        for depth in plan.depths:
            steps.begin(f"decoding at depth {depth}")
            decodes.append(speed.decode(engine, prompts, depth, plan.new_tokens, plan.repeats))
        over_time = []
        if plan.sustained is not None:
            steps.begin(f"decoding for {plan.sustained:g} seconds")
            over_time = speed.sustained(engine, prompts, plan.depths[0], plan.new_tokens, plan.sustained)
        memory = peak_memory()
        by_threads = []
        for count in request.compare_threads or ():
            steps.begin(f"with {count} threads")
            by_threads.append(speed.with_threads(folder, plan, count))
        steps.begin("measuring the machine again")
        read = max(read, peaks.measure_reading(probe_threads), key=_rate)
    return Report(
        manifest, threads, opened, tuple(prefills), tuple(decodes), media, tuple(over_time), memory, work,
        read, multiply, tuple(by_threads),
    )  # fmt: skip


def _count_steps(plan: speed.Plan) -> int:
    """How often `measure` begins something: five times for the machine and opening, once for each figure."""
    return 5 + len(_MEDIA) + len(plan.prompt_tokens) + len(plan.depths) + (plan.sustained is not None)


class _Steps:
    """One bar for all measurements; what is measured now stands beside it."""

    def __init__(self, busy: Busy, total: int) -> None:
        self._busy, self._total = busy, total
        self._begun = 0

    def begin(self, label: str) -> None:
        """The next measurement begins, and with it the one before has ended."""
        self._busy.advance(label, self._begun, self._total)
        self._begun += 1


def _rate(measured: dict[str, Any]) -> float:
    return float(measured["bytes_per_second"])


def _media(model: phirt.Model, request: Request, steps: _Steps) -> dict[str, speed.Encode]:
    given = {"image": request.image, "audio": request.audio}
    measured: dict[str, speed.Encode] = {}
    for modality in _MEDIA:
        path = given[modality]
        steps.begin(f"encoding: {modality}")
        figures = speed.encode(model, modality, path, request.repeats)
        if figures is not None:
            measured[modality] = figures
    return measured
