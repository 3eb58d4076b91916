"""Writes the training data of the reports' recipes: each group of files by a module of its own.

A recipe names the groups that it reads, `[prepare.options.text]` for one, each with how much is made. What
nano's code writes already is its own: it is imported from there.

Knows the groups. Knows nothing of what any of them writes.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from phirt.errors import ConfigError
from phirt_train.preparation import PreparationTask

from .asked_aloud import AskedAloud
from .beside_pictures import BesidePictures
from .captions import Captions
from .chats import Chats
from .documents import Documents
from .frames import Frames
from .passages import Passages
from .posttraining import PostTraining
from .reasoning import Reasoning
from .speech_tasks import SpeechTasks
from .text_kinds import TextKinds


class Group(Protocol):
    """Files that belong together: a frozen dataclass of how much is made."""

    def write(self, task: PreparationTask) -> None:
        """Write them under `task.output`."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The groups; one that is left out is not written.

    Attributes:
        text: documents of the kinds that text models are trained on.
        chats: conversations by domain, and preferences.
        captions: pictures with captions and questions.
        frames: several pictures that belong together.
        documents: pages of documents as pictures.
        speech: recordings, one file a task.
        posttraining: conversations of the skills that are trained after reading.
        reasoning: problems with the way to their answers.
        passages: questions that are answered from a passage before them.
        asked_aloud: questions about the pictures of `captions` that are spoken.
        beside_pictures: tasks of `posttraining` in conversations about pictures of `captions`.
    """

    text: TextKinds | None = None
    chats: Chats | None = None
    captions: Captions | None = None
    frames: Frames | None = None
    documents: Documents | None = None
    speech: SpeechTasks | None = None
    posttraining: PostTraining | None = None
    reasoning: Reasoning | None = None
    passages: Passages | None = None
    asked_aloud: AskedAloud | None = None
    beside_pictures: BesidePictures | None = None


def prepare(task: PreparationTask, options: Options) -> None:
    """Write every group that the recipe names."""
    if not (task.data / "README.md").is_file():
        raise ConfigError(
            f"{task.data} is not the data folder; it must hold README.md, text/, images/ and speech/"
        )
    for field in dataclasses.fields(options):
        group: Group | None = getattr(options, field.name)
        if group is not None:
            group.write(task)
