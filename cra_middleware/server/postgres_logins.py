"""Logins at the page in a PostgreSQL database: whoever logs in or out at one server does at all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.server.logins import Login, LoginError, read_login, who_text

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

_FIRST = """
CREATE TABLE cra_logins (digest text PRIMARY KEY, ends_us bigint NOT NULL, who text NOT NULL);
CREATE INDEX cra_logins_ending ON cra_logins (ends_us);
"""
_LAYOUT = Layout("cra_logins_layout", (_FIRST,))


class PostgresLogins:
    """Safe under threads, and processes of many machines."""

    def __init__(self, conninfo: str, timeout_seconds: float = 5.0) -> None:
        """Connect, and make the table where there is none.

        Raises:
            LoginError: when psycopg is not installed, or the database cannot be used.
        """
        self._database = PostgresDatabase(conninfo, timeout_seconds, _LAYOUT, _failed)

    def close(self) -> None:
        self._database.close()

    def add(self, login: Login, now_us: int) -> None:
        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM cra_logins WHERE ends_us <= %s", (now_us,))
            connection.execute(
                "INSERT INTO cra_logins VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (login.digest, login.ends_us, who_text(login)),
            )

        self._database.twice(work)

    def find(self, digest: str) -> Login | None:
        def work(connection: Connection) -> list[tuple[object, ...]]:
            return connection.execute("SELECT ends_us, who FROM cra_logins WHERE digest = %s", (digest,)).fetchall()

        found = self._database.twice(work)
        return read_login(digest, cast("int", found[0][0]), cast("str", found[0][1])) if found else None

    def remove(self, digest: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM cra_logins WHERE digest = %s", (digest,))

        self._database.twice(work)


def _failed(message: str, passes: bool) -> LoginError:
    return LoginError(message)
