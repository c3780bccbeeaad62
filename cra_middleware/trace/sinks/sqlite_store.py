"""The file behind a ``SqliteSink``: its tables, how they are read, and how they become durable.

Two connections: appends have one to themselves, so that they never wait for a reader, a checkpoint or the disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import NamedTuple, Protocol

from cra_middleware._sqlite_file import SqliteFile
from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import Query
from cra_middleware.trace.storage.files import sync_data, sync_folder

_SCHEMA = """
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY, session_id TEXT UNIQUE NOT NULL, writer TEXT, durable INTEGER NOT NULL);
CREATE TABLE lines (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL, place INTEGER NOT NULL, sequence INTEGER, event_type TEXT,
    line BLOB NOT NULL);
CREATE UNIQUE INDEX by_place ON lines (session, place);
CREATE INDEX by_type ON lines (session, event_type, place);
CREATE TABLE torn (session INTEGER NOT NULL, place INTEGER NOT NULL, line BLOB NOT NULL)"""
_PRUNED = """
CREATE TABLE pruned (session INTEGER PRIMARY KEY, hashes BLOB NOT NULL)"""
_VERSION = 7002
"""Of the tables. The other files of this package count from 1, and must not be taken for this one."""
_PAGE_BYTES = 1 << 20
_CHECKPOINT_BYTES = 4 << 20
_MOST = 2**62


class Mark(NamedTuple):
    """What a log held when the disk was asked."""

    cuts: int
    events: int


class Marked(Protocol):
    """A log, as seen by who makes it durable."""

    def mark(self) -> Mark:
        """What it holds now."""
        ...

    def confirm(self, mark: Mark, /) -> None:
        """What was marked is on the disk."""
        ...


class Wanted(NamedTuple):
    """Which rows of a session."""

    event_type: str | None = None
    since_sequence: int = 0


class SqliteStore:
    """The file."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        """Open or make it.

        Raises:
            SinkError: when it cannot be used.
        """
        self.path = path
        self.failure: str | None = None
        """Why nothing that was written can be called durable any more."""
        self._folder_synced_for = -1
        self._begin()
        opened = partial(
            SqliteFile,
            *(path, f"{_SCHEMA};{_PRUNED}", _VERSION, timeout_seconds, SinkError),
            survives_power_loss=False,
            passing_error=partial(SinkError, is_transient=True),
            checkpoints=False,
            upgrades=(_PRUNED,),
        )
        self._front, self._behind = opened(), opened()

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that writes."""
        return self._front.transaction()

    def noting(self) -> AbstractContextManager[Connection]:
        """A transaction that writes, and may wait for a reader of this process."""
        return self._behind.transaction()

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that only reads."""
        return self._behind.transaction(writes=False)

    def close(self) -> None:
        """Let go of the file."""
        self._front.close()
        self._behind.close()

    def pieces(self, number: int, wanted: Wanted | None = None, begin: int = 0) -> Iterator[bytes]:
        """The rows of a session from byte ``begin`` on, all of them or the events that are wanted.

        Raises:
            SinkError: when they cannot be read.
        """
        where, values = _condition(wanted)
        while True:
            page, size = [], 0
            with self.reading() as connection:
                rows = connection.execute(
                    "SELECT CAST(place AS INTEGER), CAST(line AS BLOB) FROM lines "
                    f"WHERE session = ? AND place >= ? {where} ORDER BY place",
                    (number, begin, *values),
                )
                for place, line in rows:
                    if place < begin:  # text sorts behind every number: it would go on for ever
                        raise SinkError(f"{self.path} is damaged: a line has no place; look at it with another tool")
                    page.append(line)
                    begin, size = place + 1, size + len(line)
                    if size > _PAGE_BYTES:
                        break
                rows.close()
            yield from page
            if size <= _PAGE_BYTES:
                return

    def place_of_last(self, number: int, query: Query) -> int | None:
        """Where the last so many of the wanted events begin; None when there are none."""
        if query.last is None or query.last <= 0:
            return None
        where, values = _condition(Wanted(query.event_type, query.since_sequence))
        with self.reading() as connection:
            (place,) = connection.execute(
                "SELECT min(place) FROM (SELECT place FROM lines "
                f"WHERE session = ? {where} ORDER BY place DESC LIMIT ?)",
                (number, *values, min(query.last, _MOST)),
            ).fetchone()
        return None if place is None else int(place)

    def add(self, log: Marked) -> None:
        """Make ``log`` durable with the others from now on."""
        self._logs.append(log)

    def remove(self, log: Marked) -> None:
        """Forget ``log``."""
        with suppress(ValueError):
            self._logs.remove(log)

    def sync(self, is_needed: Callable[[], bool] = lambda: True) -> None:
        """Wait until everything that was appended is on the disk; threads that wait share one wait.

        Args:
            is_needed: asked when it is the caller's turn: usually its own events went along with another's.

        Raises:
            SinkError: when the disk says that it is not.
        """
        if os.getpid() != self._pid:
            self._begin()
        with self._guard:
            if not is_needed():
                return
            if self.failure is not None:
                raise SinkError(self.failure)
            marks = [(log, log.mark()) for log in list(self._logs)]
            try:
                size = self._sync_written_ahead()
            except OSError as error:  # the kernel may have dropped the pages: a second sync would lie
                self.failure = f"{self.path} is not durable any more: {error.strerror}; look at the disk, start again"
                raise SinkError(self.failure) from error
            with suppress(SinkError):  # an older note says less, and is true; what is not moved yet is moved later
                for log, mark in marks:
                    log.confirm(mark)
                if size > _CHECKPOINT_BYTES:
                    self._behind.checkpoint()

    def _begin(self) -> None:
        """At first, and again in a forked child, where a thread that does not exist may hold the guard."""
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._logs: list[Marked] = []

    def _sync_written_ahead(self) -> int:
        try:
            fd = os.open(f"{self.path}-wal", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # SQLite has moved all of it into the file, and waited for the disk
            return 0
        try:
            sync_data(fd)
            about = os.fstat(fd)
        finally:
            os.close(fd)
        if about.st_ino != self._folder_synced_for:
            sync_folder(self.path.parent)
            self._folder_synced_for = about.st_ino
        return about.st_size


def _condition(wanted: Wanted | None) -> tuple[str, tuple[object, ...]]:
    if wanted is None:
        return "", ()
    since = max(0, min(wanted.since_sequence, _MOST))
    if wanted.event_type is None:
        return "AND sequence >= ?", (since,)
    return "AND sequence >= ? AND event_type = ?", (since, wanted.event_type)
