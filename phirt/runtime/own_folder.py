"""A folder from which files are deleted only when they are provably this package's own: opened without
following links, looked into and emptied name by name, never as a tree.

Knows folders, links, owners. Knows nothing of what the files mean; the caller says which names it wrote.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

# Names are looked up in the open folder where the system can; Windows looks them up by path.
_BY_DESCRIPTOR = os.supports_dir_fd >= {os.open, os.stat, os.unlink, os.rmdir}
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | _NO_LINK | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_FILE = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class OwnFolder:
    """A real folder, held open. Whatever takes its path meanwhile, names are looked up in this one.

    Raises OSError where there is no folder at `path`, or a link.
    """

    def __init__(self, path: Path, within: OwnFolder | None = None) -> None:
        self.path = path
        self._descriptor: int | None = None
        if not _BY_DESCRIPTOR:
            if not _is_real_folder(path.lstat()):
                raise NotADirectoryError(f"{path} is no folder, or a link to one")
        elif within is None:
            self._descriptor = os.open(path, _FOLDER)
        else:
            self._descriptor = os.open(path.name, _FOLDER, dir_fd=within._descriptor)

    def __enter__(self) -> OwnFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def inner(self, name: str) -> OwnFolder:
        """The folder `name` in this one."""
        return OwnFolder(self.path / name, self)

    def names(self) -> list[str]:
        """What lies in the folder."""
        with os.scandir(self.path if self._descriptor is None else self._descriptor) as found:
            return [entry.name for entry in found]

    def is_private(self) -> bool:
        """Whether it is this user's and nobody else may write to it. On Windows the user's own profile, or a
        folder that the user has named, is taken for that.
        """
        if not hasattr(os, "geteuid"):
            return True
        state = self.path.stat() if self._descriptor is None else os.fstat(self._descriptor)
        return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

    def state(self, name: str) -> os.stat_result | None:
        """What `name` is, a link for itself; None where nothing is there."""
        try:
            return os.stat(self._place(name), dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def own_file_state(self, name: str) -> os.stat_result:
        """What `name` is, where it is a plain file of this user under this one name. Raises OSError."""
        state = os.stat(self._place(name), dir_fd=self._descriptor, follow_symlinks=False)
        is_own = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1 or not is_own:
            raise FileExistsError(f"{self.path / name} is no plain file of this user")
        return state

    def read(self, name: str, limit: int) -> bytes:
        """The first `limit` bytes of a plain file. Raises OSError; a pipe or a link is not waited for."""
        self.own_file_state(name)
        descriptor = os.open(self._place(name), _FILE, dir_fd=self._descriptor)
        try:
            return os.read(descriptor, limit)
        finally:
            os.close(descriptor)

    def unlink(self, name: str) -> None:
        """Removes one name."""
        os.unlink(self._place(name), dir_fd=self._descriptor)

    def remove_folder(self, name: str, expected: Collection[str]) -> bool:
        """Removes the folder `name` if nothing but plain files of this user with `expected` names lie in it,
        in the order of these; returns whether it is gone.
        """
        try:
            with self.inner(name) as folder:
                found = folder.names()
                if not set(found) <= set(expected):
                    return False
                for file in found:
                    folder.own_file_state(file)
                for file in [file for file in expected if file in found]:
                    folder.unlink(file)
            os.rmdir(self._place(name), dir_fd=self._descriptor)  # refuses a folder that is not empty
        except FileNotFoundError:
            return self.state(name) is None
        except OSError:
            return False
        return True

    def _place(self, name: str) -> str:
        assert name == Path(name).name and name not in ("", ".", "..")
        return str(self.path / name) if self._descriptor is None else name


def _is_real_folder(state: os.stat_result) -> bool:
    """Whether a folder's own state says so; on Windows a junction says folder too."""
    return stat.S_ISDIR(state.st_mode) and not getattr(state, "st_reparse_tag", 0)
