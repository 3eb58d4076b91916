"""What distributions hold: the embedded model whole with its terms, and nothing of the tests in a wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
builders = pytest.importorskip("hatchling.builders.wheel")
sources = pytest.importorskip("hatchling.builders.sdist")


def _shipped(builder: type) -> set[str]:
    """The paths in a distribution, without building it."""
    return {file.distribution_path for file in builder(str(ROOT)).recurse_included_files()}


def test_a_wheel_holds_the_embedded_model_and_no_other() -> None:
    found = _shipped(builders.WheelBuilder)
    bundles = {path for path in found if path.startswith("phirt/bundles/")}
    files = {path.name for path in (ROOT / "phirt/bundles/mini").iterdir()}
    assert bundles == {f"phirt/bundles/mini/{name}" for name in files} and "manifest.json" in files
    packages = {path.split("/")[0] for path in found}
    assert packages == {"phirt", "phirt_apps", "phirt_export", "phirt_quant", "phirt_train"}


def test_a_source_distribution_holds_what_a_wheel_is_made_of() -> None:
    found = _shipped(sources.SdistBuilder)
    assert {"phirt/bundles/mini/manifest.json", "export/recipes/mini/NOTICE", "LICENSE"} <= found
    assert [path for path in found if path.startswith("tests/")] == []


def test_the_terms_of_all_parts_come_with_a_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "MIT AND Apache-2.0"
    assert len(project["license-files"]) == 3
    for name in project["license-files"]:
        assert (ROOT / name).is_file()
