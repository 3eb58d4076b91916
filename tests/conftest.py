"""Fixtures for all tests: where the shared data lies, and no cache in the user's folders."""

import os
from pathlib import Path

import pytest

os.environ["PHIRT_CACHE"] = "off"

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real photos, recordings and text, beside the repository; tests that need it skip
    without it.
    """
    if not SHARED.is_dir():
        pytest.skip(f"the shared data are not at {SHARED}")
    return SHARED
