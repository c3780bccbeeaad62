"""The book of one server process, in one SQLite file."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from cra_middleware._sqlite_file import SqliteFile
from cra_middleware.server.book import Answer, BookError, Claim, ExecutionRow, SessionRow, State

_SCHEMA = """
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY, agent_id TEXT NOT NULL, creator TEXT NOT NULL, goal TEXT NOT NULL,
    created_us INTEGER NOT NULL, ended_us INTEGER, atlas_ids TEXT NOT NULL, parent_session_id TEXT,
    metadata TEXT NOT NULL, context TEXT NOT NULL, is_expired INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX newest ON sessions (created_us, session_id);
CREATE INDEX open_ones ON sessions (created_us, session_id) WHERE ended_us IS NULL;
CREATE INDEX below ON sessions (parent_session_id, ended_us) WHERE parent_session_id IS NOT NULL;
CREATE TABLE answers (
    session_id TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL,
    approval_id TEXT, retry_after_seconds REAL, at_us INTEGER NOT NULL, PRIMARY KEY (session_id, key)) WITHOUT ROWID;
CREATE INDEX oldest ON answers (at_us);
CREATE TABLE executions (
    execution_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, caller TEXT NOT NULL, deadline_us INTEGER NOT NULL,
    report TEXT) WITHOUT ROWID;
CREATE INDEX waiting ON executions (deadline_us) WHERE report IS NULL;
CREATE INDEX told ON executions (deadline_us) WHERE report IS NOT NULL"""
_SECOND = """
ALTER TABLE sessions ADD COLUMN is_expired INTEGER NOT NULL DEFAULT 0;
DROP INDEX below;
CREATE INDEX below ON sessions (parent_session_id, ended_us) WHERE parent_session_id IS NOT NULL"""
_SESSION = (
    "session_id, agent_id, creator, goal, created_us, ended_us, atlas_ids, parent_session_id, metadata, context, "
    "is_expired"
)
_EXECUTION = "execution_id, session_id, caller, deadline_us, report"
_STATES = {"active": "ended_us IS NULL", "ended": "ended_us IS NOT NULL", "all": "1"}


class SqliteBook:
    """Survives the death of the process; two processes may read it, one answers requests."""

    def __init__(self, path: str | Path, timeout_seconds: float = 5.0) -> None:
        """Open or make the file.

        Raises:
            BookError: when it cannot be used.
        """
        terms = (path, _SCHEMA, 2, timeout_seconds, BookError)
        self._file = SqliteFile(*terms, survives_power_loss=False, upgrades=(_SECOND,))
        self._lock = threading.Lock()
        self._running: set[tuple[str, str]] = set()

    def close(self) -> None:
        self._file.close()

    def add_session(self, row: SessionRow) -> bool:
        values = (*row[:6], json.dumps(row.atlas_ids), *row[7:])
        with self._file.statement() as connection:
            done = connection.execute(f"INSERT OR IGNORE INTO sessions VALUES ({', '.join('?' * 11)})", values)
            return done.rowcount == 1

    def session(self, session_id: str) -> SessionRow | None:
        with self._file.statement() as connection:
            row = connection.execute(f"SELECT {_SESSION} FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        return None if row is None else _session(row)

    def end_session(self, session_id: str, ended_us: int, *, is_expired: bool = False) -> None:
        with self._file.statement() as connection:
            connection.execute(
                "UPDATE sessions SET ended_us = ?, is_expired = ?, context = '{}' "
                "WHERE session_id = ? AND ended_us IS NULL",
                (ended_us, is_expired, session_id),
            )

    def children(self, session_id: str) -> Sequence[str]:
        with self._file.statement() as connection:
            rows = connection.execute(
                "SELECT session_id FROM sessions WHERE parent_session_id = ? AND ended_us IS NULL", (session_id,)
            ).fetchall()
        return [str(name) for (name,) in rows]

    def last_child_end(self, session_id: str) -> int | None:
        with self._file.statement() as connection:
            (ended_us,) = connection.execute(
                "SELECT max(ended_us) FROM sessions WHERE parent_session_id = ? AND NOT is_expired", (session_id,)
            ).fetchone()
        return None if ended_us is None else int(ended_us)

    def open_before(self, before_us: int, behind: tuple[int, str] | None, most: int) -> Sequence[SessionRow]:
        with self._file.statement() as connection:
            rows = connection.execute(
                f"SELECT {_SESSION} FROM sessions WHERE ended_us IS NULL AND created_us < ? "
                "AND (created_us, session_id) > (?, ?) ORDER BY created_us, session_id LIMIT ?",
                (before_us, *(behind or (-1, "")), most),
            ).fetchall()
        return [_session(row) for row in rows]

    def sessions(self, state: State, creator: str | None, limit: int, offset: int) -> tuple[Sequence[SessionRow], int]:
        where = f"{_STATES[state]} AND (? IS NULL OR creator = ?)"
        with self._file.transaction(writes=False) as connection:
            (total,) = connection.execute(f"SELECT count(*) FROM sessions WHERE {where}", (creator, creator)).fetchone()
            rows = connection.execute(
                f"SELECT {_SESSION} FROM sessions WHERE {where} "
                "ORDER BY created_us DESC, session_id DESC LIMIT ? OFFSET ?",
                (creator, creator, limit, offset),
            ).fetchall()
        return [_session(row) for row in rows], int(total)

    def claim(self, session_id: str, key: str) -> Claim:
        with self._lock:
            if (session_id, key) in self._running:
                return Claim("running")
            with self._file.statement() as connection:
                row = connection.execute(
                    "SELECT digest, status, body, approval_id, retry_after_seconds FROM answers "
                    "WHERE session_id = ? AND key = ?",
                    (session_id, key),
                ).fetchone()
            if row is not None:
                return Claim("answered", Answer(*row))
            self._running.add((session_id, key))
            return Claim("new")

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
        with self._file.transaction() as connection:
            if call is not None:
                kept = "INSERT OR IGNORE" if call.report is None else "INSERT OR REPLACE"
                if connection.execute(f"{kept} INTO executions VALUES (?, ?, ?, ?, ?)", call).rowcount != 1:
                    raise BookError("this call is the answer to another request; ask again")
            connection.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (session_id, key, *answer, now_us),
            )
        if is_final:
            self._let_go(session_id, key)

    def give_back(self, session_id: str, key: str, *, forget: bool = True) -> None:
        self._let_go(session_id, key)
        if not forget:
            return
        with self._file.statement() as connection:
            connection.execute("DELETE FROM answers WHERE session_id = ? AND key = ?", (session_id, key))

    def withdraw(self, session_id: str, key: str, approval_id: str) -> None:
        with self._file.statement() as connection:
            connection.execute(
                "DELETE FROM answers WHERE session_id = ? AND key = ? AND approval_id = ?",
                (session_id, key, approval_id),
            )

    def execution(self, execution_id: str) -> ExecutionRow | None:
        with self._file.statement() as connection:
            row = connection.execute(
                f"SELECT {_EXECUTION} FROM executions WHERE execution_id = ?", (execution_id,)
            ).fetchone()
        return None if row is None else ExecutionRow(*row)

    def reported(self, execution_id: str, report: str) -> bool:
        with self._file.statement() as connection:
            done = connection.execute(
                "UPDATE executions SET report = COALESCE(report, ?) WHERE execution_id = ?", (report, execution_id)
            )
            return done.rowcount == 1

    def overdue(self, now_us: int, most: int) -> Sequence[ExecutionRow]:
        with self._file.statement() as connection:
            rows = connection.execute(
                f"SELECT {_EXECUTION} FROM executions WHERE report IS NULL AND deadline_us <= ? "
                "ORDER BY deadline_us LIMIT ?",
                (now_us, most),
            ).fetchall()
        return [ExecutionRow(*row) for row in rows]

    def prune(self, before_us: int) -> None:
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM answers WHERE at_us < ?", (before_us,))
            connection.execute("DELETE FROM executions WHERE report IS NOT NULL AND deadline_us < ?", (before_us,))

    def session_ids(self, behind: str, most: int) -> Sequence[str]:
        with self._file.statement() as connection:
            rows = connection.execute(
                "SELECT session_id FROM sessions WHERE session_id > ? ORDER BY session_id LIMIT ?", (behind, most)
            ).fetchall()
        return [str(name) for (name,) in rows]

    def forget(self, session_ids: Sequence[str]) -> None:
        names = [(name,) for name in session_ids]
        with self._file.transaction() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.executemany("DELETE FROM answers WHERE session_id = ?", names)
            connection.executemany("DELETE FROM sessions WHERE session_id = ?", names)

    def forget_calls(self, before_us: int) -> None:
        with self._file.statement() as connection:
            connection.execute(
                "DELETE FROM executions WHERE deadline_us < ? AND session_id NOT IN (SELECT session_id FROM sessions)",
                (before_us,),
            )

    def _let_go(self, session_id: str, key: str) -> None:
        with self._lock:
            self._running.discard((session_id, key))


def _session(row: tuple[object, ...]) -> SessionRow:
    known = SessionRow._make(row)
    return known._replace(atlas_ids=tuple(json.loads(str(known.atlas_ids))), is_expired=bool(known.is_expired))
