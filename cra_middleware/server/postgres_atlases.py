"""The Atlases that servers share, in a PostgreSQL database: one number says whether anything has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.server.shelf import Shelf, ShelfError, Stored

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_FIRST = """
CREATE TABLE cra_atlases (atlas_id text PRIMARY KEY, manifest bytea, hides text, changed_us bigint NOT NULL);
CREATE TABLE cra_atlases_revision (revision bigint NOT NULL);
INSERT INTO cra_atlases_revision VALUES (0);
"""
_LAYOUT = Layout("cra_atlases_layout", (_FIRST,))


class PostgresAtlases:
    """Safe under threads, and processes of many machines."""

    def __init__(self, conninfo: str, timeout_seconds: float = 5.0) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            ShelfError: when psycopg is not installed, or the database cannot be used.
        """
        self._database = PostgresDatabase(conninfo, timeout_seconds, _LAYOUT, _failed)

    def close(self) -> None:
        """Let go of the connection."""
        self._database.close()

    def read(self, known: int | None) -> Shelf | None:
        def work(connection: Connection) -> Shelf | None:
            revision = _revision(connection, "")
            return None if revision == known else _shelf(connection, revision)

        return self._database.twice(work)

    def change(self, atlas_id: str, work: Callable[[Shelf], Stored | None]) -> Shelf:
        def step(connection: Connection) -> Shelf:
            revision = _revision(connection, "FOR UPDATE")
            shelf = _shelf(connection, revision)
            wanted = work(shelf)
            stored = {name: known for name, known in shelf.stored.items() if name != atlas_id}
            connection.execute("DELETE FROM cra_atlases WHERE atlas_id = %s", (atlas_id,))
            if wanted is not None:
                connection.execute("INSERT INTO cra_atlases VALUES (%s, %s, %s, %s)", (atlas_id, *wanted))
                stored[atlas_id] = wanted
            connection.execute("UPDATE cra_atlases_revision SET revision = %s", (revision + 1,))
            return Shelf(revision + 1, stored)

        return self._database.twice(step)


def _revision(connection: Connection, more: str) -> int:
    rows = connection.execute(f"SELECT revision FROM cra_atlases_revision {more}").fetchall()
    if len(rows) != 1:
        raise ShelfError("the table cra_atlases_revision has not one row")
    return cast("int", rows[0][0])


def _shelf(connection: Connection, revision: int) -> Shelf:
    rows = connection.execute("SELECT atlas_id, manifest, hides, changed_us FROM cra_atlases").fetchall()
    return Shelf(revision, {cast("str", name): Stored._make(rest) for name, *rest in rows})


def _failed(message: str, passes: bool) -> ShelfError:
    return ShelfError(message)
