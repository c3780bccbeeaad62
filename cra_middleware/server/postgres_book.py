"""The book of many server processes, in one PostgreSQL database.

Who answers a request holds it by a lease, on the database's clock. The process renews its leases for as long as it
lives; those of one that died run out, and the same request is then answered by another. Who lost its lease cannot keep
its answer: nothing that two processes decided is ever told twice.

What is kept here does not wait for the database's disk: where the database itself dies, its last half second may be
missing, and the traces tell of that. Only the word that a call runs at a server waits.

The tables (``cra_book_*``) are made on first use, in the first schema of the connection's ``search_path``.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from cra_middleware._ids import new_id
from cra_middleware._postgres import PostgresDatabase
from cra_middleware.server.book import Answer, BookError, Claim, ExecutionRow, SessionRow, State
from cra_middleware.server.postgres_book_layout import LAYOUT

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

LEASE_SECONDS = 6.0
"""Shorter than a repeated request waits: whoever asks again after a process died is answered."""
_SESSION = (
    "session_id, agent_id, creator, goal, created_us, ended_us, atlas_ids, parent_session_id, metadata, context, "
    "is_expired"
)
_EXECUTION = "execution_id, session_id, caller, deadline_us, report"
_ANSWER = "digest, status, body, approval_id, retry_after_seconds"
_STATES = {"active": "ended_us IS NULL", "ended": "ended_us IS NOT NULL", "all": "TRUE"}
_THIS = "session_id = %s AND key = %s"
_KEPT = (
    f"INSERT INTO cra_book_answers (session_id, key, {_ANSWER}, at_us) "
    "SELECT %s, %s, %s, %s::integer, %s, %s, %s::double precision, %s::bigint FROM {} "
    "ON CONFLICT (session_id, key) DO UPDATE SET "
    f"({_ANSWER}, at_us) = (EXCLUDED.digest, EXCLUDED.status, EXCLUDED.body, EXCLUDED.approval_id, "
    "EXCLUDED.retry_after_seconds, EXCLUDED.at_us)"
)
_CALLED = (
    f"INSERT INTO cra_book_executions ({_EXECUTION}) SELECT %s, %s, %s, %s::bigint, %s FROM held "
    "ON CONFLICT (execution_id) DO UPDATE SET report = COALESCE(cra_book_executions.report, EXCLUDED.report) "
    "WHERE EXCLUDED.report IS NOT NULL RETURNING 1"
)
"""A call that is the answer to another request gives no row, and then nothing is kept."""
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
        sees_traces: bool = False,
    ) -> None:
        """Connect, and make the tables where there are none.

        Args:
            conninfo: ``postgresql://user@host/database`` or ``host=… dbname=…``, as libpq takes it.
            timeout_seconds: how long to wait for a connection, and for another one's lock.
            lease_seconds: for how long a request stays claimed by a process that died.
            connections: how many threads use the database at once; the others wait.
            sees_traces: whether the traces are in the same database, and schema.

        Raises:
            BookError: when psycopg is not installed, or the database cannot be used.
            ValueError: when there are no connections.
        """
        self._database = PostgresDatabase(
            conninfo, timeout_seconds, LAYOUT, _failed, connections=connections, survives_power_loss=False
        )
        self._lease = lease_seconds
        self._claiming = "cra_book_claim_and_look" if sees_traces else "cra_book_claim"
        self._seen = "trace_size" if sees_traces else "NULL::bigint"
        self._name = new_id()
        self._lock = threading.Lock()
        self._running: set[tuple[str, str]] = set()
        self._is_closed = threading.Event()
        terms = (weakref.ref(self), self._is_closed, lease_seconds / 3)
        threading.Thread(target=_renew, args=terms, name="cra-leases", daemon=True).start()

    def close(self) -> None:
        self._is_closed.set()
        self._database.close()

    def add_session(self, row: SessionRow) -> bool:
        values = (
            *(_bytes(text) for text in row[:4]),
            *row[4:6],
            json.dumps(row.atlas_ids).encode(),
            None if row.parent_session_id is None else _bytes(row.parent_session_id),
            *(_bytes(text) for text in row[8:10]),
            row.is_expired,
        )

        def work(connection: Connection) -> bool:
            done = connection.execute(
                f"INSERT INTO cra_book_sessions ({_SESSION}) VALUES ({', '.join(['%s'] * 11)}) ON CONFLICT DO NOTHING",
                values,
            )
            return done.rowcount == 1

        return self._database.twice(work, by_itself=True)

    def session(self, session_id: str) -> SessionRow | None:
        query = f"SELECT {_SESSION} FROM cra_book_sessions WHERE session_id = %s"
        found = self._rows(query, (_bytes(session_id),))
        return _session(found[0]) if found else None

    def end_session(self, session_id: str, ended_us: int, *, is_expired: bool = False) -> None:
        self._change(
            "UPDATE cra_book_sessions SET ended_us = %s, is_expired = %s, context = '{}' "
            "WHERE session_id = %s AND ended_us IS NULL",
            (ended_us, is_expired, _bytes(session_id)),
        )

    def children(self, session_id: str) -> Sequence[str]:
        query = "SELECT session_id FROM cra_book_sessions WHERE parent_session_id = %s AND ended_us IS NULL"
        return [_text(name) for (name,) in self._rows(query, (_bytes(session_id),))]

    def last_child_end(self, session_id: str) -> int | None:
        query = "SELECT max(ended_us) FROM cra_book_sessions WHERE parent_session_id = %s AND NOT is_expired"
        return cast("int | None", self._rows(query, (_bytes(session_id),))[0][0])

    def open_before(self, before_us: int, behind: tuple[int, str] | None, most: int) -> Sequence[SessionRow]:
        created_us, name = behind or (-1, "")
        rows = self._rows(
            f"SELECT {_SESSION} FROM cra_book_sessions WHERE ended_us IS NULL AND created_us < %s "
            "AND (created_us, session_id) > (%s, %s) ORDER BY created_us, session_id LIMIT %s",
            (before_us, created_us, _bytes(name), most),
        )
        return [_session(row) for row in rows]

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

        rows, total = self._database.twice(work)
        return [_session(row) for row in rows], total

    def claim(self, session_id: str, key: str) -> Claim:
        with self._lock:
            if (session_id, key) in self._running:
                return Claim("running")
            self._running.add((session_id, key))
        claim = Claim("running")
        try:
            claim = self._database.twice(lambda connection: self._taken(connection, session_id, key), by_itself=True)
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
        held, values = "held AS (SELECT 1)", list[object]()
        if (session_id, key) in self._running:
            held, values = self._holding(names, is_final)
        origin = "held"
        if call is not None:
            held, origin = f"{held}, called AS ({_CALLED})", "called"
            values += [*(_bytes(text) for text in call[:3]), *call[3:]]
        values += [*names, *answer, now_us]

        def work(connection: Connection) -> None:
            if not is_final:  # it stands for what runs now, and would run again
                connection.execute("SET LOCAL synchronous_commit = on")
            done = connection.execute(f"WITH {held}, kept AS ({_KEPT.format(origin)}) SELECT FROM {origin}", values)
            if done.rowcount != 1:
                rows = connection.execute(f"SELECT {_ANSWER} FROM cra_book_answers WHERE {_THIS}", names).fetchall()
                if not rows or Answer._make(rows[0]) != answer:  # else it was kept, and the connection broke behind it
                    raise BookError("another process answers this request; ask again")

        self._database.twice(work, by_itself=is_final)
        if is_final:
            self._let_go(session_id, key)

    def give_back(self, session_id: str, key: str, *, forget: bool = True) -> None:
        names = (_bytes(session_id), _bytes(key))

        held, values = self._holding(names, True)

        def work(connection: Connection) -> None:
            if connection.execute(f"WITH {held} SELECT FROM held", values).rowcount == 1 and forget:
                connection.execute(f"DELETE FROM cra_book_answers WHERE {_THIS}", names)

        try:
            self._database.twice(work)
        finally:  # where the database is away, the lease runs out
            self._let_go(session_id, key)

    def withdraw(self, session_id: str, key: str, approval_id: str) -> None:
        names = (_bytes(session_id), _bytes(key))
        self._change(f"DELETE FROM cra_book_answers WHERE {_THIS} AND approval_id = %s", (*names, approval_id))

    def execution(self, execution_id: str) -> ExecutionRow | None:
        query = f"SELECT {_EXECUTION} FROM cra_book_executions WHERE execution_id = %s"
        found = self._rows(query, (_bytes(execution_id),))
        return _execution(found[0]) if found else None

    def reported(self, execution_id: str, report: str) -> bool:
        told = "UPDATE cra_book_executions SET report = COALESCE(report, %s) WHERE execution_id = %s RETURNING 1"
        return bool(self._rows(told, (report, _bytes(execution_id))))

    def overdue(self, now_us: int, most: int) -> Sequence[ExecutionRow]:
        query = f"SELECT {_EXECUTION} FROM cra_book_executions WHERE report IS NULL AND deadline_us <= %s"
        return [_execution(row) for row in self._rows(f"{query} ORDER BY deadline_us LIMIT %s", (now_us, most))]

    def prune(self, before_us: int) -> None:
        self._tidy("DELETE FROM cra_book_answers WHERE at_us < %s", (before_us,))
        self._tidy("DELETE FROM cra_book_executions WHERE report IS NOT NULL AND deadline_us < %s", (before_us,))
        self._tidy("DELETE FROM cra_book_claims WHERE until < clock_timestamp() - interval '1 hour'", ())

    def session_ids(self, behind: str, most: int) -> Sequence[str]:
        query = "SELECT session_id FROM cra_book_sessions WHERE session_id > %s ORDER BY session_id LIMIT %s"
        return [_text(name) for (name,) in self._rows(query, (_bytes(behind), most))]

    def forget(self, session_ids: Sequence[str]) -> None:
        names = [_bytes(name) for name in session_ids]
        self._tidy("DELETE FROM cra_book_answers WHERE session_id = ANY(%s)", (names,))
        self._tidy("DELETE FROM cra_book_sessions WHERE session_id = ANY(%s)", (names,))  # last: it says what is left

    def forget_calls(self, before_us: int) -> None:
        calls = "DELETE FROM cra_book_executions AS call WHERE deadline_us < %s"
        here = "SELECT FROM cra_book_sessions AS known WHERE known.session_id = call.session_id"
        self._tidy(f"{calls} AND NOT EXISTS ({here})", (before_us,))

    def renew(self) -> None:
        """Hold on to what this process answers now, and to nothing that it could not give back."""
        with self._lock:
            running = list(self._running)
        if not running:
            return
        sessions, keys = ([_bytes(name[place]) for name in running] for place in (0, 1))
        self._change(
            f"UPDATE cra_book_claims AS known SET until = {_LATER} "
            "FROM unnest(%s::bytea[], %s::bytea[]) AS answered (session_id, key) "
            "WHERE known.session_id = answered.session_id AND known.key = answered.key AND holder = %s",
            (self._lease, sessions, keys, self._holder),
        )

    @property
    def _holder(self) -> str:
        return f"{self._name} {os.getpid()}"  # a fork is another one

    def _taken(self, connection: Connection, session_id: str, key: str) -> Claim:
        names = (_bytes(session_id), _bytes(key))
        rows = connection.execute(
            f"SELECT {self._seen}, {_ANSWER} FROM {self._claiming}(%s, %s, %s, %s::double precision)",
            (*names, self._holder, self._lease),
        ).fetchall()
        if not rows:
            return Claim("running")
        trace_size, *kept = rows[0]
        if kept[0] is None:  # held now, and nothing was kept
            return Claim("new", trace_size=cast("int | None", trace_size))
        held, values = self._holding(names, True)
        connection.execute(f"WITH {held} SELECT FROM held", values)
        return Claim("answered", Answer._make(kept))

    def _holding(self, names: tuple[bytes, bytes], is_last: bool) -> tuple[str, list[object]]:
        """``held`` in a statement, and its values: a row where a claim is still this process's. It is held to the end
        of the transaction, and then no more if this is the last that is done under it."""
        step = "DELETE FROM cra_book_claims" if is_last else f"UPDATE cra_book_claims SET until = {_LATER}"
        lease = [] if is_last else [self._lease]
        return f"held AS ({step} WHERE {_THIS} AND holder = %s RETURNING 1)", [*lease, *names, self._holder]

    def _rows(self, query: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        return self._database.twice(lambda connection: connection.execute(query, values).fetchall(), by_itself=True)

    def _change(self, statement: str, values: tuple[object, ...], *, is_long: bool = False) -> None:
        def work(connection: Connection) -> None:
            connection.execute(statement, values)

        self._database.twice(work, by_itself=True, is_long=is_long)

    def _tidy(self, statement: str, values: tuple[object, ...]) -> None:
        """May take as long as it takes: one that is given up would never be done."""
        self._change(statement, values, is_long=True)

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
