"""Standard input: whether something comes, how long it is waited for, and its text.

Knows the kinds of files that a shell, a program or a service manager hands over. Does not know what the bytes
are for. Nobody tells a program whether its standard input is meant for it, so this is the rule:

    a terminal                         is not read, but where a command asks for it with `-`
    a file, /dev/null, a closed pipe   is read to its end
    a pipe of a pipeline (`a | phirt`) is read to its end, however long the other command takes
    any other pipe or socket, such as that of a program that starts phirt and never writes: is read when
                                       something comes within GIVE_UP_SECONDS; otherwise a line on stderr
                                       says that it was left alone. `</dev/null` says so without the wait

A pipe is a pipeline's where a process of this session that did not start phirt has it open for writing.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
import time
from pathlib import Path

from phirt.errors import ConfigError

from .output import Output
from .text_files import decode

GIVE_UP_SECONDS = 6.0
NOTICE_SECONDS = 1.0
_CHUNK_BYTES = 1 << 16
_POLL_SECONDS = 0.02
_WAITING = "waiting for standard input; </dev/null goes on without"


def is_terminal() -> bool:
    """Whether a person types there."""
    return sys.stdin.isatty()


def read_bytes(out: Output, max_bytes: int, *, required: bool) -> bytes | None:
    """All of standard input; None where nothing is to be had. `required` waits for as long as it takes.

    Raises ConfigError for more than `max_bytes`, and where it cannot be read.
    """
    if is_terminal() and not required:
        return None
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # not a file of the system, such as a test's buffer
        return _bounded(sys.stdin.buffer.read(max_bytes + 1), max_bytes)
    try:
        if not is_terminal() and not _something_comes(descriptor, out, required=required):
            out.notice(
                f"nothing came on standard input within {GIVE_UP_SECONDS:g} seconds, so it is not read; "
                "</dev/null goes on without the wait"
            )
            return None
        return _bounded(_read_all(descriptor, max_bytes + 1), max_bytes)
    except OSError as error:
        raise ConfigError(f"standard input cannot be read: {error.strerror}") from error


def read_text(out: Output, max_bytes: int, *, required: bool) -> str | None:
    """The same as text, without a byte order mark and without its last newline.

    Raises ConfigError for what is no text.
    """
    data = read_bytes(out, max_bytes, required=required)
    if data is None:
        return None
    try:
        return decode(data, "standard input").removesuffix("\n").removesuffix("\r")
    except ConfigError as error:
        raise ConfigError(f"{error}; a picture goes with --image -, a recording with --audio -") from error


def _bounded(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise ConfigError(f"standard input is too long; at most {max_bytes:,} bytes are read")
    return data


def _read_all(descriptor: int, max_bytes: int) -> bytes:
    """Bytes up to the end, or `max_bytes` of them; straight from the system, without Python's buffer."""
    data = io.BytesIO()
    while data.tell() < max_bytes:
        try:
            chunk = os.read(descriptor, min(_CHUNK_BYTES, max_bytes - data.tell()))
        except BlockingIOError:  # whoever shares the pipe has made it so
            _readable(descriptor, None)
            continue
        if not chunk:
            break
        data.write(chunk)
    return data.getvalue()


def _something_comes(descriptor: int, out: Output, *, required: bool) -> bool:
    """Waits for the first byte or the end: as the module's rule says, or where `required` without end."""
    if _readable(descriptor, NOTICE_SECONDS):
        return True
    with out.busy(_WAITING):
        if _readable(descriptor, GIVE_UP_SECONDS - NOTICE_SECONDS):
            return True
        if not required and not _is_of_a_pipeline(os.fstat(descriptor)):
            return False
        if not out.notices_on_terminal:  # nothing shall wait for ever without a word
            out.notice(_WAITING)
        return _readable(descriptor, None)


def _readable(descriptor: int, seconds: float | None) -> bool:
    """Whether a read would return at once, within these seconds."""
    if sys.platform != "win32":
        return bool(select.select([descriptor], [], [], seconds)[0])
    import _winapi
    import msvcrt

    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return True
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        try:
            if _winapi.PeekNamedPipe(msvcrt.get_osfhandle(descriptor), 0)[0]:
                return True
        except OSError:  # its writer has closed it
            return True
        if end is not None and time.monotonic() >= end:
            return False
        time.sleep(_POLL_SECONDS)


def _is_of_a_pipeline(pipe: os.stat_result) -> bool:
    if sys.platform == "win32" or not stat.S_ISFIFO(pipe.st_mode):
        return False
    processes = Path("/proc")
    if not (processes / "self" / "stat").exists():
        # A shell makes the first process of a pipeline the leader of its group.
        return os.getpgrp() not in (os.getpid(), os.getppid())
    passed_over = {os.getpid(), *_ancestors()}
    session = os.getsid(0)
    for folder in processes.iterdir():
        process = int(folder.name) if folder.name.isdigit() else 0
        if process and process not in passed_over:
            # It may have ended meanwhile, or belong to somebody else.
            with contextlib.suppress(OSError):
                if os.getsid(process) == session and _writes_to(folder, pipe):
                    return True
    return False


def _ancestors() -> list[int]:
    """The process that started this one, the one that started that, and so on."""
    ancestors, process = [], os.getppid()
    with contextlib.suppress(OSError, ValueError):
        while process > 0:
            ancestors.append(process)
            status = Path(f"/proc/{process}/stat").read_bytes()
            process = int(status[status.rindex(b")") + 1 :].split()[1])  # names may hold spaces and brackets
    return ancestors


def _writes_to(process: Path, pipe: os.stat_result) -> bool:
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            if os.path.samestat(link.stat(), pipe):
                info = (process / "fdinfo" / link.name).read_text(encoding="ascii")
                flags = int(info.split("flags:")[1].split()[0], 8)
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    return True
    return False
