"""The database behind a ``PostgresSink``: its tables, a session's sign of life, and its rows page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.errors import SinkError

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_TABLES = """
CREATE TABLE cra_sessions (
    number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, session_id text UNIQUE NOT NULL, writer text,
    size bigint NOT NULL DEFAULT 0, events bigint NOT NULL DEFAULT 0);
CREATE TABLE cra_lines (
    session integer NOT NULL REFERENCES cra_sessions, place bigint NOT NULL, sequence bigint, event_type text,
    line bytea NOT NULL, PRIMARY KEY (session, place));
CREATE INDEX cra_by_type ON cra_lines (session, event_type, place);
CREATE TABLE cra_torn (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, session integer NOT NULL REFERENCES cra_sessions,
    place bigint NOT NULL, line bytea NOT NULL);
"""
_PAGE_BYTES, _PAGE_ROWS = 1 << 20, 500


def _failed(message: str, passes: bool) -> SinkError:
    return SinkError(message, is_transient=passes)


class PostgresLink(PostgresDatabase):
    """One connection, for one thread at a time; what fails is a ``SinkError``, transient when waiting may help."""

    def __init__(self, conninfo: str, timeout_seconds: float) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            SinkError: when psycopg is not installed, or the database cannot be used.
        """
        super().__init__(conninfo, timeout_seconds, Layout("cra_layout", (_TABLES,)), _failed)

    def lock(self, connection: Connection, number: int) -> bool:
        """Take the sign of life of session ``number``; whether nobody else has it, after a moment's wait.

        A process that was just killed has it until the server notices. Where somebody has it, the transaction that
        this is in is over.
        """
        connection.execute("SET LOCAL lock_timeout = '500ms'")
        try:
            connection.execute(f"SELECT pg_advisory_lock({_KEY})", (number,))
        except self._psycopg.errors.LockNotAvailable:
            return False
        return True

    def unlock(self, connection: Connection, number: int) -> None:
        """Give it up."""
        connection.execute(f"SELECT pg_advisory_unlock({_KEY})", (number,))

    def pieces(self, number: int, begin: int = 0, where: str = "", values: tuple[object, ...] = ()) -> Iterator[bytes]:
        """The rows of a session from byte ``begin`` on, page by page.

        Raises:
            SinkError: when they cannot be read.
        """
        while True:
            with self.transaction() as connection:
                page = connection.execute(
                    "SELECT place, line FROM ("
                    "SELECT place, line, sum(length(line)) OVER (ORDER BY place) - length(line) AS before FROM ("
                    f"SELECT place, line FROM cra_lines WHERE session = %s AND place >= %s {where} "
                    "ORDER BY place LIMIT %s) AS next) AS page WHERE before < %s ORDER BY place",
                    (number, begin, *values, _PAGE_ROWS, _PAGE_BYTES),
                ).fetchall()
            if not page:
                return
            for place, line in page:
                yield as_bytes(line)
                begin = as_number(place) + 1


# A number of its own for each session of each schema.
_KEY = "('cra_sessions'::regclass::oid::bigint << 32) | %s::bigint"


def as_number(value: object) -> int:
    """What the database has as an integer.

    Raises:
        SinkError: when it is something else: the tables were changed.
    """
    if not isinstance(value, int):
        raise SinkError(f"a number is wanted in the trace's tables, not a {type(value).__name__}")
    return value


def as_bytes(value: object) -> bytes:
    """What the database has as ``bytea``.

    Raises:
        SinkError: when it is something else: the tables were changed.
    """
    if not isinstance(value, bytes):
        raise SinkError(f"bytes are wanted in the trace's tables, not a {type(value).__name__}")
    return value
