"""The index of a folder: its files, their passages, the words and the vectors of these, in one SQLite file.

Knows SQL. Does not know how files are read or which passages answer a question. Each change is one
transaction: who is stopped in the middle of it finds the index as it was before.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .passages import Passage

Vectors = npt.NDArray[np.float32]

_VERSION = 2  # of the tables, and of how documents become passages and words; another one is made anew
_WAIT_SECONDS = 30.0  # for a change of another process, which takes as long as one file
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, stamp TEXT NOT NULL, digest TEXT NOT NULL, remark TEXT
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files (id), text TEXT NOT NULL,
    page INTEGER, heading TEXT, line INTEGER, vector BLOB
);
CREATE INDEX passages_of_a_file ON passages (file);
CREATE VIRTUAL TABLE words USING fts5 (
    name, heading, text, content = '', tokenize = 'porter unicode61 remove_diacritics 2'
);
"""
# Of writing without spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar) each character is a word.
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


@dataclass(frozen=True)
class File:
    """A file as it was read; `remark` says what is wrong with it."""

    id: int
    stamp: str
    digest: str
    remark: str | None


@dataclass(frozen=True)
class Entry:
    """A passage of a file."""

    id: int
    file: str
    passage: Passage


def spaced(text: str) -> str:
    """The text as its words are told apart."""
    return _UNSPACED.sub(r" \1 ", text)


class Index:
    """An open index; `place` None keeps it in memory. Raises sqlite3.Error, as all of its methods do."""

    def __init__(self, place: Path | None) -> None:
        self.is_open = True
        if place is not None:  # SQLite would make it readable for others
            os.close(os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600))
        self._connection = sqlite3.connect(
            ":memory:" if place is None else place, timeout=_WAIT_SECONDS, isolation_level=None
        )
        try:
            self._connection.execute("PRAGMA trusted_schema = OFF")
            self._connection.execute("PRAGMA secure_delete = ON")  # what is no document any more is gone
            self._require_schema()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Gives the file back."""
        self._connection.close()
        self.is_open = False

    def files(self) -> dict[str, File]:
        """All files by name."""
        rows = self._connection.execute("SELECT name, id, stamp, digest, remark FROM files")
        return {name: File(*row) for name, *row in rows}

    def count(self) -> int:
        """How many passages there are."""
        (count,) = self._connection.execute("SELECT count(*) FROM passages").fetchone()
        return int(count)

    def count_of(self, name: str) -> int:
        """How many of them a file has."""
        query = "SELECT count(*) FROM passages WHERE file = (SELECT id FROM files WHERE name = ?)"
        return int(self._connection.execute(query, (name,)).fetchone()[0])

    def put(
        self, name: str, stamp: str, digest: str, passages: Iterable[Passage], remark: str | None = None
    ) -> None:
        """Takes in a file in the place of what was known of it."""
        with self._change():
            self._forget(name)
            file = self._connection.execute(
                "INSERT INTO files (name, stamp, digest, remark) VALUES (?, ?, ?, ?)",
                (name, stamp, digest, remark),
            ).lastrowid
            for one in passages:
                row = self._connection.execute(
                    "INSERT INTO passages (file, text, page, heading, line) VALUES (?, ?, ?, ?, ?)",
                    (file, one.text, one.page, one.heading, one.line),
                ).lastrowid
                self._connection.execute(
                    "INSERT INTO words (rowid, name, heading, text) VALUES (?, ?, ?, ?)",
                    (row, *_words(name, one.heading, one.text)),
                )

    def restamp(self, name: str, stamp: str) -> None:
        """Notes that a file was touched, though what it says is the same."""
        with self._change():
            self._connection.execute("UPDATE files SET stamp = ? WHERE name = ?", (stamp, name))

    def forget(self, name: str) -> None:
        """Takes a file out."""
        with self._change():
            self._forget(name)

    def erase(self) -> None:
        """Overwrites the words of what was taken out: FTS5 notes only that they are gone, until it merges
        what it has. An update that was stopped before it came to this leaves it to the next one.
        """
        if self._connection.execute("SELECT 1 FROM about WHERE key = 'taken out'").fetchone() is None:
            return
        with self._change():
            self._connection.execute("INSERT INTO words (words) VALUES ('optimize')")
            self._connection.execute("DELETE FROM about WHERE key = 'taken out'")

    def use_encoder(self, fingerprint: str) -> None:
        """From now on vectors are those of this encoder; another one's are dropped."""
        with self._change():
            known = self._connection.execute("SELECT value FROM about WHERE key = 'encoder'").fetchone()
            if known != (fingerprint,):
                self._connection.execute("UPDATE passages SET vector = NULL")
                self._connection.execute("REPLACE INTO about VALUES ('encoder', ?)", (fingerprint,))

    def without_vector(self, most: int) -> list[Entry]:
        """Passages whose vectors are still to be computed."""
        return self._entries("WHERE vector IS NULL ORDER BY passages.id LIMIT ?", (most,))

    def number_without_vector(self) -> int:
        """How many there are."""
        query = "SELECT count(*) FROM passages WHERE vector IS NULL"
        return int(self._connection.execute(query).fetchone()[0])

    def put_vectors(self, ids: Sequence[int], vectors: Vectors) -> None:
        """Keeps the vectors of these passages."""
        rows = [(row.astype("<f4").tobytes(), id) for id, row in zip(ids, vectors, strict=True)]
        with self._change():
            self._connection.executemany("UPDATE passages SET vector = ? WHERE id = ?", rows)

    def vectors(self, width: int) -> tuple[npt.NDArray[np.int64], Vectors]:
        """The ids of the passages that have vectors of this width, and the vectors [n, width]."""
        which = "FROM passages WHERE length(vector) = ?"
        (most,) = self._connection.execute(f"SELECT count(*) {which}", (4 * width,)).fetchone()
        rows = self._connection.execute(f"SELECT id, vector {which} LIMIT ?", (4 * width, most))
        ids, vectors = np.empty(most, np.int64), np.empty((most, width), np.float32)
        number = 0  # of rows read: another process may have taken some out meanwhile
        for number, (id, vector) in enumerate(rows, 1):
            ids[number - 1] = id
            vectors[number - 1] = np.frombuffer(vector, "<f4")
        return ids[:number], vectors[:number]

    def matching(self, query: str, most: int) -> list[int]:
        """Ids of the passages that match a query of FTS5, the best first; names and headings count more."""
        rows = self._connection.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, 2.0, 2.0, 1.0), rowid LIMIT ?",
            (query, most),
        )
        return [row[0] for row in rows]

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """The passages of these ids, in their order."""
        marks = ", ".join("?" * len(ids))
        found = {entry.id: entry for entry in self._entries(f"WHERE passages.id IN ({marks})", tuple(ids))}
        return [found[id] for id in ids if id in found]

    def _entries(self, which: str, values: tuple[int | str, ...]) -> list[Entry]:
        rows = self._connection.execute(
            "SELECT passages.id, files.name, text, page, heading, line FROM passages "
            f"JOIN files ON files.id = passages.file {which}",
            values,
        )
        return [Entry(id, name, Passage(*rest)) for id, name, *rest in rows]

    def _forget(self, name: str) -> None:
        entries = self._entries("WHERE files.name = ?", (name,))
        if entries:
            self._connection.execute("REPLACE INTO about VALUES ('taken out', '')")
        for entry in entries:
            self._connection.execute(
                "INSERT INTO words (words, rowid, name, heading, text) VALUES ('delete', ?, ?, ?, ?)",
                (entry.id, *_words(name, entry.passage.heading, entry.passage.text)),
            )
            self._connection.execute("DELETE FROM passages WHERE id = ?", (entry.id,))
        self._connection.execute("DELETE FROM files WHERE name = ?", (name,))

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        # Ctrl-C may come while either of them waits for another process, and each may fail.
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _require_schema(self) -> None:
        """Makes the tables in an empty file. Raises DatabaseError for what is another version's."""
        with self._change():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == _VERSION:
                return
            if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                raise sqlite3.DatabaseError("an index of another version")
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")


def _words(name: str, heading: str | None, text: str) -> tuple[str, str, str]:
    """What the words of a passage are looked for in; the same when it goes, which FTS5 must be told."""
    return spaced(name), spaced(heading or ""), spaced(text)
