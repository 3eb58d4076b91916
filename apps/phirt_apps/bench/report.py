"""What was measured, as a table for people and as an object for programs.

Knows figures and units. Measures nothing.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import Any

from phirt.bundle.manifest import Manifest
from phirt.runtime.cpus import thread_count, usable_cpus
from phirt_apps.extras import install_line
from phirt_apps.machine import cores_and_threads, cpu_name, instruction_sets, products
from phirt_apps.output import Output, one_line, plain_table, size

from .opening import Opening
from .speed import Decode, Encode, Prefill, ThreadSpeed
from .spread import Spread
from .work import DecoderWork


@dataclasses.dataclass(frozen=True)
class Report:
    """All figures of one run. `read` and `multiply` are those of `peaks`; the latter may be missing.

    `peak_memory` is the largest resident size in bytes of the process that ran the model, None where the
    system does not tell. `sustained` has (seconds since the start, tokens a second).
    """

    manifest: Manifest
    threads: int | None
    opening: Opening
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]
    media: dict[str, Encode]
    sustained: tuple[tuple[float, float], ...]
    peak_memory: int | None
    work: DecoderWork
    read: dict[str, Any]
    multiply: dict[str, Any] | None
    by_threads: tuple[ThreadSpeed, ...] = ()

    def prefill_speed(self, row: Prefill) -> Spread:
        """Tokens a second."""
        return row.first_token.map(lambda seconds: row.prompt_tokens / seconds)

    def multiply_share(self, row: Prefill) -> float | None:
        """Operations a second of a prefill as a share of the measured peak."""
        if self.multiply is None:
            return None
        rate: float = self.work.prefill_operations(row.prompt_tokens) / row.first_token.mean
        return rate / float(self.multiply["operations_per_second"])

    def read_share(self, row: Decode) -> float:
        """Bytes a second that decoding had to read as a share of the measured read bandwidth."""
        rate = self.work.bytes_per_token(row.mean_depth) * row.tokens_per_second.mean
        return rate / float(self.read["bytes_per_second"])


def as_object(report: Report) -> dict[str, Any]:
    """The report for `--json`: seconds, bytes, operations, tokens; shares of 1."""
    manifest, opening = report.manifest, report.opening
    return {
        "bundle": {
            "path": str(manifest.folder),
            "name": manifest.name,
            "fingerprint": manifest.fingerprint,
            "bytes": sum(entry.size for entry in manifest.files.values()),
        },
        "machine": {
            "cpu": cpu_name(),
            "instructions": instruction_sets(),
            "products": products(),
            "cores": usable_cpus(),
            "threads": thread_count(report.threads),
            "read": report.read,
            "multiply": report.multiply,
        },
        "versions": {name: version(name) for name in ("phirt", "onnxruntime", "numpy")},
        "load": {
            "preparing": opening.preparing,
            "cold": opening.cold,
            "why_not_cold": opening.why_not_cold,
            "warm": opening.warm.as_object(),
            "imports": opening.imports.as_object(),
            "private_bytes": opening.private_bytes,
        },
        "prefill": [
            {
                "prompt_tokens": row.prompt_tokens,
                "first_token": row.first_token.as_object(),
                "tokens_per_second": report.prefill_speed(row).as_object(),
                "operations": report.work.prefill_operations(row.prompt_tokens),
                "share_of_multiply_peak": report.multiply_share(row),
            }
            for row in report.prefill
        ],
        "decode": [
            {
                "depth": row.depth,
                "new_tokens": row.new_tokens,
                "tokens_per_second": row.tokens_per_second.as_object(),
                "bytes_per_token": report.work.bytes_per_token(row.mean_depth),
                "bandwidth_utilisation": report.read_share(row),
            }
            for row in report.decode
        ],
        "media": {
            kind: {
                "source": row.source,
                "tokens": row.tokens,
                "prepare": row.prepare.as_object(),
                "encode": row.encode.as_object(),
            }
            for kind, row in report.media.items()
        },
        "by_threads": [
            {
                "threads": row.threads,
                "prefill": row.prefill.as_object(),
                "decode": row.decode.as_object(),
            }
            for row in report.by_threads
        ],
        "sustained": [{"seconds": at, "tokens_per_second": rate} for at, rate in report.sustained],
        "peak_memory": report.peak_memory,
    }


def show(report: Report, out: Output) -> None:
    """Writes the tables, and notes on what could not be measured."""
    out.table(_heading(report))
    tables = [_prefill(report), _decode(report)]
    if report.media:
        tables.append(_media(report))
    if report.sustained:
        tables.append(_sustained(report))
    if report.by_threads:
        tables.append(_by_threads(report))
    for table in tables:
        out.answer("\n")
        out.table(table)
    notes = []
    if report.opening.why_not_cold is not None:
        notes.append(f"load is warm only: {report.opening.why_not_cold}")
    if report.multiply is None:
        notes.append(f"the share of the int8 peak is left out: measuring it needs: {install_line('export')}")
    if notes:
        out.answer("\n" + "".join(f"{note}\n" for note in notes))


def _heading(report: Report) -> Any:
    manifest, opening, read = report.manifest, report.opening, report.read
    table = plain_table("bundle", one_line(manifest.name))
    table.add_row("size", size(sum(entry.size for entry in manifest.files.values())))
    table.add_row("cpu", f"{cpu_name()}, {cores_and_threads(report.threads)}")
    table.add_row("instruction sets", ", ".join(instruction_sets()) or "not known here")
    table.add_row("products by", products())
    table.add_row(
        "reading memory",
        f"{read['bytes_per_second'] / 1e9:.1f} GB/s at most ({read['method']}, {read['pages']} pages, "
        f"{read['threads']} threads)",
    )
    if (peak := report.multiply) is not None:
        table.add_row(
            "int8 products",
            f"{peak['operations_per_second'] / 1e9:.0f} GOP/s at most (int4 weights in blocks of "
            f"{peak['block_size']}, {peak['rows']} rows, {peak['threads']} threads)",
        )
    if opening.preparing is not None:
        table.add_row("load, preparing", f"{_seconds(opening.preparing)}, once on this machine")
    if opening.cold is not None:
        table.add_row("load, cold", _seconds(opening.cold))
    table.add_row("load, warm", opening.warm.text(_seconds))
    table.add_row("imports, warm", opening.imports.text(_seconds))
    if opening.private_bytes is not None:
        table.add_row("private after load", size(opening.private_bytes))
    if report.peak_memory is not None:
        table.add_row("peak resident", size(report.peak_memory))
    return table


def _prefill(report: Report) -> Any:
    peak = () if report.multiply is None else ("#of int8 peak",)
    table = plain_table("#prompt tokens", "#first token", "#prefill, tokens/s", *peak)
    for row in report.prefill:
        share = report.multiply_share(row)
        table.add_row(
            f"{row.prompt_tokens:,}",
            row.first_token.text(_seconds),
            report.prefill_speed(row).text(_rate),
            *(() if share is None else (f"{share:.0%}",)),
        )
    return table


def _decode(report: Report) -> Any:
    table = plain_table("#depth", "#decode, tokens/s", "#read a token", "#of read bandwidth")
    for row in report.decode:
        table.add_row(
            f"{row.depth:,}",
            row.tokens_per_second.text(_rate),
            size(round(report.work.bytes_per_token(row.mean_depth))),
            f"{report.read_share(row):.0%}",
        )
    return table


def _media(report: Report) -> Any:
    table = plain_table("encoder", "source", "#tokens", "#prepare", "#encode")
    for kind, row in report.media.items():
        prepare, encode = row.prepare.text(_seconds), row.encode.text(_seconds)
        table.add_row(kind, one_line(row.source), f"{row.tokens:,}", prepare, encode)
    return table


def _sustained(report: Report) -> Any:
    table = plain_table("#after", "#decode, tokens/s", "#of the first")
    first = report.sustained[0][1]
    for at, rate in report.sustained:
        table.add_row(f"{at:.1f} s", _rate(rate), f"{rate / first:.0%}")
    return table


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _by_threads(report: Report) -> Any:
    table = plain_table(
        "threads", f"prefill of {report.prefill[0].prompt_tokens}", f"decode at {report.decode[0].depth}"
    )
    for row in report.by_threads:
        table.add_row(str(row.threads), row.prefill.text(_rate), row.decode.text(_rate))
    return table
