"""What somebody sees who exports a published checkpoint: what is asked, what comes from where, how far it is.

Knows the screen. The hub and its cache are phirt_export's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TextColumn

from .errors import UsageError
from .extras import needs_extra
from .output import Output, one_line, size

if TYPE_CHECKING:
    from phirt_export.hub import HubId, Plan, Step

_LOG_EVERY_SECONDS = 60.0


def local_checkpoint(
    checkpoint: str, out: Output, *, revision: str | None, token: str | None, offline: bool
) -> Path:
    """The checkpoint as a folder or file of this machine: what the name says where that exists, else what is
    published under it, which is fetched as far as it is missing unless `offline`. Ctrl-C keeps what has
    arrived.

    Raises:
        HubError: it cannot be fetched, or, `offline`, is not kept here.
        UsageError: a revision of something that is not published.
    """
    with needs_extra("export"):
        from phirt_export import hub
    of = hub.hub_id(checkpoint, revision)
    if of is None:
        if revision is not None:
            raise UsageError(
                f"--revision is for a published checkpoint, and {one_line(checkpoint)} is a path"
            )
        return Path(checkpoint).expanduser()
    if not offline:
        hub.require_library(of)
    with needs_extra("export"):
        offline = offline or hub.is_offline()
    if offline:
        return hub.kept(of)
    try:
        with _shown(out) as arrives:
            return hub.fetch(of, _Told(out, arrives), token)
    except KeyboardInterrupt:
        out.notice("stopped; what has arrived is kept: the same command goes on from here")
        raise


def local_base(
    checkpoint: Path, base: str | None, out: Output, *, token: str | None, offline: bool
) -> Path | None:
    """The base of an adapter's folder, the given one or what it names, fetched as far as it is missing; None
    where the checkpoint is no adapter.

    Raises:
        AdapterError: the adapter cannot be read, or names no base.
        UsageError: a base of something that is no adapter.
    """
    with needs_extra("export"):
        from phirt_export.adapted import is_adapter, named_base
        from phirt_export.hub import HubId
    if not is_adapter(checkpoint):
        if base is not None:
            raise UsageError(
                f"--base is for the folder of an adapter, and {one_line(str(checkpoint))} is none"
            )
        return None
    named = base or named_base(checkpoint)
    if isinstance(named, Path):
        return named
    name, revision = (named.repo, named.revision) if isinstance(named, HubId) else (named, None)
    return local_checkpoint(name, out, revision=revision, token=token, offline=offline)


class _Told:
    """Says what happens on stderr."""

    def __init__(self, out: Output, arrives: Callable[[Step], None]) -> None:
        self._out, self.arrives = out, arrives

    def asks(self, of: HubId, endpoint: str) -> None:
        """The first connection is opened next."""
        self._out.notice(
            f"{of} is no folder here: asking {endpoint} for {of.revision} of it (--offline asks nobody)"
        )

    def fetches(self, plan: Plan) -> None:
        """It is known what is missing."""
        missing = plan.total - plan.there
        if not missing:
            self._out.notice(f"all {plan.files} files ({size(plan.total)}) are in {plan.folder} already")
            return
        here = f" ({size(plan.there)} are there already)" if plan.there else ""
        self._out.notice(
            f"fetching {size(missing)} of {plan.files} files from {plan.endpoint} into {plan.folder}{here}"
        )

    def waits(self, why: str, seconds: float) -> None:
        """The hub or the network needs a pause."""
        self._out.notice(f"{why}; trying again in {seconds:.0f} s")


class Speed:
    """Bytes, share, bytes a second, and the time that is left at that speed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None

    def of(self, step: Step) -> str:
        """One short line."""
        share = 100 * step.done // max(1, step.total)
        text = f"file {step.number}/{step.files}, {size(step.done)} of {size(step.total)}, {share} %"
        now = self._clock()
        if self._start is None:
            self._start = (now, step.done)
        began, before = self._start
        if now - began < 1 or step.done <= before:
            return text
        rate = (step.done - before) / (now - began)
        minutes, seconds = divmod(int((step.total - step.done) / rate), 60)
        left = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        return f"{text}, {size(int(rate))}/s, {left} left"


@contextlib.contextmanager
def _shown(out: Output) -> Iterator[Callable[[Step], None]]:
    """A bar on a terminal, else a line a minute."""
    speed = Speed(time.monotonic)
    if not out.notices_on_terminal:
        written = time.monotonic()

        def log(step: Step) -> None:
            nonlocal written
            line = speed.of(step)
            if time.monotonic() - written >= _LOG_EVERY_SECONDS:
                out.notice(f"{line}: {one_line(step.file)}")
                written = time.monotonic()

        yield log
        return
    columns = (BarColumn(), TextColumn("{task.fields[figures]}"), TextColumn("{task.description}"))
    with out.bars(*columns) as bars:
        task = bars.add_task("", total=None, figures="", visible=False)

        def draw(step: Step) -> None:
            name = one_line(step.file)
            bars.update(
                task,
                completed=step.done,
                total=step.total,
                description=name,
                figures=speed.of(step),
                visible=True,
            )

        yield draw
