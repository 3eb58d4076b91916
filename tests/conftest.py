"""Fixtures for all tests: where the shared data lies; no cache and no settings of the user's."""

import os
from pathlib import Path

import pytest

os.environ["PHIRT_CACHE"] = "off"
os.environ["PHIRT_CONFIG"] = str(Path(__file__).with_name("no-settings.toml"))  # nobody's own defaults
os.environ.pop("PHIRT_MODEL", None)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real photos, recordings and text, beside the repository; tests that need it skip
    without it.
    """
    if not SHARED.is_dir():
        pytest.skip(f"the shared data are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def nano() -> Path:
    """The small trained bundle, wherever the repository has it."""
    root = Path(__file__).resolve().parents[1]
    places = (root / "tests" / "bundles" / "nano", root / "phirt" / "bundles" / "nano")
    return next(place for place in places if (place / "manifest.json").is_file())
