"""A PostgreSQL database for the sessions of many machines.

``append`` is one statement, so one transaction and one round trip, however many lines it carries; it returns once the
server has committed. It therefore waits for the network and for the server's disk: put a ``BufferedSink`` in front.
What is committed counts as durable, which is as true as the server's ``fsync`` setting.

A session has one writer. Its row names who that is, and each append looks whether it still is; a lock that belongs to
the connection (``pg_try_advisory_lock``, so no transaction-pooling proxy may stand between) says that the writer
still lives. When a writer's machine vanishes, the server frees the lock after its ``tcp_keepalives_idle``.

The tables (``cra_sessions``, ``cra_lines``, ``cra_torn``, ``cra_pruned``, ``cra_ledger_*``) are made on first use, in
the first schema of the connection's ``search_path``. Lines are kept as bytes, exactly as they are hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cra_middleware._ids import is_id, new_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.ledger.backlog import Backlog
from cra_middleware.trace.ledger.book import LedgerBook
from cra_middleware.trace.ledger.follower import LedgerFollower
from cra_middleware.trace.note import Signer
from cra_middleware.trace.pruned import WRITER as PRUNED
from cra_middleware.trace.pruned import Pruned, PrunedError
from cra_middleware.trace.sink import Health, Query, SessionLog
from cra_middleware.trace.sinks.postgres_entries import PostgresEntries
from cra_middleware.trace.sinks.postgres_ledger import PostgresPlace, check_signed, read_backlog, read_book, read_head
from cra_middleware.trace.sinks.postgres_link import PostgresLink, as_number
from cra_middleware.trace.sinks.postgres_log import PostgresLog
from cra_middleware.trace.sinks.postgres_pruning import last_lines, prune, pruned_ids, read_pruned
from cra_middleware.trace.sinks.postgres_shared import SHARED, PostgresSharedLog
from cra_middleware.trace.storage.rows import lines_of

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_MOST = 2**62
# The first event waits for the disk, and takes the session's row along: this waits for nothing.
_CREATE = (
    "INSERT INTO cra_sessions (session_id, writer) SELECT %s, %s FROM set_config('synchronous_commit', 'off', true) "
    "ON CONFLICT (session_id) DO NOTHING RETURNING number"
)


class PostgresSink:
    """Many sessions in one database, over one connection, or some, opened again when lost."""

    def __init__(
        self,
        conninfo: str,
        *,
        timeout_seconds: float = 5.0,
        shared: bool = False,
        connections: int = 4,
        signer: Signer | None = None,
        on_head: Callable[[str], object] | None = None,
    ) -> None:
        """Connect, and make the tables where there are none.

        Args:
            conninfo: ``postgresql://user@host/database`` or ``host=… dbname=…``, as libpq takes it.
            timeout_seconds: how long to wait for a connection, and for another one's lock.
            shared: several processes write the same sessions, each with such a sink; the database puts their events
                in order.
            connections: how many are opened at most, where it is shared; a writer of its own needs just one, for its
                lock.
            signer: signs heads over what is committed, with one more connection; give every process the same key.
            on_head: hears of each head that this process signs.

        Raises:
            ChainBroken: when the database's ledger was changed since it was signed.
            SinkError: when psycopg is not installed, or the database cannot be used.
        """
        self._link = PostgresLink(conninfo, timeout_seconds, connections if shared else 1)
        self._logs: dict[int, PostgresLog] = {}
        self._shared = shared
        self._follower: LedgerFollower | None = None
        try:
            if signer is not None:
                self._follower = LedgerFollower(PostgresPlace(conninfo, timeout_seconds), signer, on_head)
        except BaseException:  # whatever it was, no connection may stay open
            self._link.close()
            raise

    def create(self, session_id: str, /) -> SessionLog:
        _check_id(session_id)
        if self._follower is not None:
            self._follower.check()
        writer = SHARED if self._shared else new_id()
        with self._link.statements() if self._shared else self._link.transaction() as connection:
            row = connection.execute(_CREATE, (session_id, writer)).fetchone()
            if row is None:
                self._find(connection, session_id)
                raise SinkError(f"session {session_id} is already in {self._link.place}; resume it instead")
            number = as_number(row[0])
            if not self._shared:
                self._link.lock(connection, number)
        if self._shared:
            return PostgresSharedLog(self._link, number, session_id, follower=self._follower)
        return self._open(PostgresLog(self._link, number, session_id, writer, follower=self._follower))

    def reopen(self, session_id: str, /) -> SessionLog:
        with self._link.statements() as connection:
            self._find(connection, session_id)
        check_signed(self._link, session_id)
        if self._shared:
            return self._reopen_shared(session_id)
        writer = new_id()
        with self._link.transaction() as connection:
            number = self._find(connection, session_id)
            known = self._logs.get(number)
            if (known is not None and known.is_open) or not self._link.lock(connection, number):
                raise SinkError(f"session {session_id} has another writer: one process writes a session at a time")
            row = connection.execute(
                "UPDATE cra_sessions SET writer = %s WHERE number = %s AND writer IS DISTINCT FROM %s RETURNING events",
                (writer, number, PRUNED),
            ).fetchone()
            if row is None:  # just now
                self._link.unlock(connection, number)
                raise PrunedError(session_id)
            events = as_number(row[0])
        return self._open(PostgresLog(self._link, number, session_id, writer, events, follower=self._follower))

    def _reopen_shared(self, session_id: str) -> SessionLog:
        with self._link.transaction() as connection:
            number = self._find(connection, session_id)
            row = connection.execute(
                "UPDATE cra_sessions SET writer = %s WHERE number = %s AND (writer IS NULL OR writer = %s) "
                "RETURNING events",
                (SHARED, number, SHARED),
            ).fetchone()
            if row is None:
                self._find(connection, session_id)
        if row is None:
            raise SinkError(f"session {session_id} has one writer: it can be shared once that has closed it")
        return PostgresSharedLog(self._link, number, session_id, as_number(row[0]), follower=self._follower)

    def session_ids(self) -> list[str]:
        with self._link.transaction() as connection:
            found = connection.execute(
                'SELECT session_id FROM cra_sessions WHERE writer IS DISTINCT FROM %s ORDER BY session_id COLLATE "C"',
                (PRUNED,),
            ).fetchall()
        return [name for (name,) in found if isinstance(name, str) and is_id(name)]

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        return lines_of(self._link.pieces(self._number(session_id)))

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        number = self._number(session_id)
        where, values = _condition(query)
        begin = 0
        if query.last is not None:
            place = self._place_of_last(number, query.last, where, values)
            if place is None:
                return iter(())
            begin = place
        return self._link.pieces(number, begin, where, values)

    def count(self, session_id: str, /) -> int:
        _check_id(session_id)
        with self._link.transaction() as connection:
            row = connection.execute(
                "SELECT count(*) FROM cra_lines JOIN cra_sessions ON number = session WHERE session_id = %s "
                "AND substr(line, length(line)) = '\\x0a'::bytea",
                (session_id,),
            ).fetchone()
        return 0 if row is None else as_number(row[0])

    def health(self) -> Health:
        if self._follower is not None and self._follower.alarm is not None:
            return Health(False, self._follower.alarm)
        try:
            with self._link.transaction() as connection:
                row = connection.execute(
                    "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"
                ).fetchone()
        except SinkError as error:
            return Health(False, str(error))
        if row is None or row[0] is not False:
            return Health(False, f"{self._link.place} is a standby and takes no events; name the primary server")
        if row[1] is not False:
            return Health(False, f"{self._link.place} is read-only, and takes no events")
        return Health(True, f"{self._link.place} can be written")

    def backlog(self) -> Backlog | None:
        """What waits for a signed head, from all processes that write here; None where this one signs none.

        Raises:
            SinkError: when it cannot be read.
        """
        return None if self._follower is None else read_backlog(self._link).and_also(self._follower.backlog())

    def noted_events(self, session_id: str, /) -> int | None:
        """How many events of a session were committed, whatever is there now; None when it is not known.

        Raises:
            SinkError: when it cannot be read.
        """
        with self._link.statements() as connection:
            row = connection.execute("SELECT events FROM cra_sessions WHERE session_id = %s", (session_id,)).fetchone()
        return None if row is None else as_number(row[0])

    def read_entries(self) -> PostgresEntries:
        """The ledger, page by page."""
        return PostgresEntries(self._link)

    def read_book(self) -> LedgerBook | None:
        """The ledger, or None when nothing was ever noted.

        Raises:
            SinkError: when it cannot be read.
        """
        return read_book(self._link)

    def read_head(self) -> bytes | None:
        """The last signed head, or None; not checked.

        Raises:
            SinkError: when it cannot be read.
        """
        return read_head(self._link)

    def pruned_ids(self) -> list[str]:
        """The sessions that were pruned.

        Raises:
            SinkError: when they cannot be read.
        """
        return pruned_ids(self._link)

    def read_pruned(self, session_id: str, /) -> Pruned | None:
        """What is kept of a session that was pruned, or None.

        Raises:
            SinkError: when it cannot be read.
        """
        return read_pruned(self._link, session_id)

    def last_lines(self) -> Iterator[tuple[str, bytes]]:
        """Every session that was not pruned, with its last line.

        Raises:
            SinkError: when they cannot be read.
        """
        return last_lines(self._link)

    def prune(self, session_id: str, pruned: Pruned, /) -> str | None:
        """Put hashes in the place of a session, in one transaction; or why it stays as it is.

        Raises:
            PrunedError: when another process has done so.
            SinkError: when it cannot be done.
        """
        return prune(self._link, session_id, pruned)

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self._link.close()

    def _open(self, log: PostgresLog) -> PostgresLog:
        self._logs = {number: other for number, other in self._logs.items() if other.is_open}
        self._logs[log.number] = log
        return log

    def _place_of_last(self, number: int, last: int, where: str, values: tuple[object, ...]) -> int | None:
        if last <= 0:
            return None
        with self._link.transaction() as connection:
            row = connection.execute(
                "SELECT min(place) FROM (SELECT place FROM cra_lines "
                f"WHERE session = %s {where} ORDER BY place DESC LIMIT %s) AS found",
                (number, *values, min(last, _MOST)),
            ).fetchone()
        return None if row is None or row[0] is None else as_number(row[0])

    def _number(self, session_id: str) -> int:
        with self._link.transaction() as connection:
            return self._find(connection, session_id)

    def _find(self, connection: Connection, session_id: str) -> int:
        _check_id(session_id)
        row = connection.execute(
            "SELECT number, writer FROM cra_sessions WHERE session_id = %s", (session_id,)
        ).fetchone()
        if row is None:
            raise SinkError(f"{self._link.place} holds no session {session_id}")
        if row[1] == PRUNED:
            raise PrunedError(session_id)
        return as_number(row[0])


def _condition(query: Query) -> tuple[str, tuple[object, ...]]:
    since = max(0, min(query.since_sequence, _MOST))
    if query.event_type is None:
        return "AND sequence >= %s", (since,)
    return "AND sequence >= %s AND event_type = %s", (since, query.event_type)


def _check_id(session_id: str) -> None:
    if not is_id(session_id):
        raise SinkError("a session id must be a lower-case UUID")
