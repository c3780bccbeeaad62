"""Sessions whose time is over, in a SQLite file: hashes take the place of their lines, one transaction each.

A session's own row stays, so its id stays taken. What is removed is overwritten in the file; the file keeps its size,
and what is written later goes where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cra_middleware._ids import is_id
from cra_middleware.trace.pruned import WRITER as PRUNED
from cra_middleware.trace.pruned import Pruned, PrunedError
from cra_middleware.trace.sinks.sqlite_store import SqliteStore

_PAGE_ROWS = 100
_SETTLE_EVERY = 100
"""By number of a session: as often, what was written ahead is moved into the file."""


class _ChangedError(Exception):
    """What is there is not what was verified; the transaction is rolled back."""


def last_lines(store: SqliteStore) -> Iterator[tuple[str, bytes]]:
    """Every session that was not pruned, with its last line; read page by page, in the order in which they began.

    Raises:
        SinkError: when they cannot be read.
    """
    behind = 0
    while True:
        with store.reading() as connection:
            page = connection.execute(
                "SELECT CAST(number AS INTEGER), CAST(session_id AS TEXT), (SELECT CAST(line AS BLOB) FROM lines "
                "WHERE session = sessions.number ORDER BY place DESC LIMIT 1) FROM sessions "
                "WHERE number > ? AND writer IS NOT ? ORDER BY number LIMIT ?",
                (behind, PRUNED, _PAGE_ROWS),
            ).fetchall()
        for number, session_id, line in page:
            behind = number
            if is_id(session_id) and line is not None:
                yield session_id, line
        if not page:
            return


def prune(store: SqliteStore, session_id: str, pruned: Pruned, is_writing: Callable[[str], bool]) -> str | None:
    """Put hashes in the place of a session; or why it stays as it is.

    Args:
        is_writing: whether the writer of that name still has its sessions open.

    Raises:
        PrunedError: when another process has done so.
        SinkError: when it cannot be done.
    """
    try:
        with store.writing() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            row = connection.execute(
                "SELECT CAST(number AS INTEGER), CAST(writer AS TEXT) FROM sessions WHERE session_id = ?",
                (session_id,),
            ).fetchone()
            if row is None:
                return "it is not there any more"
            number, writer = row
            if writer == PRUNED:
                raise PrunedError(session_id)
            if writer is not None and is_writing(writer):
                return "a process has it open"
            connection.execute("DELETE FROM torn WHERE session = ?", (number,))
            if connection.execute("DELETE FROM lines WHERE session = ?", (number,)).rowcount != len(pruned):
                raise _ChangedError
            connection.execute("INSERT INTO pruned VALUES (?, ?)", (number, pruned.hashes))
            connection.execute("UPDATE sessions SET writer = ? WHERE number = ?", (PRUNED, number))
    except _ChangedError:
        return "it was changed while it was looked at"
    if number % _SETTLE_EVERY == 0:
        store.sync()
    return None


def pruned_ids(store: SqliteStore) -> list[str]:
    """The sessions of which hashes are kept.

    Raises:
        SinkError: when they cannot be read.
    """
    with store.reading() as connection:
        found = connection.execute(
            "SELECT CAST(session_id AS TEXT) FROM pruned JOIN sessions ON number = session"
        ).fetchall()
    return [name for (name,) in found if is_id(name)]


def read_pruned(store: SqliteStore, session_id: str) -> Pruned | None:
    """What is kept of a session that was pruned, or None.

    Raises:
        SinkError: when it cannot be read, or is no hashes.
    """
    with store.reading() as connection:
        row = connection.execute(
            "SELECT CAST(hashes AS BLOB) FROM pruned JOIN sessions ON number = session WHERE session_id = ?",
            (session_id,),
        ).fetchone()
    return None if row is None else Pruned.read(row[0], f"what {store.path} keeps of session {session_id}")
