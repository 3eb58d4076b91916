"""Questions to draw answers to: JSON lines, as GSM8K has them or as conversations that a user ends.

{"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5", "level": "one step"}
{"prompt": [{"role": "user", "content": "..."}], "calls": [{"name": "f", "arguments": {}}], "tools": [...]}
{"question": "...", "constraints": [{"kind": "word_count", "at_most": 20}]}

Knows what a question and its right answer are. Knows nothing of models or of how answers are judged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from phirt.errors import ConfigError
from phirt.fields import Length, write_dataclass
from phirt_train.data.records import ToolCall, TrainingMessage, read_records

_ID_DIGITS = 16
_Turns = Annotated[tuple[TrainingMessage, ...], Length(1, 4096)]


@dataclasses.dataclass(frozen=True)
class Question:
    """What a model is asked, and by what its answers are judged.

    Attributes:
        question: what a user asks, or
        messages: whole turns, which a file calls `prompt` and a user ends.
        answer: a right answer, with its working where there is one: the gold path.
        calls: the calls of tools that are right.
        constraints: what an answer must fulfil, as `phirt_train.rollouts.constraints` reads it.
        level: how hard it is, as reports group questions.
        tools: what the turns are offered.
    """

    question: str | None = None
    messages: _Turns | None = dataclasses.field(default=None, metadata={"key": "prompt"})
    answer: str | None = None
    calls: Annotated[tuple[ToolCall, ...], Length(0, 64)] = ()
    constraints: Annotated[tuple[Mapping[str, Any], ...], Length(0, 64)] = ()
    level: str = "all"
    tools: Annotated[tuple[Mapping[str, Any], ...], Length(0, 256)] = ()

    def __post_init__(self) -> None:
        if (self.question is None) == (self.messages is None):
            raise ValueError("give either 'question' or 'prompt'")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError(f"'prompt' ends with a message of role {self.messages[-1].role}, expected: user")

    @property
    def asked(self) -> tuple[TrainingMessage, ...]:
        """The turns that the model answers."""
        if self.messages is not None:
            return self.messages
        assert self.question is not None
        return (TrainingMessage("user", self.question),)

    @property
    def id(self) -> str:
        """Names the question by its content, wherever it stands in a file."""
        plain = json.dumps(write_dataclass(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:_ID_DIGITS]


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a file, each once, at most `limit`, spread evenly over the file.

    Raises:
        ConfigError: the file cannot be read, a line is no question, or there is none.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; give JSON lines with a 'question' or a 'prompt' each")
    questions = list({one.id: one for _, one in read_records(path, Question)}.values())
    if not questions:
        raise ConfigError(f"{path} holds no question; give JSON lines with a 'question' or a 'prompt' each")
    if limit is None or limit >= len(questions):
        return questions
    return [questions[index * len(questions) // limit] for index in range(limit)]
