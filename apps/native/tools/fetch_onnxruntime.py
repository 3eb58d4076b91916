"""What building and testing the library for apps needs of onnxruntime, brought into a folder from npm and
PyPI.

    python apps/native/tools/fetch_onnxruntime.py FOLDER && export PHIRT_ONNXRUNTIME=FOLDER

Then FOLDER has `include/` (the C headers), `android/` (the AAR: classes.jar, jni/ABI/libonnxruntime.so) and
`linux-aarch64/` (the library of the wheel for ARM, for tests under qemu); with --kotlin also `kotlin/`, the
compiler. The AAR and headers are those of onnxruntime 1.29 as the npm package com.github.asus4.onnxruntime
(MIT) carries them. Knows these packages and how they are packed. Needs npm and pip; nothing else opens a
connection.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_UNITY = "com.github.asus4.onnxruntime@0.4.9"
_KOTLIN = "kotlin-compiler@2.4.20"
_WHEEL = (
    "--platform",
    "manylinux_2_28_aarch64",
    "--python-version",
    "3.11",
    "--only-binary=:all:",
    "--no-deps",
)


def main() -> None:
    """Fetches what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kotlin", action="store_true", help="the Kotlin compiler as well (90 MB)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        if not (folder / "include").is_dir():
            _aar(_npm(_UNITY, scratch), folder)
        if not (folder / "linux-aarch64").is_dir():
            _library(scratch, folder / "linux-aarch64")
        if arguments.kotlin and not (folder / "kotlin").is_dir():
            shutil.move(_npm(_KOTLIN, scratch), folder / "kotlin")
    print(folder)


def _npm(package: str, scratch: Path) -> Path:
    """The unpacked content of an npm package."""
    into = scratch / package
    into.mkdir(parents=True)
    subprocess.run(["npm", "pack", "--silent", package], cwd=into, check=True, stdout=subprocess.DEVNULL)
    (archive,) = into.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    return into / "package"


def _aar(package: Path, folder: Path) -> None:
    with zipfile.ZipFile(package / "Plugins" / "Android" / "onnxruntime.aar") as archive:
        archive.extractall(folder / "android")
    headers = package / "Plugins" / "iOS~" / "onnxruntime.xcframework" / "ios-arm64_x86_64-simulator"
    shutil.copytree(headers / "onnxruntime.framework" / "Headers", folder / "include")


def _library(scratch: Path, target: Path) -> None:
    from importlib.metadata import version

    command = [sys.executable, "-m", "pip", "download", "--quiet", *_WHEEL, "-d", str(scratch / "wheel")]
    subprocess.run([*command, f"onnxruntime=={version('onnxruntime')}"], check=True)
    (wheel,) = (scratch / "wheel").glob("*.whl")
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if "/libonnxruntime.so." in one)
        (target / "libonnxruntime.so.1").write_bytes(archive.read(name))
    (target / "libonnxruntime.so").symlink_to("libonnxruntime.so.1")


if __name__ == "__main__":
    main()
