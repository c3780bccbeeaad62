"""The book of many server processes, in one PostgreSQL database.

Who answers a request holds it by a lease, on the database's clock. The process renews its leases for as long as it
lives; those of one that died run out, and the same request is then answered by another. Who lost its lease cannot keep
its answer: nothing that two processes decided is ever told twice.

The tables (``cra_book_*``) are made on first use, in the first schema of the connection's ``search_path``.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import LifoQueue
from typing import TYPE_CHECKING, TypeVar, cast

from cra_middleware._ids import new_id
from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.server.book import Answer, BookError, Claim, ExecutionRow, SessionRow, State

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_Result = TypeVar("_Result")
LEASE_SECONDS = 6.0
"""Shorter than a repeated request waits: whoever asks again after a process died is answered."""
# Claims need no log: a database that died forgets them, and then no answer is kept that was decided before.
# What clients name is kept as bytes: a text column holds no NUL and no half letters.
_FIRST = """
CREATE TABLE cra_book_sessions (
    session_id bytea PRIMARY KEY, agent_id bytea NOT NULL, creator bytea NOT NULL, goal bytea NOT NULL,
    created_us bigint NOT NULL, ended_us bigint, atlas_ids bytea NOT NULL, parent_session_id bytea,
    metadata bytea NOT NULL, context bytea NOT NULL);
CREATE INDEX cra_book_newest ON cra_book_sessions (created_us, session_id);
CREATE INDEX cra_book_newest_of ON cra_book_sessions (creator, created_us, session_id);
CREATE INDEX cra_book_open ON cra_book_sessions (created_us, session_id) WHERE ended_us IS NULL;
CREATE INDEX cra_book_below ON cra_book_sessions (parent_session_id)
    WHERE ended_us IS NULL AND parent_session_id IS NOT NULL;
CREATE TABLE cra_book_answers (
    session_id bytea NOT NULL, key bytea NOT NULL, digest text NOT NULL, status integer NOT NULL, body bytea NOT NULL,
    approval_id text, retry_after_seconds double precision, at_us bigint NOT NULL, PRIMARY KEY (session_id, key));
CREATE INDEX cra_book_oldest ON cra_book_answers (at_us);
CREATE UNLOGGED TABLE cra_book_claims (
    session_id bytea NOT NULL, key bytea NOT NULL, holder text NOT NULL, until timestamptz NOT NULL,
    PRIMARY KEY (session_id, key));
CREATE INDEX cra_book_held ON cra_book_claims (holder);
CREATE INDEX cra_book_left ON cra_book_claims (until);
CREATE TABLE cra_book_executions (
    execution_id bytea PRIMARY KEY, session_id bytea NOT NULL, caller bytea NOT NULL, deadline_us bigint NOT NULL,
    report text);
CREATE INDEX cra_book_waiting ON cra_book_executions (deadline_us) WHERE report IS NULL;
CREATE INDEX cra_book_told ON cra_book_executions (deadline_us) WHERE report IS NOT NULL;
"""
_LAYOUT = Layout("cra_book_layout", (_FIRST,))
_SESSION = "session_id, agent_id, creator, goal, created_us, ended_us, atlas_ids, parent_session_id, metadata, context"
_EXECUTION = "execution_id, session_id, caller, deadline_us, report"
_ANSWER = "digest, status, body, approval_id, retry_after_seconds"
_STATES = {"active": "ended_us IS NULL", "ended": "ended_us IS NOT NULL", "all": "TRUE"}
_THIS = "session_id = %s AND key = %s"
_LATER = "clock_timestamp() + make_interval(secs => %s)"


class PostgresBook:
    """Safe under threads, and processes of many machines."""

    def __init__(
        self,
        conninfo: str,
        timeout_seconds: float = 5.0,
        *,
        lease_seconds: float = LEASE_SECONDS,
        connections: int = 4,
    ) -> None:
        """Connect, and make the tables where there are none.

        Args:
            conninfo: ``postgresql://user@host/database`` or ``host=… dbname=…``, as libpq takes it.
            timeout_seconds: how long to wait for a connection, and for another one's lock.
            lease_seconds: for how long a request stays claimed by a process that died.
            connections: how many threads use the database at once; the others wait.

        Raises:
            BookError: when psycopg is not installed, or the database cannot be used.
            ValueError: when there are no connections.
        """
        if connections < 1:
            raise ValueError("a book has at least one connection")
        self._databases: list[PostgresDatabase] = []
        self._idle: LifoQueue[PostgresDatabase] = LifoQueue()
        try:
            for _ in range(connections):
                self._databases.append(PostgresDatabase(conninfo, timeout_seconds, _LAYOUT, _failed))
                self._idle.put(self._databases[-1])
        except BookError:  # those that were opened before must not stay open
            self._close_all()
            raise
        self._lease = lease_seconds
        self._name = new_id()
        self._lock = threading.Lock()
        self._running: set[tuple[str, str]] = set()
        self._is_closed = threading.Event()
        terms = (weakref.ref(self), self._is_closed, lease_seconds / 3)
        threading.Thread(target=_renew, args=terms, name="cra-leases", daemon=True).start()

    def close(self) -> None:
        self._is_closed.set()
        self._close_all()

    def add_session(self, row: SessionRow) -> bool:
        values = (
            *(_bytes(text) for text in row[:4]),
            *row[4:6],
            json.dumps(row.atlas_ids).encode(),
            None if row.parent_session_id is None else _bytes(row.parent_session_id),
            *(_bytes(text) for text in row[8:]),
        )

        def work(connection: Connection) -> bool:
            done = connection.execute(
                f"INSERT INTO cra_book_sessions ({_SESSION}) VALUES ({', '.join(['%s'] * 10)}) ON CONFLICT DO NOTHING",
                values,
            )
            return done.rowcount == 1

        return self._do(work)

    def session(self, session_id: str) -> SessionRow | None:
        query = f"SELECT {_SESSION} FROM cra_book_sessions WHERE session_id = %s"
        found = self._rows(query, (_bytes(session_id),))
        return _session(found[0]) if found else None

    def end_session(self, session_id: str, ended_us: int) -> None:
        self._change(
            "UPDATE cra_book_sessions SET ended_us = %s, context = '{}' WHERE session_id = %s AND ended_us IS NULL",
            (ended_us, _bytes(session_id)),
        )

    def children(self, session_id: str) -> Sequence[str]:
        query = "SELECT session_id FROM cra_book_sessions WHERE parent_session_id = %s AND ended_us IS NULL"
        return [_text(name) for (name,) in self._rows(query, (_bytes(session_id),))]

    def sessions(self, state: State, creator: str | None, limit: int, offset: int) -> tuple[Sequence[SessionRow], int]:
        where = _STATES[state] if creator is None else f"{_STATES[state]} AND creator = %s"
        values = () if creator is None else (_bytes(creator),)

        def work(connection: Connection) -> tuple[list[tuple[object, ...]], int]:
            counted = connection.execute(f"SELECT count(*) FROM cra_book_sessions WHERE {where}", values).fetchall()
            rows = connection.execute(
                f"SELECT {_SESSION} FROM cra_book_sessions WHERE {where} "
                "ORDER BY created_us DESC, session_id DESC LIMIT %s OFFSET %s",
                (*values, limit, offset),
            ).fetchall()
            return rows, cast("int", counted[0][0])

        rows, total = self._do(work)
        return [_session(row) for row in rows], total

    def claim(self, session_id: str, key: str, digest: str, now_us: int) -> Claim:
        with self._lock:
            if (session_id, key) in self._running:
                return Claim("running")
            self._running.add((session_id, key))
        claim = Claim("running")
        try:
            claim = self._do(lambda connection: self._taken(connection, session_id, key))
        finally:
            if claim.state != "new":
                self._let_go(session_id, key)
        return claim

    def answer(
        self,
        session_id: str,
        key: str,
        answer: Answer,
        now_us: int,
        call: ExecutionRow | None = None,
        *,
        is_final: bool = True,
    ) -> None:
        names = (_bytes(session_id), _bytes(key))
        is_claimed = (session_id, key) in self._running

        def work(connection: Connection) -> None:
            if is_claimed and not self._holds(connection, names, is_final):
                rows = connection.execute(f"SELECT {_ANSWER} FROM cra_book_answers WHERE {_THIS}", names).fetchall()
                if not rows or Answer._make(rows[0]) != answer:  # else it was kept, and the connection broke behind it
                    raise BookError("another process answers this request; ask again")
            connection.execute(
                f"INSERT INTO cra_book_answers (session_id, key, {_ANSWER}, at_us) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (session_id, key) DO UPDATE SET "
                f"({_ANSWER}, at_us) = (EXCLUDED.digest, EXCLUDED.status, EXCLUDED.body, EXCLUDED.approval_id, "
                "EXCLUDED.retry_after_seconds, EXCLUDED.at_us)",
                (*names, *answer, now_us),
            )
            if call is not None:
                connection.execute(
                    f"INSERT INTO cra_book_executions ({_EXECUTION}) VALUES (%s, %s, %s, %s, %s) "
                    "ON CONFLICT (execution_id) DO UPDATE SET "
                    "report = COALESCE(cra_book_executions.report, EXCLUDED.report)",
                    (*(_bytes(text) for text in call[:3]), *call[3:]),
                )

        self._do(work)
        if is_final:
            self._let_go(session_id, key)

    def give_back(self, session_id: str, key: str, *, forget: bool = True) -> None:
        names = (_bytes(session_id), _bytes(key))

        def work(connection: Connection) -> None:
            if self._holds(connection, names, True) and forget:
                connection.execute(f"DELETE FROM cra_book_answers WHERE {_THIS}", names)

        try:
            self._do(work)
        finally:  # where the database is away, the lease runs out
            self._let_go(session_id, key)

    def withdraw(self, session_id: str, key: str, approval_id: str) -> None:
        names = (_bytes(session_id), _bytes(key))
        self._change(f"DELETE FROM cra_book_answers WHERE {_THIS} AND approval_id = %s", (*names, approval_id))

    def execution(self, execution_id: str) -> ExecutionRow | None:
        query = f"SELECT {_EXECUTION} FROM cra_book_executions WHERE execution_id = %s"
        found = self._rows(query, (_bytes(execution_id),))
        return _execution(found[0]) if found else None

    def reported(self, execution_id: str, report: str) -> None:
        self._change(
            "UPDATE cra_book_executions SET report = %s WHERE execution_id = %s AND report IS NULL",
            (report, _bytes(execution_id)),
        )

    def overdue(self, now_us: int, most: int) -> Sequence[ExecutionRow]:
        query = f"SELECT {_EXECUTION} FROM cra_book_executions WHERE report IS NULL AND deadline_us <= %s"
        return [_execution(row) for row in self._rows(f"{query} ORDER BY deadline_us LIMIT %s", (now_us, most))]

    def prune(self, before_us: int) -> None:
        self._change("DELETE FROM cra_book_answers WHERE at_us < %s", (before_us,))
        self._change("DELETE FROM cra_book_executions WHERE report IS NOT NULL AND deadline_us < %s", (before_us,))
        self._change("DELETE FROM cra_book_claims WHERE until < clock_timestamp() - interval '1 hour'", ())

    def renew(self) -> None:
        """Hold on to what this process answers now."""
        with self._lock:
            if not self._running:
                return
        self._change(f"UPDATE cra_book_claims SET until = {_LATER} WHERE holder = %s", (self._lease, self._holder))

    @property
    def _holder(self) -> str:
        return f"{self._name} {os.getpid()}"  # a fork is another one

    def _taken(self, connection: Connection, session_id: str, key: str) -> Claim:
        names = (_bytes(session_id), _bytes(key))
        taken = connection.execute(
            "INSERT INTO cra_book_claims AS known (session_id, key, holder, until) "
            f"VALUES (%s, %s, %s, {_LATER}) ON CONFLICT (session_id, key) "
            "DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until "
            "WHERE known.until < clock_timestamp() OR known.holder = EXCLUDED.holder",
            (*names, self._holder, self._lease),
        )
        if taken.rowcount != 1:
            return Claim("running")
        # only now: an answer is kept in the step that ends its claim, so whoever has the claim sees it
        rows = connection.execute(f"SELECT {_ANSWER} FROM cra_book_answers WHERE {_THIS}", names).fetchall()
        if not rows:
            return Claim("new")
        self._holds(connection, names, True)
        return Claim("answered", Answer._make(rows[0]))

    def _holds(self, connection: Connection, names: tuple[bytes, bytes], is_last: bool) -> bool:
        """Whether a claim is still this process's; held to the end of the transaction, and then no more if it is the
        last that is done under it."""
        step = "DELETE FROM cra_book_claims" if is_last else f"UPDATE cra_book_claims SET until = {_LATER}"
        lease = () if is_last else (self._lease,)
        return connection.execute(f"{step} WHERE {_THIS} AND holder = %s", (*lease, *names, self._holder)).rowcount == 1

    def _do(self, work: Callable[[Connection], _Result]) -> _Result:
        database = self._idle.get()
        try:
            return database.twice(work)
        finally:
            self._idle.put(database)

    def _close_all(self) -> None:
        for database in self._databases:
            database.close()

    def _rows(self, query: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        return self._do(lambda connection: connection.execute(query, values).fetchall())

    def _change(self, statement: str, values: tuple[object, ...]) -> None:
        def work(connection: Connection) -> None:
            connection.execute(statement, values)

        self._do(work)

    def _let_go(self, session_id: str, key: str) -> None:
        with self._lock:
            self._running.discard((session_id, key))


def _renew(book: weakref.ref[PostgresBook], is_closed: threading.Event, seconds: float) -> None:
    while not is_closed.wait(seconds):
        known = book()
        if known is None:
            return
        with suppress(BookError):  # tried again; what runs out meanwhile cannot be answered
            known.renew()
        del known


def _failed(message: str, passes: bool) -> BookError:
    return BookError(message)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(kept: object) -> str:
    return cast("bytes", kept).decode("utf-8", "surrogatepass")


def _session(row: tuple[object, ...]) -> SessionRow:
    texts = [None if item is None else item if isinstance(item, int) else _text(item) for item in row]
    known = SessionRow._make(cast("list[str]", texts))
    return known._replace(atlas_ids=tuple(json.loads(cast("str", texts[6]))))


def _execution(row: tuple[object, ...]) -> ExecutionRow:
    deadline_us, report = cast("tuple[int, str | None]", row[3:])
    return ExecutionRow(_text(row[0]), _text(row[1]), _text(row[2]), deadline_us, report)
