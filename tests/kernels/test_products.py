"""Products of block-quantized weights on every instruction set that is at hand, against the definition."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import LACKING, NAMES, Case, assert_right, compute, fuzzed, make_case, require_programs

CASES = fuzzed()


@pytest.fixture(scope="module")
def plain(program: Path) -> list[np.ndarray]:
    """What plain C++ computes."""
    found = compute(program, "generic", CASES)
    assert found is not None
    return found


def assert_same_bits(found: list[np.ndarray], plain: list[np.ndarray]) -> None:
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def test_plain_products_are_as_defined(plain):
    for case, found in zip(CASES, plain, strict=True):
        assert_right(case, found)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "generic"])
def test_every_instruction_set_gives_the_same_bits(program, plain, name):
    found = compute(program, name, CASES)
    if found is None:
        pytest.skip(f"this CPU has no {name}")
    assert_same_bits(found, plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_alone_as_among_others(program, name):
    rng = np.random.default_rng(5)
    together = [
        make_case(rng, 50, 200, 4, 32, 23, zero_points=True, bias=True),
        make_case(rng, 40, 320, 8, 64, 9),
    ]
    alone = [case.row(index) for case in together for index in range(len(case.values))]
    found = compute(program, name, [*together, *alone])
    if found is None:
        pytest.skip(f"this CPU has no {name}")
    rows = np.split(np.concatenate([one.ravel() for one in found[:2]]), [23 * 50])
    np.testing.assert_array_equal(rows[0].reshape(23, 50), np.concatenate(found[2:25]))
    np.testing.assert_array_equal(rows[1].reshape(9, 40), np.concatenate(found[25:]))


def not_finite(twice: bool = False) -> Case:
    """Rows with what is no number, several in a block, and rows without."""
    case = make_case(np.random.default_rng(6), 20, 96, 4, 32, 5, zero_points=True, twice=twice)
    case.values[0, 3:7] = np.nan
    case.values[1, 40:43] = np.inf
    case.values[2, 40:43] = -np.inf, np.nan, np.inf
    return case


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_stays_in_its_row(program, name, twice):
    case = not_finite(twice)
    found = compute(program, name, [case])
    if found is None:
        pytest.skip(f"this CPU has no {name}")
    assert np.isnan(found[0][:3]).all()
    assert_right(Case(**{**vars(case), "values": case.values[3:]}), found[0][3:])


@pytest.mark.parametrize("name", NAMES)
def test_sanitizers_have_nothing_to_say(sanitized, plain, name):
    found = compute(sanitized, name, [*CASES, not_finite()])
    if found is None:
        pytest.skip(f"this CPU has no {name}")
    assert_same_bits(found[:-1], plain)


@pytest.mark.parametrize(("cpu", "best"), [("cortex-a76", "neon-dotprod"), ("cortex-a53", "generic")])
def test_arm_gives_the_same_bits(arm_program, plain, cpu, best):
    through = ("qemu-aarch64", "-cpu", cpu)
    assert subprocess.check_output([*through, arm_program], text=True).strip() == best
    found = compute(arm_program, best, CASES, through)
    assert found is not None
    assert_same_bits(found, plain)


@pytest.mark.parametrize(("cpu", "best"), [("Nehalem", "generic"), ("Haswell", "avx2")])
def test_a_cpu_gets_what_it_has(program, cpu, best):
    require_programs("qemu-x86_64")
    through = ("qemu-x86_64", "-cpu", cpu, program)
    assert subprocess.check_output(through, text=True, stderr=subprocess.DEVNULL).strip() == best
    assert subprocess.run([*through, "avx512-vnni"], stderr=subprocess.DEVNULL).returncode == LACKING


def test_the_best_instruction_set_is_among_those_that_are_tested(program):
    assert subprocess.check_output([program], text=True).strip() in NAMES
