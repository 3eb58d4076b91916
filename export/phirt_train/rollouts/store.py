"""Drawn answers on disk: one JSON line a question, written when all of its answers are there.

A file belongs to one run: its first line says what the answers are a function of. What was cut off by a kill
in the midst of a line is drawn again.

Knows files. Knows nothing of models or of what is right.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from phirt.errors import ConfigError
from phirt_train.rollouts.sampler import Sample


class SampleStore:
    """The answers to questions by the questions' ids; `with` closes the file.

    Raises:
        ConfigError: the file holds answers of another run, or something else.
    """

    def __init__(self, path: Path, run: dict[str, object]) -> None:
        self.path = path
        self._samples: dict[str, list[Sample]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        end = self._read(run) if path.exists() else 0
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._write(run)

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._samples

    def __getitem__(self, question_id: str) -> list[Sample]:
        return self._samples[question_id]

    def add(self, question_id: str, samples: Sequence[Sample]) -> None:
        """Keep the answers to a question; they survive this process from now on."""
        self._samples[question_id] = list(samples)
        self._write({"id": question_id, "samples": [dataclasses.asdict(sample) for sample in samples]})

    def _write(self, value: dict[str, object]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=True, sort_keys=True).encode() + b"\n")
        self._file.flush()

    def _read(self, run: dict[str, object]) -> int:
        """Takes over what is there. Returns where the last whole line ends."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        head, *lines = content[:end].splitlines() or [b""]
        if not end:
            return 0
        try:
            if json.loads(head) != json.loads(json.dumps(run)):
                raise ConfigError(
                    f"{self.path} holds answers of another model, or with other settings; give another "
                    "folder, or delete it"
                )
            for line in lines:
                record = json.loads(line)
                self._samples[record["id"]] = [Sample(**sample) for sample in record["samples"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self.path} is no file of drawn answers: {error}; delete it") from error
        return end
