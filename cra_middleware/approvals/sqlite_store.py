"""Open questions in one SQLite file: they outlive the process, and ``cra approvals`` answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from sqlite3 import Connection

from cra_middleware._sqlite_file import SqliteFile
from cra_middleware.approvals.approval import Answer, Approval, ApprovalError, Pending, State, answered
from cra_middleware.approvals.kept_questions import Row, approval_of, question_of

_SCHEMA = """
CREATE TABLE approvals (
    number INTEGER PRIMARY KEY, approval_id TEXT UNIQUE NOT NULL, session_id TEXT NOT NULL, action_id TEXT NOT NULL,
    arguments_digest TEXT NOT NULL, state TEXT NOT NULL, question TEXT NOT NULL, by TEXT, reason TEXT,
    decided_us INTEGER);
CREATE INDEX by_call ON approvals (session_id, action_id, arguments_digest);
CREATE INDEX by_state ON approvals (state, session_id)"""


class SqliteApprovals:
    """Safe under threads, tasks and processes of one machine."""

    def __init__(self, path: str | Path, timeout_seconds: float = 5.0) -> None:
        """Open or make the file.

        Raises:
            ApprovalError: when it cannot be used.
        """
        self._file = SqliteFile(path, _SCHEMA, 1, timeout_seconds, ApprovalError, survives_power_loss=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def find(self, session_id: str, action_id: str, arguments_digest: str) -> Approval | None:
        found = self._select(
            "session_id = ? AND action_id = ? AND arguments_digest = ? "
            "AND state IN ('pending', 'approved', 'rejected') ORDER BY number DESC LIMIT 1",
            (session_id, action_id, arguments_digest),
        )
        return found[0] if found else None

    def add(self, pending: Pending, most: int) -> bool:
        row = (
            *(pending.approval_id, pending.session_id, pending.action_id, pending.arguments_digest),
            *("pending", question_of(pending)),
        )
        with self._file.transaction() as connection:
            (waiting,) = connection.execute(
                "SELECT count(*) FROM approvals WHERE state = 'pending' AND session_id = ?", (pending.session_id,)
            ).fetchone()
            if waiting >= most:
                return False
            connection.execute(
                "INSERT INTO approvals (approval_id, session_id, action_id, arguments_digest, state, question) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
        return True

    def get(self, approval_id: str) -> Approval | None:
        found = self._select("approval_id = ?", (approval_id,))
        return found[0] if found else None

    def answer(self, approval_id: str, answer: Answer, now_us: int) -> Approval:
        with self._file.transaction() as connection:
            found = _select(connection, "approval_id = ?", (approval_id,))
            approval = answered(found[0] if found else None, approval_id, answer, now_us)
            _update(connection, approval)
        return approval

    def consume(self, approval_id: str, now_us: int) -> bool:
        with self._file.transaction() as connection:
            found = _select(connection, "approval_id = ? AND state = 'approved'", (approval_id,))
            if not found or now_us >= found[0].pending.expires_us:
                return False
            _update(connection, replace(found[0], state="consumed"))
        return True

    def give_back(self, approval_id: str) -> None:
        with self._file.transaction() as connection:
            for approval in _select(connection, "approval_id = ? AND state = 'consumed'", (approval_id,)):
                _update(connection, replace(approval, state="approved"))

    def expire(self, approval_id: str, reason: str) -> None:
        with self._file.transaction() as connection:
            for approval in _select(connection, "approval_id = ? AND state != 'consumed'", (approval_id,)):
                _update(connection, replace(approval, state="expired", reason=reason))

    def listed(self, state: State | None = None, session_id: str | None = None) -> list[Approval]:
        return self._select(
            "(? IS NULL OR state = ?) AND (? IS NULL OR session_id = ?) ORDER BY number",
            (state, state, session_id, session_id),
        )

    def waiting(self, now_us: int) -> int:
        """How many are pending and have not expired: the index finds them, and nothing but a number is read."""
        with self._file.transaction(writes=False) as connection:
            (found,) = connection.execute(
                "SELECT count(*) FROM approvals WHERE state = 'pending' AND json_extract(question, '$.expires_us') > ?",
                (now_us,),
            ).fetchone()
        return int(found)

    def session_ids(self) -> list[str]:
        """The sessions that something was asked in."""
        with self._file.transaction(writes=False) as connection:
            return [str(name) for (name,) in connection.execute("SELECT DISTINCT session_id FROM approvals")]

    def forget(self, session_ids: Sequence[str]) -> None:
        """All that was asked and answered in sessions whose traces are gone."""
        with self._file.transaction() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.executemany("DELETE FROM approvals WHERE session_id = ?", [(name,) for name in session_ids])

    def _select(self, where: str, values: tuple[str | None, ...]) -> list[Approval]:
        with self._file.transaction(writes=False) as connection:
            return _select(connection, where, values)


def _select(connection: Connection, where: str, values: tuple[str | None, ...]) -> list[Approval]:
    columns = "approval_id, session_id, action_id, arguments_digest, state, question, by, reason, decided_us"
    rows = connection.execute(f"SELECT {columns} FROM approvals WHERE {where}", values)
    return [approval_of(Row(*row[:6]), *row[6:]) for row in rows]


def _update(connection: Connection, approval: Approval) -> None:
    connection.execute(
        "UPDATE approvals SET state = ?, by = ?, reason = ?, decided_us = ? WHERE approval_id = ?",
        (approval.state, approval.by, approval.reason, approval.decided_us, approval.pending.approval_id),
    )
