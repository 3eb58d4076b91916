"""Tasks by which models are measured: one module a task, named after it, with its TASK.

Knows where tasks lie, and none of them: a new one is a new module here.
"""

from __future__ import annotations

import importlib
import pkgutil

from phirt.errors import ConfigError
from phirt_quant.tasks.task import Task

_NO_TASK = "task"


def known_tasks() -> tuple[str, ...]:
    """The names that `--task` takes."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != _NO_TASK))


def read_task(name: str) -> Task:
    """A task. Raises ConfigError naming those that there are."""
    if name not in known_tasks():
        raise ConfigError(f"there is no task {name!r}; choose from {', '.join(known_tasks())}")
    task: Task = importlib.import_module(f"{__name__}.{name}").TASK
    return task
