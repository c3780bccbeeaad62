"""The connection behind a ``PostgresSink``: opened when needed, again when lost, and never shared by a fork."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

from cra_middleware.errors import SinkError

if TYPE_CHECKING:
    import psycopg

    Connection: TypeAlias = psycopg.Connection[tuple[object, ...]]

_TABLES = """
CREATE TABLE cra_layout (version integer NOT NULL);
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
_VERSION = 1
_MAKING = 0x43524154  # the advisory lock under which tables are made; any number that nobody else uses
_PAGE_BYTES, _PAGE_ROWS = 1 << 20, 500
# From: https://www.postgresql.org/docs/current/errcodes-appendix.html; these do not pass by waiting
_LASTING = ("28", "3D", "42")


class PostgresLink:
    """One connection, for one thread at a time."""

    def __init__(self, conninfo: str, timeout_seconds: float) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            SinkError: when psycopg is not installed, or the database cannot be used.
        """
        try:
            self._psycopg = importlib.import_module("psycopg")
        except ImportError as error:
            raise SinkError("a PostgreSQL trace needs psycopg: pip install 'cra-middleware[postgres]'") from error
        self._timeout = timeout_seconds
        self._conninfo, self.place = self._read(conninfo)
        self.generation = 0
        """Counts connections: a lock that was taken in an earlier one is gone."""
        self._known: Connection | None = None
        self._foreign: list[Connection | None] = []  # of the parent process: letting go of one would end it there
        self._pid = os.getpid()
        self._lock = threading.RLock()
        try:
            with self.transaction() as connection:
                self._make_tables(connection)
        except BaseException:  # whatever it was, no connection may stay half open
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside a transaction: all of it is kept, or nothing.

        Raises:
            SinkError: when the database did not do it; transient when the server is away, busy or full.
        """
        with self.statements() as connection, connection.transaction():
            yield connection

    @contextmanager
    def statements(self) -> Iterator[Connection]:
        """A connection on which every statement is a transaction.

        Raises:
            SinkError: as ``transaction``.
        """
        if os.getpid() != self._pid:
            self._begin_in_child()
        with self._lock:
            try:
                if self._known is None or self._known.closed:
                    self._known = self._connect()
                yield self._known
            except self._psycopg.Error as error:
                raise self._told(error) from error

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

    def close(self) -> None:
        """Let go of the connection; it is opened again when it is used again."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            known, self._known = self._known, None
            if known is not None:
                known.close()

    def _read(self, conninfo: str) -> tuple[str, str]:
        """The connection string with our defaults, and how it is named in messages: without a password."""
        try:
            parts = self._psycopg.conninfo.conninfo_to_dict(conninfo)
        except self._psycopg.Error:  # its text repeats the address, with the password in it
            raise SinkError("the address of the database is not understood: postgresql://user@host/name") from None
        parts.setdefault("connect_timeout", max(2, round(self._timeout)))
        parts.setdefault("application_name", "cra-middleware")
        host, name = parts.get("host") or "the local server", parts.get("dbname") or "its default"
        return self._psycopg.conninfo.make_conninfo(**parts), f"PostgreSQL database {name} at {host}"

    def _connect(self) -> Connection:
        connection: Connection = self._psycopg.connect(self._conninfo, autocommit=True)
        try:
            connection.execute("SET synchronous_commit = on")
            connection.execute(f"SET lock_timeout = {round(self._timeout * 1000)}")
        except BaseException:  # whatever it was, no connection may stay half open
            connection.close()
            raise
        self.generation += 1
        return connection

    def _make_tables(self, connection: Connection) -> None:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        if connection.execute("SELECT to_regclass('cra_layout')").fetchone() == (None,):
            connection.execute(_TABLES)
            connection.execute("INSERT INTO cra_layout VALUES (%s)", (_VERSION,))
        found = connection.execute("SELECT version FROM cra_layout").fetchall()
        if found != [(_VERSION,)]:
            raise SinkError(f"{self.place} has tables of another version of cra-middleware; name another schema")

    def _begin_in_child(self) -> None:
        self._foreign.append(self._known)
        self._known, self._pid, self._lock = None, os.getpid(), threading.RLock()
        self.generation += 1

    def _told(self, error: psycopg.Error) -> SinkError:
        if self._known is not None and self._known.broken:
            with suppress(self._psycopg.Error):
                self._known.close()
        passes = isinstance(error, self._psycopg.OperationalError) and not (error.sqlstate or "").startswith(_LASTING)
        return SinkError(f"{self.place} cannot be used: {_first_line(error)}", is_transient=passes)


# A number of its own for each session of each schema.
_KEY = "('cra_sessions'::regclass::oid::bigint << 32) | %s::bigint"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


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
