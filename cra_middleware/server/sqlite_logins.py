"""Logins at the page, in one SQLite file."""

from __future__ import annotations

from pathlib import Path

from cra_middleware._sqlite_file import SqliteFile
from cra_middleware.server.logins import Login, LoginError, read_login, who_text

_SCHEMA = """
CREATE TABLE logins (digest TEXT PRIMARY KEY, ends_us INTEGER NOT NULL, who TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX ending ON logins (ends_us)"""


class SqliteLogins:
    """Safe under threads and processes of one machine."""

    def __init__(self, path: str | Path, timeout_seconds: float = 5.0) -> None:
        """Open or make the file.

        Raises:
            LoginError: when it cannot be used.
        """
        self._file = SqliteFile(path, _SCHEMA, 1, timeout_seconds, LoginError, survives_power_loss=True)

    def close(self) -> None:
        self._file.close()

    def add(self, login: Login, now_us: int) -> None:
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM logins WHERE ends_us <= ?", (now_us,))
            connection.execute("INSERT INTO logins VALUES (?, ?, ?)", (login.digest, login.ends_us, who_text(login)))

    def find(self, digest: str) -> Login | None:
        with self._file.transaction(writes=False) as connection:
            row = connection.execute("SELECT ends_us, who FROM logins WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else read_login(digest, *row)

    def remove(self, digest: str) -> None:
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM logins WHERE digest = ?", (digest,))
