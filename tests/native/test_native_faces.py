"""The Kotlin face on a JVM, the Android app's types, and the Swift sources' grammar."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock
from native_host import HARDLY_OPTIMIZED, ROOT, onnxruntime_parts, require_programs

ANDROID, IOS = ROOT / "apps" / "android", ROOT / "apps" / "ios"
_CASES = 7
_QUICK = (
    "-Xmx1500m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # a compiler that runs once is not worth compiling
)


def checked(*command: object, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def java_home() -> Path:
    require_programs("java", "javac")
    compiler = shutil.which("javac")
    assert compiler is not None
    return Path(compiler).resolve().parents[1]


@pytest.fixture(scope="module")
def kotlin_classes(shared_folder: Path, java_home: Path) -> Path:
    """The library, the app and the golden program, compiled together; the app against stubs of Android."""
    compiler = onnxruntime_parts() / "kotlin" / "bin" / "kotlinc"
    if not compiler.is_file():
        pytest.skip("fetch_onnxruntime.py was run without --kotlin")
    jar = shared_folder / "kotlin.jar"
    with FileLock(f"{jar}.lock"):
        if not jar.is_file():
            stubs = shared_folder / "stubs"
            sources = sorted((ROOT / "tests" / "native" / "android_stubs").rglob("*.java"))
            checked("javac", "-d", stubs, *sources)
            folders = (ANDROID / "phirt/src/main/kotlin", ANDROID / "app/src/main/kotlin", ANDROID / "jvm")
            options = ("-Werror", "-include-runtime", "-cp", stubs, "-d", jar)
            checked("bash", compiler, *options, *folders, JAVA_OPTS=_QUICK)
    return jar


@pytest.fixture(scope="module")
def jni_library(shared_folder: Path, host_library: Path, java_home: Path) -> Path:
    include = onnxruntime_parts() / "include"
    require_programs("cmake", "ninja", "c++")
    folder = shared_folder / "jni"
    with FileLock(f"{folder}.lock"):
        given = (f"-DONNXRUNTIME_INCLUDE={include}", f"-DONNXRUNTIME_LIBRARY={host_library}")
        source = ANDROID / "phirt" / "src" / "main" / "cpp"
        checked(
            "cmake",
            "-G",
            "Ninja",
            "-S",
            source,
            "-B",
            folder,
            *given,
            *HARDLY_OPTIMIZED,
            JAVA_HOME=str(java_home),
        )
        assert "warning:" not in checked("cmake", "--build", folder)
    return folder / "libphirt_jni.so"


def test_kotlin_on_a_jvm(
    kotlin_classes: Path, jni_library: Path, nano_package: Path, java_home: Path
) -> None:
    """With the JVM's own checks of what crosses its border."""
    library = f"-Ddev.phirt.library={jni_library}"
    command = ("java", "-Xcheck:jni", library, "-cp", kotlin_classes, "dev.phirt.GoldenKt", nano_package)
    written = checked(*command)
    assert f"{_CASES} of {_CASES} identical" in written
    assert "WARNING in native method" not in written and "FATAL ERROR" not in written


def test_swift_is_swift() -> None:
    """Its grammar alone: no compiler of Swift is at hand."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_swift")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    sources = sorted(IOS.rglob("*.swift"))
    assert len(sources) >= 6
    for source in sources:
        assert not parser.parse(source.read_bytes()).root_node.has_error, source


def test_the_swift_package_shows_the_core() -> None:
    for name in ("src", "include"):
        link = IOS / "Sources" / "CPhirt" / name
        assert link.resolve() == ROOT / "apps" / "native" / name
    assert (ROOT / "apps/native/include/module.modulemap").read_text().startswith("module CPhirt {")


def test_every_function_of_the_header_has_its_place_in_both_faces() -> None:
    header = (ROOT / "apps/native/include/phirt.h").read_text()
    names = set(re.findall(r"\b(phirt_[a-z_]+)\(", header)) - {"phirt_model_open"}
    door = (ANDROID / "phirt/src/main/cpp/jni.cc").read_text()
    swift = (IOS / "Sources/Phirt/Phirt.swift").read_text()
    assert len(names) == 18
    assert {name for name in names if name not in door} == set()
    assert {name for name in names if name not in swift} == set()
