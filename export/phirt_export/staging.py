"""The folder in which a bundle grows: beside its destination, under a fixed name, kept when the work is
interrupted.

Knows locks, durability, what may be overwritten and when to give up what is there. Knows nothing of a
bundle's contents. For the output `NAME` the folder is `.NAME.partial`; it holds `bundle` (which becomes NAME
by a rename), `journal`, `lock`, and for a moment `former`, the bundle that is replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from phirt.bundle.files import load_any
from phirt.bundle.manifest import EMBEDDER_FORMAT, FORMAT, MANIFEST_NAME
from phirt.errors import BundleError, ConfigError, PhirtError
from phirt.runtime.atomic_file import sync_file, sync_folder
from phirt.runtime.file_lock import take_lock
from phirt_export.containers import read_json
from phirt_export.journal import Journal

_BUNDLE, _JOURNAL, _LOCK, _FORMER = "bundle", "journal", "lock", "former"
# Another export may finish, and remove its folder, between two steps of ours.
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Staging:
    """The bundle's folder to fill, and the journal of what an interrupted run has left in it."""

    folder: Path
    journal: Journal


@contextlib.contextmanager
def staged_bundle(output: Path, identity: str) -> Iterator[Staging]:
    """A folder to fill; it becomes `output` when the block ends without an error.

    When the block is interrupted, or the process killed, what is finished stays and the next call with the
    same `identity` (see `identity.identity`) continues with it. A user's mistake that comes up in the block
    (any PhirtError) removes it.

    Raises:
        ConfigError: `output` exists and is neither empty nor a bundle, so replacing it would lose something;
            or another process exports to it now.
        BundleError: the disk is full or the place is not writable; a former bundle is still there.
    """
    output = output.absolute()
    require_replaceable(output)
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial, output):
            _settle_former(partial, output)
            keep = False
            try:
                journal = Journal(partial / _JOURNAL, identity)
                with contextlib.closing(journal):
                    try:
                        yield Staging(_prepared(partial / _BUNDLE, journal), journal)
                        load_any(partial / _BUNDLE)
                        _publish(partial, output)
                    except PhirtError:
                        raise
                    except BaseException:
                        keep = not journal.is_empty
                        raise
            finally:
                if not keep:
                    _discard(partial)
    except OSError as error:
        raise _unwritable(output, partial, error) from error


def _prepared(folder: Path, journal: Journal) -> Path:
    """The bundle's folder, with nothing in it but the data files that the journal knows."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if not journal.entries(path.name):
            path.unlink()
    return folder


def _publish(partial: Path, output: Path) -> None:
    """Bring all of the bundle to the disk, then move it to `output`; a former bundle stays until then."""
    folder, former = partial / _BUNDLE, partial / _FORMER
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)
    if output.exists():
        output.rename(former)
    try:
        folder.rename(output)
    except BaseException:  # Ctrl-C as well: the former bundle is not to be missing from its place
        if former.exists():
            former.rename(output)
        raise
    sync_folder(output.parent)


def _settle_former(partial: Path, output: Path) -> None:
    """After a crash in `_publish`: the former bundle goes back to its place, unless the new one is there."""
    former = partial / _FORMER
    if former.exists() and not output.exists():
        former.rename(output)
    shutil.rmtree(former, ignore_errors=True)


@contextlib.contextmanager
def _locked(partial: Path, output: Path) -> Iterator[None]:
    """`partial` exists and is this process's alone. The system takes the lock back however a process ends."""
    file = _take_lock(partial, output)
    try:
        yield
    finally:
        file.close()
        if os.name == "nt":  # open files cannot be removed there, so the folder still holds the lock
            _remove_if_finished(partial)


def _take_lock(partial: Path, output: Path) -> BinaryIO:
    for _ in range(_ATTEMPTS):
        _check_ours(partial)
        try:
            partial.mkdir(exist_ok=True, mode=0o700)
            file = (partial / _LOCK).open("ab")
        except FileNotFoundError:  # another export has removed the folder meanwhile
            continue
        try:
            take_lock(file)
            if os.fstat(file.fileno()).st_ino == (partial / _LOCK).stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise ConfigError(
                f"another export to {output} is running; wait until it has finished, or choose another output"
            ) from error
        file.close()
    raise ConfigError(f"other exports to {output} come and go; try again when they have finished")


def _check_ours(partial: Path) -> None:
    """Refuse a folder of that name which somebody else has made: it would be emptied."""
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise ConfigError(f"{partial} exists and is not a folder; remove it, or choose another output")
    if hasattr(os, "getuid") and partial.exists() and partial.stat().st_uid != os.getuid():
        raise ConfigError(f"{partial} belongs to another user; choose another output")
    inside = list(partial.iterdir()) if partial.is_dir() else []
    ours = {_BUNDLE, _JOURNAL, _LOCK, _FORMER}
    # A link of one of our names would have us empty or overwrite what it shows.
    if foreign := sorted(path.name for path in inside if path.name not in ours or path.is_symlink()):
        raise ConfigError(
            f"{partial} holds {foreign[0][:80]}, which no export has put there; move it away, or choose "
            "another output"
        )


def _discard(partial: Path) -> None:
    """Remove the folder and all in it, the lock last: whoever gets in between makes a new one."""
    for name in (_BUNDLE, _FORMER):
        shutil.rmtree(partial / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        (partial / _JOURNAL).unlink(missing_ok=True)
        _remove_if_finished(partial)


def _remove_if_finished(partial: Path) -> None:
    with contextlib.suppress(OSError):
        if not (partial / _JOURNAL).exists():
            (partial / _LOCK).unlink(missing_ok=True)
            partial.rmdir()


def _unwritable(output: Path, partial: Path, error: OSError) -> BundleError:
    kept = f"; what is finished is kept in {partial}, and the same command goes on from there"
    return BundleError(
        f"{output} cannot be written: {error.strerror or error}; free space or choose another output"
        + (kept if partial.is_dir() else "")
    )


def require_replaceable(output: Path) -> None:
    """Raises ConfigError where something other than a bundle or an empty folder is at `output`."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ConfigError(f"{output} exists and is not a folder; choose another output")
    if not output.is_dir() or not any(output.iterdir()):
        return
    try:
        is_bundle = read_json(output / MANIFEST_NAME, "").raw("format") in (FORMAT, EMBEDDER_FORMAT)
    except ConfigError:
        is_bundle = False
    if not is_bundle:
        raise ConfigError(
            f"{output} exists and is not a bundle, so it is not overwritten; choose another output"
        )
