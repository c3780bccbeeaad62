"""One SQLite file for the sessions of several processes of one machine.

``append`` is one transaction that is written to the write-ahead log and does not wait for the disk: it survives the
death of the process, and waits at most for another writer's transaction (about 60 µs an event, where a transaction
that waits for the disk costs ten times as much and more). One background thread makes it survive the death of the
machine, ``fdatasync`` of that log at most ``sync_interval_seconds`` behind, and only that is counted as durable.

A session has one writer: its row names who that is, and each append looks whether it still is. A writer that was
killed does not keep the session closed (``claims``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from sqlite3 import Connection

from cra_middleware._ids import is_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.pruned import WRITER as PRUNED
from cra_middleware.trace.pruned import Pruned, PrunedError
from cra_middleware.trace.sink import Health, Query, SessionLog, room
from cra_middleware.trace.sinks.claims import Claims
from cra_middleware.trace.sinks.sqlite_log import SqliteLog
from cra_middleware.trace.sinks.sqlite_pruning import last_lines, prune, pruned_ids, read_pruned
from cra_middleware.trace.sinks.sqlite_store import SqliteStore, Wanted
from cra_middleware.trace.storage.rows import lines_of
from cra_middleware.trace.storage.syncer import Syncer


class SqliteSink:
    """Many sessions in one file on a local disk."""

    def __init__(self, path: str | Path, sync_interval_seconds: float = 0.05, *, timeout_seconds: float = 5.0) -> None:
        """Open or make the file, mode 0600.

        Args:
            path: the file; ``-wal``, ``-shm`` and ``.<id>.writer`` files stand beside it while it is in use.
            sync_interval_seconds: how long an event may be in the operating system's hands only.
            timeout_seconds: how long to wait for another writer's transaction.

        Raises:
            SinkError: when the file cannot be used, is damaged, or belongs to another program.
        """
        self._path = Path(os.path.realpath(path))
        self._store = SqliteStore(self._path, timeout_seconds)
        self._syncer = Syncer(sync_interval_seconds)
        self._claims = Claims(self._path)
        self._numbers = itertools.count(1)
        self._logs: dict[str, SqliteLog] = {}
        """Who writes in this process, by the name in the session's row."""

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def create(self, session_id: str, /) -> SessionLog:
        _check_id(session_id)
        writer = self._new_writer()
        with self._store.writing() as connection:
            if connection.execute("SELECT 1 FROM sessions WHERE session_id = ?", (session_id,)).fetchone():
                self._find(connection, session_id)
                raise SinkError(f"session {session_id} is already in {self._path}; resume it instead")
            number = connection.execute(
                "INSERT INTO sessions (session_id, writer, durable) VALUES (?, ?, 0)", (session_id, writer)
            ).lastrowid
        return self._open(number or 0, session_id, writer, None)

    def reopen(self, session_id: str, /) -> SessionLog:
        _check_id(session_id)
        writer = self._new_writer()
        with self._store.writing() as connection:
            row = connection.execute(
                "SELECT CAST(number AS INTEGER), CAST(writer AS TEXT), CAST(durable AS INTEGER) FROM sessions "
                "WHERE session_id = ?",
                (session_id,),
            ).fetchone()
            if row is None:
                raise SinkError(f"{self._path} holds no session {session_id}")
            number, before, durable = row
            if before == PRUNED:
                raise PrunedError(session_id)
            if before is not None and self._is_writing(before):
                raise SinkError(f"session {session_id} has another writer: one process writes a session at a time")
            connection.execute("UPDATE sessions SET writer = ? WHERE number = ?", (writer, number))
        return self._open(number, session_id, writer, durable)

    def session_ids(self) -> list[str]:
        with self._store.reading() as connection:
            found = connection.execute(
                "SELECT CAST(session_id AS TEXT) FROM sessions WHERE writer IS NOT ? ORDER BY session_id", (PRUNED,)
            ).fetchall()
        return [name for (name,) in found if is_id(name)]

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        return lines_of(self._store.pieces(self._number(session_id)))

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        number = self._number(session_id)
        begin = 0 if query.last is None else self._store.place_of_last(number, query)
        if begin is None:
            return iter(())
        return self._store.pieces(number, Wanted(query.event_type, query.since_sequence), begin)

    def count(self, session_id: str, /) -> int:
        _check_id(session_id)
        with self._store.reading() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM lines WHERE session = (SELECT number FROM sessions WHERE session_id = ?) "
                "AND substr(line, -1) = x'0a'",
                (session_id,),
            ).fetchone()
        return int(count)

    def health(self) -> Health:
        try:
            with self._store.writing():
                pass
            space = os.statvfs(self._path)
        except SinkError as error:
            return Health(False, str(error))
        except OSError as error:
            return Health(False, f"{self._path} cannot be looked at: {error.strerror}")
        return room(self._path, space.f_bavail * space.f_frsize)

    def pruned_ids(self) -> list[str]:
        """The sessions that were pruned.

        Raises:
            SinkError: when they cannot be read.
        """
        return pruned_ids(self._store)

    def read_pruned(self, session_id: str, /) -> Pruned | None:
        """What is kept of a session that was pruned, or None.

        Raises:
            SinkError: when it cannot be read.
        """
        return read_pruned(self._store, session_id)

    def last_lines(self) -> Iterator[tuple[str, bytes]]:
        """Every session that was not pruned, with its last line.

        Raises:
            SinkError: when they cannot be read.
        """
        return last_lines(self._store)

    def prune(self, session_id: str, pruned: Pruned, /) -> str | None:
        """Put hashes in the place of a session, in one transaction; or why it stays as it is.

        Raises:
            PrunedError: when another process has done so.
            SinkError: when it cannot be done.
        """
        return prune(self._store, session_id, pruned, self._is_writing)

    def close(self) -> None:
        self._syncer.stop()
        with suppress(SinkError):  # every log has said so itself
            self._store.sync()
        self._claims.close()
        self._store.close()

    def _new_writer(self) -> str:
        return f"{self._claims.name()}/{next(self._numbers)}"

    def _is_writing(self, writer: str) -> bool:
        log = self._logs.get(writer)
        if log is not None and log.is_open:
            return True
        name = writer.partition("/")[0]
        return name != self._claims.name() and self._claims.is_alive(name)

    def _open(self, number: int, session_id: str, writer: str, durable: int | None) -> SqliteLog:
        self._logs = {name: log for name, log in self._logs.items() if log.is_open}
        log = SqliteLog(self._store, self._syncer, number, session_id, writer, durable)
        self._logs[writer] = log
        self._store.add(log)
        return log

    def _number(self, session_id: str) -> int:
        _check_id(session_id)
        with self._store.reading() as connection:
            return self._find(connection, session_id)

    def _find(self, connection: Connection, session_id: str) -> int:
        row = connection.execute(
            "SELECT CAST(number AS INTEGER), writer FROM sessions WHERE session_id = ?", (session_id,)
        ).fetchone()
        if row is None:
            raise SinkError(f"{self._path} holds no session {session_id}")
        if row[1] == PRUNED:
            raise PrunedError(session_id)
        return int(row[0])


def _check_id(session_id: str) -> None:
    if not is_id(session_id):
        raise SinkError("a session id must be a lower-case UUID")
