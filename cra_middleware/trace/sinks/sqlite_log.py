"""One session's rows in a SQLite file, and the one writer they have."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from sqlite3 import Connection

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import Torn
from cra_middleware.trace.sinks.sqlite_store import Mark, SqliteStore
from cra_middleware.trace.storage.rows import lines_of, rows_of
from cra_middleware.trace.storage.syncer import Syncer

_UNKNOWN = -1


class SqliteLog:
    """The offset that ``append`` is given is the truth; the rows follow it."""

    witnessed_events = 0

    def __init__(
        self, store: SqliteStore, syncer: Syncer, number: int, session_id: str, writer: str, durable: int | None
    ) -> None:
        self._store = store
        self._syncer = syncer
        self._number = number
        self._session_id = session_id
        self._writer = writer
        self.noted_durable = durable
        self.durable_events = durable or 0
        self.is_open = True
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._end = 0 if durable is None else _UNKNOWN
        self._events = durable or 0
        self._cuts = 0
        """How often rows were dropped: what was marked before that is not what stands there now."""
        self._is_queued = False

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._check()
        rows = rows_of(offset, data)
        with self._turn:
            is_cut = offset != self._end
            self._end = _UNKNOWN  # an interrupt may come between the rows and our note of them
            with self._store.writing() as connection:
                self._check_writer(connection)
                if is_cut:
                    self._cut(connection, offset, events - data.count(b"\n"))
                connection.executemany(
                    "INSERT INTO lines (session, place, sequence, event_type, line) VALUES (?, ?, ?, ?, ?)",
                    [(self._number, *row) for row in rows],
                )
            self._end, self._events = offset + len(data), events
            if rows and not self._is_queued:
                self._is_queued = True
                self._syncer.add(self)

    def lines(self) -> Iterator[bytes]:
        return lines_of(self._store.pieces(self._number))

    def set_aside(self, offset: int, /) -> Torn:
        self._check()
        with self._turn:
            self._end = _UNKNOWN
            with self._store.writing() as connection:
                self._check_writer(connection)
                excess = self._behind(connection, offset)
                if excess:
                    connection.execute("INSERT INTO torn VALUES (?, ?, ?)", (self._number, offset, excess))
                    self._drop(connection, offset)
                found = connection.execute(
                    "SELECT CAST(line AS BLOB) FROM torn WHERE session = ? AND place = ? ORDER BY rowid",
                    (self._number, offset),
                ).fetchall()
            torn = b"".join(line for (line,) in found)
        return Torn(len(torn), sha256(torn).hexdigest())

    def flush(self) -> None:
        wanted = self._events
        self._is_queued = False
        if self.is_open and os.getpid() == self._pid:
            self._store.sync(lambda: self.durable_events < wanted)

    def close(self) -> None:
        if not self.is_open or os.getpid() != self._pid:
            self.is_open = False
            return
        try:
            self.flush()
        finally:
            with self._turn:
                self.is_open = False
                self._store.remove(self)
            # Where the row cannot be written, this process's own sign of life keeps others away until it ends.
            with suppress(SinkError), self._store.noting() as connection:
                connection.execute(
                    "UPDATE sessions SET writer = NULL WHERE number = ? AND writer = ?", (self._number, self._writer)
                )

    def mark(self) -> Mark:
        with self._turn:
            return Mark(self._cuts, self._events if self._end != _UNKNOWN else self.durable_events)

    def confirm(self, mark: Mark, /) -> None:
        with self._turn:
            if mark.cuts != self._cuts or mark.events <= self.durable_events:
                return
            self.durable_events = mark.events
            with self._store.noting() as connection:
                connection.execute(
                    "UPDATE sessions SET durable = ? WHERE number = ? AND writer = ?",
                    (mark.events, self._number, self._writer),
                )

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SinkError(f"session {self._session_id} belongs to the parent process; open a session of your own")
        if not self.is_open:
            raise SinkError(f"the log of session {self._session_id} is closed")
        if self._store.failure is not None:
            raise SinkError(self._store.failure)

    def _check_writer(self, connection: Connection) -> None:
        row = connection.execute("SELECT writer FROM sessions WHERE number = ?", (self._number,)).fetchone()
        if row != (self._writer,):
            raise SinkError(f"session {self._session_id} has another writer, which took it over; nothing was written")

    def _cut(self, connection: Connection, offset: int, events: int) -> None:
        """Drop what lies behind ``offset``, which is the end of event ``events``."""
        end = connection.execute(
            "SELECT CAST(place + length(CAST(line AS BLOB)) AS INTEGER) FROM lines "
            "WHERE session = ? ORDER BY place DESC LIMIT 1",
            (self._number,),
        ).fetchone() or (0,)
        if end[0] < offset:
            raise SinkError(f"session {self._session_id} ends at byte {end[0]}; nothing can be written at {offset}")
        if end[0] == offset:
            return
        self._cuts += 1
        self.durable_events = min(self.durable_events, events)
        self._drop(connection, offset)
        connection.execute(
            "UPDATE sessions SET durable = min(durable, ?) WHERE number = ?", (self.durable_events, self._number)
        )

    def _behind(self, connection: Connection, offset: int) -> bytes:
        found = connection.execute(
            "SELECT CAST(place AS INTEGER), CAST(line AS BLOB) FROM lines "
            "WHERE session = ? AND place + length(CAST(line AS BLOB)) > ? ORDER BY place",
            (self._number, offset),
        )
        return b"".join(line[max(0, offset - place) :] for place, line in found)

    def _drop(self, connection: Connection, offset: int) -> None:
        connection.execute("DELETE FROM lines WHERE session = ? AND place >= ?", (self._number, offset))
        connection.execute(
            "UPDATE lines SET line = substr(line, 1, ? - place) WHERE session = ? AND place = "
            "(SELECT max(place) FROM lines WHERE session = ?) AND place + length(CAST(line AS BLOB)) > ?",
            (offset, self._number, self._number, offset),
        )
