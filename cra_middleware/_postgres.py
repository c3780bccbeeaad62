"""One PostgreSQL database: its tables, and a connection that is opened when needed, again when lost, never forked."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    import psycopg

    Connection: TypeAlias = psycopg.Connection[tuple[object, ...]]

_Result = TypeVar("_Result")
POSTGRES = ("postgresql://", "postgres://")
"""What the address of a database begins with."""
_MAKING = 0x43524154  # the advisory lock under which tables are made; any number that nobody else uses
# From: https://www.postgresql.org/docs/current/errcodes-appendix.html; these do not pass by waiting
_LASTING = ("28", "3D", "42")
_GONE = ("08", "57P")  # after these the server says nothing more on this connection


class Layout(NamedTuple):
    """The tables of one store."""

    table: str
    """Where their version is written down."""
    steps: Sequence[str]
    """From nothing to version 1, from there to 2, and so on."""


class PostgresDatabase:
    """One connection, for one thread at a time."""

    def __init__(
        self, conninfo: str, timeout_seconds: float, layout: Layout, failed: Callable[[str, bool], Exception]
    ) -> None:
        """Connect, and make the tables, or bring them to this version.

        Whatever is wrong is raised as what ``failed`` makes of a message and of whether it may pass by waiting.
        """
        self._failed = failed
        try:
            self._psycopg = importlib.import_module("psycopg")
        except ImportError as error:
            raise failed("PostgreSQL needs psycopg: pip install 'cra-middleware[postgres]'", False) from error
        self._timeout = timeout_seconds
        self._conninfo, self.place = self._read(conninfo)
        self.generation = 0
        """Counts connections: a lock that was taken in an earlier one is gone."""
        self._known: Connection | None = None
        self._foreign: list[Connection | None] = []  # of the parent process: letting go of one would end it there
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_lost = threading.local()  # by thread: whether its last failure cost the connection
        try:
            with self.transaction() as connection:
                self._lay_out(connection, layout)
        except BaseException:  # whatever it was, no connection may stay half open
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside a transaction: all of it is kept, or nothing."""
        with self.statements() as connection, connection.transaction():
            yield connection

    @contextmanager
    def statements(self) -> Iterator[Connection]:
        """A connection on which every statement is a transaction."""
        if os.getpid() != self._pid:
            self._begin_in_child()
        with self._lock:
            try:
                if self._known is None or self._known.closed:
                    self._known = self._connect()
                yield self._known
            except self._psycopg.Error as error:
                raise self._told(error, self._known) from error

    def twice(self, work: Callable[[Connection], _Result]) -> _Result:
        """Do ``work`` in a transaction; once more when the connection is lost.

        It may have been kept although nobody heard of it: the second time must then change nothing.
        """
        self._is_lost.now = False
        try:
            with self.transaction() as connection:
                return work(connection)
        except Exception:  # a lost connection shows in many ways; the rest is raised
            if not self._is_lost.now:
                raise
        with self.transaction() as connection:
            return work(connection)

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
            wanted = "the address of the database is not understood: postgresql://user@host/name"
            raise self._failed(wanted, False) from None
        for name, value in _defaults(self._timeout).items():
            parts.setdefault(name, value)
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

    def _lay_out(self, connection: Connection, layout: Layout) -> None:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        if connection.execute("SELECT to_regclass(%s)", (layout.table,)).fetchone() == (None,):
            connection.execute(f"CREATE TABLE {layout.table} (version integer NOT NULL)")
            connection.execute(f"INSERT INTO {layout.table} VALUES (0)")
        found = connection.execute(f"SELECT version FROM {layout.table}").fetchall()
        version = found[0][0] if len(found) == 1 else None
        if not isinstance(version, int) or not 0 <= version <= len(layout.steps):
            wrong = f"{self.place} has tables of another version of cra-middleware; name another schema, or upgrade"
            raise self._failed(wrong, False)
        if version < len(layout.steps):
            for step in layout.steps[version:]:
                connection.execute(step)
            connection.execute(f"UPDATE {layout.table} SET version = %s", (len(layout.steps),))

    def _begin_in_child(self) -> None:
        self._foreign.append(self._known)
        self._known, self._pid, self._lock = None, os.getpid(), threading.RLock()
        self.generation += 1

    def _told(self, error: psycopg.Error, known: Connection | None) -> Exception:
        if known is not None and (known.broken or (not known.closed and (error.sqlstate or "").startswith(_GONE))):
            self._is_lost.now = True
            with suppress(self._psycopg.Error):
                known.close()
        passes = isinstance(error, self._psycopg.OperationalError) and not (error.sqlstate or "").startswith(_LASTING)
        return self._failed(f"{self.place} cannot be used: {_first_line(error)}", passes)


def _defaults(timeout_seconds: float) -> dict[str, str | int]:
    """With these a server that vanished without a word is noticed in seconds, not in a quarter of an hour."""
    seconds = max(2, round(timeout_seconds))
    return {
        "connect_timeout": seconds,
        "application_name": "cra-middleware",
        "tcp_user_timeout": seconds * 1000,
        "keepalives_idle": seconds,
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
