"""An encoder made for tests: texts are near where they share words of the same meaning."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pdf_file, which the benchmark shares


class Meanings:
    """Stands for `phirt.Embedder`: one number for each meaning, which several words have."""

    width = 3
    groups = (("cat", "kitten", "feline"), ("car", "automobile"), ("rain", "shower"))

    def __init__(self, fingerprint: str = "first") -> None:
        self.manifest = SimpleNamespace(fingerprint=fingerprint, prompts={"query": "q: "})
        self.texts: list[str] = []
        self.prompts: list[str | None] = []

    def embed(self, texts: Iterable[str], prompt: str | None = None) -> npt.NDArray[np.float32]:
        """One row for each text."""
        texts = list(texts)
        self.texts += texts
        self.prompts.append(prompt)
        rows = [[sum(word in text.lower() for word in group) for group in self.groups] for text in texts]
        return np.array(rows, np.float32).reshape(len(texts), self.width)


@pytest.fixture
def meanings() -> Meanings:
    return Meanings()
