"""Who runs what where several processes share out a run of the tests (pytest-xdist).

Knows which folders' fixtures cost more than their tests, and what takes longest. Knows nothing of what tests
check: by itself each passes in any process and in any order.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

# What their fixtures make (a compiler's output, a browser's visit, a cluster, a hub) is made by one process.
_WHOLE_FOLDERS = ("native", "kernels", "web", "curate", "hub")
# These begin, the longest first, so that none of them is all that is left at the end.
_FIRST = ("native", "apps", "hub", "kernels", "web", "curate", "train", "export")


class Sharing(LoadScopeScheduling):  # type: ignore[misc]  # xdist says nothing of its types
    """Hands out whole files, and whole folders whose fixtures are dear."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        self.config.option.loadscopereorder = False  # `place` has put them in order

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        folder = _folder(file)
        return folder if folder in _WHOLE_FOLDERS else file


def place(nodeid: str) -> int:
    """Where in the order of a run a test stands."""
    folder = _folder(nodeid)
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)


def _folder(nodeid: str) -> str:
    """The folder in `tests` that a test lies in."""
    _, folder, *_ = nodeid.split("/")
    return folder
