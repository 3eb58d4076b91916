"""Fixtures for all tests: where the shared data and the fast bundle lie; no cache and no settings of the
user's.
"""

import os
from pathlib import Path

import pytest

os.environ["PHIRT_CACHE"] = "off"
os.environ["PHIRT_CONFIG"] = str(Path(__file__).with_name("no-settings.toml"))  # nobody's own defaults
NANO = Path(__file__).with_name("bundles") / "nano"
os.environ["PHIRT_MODEL"] = str(NANO)  # commands without -m; see `embedded`

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def nano() -> Path:
    """A trained bundle of 16 MB that opens in a moment and knows text, pictures and recordings, with adapters
    for them; do not change it. For what needs no training, tests make bundles with random weights.
    """
    return NANO


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands without -m use the model that comes with phirt."""
    monkeypatch.delenv("PHIRT_MODEL")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real photos, recordings and text, beside the repository; tests that need it skip
    without it.
    """
    if not SHARED.is_dir():
        pytest.skip(f"the shared data are not at {SHARED}")
    return SHARED
