"""API keys in a PostgreSQL database, for servers of many machines: the secrets' digests, never the secrets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.server.access import ApiKey, ApiKeyError

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection

# Names are kept as bytes, as a caller sends them; a text column holds no NUL.
_FIRST = """
CREATE TABLE cra_api_keys (
    name bytea PRIMARY KEY, prefix bytea UNIQUE NOT NULL, digest text NOT NULL, roles text NOT NULL,
    agent_ids text NOT NULL, atlas_ids text NOT NULL, groups text NOT NULL, created_us bigint NOT NULL,
    expires_us bigint, revoked_us bigint);
"""
_LAYOUT = Layout("cra_api_keys_layout", (_FIRST,))
_COLUMNS = "name, prefix, digest, roles, agent_ids, atlas_ids, groups, created_us, expires_us, revoked_us"


class PostgresApiKeys:
    """Safe under threads, and processes of many machines."""

    def __init__(self, conninfo: str, timeout_seconds: float = 5.0) -> None:
        """Connect, and make the table where there is none.

        Raises:
            ApiKeyError: when psycopg is not installed, or the database cannot be used.
        """
        self._database = PostgresDatabase(conninfo, timeout_seconds, _LAYOUT, _failed)

    def close(self) -> None:
        """Let go of the connection."""
        self._database.close()

    def add(self, key: ApiKey) -> None:
        lists = (json.dumps(list(names)) for names in key[3:7])
        values = (_bytes(key.name), _bytes(key.prefix), key.digest, *lists, *key[7:])

        def work(connection: Connection) -> bool:
            done = connection.execute(
                f"INSERT INTO cra_api_keys ({_COLUMNS}) VALUES ({', '.join(['%s'] * 10)}) ON CONFLICT DO NOTHING",
                values,
            )
            if done.rowcount == 1:
                return True
            # the same secret's digest: kept by a try whose connection broke
            found = _select(connection, "WHERE name = %s", (_bytes(key.name),))
            return [known.digest for known in found] == [key.digest]

        if not self._database.twice(work):
            raise ApiKeyError(f"there is, or was, a key named {key.name}; a name is never used again")

    def by_prefix(self, prefix: str) -> ApiKey | None:
        found = self._select("WHERE prefix = %s", (_bytes(prefix),))
        return found[0] if found else None

    def revoke(self, name: str, now_us: int) -> bool:
        tries: list[bool] = []

        def work(connection: Connection) -> bool:
            is_again = bool(tries)
            tries.append(True)
            done = connection.execute(
                "UPDATE cra_api_keys SET revoked_us = %s WHERE name = %s AND (revoked_us IS NULL OR (%s AND "
                "revoked_us = %s))",
                (now_us, _bytes(name), is_again, now_us),
            )
            return done.rowcount == 1

        return self._database.twice(work)

    def listed(self) -> Sequence[ApiKey]:
        return self._select("ORDER BY name", ())

    def _select(self, more: str, values: tuple[bytes, ...]) -> list[ApiKey]:
        return self._database.twice(lambda connection: _select(connection, more, values))


def _failed(message: str, passes: bool) -> ApiKeyError:
    return ApiKeyError(message)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _select(connection: Connection, more: str, values: tuple[bytes, ...]) -> list[ApiKey]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM cra_api_keys {more}", values).fetchall()
    return [_key(row) for row in rows]


def _key(row: tuple[object, ...]) -> ApiKey:
    names = (cast("bytes", item).decode("utf-8", "surrogatepass") for item in row[:2])
    lists = (tuple(json.loads(cast("str", text))) for text in row[3:7])
    return ApiKey._make((*names, row[2], *lists, *row[7:]))
