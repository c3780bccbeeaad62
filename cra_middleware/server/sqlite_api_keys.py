"""API keys in one SQLite file: the secrets' digests, never the secrets."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from cra_middleware._sqlite_file import SqliteFile
from cra_middleware.server.access import ApiKey, ApiKeyError

_SCHEMA = """
CREATE TABLE api_keys (
    name TEXT PRIMARY KEY, prefix TEXT UNIQUE NOT NULL, digest TEXT NOT NULL, roles TEXT NOT NULL,
    agent_ids TEXT NOT NULL, atlas_ids TEXT NOT NULL, groups TEXT NOT NULL, created_us INTEGER NOT NULL,
    expires_us INTEGER, revoked_us INTEGER) WITHOUT ROWID"""
_WHEN_DAMAGED = (
    "put a backup in its place, or move it away and make new keys (cra apikeys create) before a server starts: "
    "without any key a server asks nobody who they are"
)
_COLUMNS = "name, prefix, digest, roles, agent_ids, atlas_ids, groups, created_us, expires_us, revoked_us"


class SqliteApiKeys:
    """Safe under threads and processes of one machine."""

    def __init__(self, path: str | Path, timeout_seconds: float = 5.0) -> None:
        """Open or make the file.

        Raises:
            ApiKeyError: when it cannot be used.
        """
        self._made = made_beside(Path(path))
        self._file = SqliteFile(
            path,
            *(_SCHEMA, 1, timeout_seconds, ApiKeyError),
            survives_power_loss=True,
            when_damaged=_WHEN_DAMAGED,
        )
        if not self._made.exists() and self.listed():  # made by an older version, or copied here alone
            self._note_made()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def add(self, key: ApiKey) -> None:
        self._note_made()
        values = (*key[:3], *(json.dumps(list(names)) for names in key[3:7]), *key[7:])
        with self._file.transaction() as connection:
            try:
                connection.execute(f"INSERT INTO api_keys ({_COLUMNS}) VALUES ({', '.join('?' * 10)})", values)
            except sqlite3.IntegrityError:
                message = f"there is, or was, a key named {key.name}; a name is never used again"
                raise ApiKeyError(message) from None

    def by_prefix(self, prefix: str) -> ApiKey | None:
        found = self._select("WHERE prefix = ?", (prefix,))
        return found[0] if found else None

    def revoke(self, name: str, now_us: int) -> bool:
        with self._file.transaction() as connection:
            done = connection.execute(
                "UPDATE api_keys SET revoked_us = ? WHERE name = ? AND revoked_us IS NULL", (now_us, name)
            )
            return done.rowcount == 1

    def listed(self) -> Sequence[ApiKey]:
        return self._select("ORDER BY name", ())

    def _note_made(self) -> None:
        """A file that is lost, or moved away, must not look as if no key was ever made."""
        try:
            os.close(os.open(self._made, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise ApiKeyError(f"{self._made} cannot be made: {error.strerror}") from error

    def _select(self, where: str, values: tuple[object, ...]) -> list[ApiKey]:
        with self._file.transaction(writes=False) as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM api_keys {where}", values).fetchall()
        return [_key(row) for row in rows]


def made_beside(path: Path) -> Path:
    """The empty file that says that a key was ever made in the file of keys at ``path``."""
    return path.with_name(f"{path.name}.made")


def _key(row: tuple[object, ...]) -> ApiKey:
    lists = (tuple(json.loads(str(text))) for text in row[3:7])
    return ApiKey(*row[:3], *lists, *row[7:])  # type: ignore[arg-type]
