"""Where a server keeps what is its own; needs nothing of the server itself, so that its keys can be made anywhere."""

from __future__ import annotations

from pathlib import Path

from cra_middleware.errors import CRAError
from cra_middleware.server.postgres_api_keys import PostgresApiKeys
from cra_middleware.server.sqlite_api_keys import SqliteApiKeys
from cra_middleware.sinks_by_name import POSTGRES, SQLITE, is_folder

STATE = "server"
"""The folder of the server's own files, beside the traces."""


class NoPlaceError(CRAError):
    """Nobody said where the server keeps its own files."""


def state_folder(trace: str | Path, state: str | Path | None = None) -> Path:
    """Where a server that writes to ``trace`` keeps its own files; made when it is not there.

    Raises:
        NoPlaceError: when ``trace`` is no place on this machine, and ``state`` is not given; or it cannot be made.
    """
    text = str(trace)
    if state is not None:
        folder = Path(state)
    elif text.startswith(SQLITE):
        folder = Path(text.removeprefix(SQLITE) + f".{STATE}")
    elif is_folder(text):
        folder = Path(text) / STATE
    else:
        raise NoPlaceError("say where the server keeps its own files: --state DIR")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoPlaceError(f"{folder} cannot be made: {error.strerror}") from error
    return folder


def open_keys(folder: Path) -> SqliteApiKeys:
    """The keys in a state folder.

    Raises:
        ApiKeyError: when they cannot be read.
    """
    return SqliteApiKeys(folder / "api-keys.db")


def open_shared_keys(store: str) -> PostgresApiKeys:
    """The keys in the database that several servers share.

    Raises:
        NoPlaceError: when ``store`` names no PostgreSQL database.
        ApiKeyError: when they cannot be read.
    """
    if not store.startswith(POSTGRES):
        raise NoPlaceError("several servers share a PostgreSQL database: --store postgresql://user@host/name")
    return PostgresApiKeys(store)
