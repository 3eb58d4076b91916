"""Packages answer their golden conversations with the same ids on every host that can be run here; damaged
ones end in one line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_host import HARDLY_OPTIMIZED, built, onnxruntime_parts, require_programs, run

import phirt
from phirt.bundle.files import require_intact

_CPU_INFO = (
    "processor\t: 0\nFeatures\t: fp asimd asimdrdm asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
)
_CASES = 7


def test_this_machine(programs: Path, nano_package: Path) -> None:
    assert f"{_CASES} of {_CASES} identical" in run(programs / "phirt_golden", nano_package, 1).decode()


def test_what_the_header_promises(programs: Path, nano_package: Path) -> None:
    assert run(programs / "phirt_interface", nano_package) == b"all promises kept\n"


def test_no_sanitizer_finds_anything(sanitized: Path, nano_package: Path) -> None:
    run(sanitized / "phirt_golden", nano_package, 1)
    run(sanitized / "phirt_interface", nano_package)


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_inputs_end_in_one_line(sanitized: Path, nano_package: Path, seed: int) -> None:
    assert b"8000 inputs" in run(sanitized / "phirt_fuzz", 8000, seed, nano_package)


@pytest.mark.parametrize(("cpu", "kept"), [("cortex-a76", None), ("max", ("turns", "image and clip"))])
def test_a_phones_processor(
    shared_folder: Path, nano_package: Path, tmp_path: Path, cpu: str, kept: tuple[str, ...] | None
) -> None:
    """onnxruntime's own library for ARM, emulated: without and with the newest instructions, for which two
    conversations use every graph.
    """
    library = onnxruntime_parts() / "linux-aarch64" / "libonnxruntime.so"
    require_programs("cmake", "ninja", "aarch64-linux-gnu-g++", "qemu-aarch64")
    compilers = ("-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    options = (*compilers, *system, *HARDLY_OPTIMIZED)
    programs = built(shared_folder / "aarch64", library, *options, program="phirt_golden")
    # onnxruntime asks the system about its processor, which the emulator would answer with the host's own.
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(_CPU_INFO)
    (root / "lib").symlink_to("/usr/aarch64-linux-gnu/lib")
    qemu = ("qemu-aarch64", "-L", str(root), "-cpu", cpu, "-E", f"LD_LIBRARY_PATH={library.parent}")
    package, cases = nano_package, _CASES
    if kept is not None:
        package, cases = Path(shutil.copytree(nano_package, tmp_path / "package")), len(kept)
        json_change(
            "golden.json", lambda d: d.update(cases=[one for one in d["cases"] if one["name"] in kept])
        )(package)
    written = run(programs / "phirt_golden", package, 1, through=qemu).decode()
    assert f"{cases} of {cases} identical" in written


def test_a_package_is_a_bundle(nano_package: Path) -> None:
    require_intact(nano_package)
    (case, *_) = json.loads((nano_package / "golden.json").read_text("utf-8"))["cases"]
    turn = case["turns"][0]
    with phirt.load(nano_package) as model:
        result = model.chat().send(turn["text"], max_new_tokens=turn["max_new_tokens"]).result
    assert list(result.token_ids) == turn["ids"]


def json_change(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Changes a document of a package, which the manifest then has with its new size."""

    def apply(folder: Path) -> None:
        path = folder / file
        document = json.loads(path.read_text("utf-8"))
        change(document)
        path.write_text(json.dumps(document), "utf-8")
        if file != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            manifest["files"][file]["size"] = path.stat().st_size
            (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")

    return apply


# What is done to a package, and what is said of it then.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "cannot be read"),
    "no json": (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
    "no package": (json_change("manifest.json", lambda d: d["files"].pop("host.json")), "no package"),
    "a version": (json_change("manifest.json", lambda d: d.update(version=3)), "version"),
    "a file cut off": (lambda f: (f / "decoder.data").write_bytes(b"x"), "decoder.data has 1 bytes"),
    "a file gone": (lambda f: (f / "speech.onnx").unlink(), "speech.onnx is missing"),
    "a way out": (
        json_change("manifest.json", lambda d: d["files"].update({"../x": {"size": 1, "sha256": "0" * 64}})),
        "relative names",
    ),
    "another kind": (
        json_change("manifest.json", lambda d: d["encoders"]["vision"].update(kind="new")),
        "update this library",
    ),
    "sizes that lie": (
        json_change("manifest.json", lambda d: d["geometry"].update(num_layers=7)),
        "past_key_values.6",
    ),
    "a rule too few": (json_change("manifest.json", lambda d: d["rules"].pop()), "fits always"),
    "an id too high": (json_change("manifest.json", lambda d: d["tokens"].update(eos=[4096])), "0 to 4095"),
    "pieces of nothing": (
        json_change("host.json", lambda d: d["rendering"]["variants"][0].update(first=[999999])),
        "control token",
    ),
    "no rendering": (json_change("host.json", lambda d: d.pop("rendering")), "rendering"),
    "a merge of nothing": (
        json_change("tokenizer.json", lambda d: d["model"]["merges"].append(["zzz", "q"])),
        "merges",
    ),
    "no graph": (
        lambda f: (f / "decoder.onnx").write_bytes(bytes((f / "decoder.onnx").stat().st_size)),
        "onnxruntime",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_refused_in_one_line(
    programs: Path, nano_package: Path, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    folder = tmp_path / "package"
    shutil.copytree(nano_package, folder)
    damage(folder)
    done = subprocess.run(
        [programs / "phirt_golden", folder, "1"], capture_output=True, timeout=120, env=os.environ
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert message in lines[-1] and lines[-1].startswith("error: ")
