"""One PostgreSQL database: its tables, and connections that are opened when needed, again when lost, never forked."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from cra_middleware._fork import tell_child

if TYPE_CHECKING:
    import psycopg

    from cra_middleware._silence import HeardConnection

    Connection: TypeAlias = psycopg.Connection[tuple[object, ...]]

_Result = TypeVar("_Result")
POSTGRES = ("postgresql://", "postgres://")
"""What the address of a database begins with."""
_MAKING = 0x43524154  # the advisory locks under which tables are made, one a schema; any number that nobody else uses
_MAKING_TIMEOUT = "60s"
"""How long who wants the tables waits for somebody who makes them: of servers that start together, all come up."""
# From: https://www.postgresql.org/docs/current/errcodes-appendix.html; these do not pass by waiting
_LASTING = ("28", "3D", "42")
_READ_ONLY = "25006"  # a primary that is one no more: the address may lead to another by now
_GONE = ("08", "57P", _READ_ONLY)  # after these nothing more is done on this connection
_PAUSE_SECONDS = 1.0
"""For how long a server that did not answer is not asked again: all who wait hear so at once, and not in turn."""
_TERMS = "SELECT pg_backend_pid(), set_config('synchronous_commit', %s, false), set_config('lock_timeout', %s, false)"
_STATE = "SELECT state NOT LIKE 'idle%%' FROM pg_stat_activity WHERE pid = %s"


class Layout(NamedTuple):
    """The tables of one store."""

    table: str
    """Where their version is written down."""
    steps: Sequence[str]
    """From nothing to version 1, from there to 2, and so on."""


class PostgresDatabase:
    """For as many threads at a time as it has connections; the others wait."""

    def __init__(
        self,
        conninfo: str,
        timeout_seconds: float,
        layout: Layout | None,
        failed: Callable[[str, bool], Exception],
        *,
        connections: int = 1,
        survives_power_loss: bool = True,
    ) -> None:
        """Connect, and make the tables, or bring them to this version; without a layout, none are made.

        Whatever is wrong is raised as what ``failed`` makes of a message and of whether it may pass by waiting. What
        need not survive the database's power loss does not wait for its disk: the last half second may be missing then.

        Raises:
            ValueError: when there are no connections.
        """
        if connections < 1:
            raise ValueError("a database is used over at least one connection")
        self._failed = failed
        self._commit = "on" if survives_power_loss else "off"
        try:
            self._psycopg = importlib.import_module("psycopg")
            self._silence = importlib.import_module("cra_middleware._silence")
        except ImportError as error:
            raise failed("PostgreSQL needs psycopg: pip install 'cra-middleware[postgres]'", False) from error
        self._timeout = timeout_seconds
        self._conninfo, self.place = self._read(conninfo)
        self.generation = 0
        """Counts connections: where there is one at a time, a lock that was taken in an earlier one is gone."""
        self._connections = connections
        self._places = threading.BoundedSemaphore(connections)
        self._idle: list[HeardConnection] = []
        self._foreign: list[HeardConnection] = []  # of the parent process: letting go of one would end it there
        self._round = 0  # how often all connections were let go of
        self._silent_until = 0.0
        tell_child(self)
        self._is_lost = threading.local()  # by thread: whether its last failure cost the connection
        try:
            with self.transaction(is_long=True) as connection:
                if layout is not None:
                    self._lay_out(connection, layout)
        except BaseException:  # whatever it was, no connection may stay half open
            self.close()
            raise

    @contextmanager
    def transaction(self, *, is_long: bool = False) -> Iterator[Connection]:
        """A connection inside a transaction: all of it is kept, or nothing."""
        with self.statements(is_long=is_long) as connection, connection.transaction():
            yield connection

    @contextmanager
    def statements(self, *, is_long: bool = False) -> Iterator[Connection]:
        """A connection on which every statement is a transaction.

        A server that says nothing is given up after a while; not while it says, asked, that it is still at it. One
        statement may then take ten times as long as another one's lock is waited for, and with ``is_long`` as long as
        it takes.
        """
        places, now = self._places, self._round  # a fork, or a close, makes them others
        with places:
            known: HeardConnection | None = None
            try:
                known = self._take()
                known.is_long = is_long
                yield known
            except self._psycopg.Error as error:
                told = self._told(error, known)
                if known is not None and known.closed:  # the others were lost with it, most likely
                    self._close_idle()
                raise told from error
            finally:
                if known is not None and places is self._places:
                    is_idle = known.info.transaction_status == self._psycopg.pq.TransactionStatus.IDLE
                    if now == self._round and is_idle:  # an interrupt leaves an answer behind that nobody reads
                        self._idle.append(known)
                    else:
                        known.close()

    def twice(
        self, work: Callable[[Connection], _Result], *, by_itself: bool = False, is_long: bool = False
    ) -> _Result:
        """Do ``work`` in a transaction; once more when the connection is lost.

        It may have been kept although nobody heard of it: the second time must then change nothing. With ``by_itself``
        each statement is a transaction: a single one takes one round trip then, and not three.
        """
        self._is_lost.now = False
        way = partial(self.statements if by_itself else self.transaction, is_long=is_long)
        try:
            with way() as connection:
                return work(connection)
        except Exception:  # a lost connection shows in many ways; the rest is raised
            if not self._is_lost.now:
                raise
        with way() as connection:
            return work(connection)

    def close(self) -> None:
        """Let go of the connections, of those in use once they are free; they are opened again when used again."""
        self._round += 1
        self._close_idle()

    def forked(self) -> None:
        """In a forked child: connections of its own."""
        self._foreign += self._idle
        self._idle, self._places = [], threading.BoundedSemaphore(self._connections)
        self.generation += 1

    def _take(self) -> HeardConnection:
        with suppress(IndexError):
            while (known := self._idle.pop()).closed:
                pass
            return known
        return self._connect()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _read(self, conninfo: str) -> tuple[str, str]:
        """The connection string with our defaults, and how it is named in messages: without a password."""
        try:
            parts = self._psycopg.conninfo.conninfo_to_dict(conninfo)
        except self._psycopg.Error:  # its text repeats the address, with the password in it
            wanted = "the address of the database is not understood: postgresql://user@host/name"
            raise self._failed(wanted, False) from None
        for name, value in _defaults(self._timeout).items():
            parts.setdefault(name, value)
        parts["client_encoding"] = "utf8"  # whatever the environment says: what is read back has to be what was written
        host, name = parts.get("host") or "the local server", parts.get("dbname") or "its default"
        return self._psycopg.conninfo.make_conninfo(**parts), f"PostgreSQL database {name} at {host}"

    def _connect(self) -> HeardConnection:
        connection, number = self._open()
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            connection.close()
            wrong = f"{self.place} cannot hold every letter: its encoding is {encoding}, and has to be UTF8"
            raise self._failed(wrong, False)
        connection.is_at_it = partial(self._is_at, number)
        self.generation += 1
        return connection

    def _open(self) -> tuple[HeardConnection, object]:
        """A connection, and the server's number for it."""
        if time.monotonic() < self._silent_until:
            raise self._silence.SilentError("it says nothing just now")
        connection: HeardConnection | None = None
        try:
            connection = self._silence.HeardConnection.connect(self._conninfo, autocommit=True)
            connection.seconds = self._timeout + 1  # who waits for a lock hears of it before
            row = connection.execute(_TERMS, (self._commit, str(round(self._timeout * 1000)))).fetchone()
        except BaseException as error:  # whatever it was, no connection may stay half open
            if isinstance(error, (self._silence.SilentError, self._psycopg.errors.ConnectionTimeout)):
                self._silent_until = time.monotonic() + _PAUSE_SECONDS
            if connection is not None:
                connection.close()
            raise
        return connection, None if row is None else row[0]

    def _is_at(self, number: object) -> bool:
        """Whether the server still does what it was told over its connection of this number."""
        try:
            other, _ = self._open()
            with closing(other):
                row = other.execute(_STATE, (number,)).fetchone()
        except self._psycopg.Error:
            return False
        return row is not None and row[0] is not False

    def _lay_out(self, connection: Connection, layout: Layout) -> None:
        terms = connection.execute("SHOW lock_timeout").fetchone()
        assert terms is not None
        connection.execute(f"SET LOCAL lock_timeout = '{_MAKING_TIMEOUT}'")
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", (_MAKING,))
        connection.execute(f"SET LOCAL lock_timeout = '{terms[0]}'")
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

    def _told(self, error: psycopg.Error, known: Connection | None) -> Exception:
        if known is not None and (known.broken or (not known.closed and (error.sqlstate or "").startswith(_GONE))):
            self._is_lost.now = True
            with suppress(self._psycopg.Error):
                known.close()
        passes = isinstance(error, self._psycopg.OperationalError) and not (error.sqlstate or "").startswith(_LASTING)
        passes = passes or error.sqlstate == _READ_ONLY
        return self._failed(f"{self.place} cannot be used: {_first_line(error)}", passes)


def has_table(conninfo: str, name: str, timeout_seconds: float, failed: Callable[[str, bool], Exception]) -> bool:
    """Whether a database has a table; nothing is made there."""
    database = PostgresDatabase(conninfo, timeout_seconds, None, failed)
    try:
        with database.statements() as connection:
            return connection.execute("SELECT to_regclass(%s)", (name,)).fetchone() != (None,)
    finally:
        database.close()


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
