"""One session's rows in a PostgreSQL database, and the one writer they have."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import Torn
from cra_middleware.trace.sinks.postgres_link import PostgresLink, as_bytes, as_number
from cra_middleware.trace.sinks.postgres_rows import INSERT, ROWS, row_values
from cra_middleware.trace.storage.following import Follower
from cra_middleware.trace.storage.rows import Row, lines_of, rows_of

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_APPEND = (
    "WITH writer AS (UPDATE cra_sessions SET size = %s, events = %s "
    "WHERE number = %s AND writer = %s AND size = %s RETURNING number) "
    f"{INSERT} SELECT writer.number, rows.* FROM writer, {ROWS}"
)


class PostgresLog:
    """The offset that ``append`` is given is the truth; the rows follow it."""

    witnessed_events = 0

    def __init__(
        self,
        link: PostgresLink,
        number: int,
        session_id: str,
        writer: str,
        durable: int | None = None,
        *,
        follower: Follower | None = None,
    ) -> None:
        self.number = number
        self._link = link
        self._session_id = session_id
        self._writer = writer
        self.noted_durable = durable
        self.durable_events = durable or 0
        self.is_open = True
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._locked_in = link.generation
        self._follower = follower

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._check()
        rows = rows_of(offset, data)
        with self._turn:
            if not (rows and self._append_at_end(offset, rows, len(data), events)):
                self._append_after_a_cut(offset, rows, len(data), events)
            self.durable_events = events
            if self._follower is not None:
                self._follower.durable(self._session_id, events, len(rows))

    def lines(self) -> Iterator[bytes]:
        return lines_of(self._link.pieces(self.number))

    def set_aside(self, offset: int, /) -> Torn:
        self._check()
        with self._turn, self._link.transaction() as connection:
            self._check_writer(connection)
            found = connection.execute(
                "SELECT place, line FROM cra_lines WHERE session = %s AND place + length(line) > %s ORDER BY place",
                (self.number, offset),
            ).fetchall()
            excess = b"".join(as_bytes(line)[max(0, offset - as_number(place)) :] for place, line in found)
            if excess:
                connection.execute(
                    "INSERT INTO cra_torn (session, place, line) VALUES (%s, %s, %s)", (self.number, offset, excess)
                )
                self._drop(connection, offset)
                connection.execute(
                    "UPDATE cra_sessions SET size = %s, events = "
                    "(SELECT count(*) FROM cra_lines WHERE session = %s) WHERE number = %s",
                    (offset, self.number, self.number),
                )
            moved = connection.execute(
                "SELECT line FROM cra_torn WHERE session = %s AND place = %s ORDER BY number", (self.number, offset)
            ).fetchall()
        torn = b"".join(as_bytes(line) for (line,) in moved)
        return Torn(len(torn), sha256(torn).hexdigest())

    def flush(self) -> None:
        pass  # what was committed is durable

    def close(self) -> None:
        was_open, self.is_open = self.is_open, False
        if not was_open or os.getpid() != self._pid:
            return
        if self._follower is not None:
            self._follower.ended(self._session_id)
        # Where the server is away, the lock goes with the connection.
        with suppress(SinkError), self._turn, self._link.transaction() as connection:
            connection.execute(
                "UPDATE cra_sessions SET writer = NULL WHERE number = %s AND writer = %s", (self.number, self._writer)
            )
            if self._locked_in == self._link.generation:
                self._link.unlock(connection, self.number)

    def _append_at_end(self, offset: int, rows: list[Row], size: int, events: int) -> bool:
        if self._locked_in != self._link.generation:
            return False
        with self._link.statements() as connection:
            if self._locked_in != self._link.generation:  # it was opened again just now
                return False
            done = connection.execute(
                _APPEND, (offset + size, events, self.number, self._writer, offset, *row_values(rows))
            )
            return done.rowcount == len(rows)

    def _append_after_a_cut(self, offset: int, rows: list[Row], size: int, events: int) -> None:
        self.durable_events = min(self.durable_events, events - sum(row.line.endswith(b"\n") for row in rows))
        with self._link.transaction() as connection:
            end = self._check_writer(connection)
            if end < offset:
                raise SinkError(f"session {self._session_id} ends at byte {end}; nothing can be written at {offset}")
            self._drop(connection, offset)
            if rows:
                connection.execute(f"{INSERT} SELECT %s, rows.* FROM {ROWS}", (self.number, *row_values(rows)))
            connection.execute(
                "UPDATE cra_sessions SET size = %s, events = %s WHERE number = %s",
                (offset + size, events, self.number),
            )

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SinkError(f"session {self._session_id} belongs to the parent process; open a session of your own")
        if not self.is_open:
            raise SinkError(f"the log of session {self._session_id} is closed")

    def _check_writer(self, connection: Connection) -> int:
        """Hold the session's row for this transaction; where its log ends."""
        row = connection.execute(
            "SELECT writer, size FROM cra_sessions WHERE number = %s FOR UPDATE", (self.number,)
        ).fetchone()
        if row is None or row[0] != self._writer:
            raise SinkError(f"session {self._session_id} has another writer, which took it over; nothing was written")
        if self._locked_in != self._link.generation:
            if not self._link.lock(connection, self.number):
                raise SinkError(f"{self._link.place} still waits for this process's lost connection", is_transient=True)
            self._locked_in = self._link.generation
        return as_number(row[1])

    def _drop(self, connection: Connection, offset: int) -> None:
        connection.execute("DELETE FROM cra_lines WHERE session = %s AND place >= %s", (self.number, offset))
        connection.execute(
            "UPDATE cra_lines SET line = substr(line, 1, (%s - place)::integer) WHERE session = %s AND place = "
            "(SELECT max(place) FROM cra_lines WHERE session = %s) AND place + length(line) > %s",
            (offset, self.number, self.number, offset),
        )
