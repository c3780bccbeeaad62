"""One session's rows in a PostgreSQL database, written by several processes at once.

The database puts appends in order: each says where it believes the end to be, and one that is mistaken keeps nothing
and raises ``MovedError``. Whoever gets that reads on from there and links its events anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import MovedError, Torn
from cra_middleware.trace.sinks.postgres_link import PostgresLink, as_number
from cra_middleware.trace.sinks.postgres_rows import INSERT, ROWS, row_values
from cra_middleware.trace.storage.following import Follower
from cra_middleware.trace.storage.rows import lines_of, rows_of

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

SHARED = "shared"
"""Stands where the name of the one writer stands otherwise."""
_APPEND = (
    "WITH writer AS (UPDATE cra_sessions SET size = %s, events = %s "
    "WHERE number = %s AND writer = %s AND size = %s RETURNING number) "
    f"{INSERT} SELECT writer.number, rows.* FROM writer, {ROWS}"
)


class PostgresSharedLog:
    """What is committed is kept and durable; nothing that is kept is ever cut off."""

    witnessed_events = 0

    def __init__(
        self, link: PostgresLink, number: int, session_id: str, events: int = 0, *, follower: Follower | None = None
    ) -> None:
        self.number = number
        self.is_open = True
        self.noted_durable: int | None = events
        self.durable_events = events
        self._link = link
        self._session_id = session_id
        self._pid = os.getpid()
        self._follower = follower

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._check()
        rows = rows_of(offset, data)
        if not rows:
            return
        used: Connection | None = None
        try:
            with self._link.statements() as connection:
                used = connection
                done = connection.execute(
                    _APPEND, (offset + len(data), events, self.number, SHARED, offset, *row_values(rows))
                ).rowcount
                if done != len(rows):
                    found = connection.execute(
                        "SELECT writer, size FROM cra_sessions WHERE number = %s", (self.number,)
                    ).fetchone()
        except SinkError as error:
            error.is_unsure = used is not None and used.closed  # it may have been lost behind the commit
            raise
        if done != len(rows):
            if found is None or found[0] != SHARED:
                raise SinkError(f"session {self._session_id} has one writer, which took it over; nothing was written")
            if as_number(found[1]) <= offset:
                raise SinkError(f"session {self._session_id} ends before byte {offset}: what was kept is gone")
            raise MovedError(f"others have written to session {self._session_id}")
        self.durable_events = events
        if self._follower is not None:
            self._follower.durable(self._session_id, events, len(rows))

    def lines(self) -> Iterator[bytes]:
        return self.lines_from(0)

    def lines_from(self, offset: int, /) -> Iterator[bytes]:
        return lines_of(self._link.pieces(self.number, offset))

    def set_aside(self, offset: int, /) -> Torn:
        self._check()
        with self._link.transaction() as connection:
            row = connection.execute("SELECT size FROM cra_sessions WHERE number = %s", (self.number,)).fetchone()
        if row is None or as_number(row[0]) < offset:
            raise SinkError(f"session {self._session_id} ends before byte {offset}: what was kept is gone")
        return Torn(0, sha256(b"").hexdigest())  # a transaction leaves no torn end; what is there, others have written

    def flush(self) -> None:
        pass  # what was committed is durable

    def close(self) -> None:
        was_open, self.is_open = self.is_open, False
        if was_open and self._follower is not None and os.getpid() == self._pid:
            self._follower.ended(self._session_id)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SinkError(f"session {self._session_id} belongs to the parent process; open a session of your own")
        if not self.is_open:
            raise SinkError(f"the log of session {self._session_id} is closed")
