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
_LEDGER = """
CREATE TABLE cra_ledger_entries (place bigint PRIMARY KEY, entry bytea NOT NULL CHECK (length(entry) = 88));
CREATE INDEX cra_ledger_by_session ON cra_ledger_entries (substr(entry, 1, 16), place);
CREATE TABLE cra_ledger_head (one boolean PRIMARY KEY DEFAULT true CHECK (one), note bytea);
INSERT INTO cra_ledger_head DEFAULT VALUES;
CREATE TABLE cra_ledger_inbox (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, entries bytea NOT NULL);
"""
# Without a reference: to make one waits for every append that is under way.
_PRUNED = """
CREATE TABLE cra_pruned (session integer PRIMARY KEY, hashes bytea NOT NULL);
"""
_ASKED = """
ALTER TABLE cra_ledger_inbox ADD COLUMN asked timestamptz NOT NULL DEFAULT now();
"""
_PAGE_BYTES, _PAGE_ROWS = 1 << 20, 500


def _failed(message: str, passes: bool) -> SinkError:
    return SinkError(message, is_transient=passes)


class PostgresLink(PostgresDatabase):
    """What fails is a ``SinkError``, transient when waiting may help."""

    def __init__(self, conninfo: str, timeout_seconds: float, connections: int = 1) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            SinkError: when psycopg is not installed, or the database cannot be used.
            ValueError: when there are no connections.
        """
        layout = Layout("cra_layout", (_TABLES, _LEDGER, _PRUNED, _ASKED))
        super().__init__(conninfo, timeout_seconds, layout, _failed, connections=connections)

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

    def is_locked(self, connection: Connection, number: int) -> bool:
        """Whether somebody has it; if nobody has, nobody gets it before this transaction is over."""
        return connection.execute(f"SELECT pg_try_advisory_xact_lock({_KEY})", (number,)).fetchone() != (True,)

    def unlock(self, connection: Connection, number: int) -> None:
        """Give it up."""
        connection.execute(f"SELECT pg_advisory_unlock({_KEY})", (number,))

    def pieces(self, number: int, begin: int = 0, where: str = "", values: tuple[object, ...] = ()) -> Iterator[bytes]:
        """The rows of a session from byte ``begin`` on, page by page.

        Raises:
            SinkError: when they cannot be read.
        """
        while True:
            with self.statements() as connection:
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
