"""An index brought up to date with its folder: what is new or changed is read, what is gone is dropped.

Knows in which order that is done, and what is said of it. Does not know how files are read or kept.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import phirt

from .files import DocumentError, Found, TransientError, list_files, opened
from .index import Entry, File, Index
from .limits import Limits
from .passages import Passage, cut
from .pdf import NoPdfError, TimeUpError
from .reading import digest, read_document, require_readable

OnProgress = Callable[[str, int, int], None]  # what is done, how many of it, of how many

_BATCH = 32  # passages whose vectors are computed and kept at once: what is lost when it is stopped
# A file that changes again within the clock's tick keeps its stamp; one this new is looked into once more.
_TICK_NS = 2_000_000_000
# In front of the stamp of a file that is looked into though it stays the same: of one that was cut for lack
# of room, once there is room; of one that took too long, as it may at every question, after a while.
_CUT, _LATER = "cut", "later:"
_RETRY_SECONDS = 3600.0


@dataclass
class Update:
    """What was done. `lines` are about files that are new or changed and could not be read whole; `former`
    are the names of those of which that was said before.
    """

    read: int = 0
    dropped: int = 0
    lines: list[str] = field(default_factory=list)
    former: list[str] = field(default_factory=list)
    no_pdf: list[str] = field(default_factory=list)  # names of PDFs, where none can be read
    room: int = 0  # for passages


def update(
    index: Index, root: Path, embedder: phirt.Embedder | None, limits: Limits, on_progress: OnProgress
) -> Update:
    """Reads what changed. Whoever stops it finds done what was done. Raises sqlite3.Error, and ConfigError
    where the folder cannot be listed.
    """
    done = Update()
    listing = list_files(root, limits)
    known = index.files()
    present = {found.name for found in listing.found}
    for name in [name for name in known if name not in present and listing.is_gone(name)]:
        index.forget(name)
        done.dropped += 1
    done.lines += listing.left_out
    done.room = limits.passages - index.count()
    changed, cut_short = _to_read(listing.found, known, done)
    _take_in_all(index, changed, known, limits, done, on_progress)
    if done.room > 0:
        _take_in_all(index, cut_short, known, limits, done, on_progress)
    else:
        done.former += [found.name for found in cut_short]
    index.erase()
    if embedder is not None:
        _embed(index, embedder, on_progress)
    return done


def _to_read(listed: list[Found], known: dict[str, File], done: Update) -> tuple[list[Found], list[Found]]:
    """Files that are new, changed or to be tried again, and those of which room was lacking for more."""
    changed, cut_short = [], []
    for found in listed:
        before = known.get(found.name)
        state, _, stamp = before.stamp.rpartition(" ") if before is not None else ("", "", "")
        if stamp != found.stamp or (state.startswith(_LATER) and _is_due(state)):
            changed.append(found)
        elif state == _CUT:
            cut_short.append(found)
        elif before is not None and before.remark is not None:
            done.former.append(found.name)
    return changed, cut_short


def _later(found: Found) -> str:
    """The stamp of a file that is tried again after a while, though it does not change."""
    return f"{_LATER}{time.time() + _RETRY_SECONDS:.0f} {found.stamp}"


def _is_due(state: str) -> bool:
    left = float(state.removeprefix(_LATER)) - time.time()
    return not 0 < left <= _RETRY_SECONDS  # more is left where the clock was set back


def _take_in_all(
    index: Index,
    files: list[Found],
    known: dict[str, File],
    limits: Limits,
    done: Update,
    on_progress: OnProgress,
) -> None:
    for number, found in enumerate(files):
        on_progress("reading documents", number, len(files))
        _take_in(index, found, known.get(found.name), limits, done)
    if files:
        on_progress("reading documents", len(files), len(files))


def _take_in(index: Index, found: Found, before: File | None, limits: Limits, done: Update) -> None:
    """Reads one file, whatever it is; what is wrong with it is one line, and the others go on."""
    recent = time.time_ns() - found.changed_ns < _TICK_NS
    stamp = "" if recent else found.stamp
    total = ""
    passages: list[Passage] = []
    replaced = 0 if before is None else index.count_of(found.name)
    room = max(0, done.room + replaced)
    try:
        with opened(found.path, found.identity) as file:
            require_readable(file, found.name, limits)
            total = digest(file)
            if before is not None and total == before.digest:
                index.restamp(found.name, stamp)
                if before.remark is not None:
                    done.former.append(found.name)
                return
            document = read_document(file, found.name, limits)
        passages = list(itertools.islice(cut(document.sections), room + 1))
        remark = document.remark
        if document.guess is not None:
            done.lines.append(f"{found.name} {document.guess}")
        if document.time_up:
            stamp, total = _later(found), ""
        if len(passages) > room:
            remark = f"is read in part: {limits.passages:,} passages are kept of a folder at most"
            stamp, total = f"{_CUT} {stamp}", ""
            del passages[room:]
    except NoPdfError:
        done.no_pdf.append(found.name)  # read as soon as it can be, so nothing of it is noted
        if before is not None:
            index.forget(found.name)
            done.room += replaced
        return
    except TimeUpError as error:
        stamp, total, remark = _later(found), "", str(error)
    except TransientError as error:
        stamp, total, remark = "", "", str(error)
    except DocumentError as error:
        remark = str(error)
    index.put(found.name, stamp, total, passages, remark)
    done.room += replaced - len(passages)
    done.read += bool(passages)
    if remark is not None:
        done.lines.append(f"{found.name} {remark}")


def _embed(index: Index, embedder: phirt.Embedder, on_progress: OnProgress) -> None:
    index.use_encoder(embedder.manifest.fingerprint)
    total = index.number_without_vector()
    prompt = prompt_for(embedder, ("document", "passage", "text"))
    made = 0
    while entries := index.without_vector(_BATCH):
        on_progress("computing vectors", made, total)
        texts = [described(entry) for entry in entries]
        index.put_vectors([entry.id for entry in entries], embedder.embed(texts, prompt))
        made += len(entries)
    if total:
        on_progress("computing vectors", total, total)


def described(entry: Entry) -> str:
    """A passage with what it is about in front: its heading, or what its file is called."""
    return f"{entry.passage.heading or Path(entry.file).stem}: {entry.passage.text}"


def prompt_for(embedder: phirt.Embedder, names: tuple[str, ...]) -> str | None:
    """The one of the encoder's own prompts that is for this, where it has any."""
    return next((name for name in names if name in embedder.manifest.prompts), None)
