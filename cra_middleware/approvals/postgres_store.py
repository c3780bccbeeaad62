"""Open questions in a PostgreSQL database: many processes on many machines ask and answer, and one yes is used once.

The database compares and sets: an answer and its use hold the question's row, new questions of one session wait for
each other. Where a connection is lost, what was asked of it is done once more over a new one; a use carries a name of
its own, so that the second time finds the first. When it stays lost, the store fails, and the call is denied; a yes
that was used up just then is lost with it, and a person is asked again.

The tables (``cra_approvals`` and ``cra_approvals_layout``) are made on first use, in the first schema of the
connection's ``search_path``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from cra_middleware._ids import new_id
from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.approvals.approval import Answer, Approval, ApprovalError, Pending, State, answered
from cra_middleware.approvals.kept_questions import Row, approval_of, question_of

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_Result = TypeVar("_Result")
_FIRST = """
CREATE TABLE cra_approvals (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, approval_id text UNIQUE NOT NULL, session_id text NOT NULL,
    action_id text NOT NULL, arguments_digest text NOT NULL, state text NOT NULL, question text NOT NULL,
    answer text NOT NULL, used_by text);
CREATE INDEX cra_approvals_by_call ON cra_approvals (session_id, action_id, arguments_digest);
CREATE INDEX cra_approvals_by_state ON cra_approvals (state, session_id);
"""
_LAYOUT = Layout("cra_approvals_layout", (_FIRST,))
_COLUMNS = "approval_id, session_id, action_id, arguments_digest, state, question, answer"


class PostgresApprovals:
    """Safe under threads, tasks, and processes of many machines."""

    def __init__(self, conninfo: str, timeout_seconds: float = 5.0) -> None:
        """Connect, and make the tables where there are none.

        Args:
            conninfo: ``postgresql://user@host/database`` or ``host=… dbname=…``, as libpq takes it.
            timeout_seconds: how long to wait for a connection, and for another one's lock.

        Raises:
            ApprovalError: when psycopg is not installed, or the database cannot be used.
        """
        self._database = PostgresDatabase(conninfo, timeout_seconds, _LAYOUT, _failed)

    def close(self) -> None:
        """Let go of the connection."""
        self._database.close()

    def find(self, session_id: str, action_id: str, arguments_digest: str) -> Approval | None:
        found = self._select(
            "session_id = %s AND action_id = %s AND arguments_digest = %s "
            "AND state IN ('pending', 'approved', 'rejected') ORDER BY number DESC LIMIT 1",
            (session_id, action_id, arguments_digest),
        )
        return found[0] if found else None

    def add(self, pending: Pending, most: int) -> bool:
        row = (
            *(pending.approval_id, pending.session_id, pending.action_id, pending.arguments_digest),
            *("pending", question_of(pending), _words(Approval(pending=pending))),
        )

        def work(connection: Connection) -> bool:
            # counting and keeping are one step for all that ask in this session
            connection.execute(
                "SELECT pg_advisory_xact_lock('cra_approvals'::regclass::oid::integer, hashtext(%s))",
                (pending.session_id,),
            )
            if _one(connection, pending.approval_id) is not None:
                return True  # kept by a try whose connection broke
            counted = connection.execute(
                "SELECT count(*) FROM cra_approvals WHERE state = 'pending' AND session_id = %s", (pending.session_id,)
            ).fetchone()
            if counted is None or cast("int", counted[0]) >= most:
                return False
            connection.execute(f"INSERT INTO cra_approvals ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s)", row)
            return True

        return self._twice(work)

    def get(self, approval_id: str) -> Approval | None:
        found = self._select("approval_id = %s", (approval_id,))
        return found[0] if found else None

    def answer(self, approval_id: str, answer: Answer, now_us: int) -> Approval:
        tries: list[Approval] = []

        def work(connection: Connection) -> Approval:
            found = _one(connection, approval_id)
            if tries and found == tries[0]:
                return found  # kept by the try whose connection broke
            approval = answered(found, approval_id, answer, now_us)
            tries.append(approval)
            _update(connection, approval)
            return approval

        return self._twice(work)

    def consume(self, approval_id: str, now_us: int) -> bool:
        name = new_id()

        def work(connection: Connection) -> bool:
            found = _one(connection, approval_id, "(state = 'approved' OR used_by = %s)", (name,))
            if found is None or now_us >= found.pending.expires_us:
                return False
            _update(connection, replace(found, state="consumed"), name)
            return True

        return self._twice(work)

    def give_back(self, approval_id: str) -> None:
        def work(connection: Connection) -> None:
            found = _one(connection, approval_id, "state = 'consumed'")
            if found is not None:
                _update(connection, replace(found, state="approved"))

        self._once(work)  # a second time could give back what another call has used meanwhile

    def expire(self, approval_id: str, reason: str) -> None:
        def work(connection: Connection) -> None:
            found = _one(connection, approval_id, "state != 'consumed'")
            if found is not None:
                _update(connection, replace(found, state="expired", reason=reason))

        self._twice(work)

    def listed(self, state: State | None = None, session_id: str | None = None) -> list[Approval]:
        return self._select(
            "(%s::text IS NULL OR state = %s) AND (%s::text IS NULL OR session_id = %s) ORDER BY number",
            (state, state, session_id, session_id),
        )

    def waiting(self, now_us: int) -> int:
        """How many are pending and have not expired: the index finds them, and nothing but a number is read."""
        query = (
            "SELECT count(*) FROM cra_approvals "
            "WHERE state = 'pending' AND (question::json ->> 'expires_us')::bigint > %s"
        )
        row = self._twice(lambda connection: connection.execute(query, (now_us,)).fetchone())
        return 0 if row is None else cast("int", row[0])

    def session_ids(self) -> list[str]:
        """The sessions that something was asked in."""
        query = "SELECT DISTINCT session_id FROM cra_approvals"
        rows = self._twice(lambda connection: connection.execute(query).fetchall())
        return [cast("str", name) for (name,) in rows]

    def forget(self, session_ids: Sequence[str]) -> None:
        """All that was asked and answered in sessions whose traces are gone."""

        def work(connection: Connection) -> None:
            names = [name for name in session_ids if _is_text(name)]
            connection.execute("DELETE FROM cra_approvals WHERE session_id = ANY(%s)", (names,))

        self._twice(work, is_long=True)

    def _select(self, where: str, values: tuple[str | None, ...]) -> list[Approval]:
        if any(value is not None and not _is_text(value) for value in values):
            return []  # no column can hold it
        return self._twice(lambda connection: _select(connection, where, values))

    def _twice(self, work: Callable[[Connection], _Result], *, is_long: bool = False) -> _Result:
        try:
            return self._database.twice(work, is_long=is_long)
        except UnicodeEncodeError as error:
            raise ApprovalError(f"the database cannot hold that text: {error.reason}") from error

    def _once(self, work: Callable[[Connection], None]) -> None:
        with self._database.transaction() as connection:
            work(connection)


def _failed(message: str, passes: bool) -> ApprovalError:
    return ApprovalError(message)


def _is_text(value: str) -> bool:
    return "\0" not in value and value.encode("utf-8", "ignore").decode() == value


def _one(connection: Connection, approval_id: str, more: str = "TRUE", values: tuple[str, ...] = ()) -> Approval | None:
    """One question, held until the end of the transaction."""
    if not _is_text(approval_id):
        return None
    found = _select(connection, f"approval_id = %s AND {more} FOR UPDATE", (approval_id, *values))
    return found[0] if found else None


def _select(connection: Connection, where: str, values: tuple[str | None, ...]) -> list[Approval]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM cra_approvals WHERE {where}", values).fetchall()
    return [_read(*cast("tuple[str, ...]", row)) for row in rows]


def _read(*columns: str) -> Approval:
    *question, answer = columns
    try:
        by, reason, decided_us = json.loads(answer)
    except (ValueError, TypeError) as error:
        raise ApprovalError(f"approval {columns[0]} is damaged in the database") from error
    return approval_of(Row(*question), by, reason, decided_us)


def _words(approval: Approval) -> str:
    """Who answered, why and when: as JSON, which holds letters that a text column does not."""
    return json.dumps([approval.by, approval.reason, approval.decided_us])


def _update(connection: Connection, approval: Approval, used_by: str | None = None) -> None:
    connection.execute(
        "UPDATE cra_approvals SET state = %s, answer = %s, used_by = %s WHERE approval_id = %s",
        (approval.state, _words(approval), used_by, approval.pending.approval_id),
    )
