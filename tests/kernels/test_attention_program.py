"""Attention of every instruction set beside the plain loops in float64 of quant/kernels/tests/attention.cc:
on this machine, watched by sanitizers, and on ARM.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

# What rotation, sums in float32 and the exponential round off, relative to the greatest result.
TOLERANCE = 2e-6


def errors(command: list[str]) -> dict[str, float]:
    """The greatest error by the names of instruction sets."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {line.split()[0]: float(line.split()[2]) for line in done.stdout.splitlines()}


def assert_right(found: dict[str, float]) -> None:
    assert "generic" in found
    assert all(error < TOLERANCE for error in found.values()), found


def test_every_instruction_set_of_this_machine(program: Path):
    assert_right(errors([str(program.with_name("attention"))]))


def test_nothing_is_read_or_written_that_is_not_there(sanitized: Path):
    assert_right(errors([str(sanitized.with_name("attention"))]))


def test_arm(arm_program: Path):
    found = errors(["qemu-aarch64", str(arm_program.with_name("attention"))])
    assert_right(found)
    assert "neon-dotprod" in found
