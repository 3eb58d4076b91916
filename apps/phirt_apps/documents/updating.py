"""An index brought up to date with its folder: what is new or changed is read, what is gone is dropped.

Knows in which order that is done, and what is said of it. Does not know how files are read or kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import phirt

from .files import DocumentError, Found, list_files, opened
from .index import Entry, File, Index
from .limits import Limits
from .passages import Passage, cut
from .pdf import NoPdfError
from .reading import digest, read_document, require_readable

OnProgress = Callable[[str, int, int], None]  # what is done, how many of it, of how many

_BATCH = 32  # passages whose vectors are computed and kept at once: what is lost when it is stopped
# A file that changes again within the clock's tick keeps its stamp; one this new is looked into once more.
_TICK_NS = 2_000_000_000


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
    """Reads what changed. Whoever stops it finds done what was done. Raises sqlite3.Error."""
    done = Update()
    listing = list_files(root, limits)
    known = index.files()
    present = {found.name for found in listing.found}
    for name in [name for name in known if name not in present]:
        index.forget(name)
        done.dropped += 1
    done.lines += listing.left_out
    changed = []
    for found in listing.found:
        before = known.get(found.name)
        if before is None or before.stamp != found.stamp:
            changed.append(found)
        elif before.remark is not None:
            done.former.append(found.name)
    done.room = limits.passages - index.count()
    for number, found in enumerate(changed):
        on_progress("reading documents", number, len(changed))
        _take_in(index, found, known.get(found.name), limits, done)
    if changed:
        on_progress("reading documents", len(changed), len(changed))
    if embedder is not None:
        _embed(index, embedder, on_progress)
    return done


def _take_in(index: Index, found: Found, before: File | None, limits: Limits, done: Update) -> None:
    """Reads one file, whatever it is; what is wrong with it is one line, and the others go on."""
    recent = time.time_ns() - found.changed_ns < _TICK_NS
    stamp = "" if recent else found.stamp
    total = ""
    passages: list[Passage] = []
    try:
        with opened(found.path) as file:
            require_readable(file, limits)
            total = digest(file)
            if before is not None and total == before.digest:
                index.restamp(found.name, stamp)
                if before.remark is not None:
                    done.former.append(found.name)
                return
            document = read_document(file, found.name, limits)
        passages = list(cut(document.sections))
        remark = document.remark
        if document.guess is not None:
            done.lines.append(f"{found.name} {document.guess}")
        if len(passages) > done.room:
            remark = f"is read in part: {limits.passages:,} passages are kept of a folder at most"
            del passages[max(0, done.room) :]
    except NoPdfError:
        done.no_pdf.append(found.name)  # read as soon as it can be, so nothing of it is noted
        if before is not None:
            index.forget(found.name)
        return
    except DocumentError as error:
        remark = str(error)
    index.put(found.name, stamp, total, passages, remark)
    done.room -= len(passages)
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
