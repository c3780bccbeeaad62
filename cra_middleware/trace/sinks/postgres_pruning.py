"""Sessions whose time is over, in a PostgreSQL database: hashes take the place of their lines, one transaction each.

A session's own row stays, so its id stays taken. It is held for as long as its lines are removed: nobody else waits
for it, because what is pruned was sealed before, and takes no events any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from cra_middleware._ids import is_id
from cra_middleware.trace.pruned import WRITER as PRUNED
from cra_middleware.trace.pruned import Pruned, PrunedError
from cra_middleware.trace.sinks.postgres_link import PostgresLink, as_bytes, as_number
from cra_middleware.trace.sinks.postgres_shared import SHARED

_PAGE_ROWS = 100


class _ChangedError(Exception):
    """What is there is not what was verified; the transaction is rolled back."""


def last_lines(link: PostgresLink) -> Iterator[tuple[str, bytes]]:
    """Every session that was not pruned, with its last line; read page by page, in the order in which they began.

    Raises:
        SinkError: when they cannot be read.
    """
    behind = 0
    while True:
        with link.statements() as connection:
            page = connection.execute(
                "SELECT number, session_id, line FROM cra_sessions CROSS JOIN LATERAL "
                "(SELECT line FROM cra_lines WHERE session = number ORDER BY place DESC LIMIT 1) AS last "
                "WHERE number > %s AND writer IS DISTINCT FROM %s ORDER BY number LIMIT %s",
                (behind, PRUNED, _PAGE_ROWS),
            ).fetchall()
        for number, session_id, line in page:
            behind = as_number(number)
            if isinstance(session_id, str) and is_id(session_id):
                yield session_id, as_bytes(line)
        if not page:
            return


def prune(link: PostgresLink, session_id: str, pruned: Pruned) -> str | None:
    """Put hashes in the place of a session; or why it stays as it is.

    Raises:
        PrunedError: when another process has done so.
        SinkError: when it cannot be done.
    """
    try:
        with link.transaction(is_long=True) as connection:
            connection.execute("SET LOCAL synchronous_commit = off")  # one that is lost with the power is done again
            row = connection.execute(
                "SELECT number, writer FROM cra_sessions WHERE session_id = %s FOR UPDATE SKIP LOCKED", (session_id,)
            ).fetchone()
            if row is None:
                return "another process is at it just now"
            number, writer = as_number(row[0]), row[1]
            if writer == PRUNED:
                raise PrunedError(session_id)
            if writer != SHARED and link.is_locked(connection, number):
                return "a process has it open"
            connection.execute("DELETE FROM cra_torn WHERE session = %s", (number,))
            if connection.execute("DELETE FROM cra_lines WHERE session = %s", (number,)).rowcount != len(pruned):
                raise _ChangedError
            connection.execute("INSERT INTO cra_pruned (session, hashes) VALUES (%s, %s)", (number, pruned.hashes))
            connection.execute("UPDATE cra_sessions SET writer = %s WHERE number = %s", (PRUNED, number))
    except _ChangedError:
        return "it was changed while it was looked at"
    return None


def pruned_ids(link: PostgresLink) -> list[str]:
    """The sessions of which hashes are kept.

    Raises:
        SinkError: when they cannot be read.
    """
    with link.statements() as connection:
        found = connection.execute("SELECT session_id FROM cra_pruned JOIN cra_sessions ON number = session").fetchall()
    return [name for (name,) in found if isinstance(name, str) and is_id(name)]


def read_pruned(link: PostgresLink, session_id: str) -> Pruned | None:
    """What is kept of a session that was pruned, or None.

    Raises:
        SinkError: when it cannot be read, or is no hashes.
    """
    with link.statements() as connection:
        row = connection.execute(
            "SELECT hashes FROM cra_pruned JOIN cra_sessions ON number = session WHERE session_id = %s", (session_id,)
        ).fetchone()
    return None if row is None else Pruned.read(as_bytes(row[0]), f"what {link.place} keeps of session {session_id}")
