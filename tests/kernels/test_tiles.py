"""Kernels for units that multiply small matrices: AMX's tiles and ARM's int8 matrix products.

Knows how their sources are compiled and run where there is no such unit: AMX's machine code on a tile unit
in plain C++ (quant/kernels/tests/tile_unit.h), ARM's under qemu. Does not know the other sets.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_KERNELS = Path(__file__).parents[2] / "quant" / "kernels"
_OPTIONS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-fno-math-errno", "-fno-trapping-math")
_AVX512 = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")


def _require(*programs: str) -> None:
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")


def _compile(compiler: str, source: str, into: Path, *options: str) -> Path:
    target = into / (Path(source).stem + ".o")
    include = ("-I", str(_KERNELS / "src"))
    # GCC's own headers of AVX-512 have variables that it takes for uninitialized.
    known = ("-Wno-maybe-uninitialized",) if "clang" not in compiler else ()
    command = [
        compiler,
        *_OPTIONS,
        *known,
        *options,
        *include,
        "-c",
        str(_KERNELS / source),
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True)
    return target


def _link(compiler: str, objects: list[Path], *options: str) -> Path:
    program = objects[0].parent / "same_bits"
    subprocess.run([compiler, *map(str, objects), *options, "-pthread", "-o", str(program)], check=True)
    return program


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def amx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that compares AMX's kernels; its folder has their object file."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("the tile unit in C++ computes what x86 Linux refuses")
    _require("g++", "objdump")
    if "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("AMX's kernels use AVX-512 VNNI too, which this CPU lacks")
    folder = tmp_path_factory.mktemp("amx")
    wide = tuple(f"-m{name}" for name in _AVX512)
    objects = [
        _compile("g++", "src/matrix.cc", folder),
        _compile("g++", "src/generic.cc", folder),
        _compile("g++", "src/avx512_vnni.cc", folder, *wide),
        _compile("g++", "src/amx.cc", folder, *wide, "-mamx-tile", "-mamx-int8"),
        _compile("g++", "tests/tile_unit.cc", folder),
        _compile("g++", "tests/same_bits.cc", folder, "-DPHIRT_TILE_UNIT"),
    ]
    return _link("g++", objects)


def test_amx_computes_the_bits_of_the_plain_kernels(amx: Path) -> None:
    done = _run(amx, "amx-int8", 400, 14)
    assert done.returncode == 0, done.stdout + done.stderr


def test_amx_has_its_products_in_tiles(amx: Path) -> None:
    code = _run("objdump", "-d", amx.parent / "amx.o").stdout
    # Two by two: activations in tiles 4 and 5, codes in 6 and 7. AT&T's order: codes, activations, sums.
    products = set(re.findall(r"tdpbssd (%tmm\d,%tmm\d,%tmm\d)", code))
    assert products == {f"%tmm{6 + p},%tmm{4 + tile},%tmm{2 * tile + p}" for tile in (0, 1) for p in (0, 1)}
    for name in ("ldtilecfg", "tilezero", "tileloadd", "tilestored", "tilerelease"):
        assert re.search(rf"\b{name}\b", code), name


def test_the_tile_unit_is_checked_against_hand_computed_products(tmp_path: Path) -> None:
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("the tile unit in C++ computes what x86 Linux refuses")
    _require("g++")
    sources = ("tests/tile_unit_test.cc", "tests/tile_unit.cc")
    objects = [_compile("g++", source, tmp_path, "-mamx-tile", "-mamx-int8") for source in sources]
    done = _run(_link("g++", objects))
    assert done.returncode == 0, done.stdout + done.stderr
    refused = _run(objects[0].parent / "same_bits", "shapes")
    # A real unit computes and refuses by itself; the one in C++ then knows nothing of the shapes.
    assert refused.returncode == 70
    assert refused.stderr in ("shapes that agree\n", "a tile instruction without a configuration\n")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that compares sets by name, for ARM."""
    compiler = "aarch64-linux-gnu-g++"
    _require(compiler, "qemu-aarch64")
    folder = tmp_path_factory.mktemp("arm")
    objects = [
        _compile(compiler, "src/matrix.cc", folder),
        _compile(compiler, "src/cpu.cc", folder),
        _compile(compiler, "src/generic.cc", folder),
        _compile(compiler, "src/neon_dotprod.cc", folder, "-march=armv8.2-a+dotprod"),
        _compile(compiler, "src/neon_i8mm.cc", folder, "-march=armv8.2-a+dotprod+i8mm"),
        _compile(compiler, "tests/same_bits.cc", folder),
    ]
    return _link(compiler, objects, "-static")


@pytest.mark.parametrize("name", ["neon-dotprod", "neon-i8mm"])
def test_arm_computes_the_bits_of_the_plain_kernels(arm: Path, name: str) -> None:
    done = _run("qemu-aarch64", "-cpu", "max", arm, name, 150, 14)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("cpu", "code"),
    [pytest.param("cortex-a72", 3, id="neither"), pytest.param("neoverse-n1", 0, id="dot products only")],
)
def test_arm_sets_are_offered_where_the_cpu_has_them(arm: Path, cpu: str, code: int) -> None:
    run = ("qemu-aarch64", "-cpu", cpu, arm)
    assert _run(*run, "neon-dotprod", 1, 1).returncode == code
    assert _run(*run, "neon-i8mm", 1, 1).returncode == 3
