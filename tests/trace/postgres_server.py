"""The PostgreSQL server that tests use: a schema of its own for each, dropped at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest

SERVER = os.environ.get("CRA_TEST_POSTGRES", "host=127.0.0.1 port=5432 dbname=test user=postgres connect_timeout=2")


def address_of(conninfo: str) -> str:
    """The same as ``postgresql://…``."""
    from psycopg.conninfo import conninfo_to_dict

    parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    place = f"{parts.pop('user')}@{parts.pop('host')}:{parts.pop('port', 5432)}/{parts.pop('dbname')}"
    return f"postgresql://{place}?{urlencode(parts, quote_via=quote)}"


@contextmanager
def database() -> Iterator[str]:
    """A connection string whose schema is empty, and nobody else's."""
    psycopg = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")
    try:
        connection = psycopg.connect(SERVER, autocommit=True)
    except psycopg.OperationalError as error:
        if os.environ.get("CRA_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"no PostgreSQL server; set CRA_TEST_POSTGRES to one: {error}")
    schema = f"cra_{uuid4().hex}"
    with connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield psycopg.conninfo.make_conninfo(SERVER, options=f"-c search_path={schema}")
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")
