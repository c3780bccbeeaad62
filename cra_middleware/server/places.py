"""Where a server keeps what is its own; needs nothing of the server itself, so that its keys can be made anywhere."""

from __future__ import annotations

from pathlib import Path

from cra_middleware import presence
from cra_middleware.errors import CRAError
from cra_middleware.server.access import ApiKeyError
from cra_middleware.server.postgres_api_keys import PostgresApiKeys
from cra_middleware.server.sqlite_api_keys import SqliteApiKeys, made_beside
from cra_middleware.server.sqlite_logins import SqliteLogins
from cra_middleware.sinks_by_name import POSTGRES, SQLITE, is_folder

STATE = "server"
"""The folder of the server's own files, beside the traces."""
_KEYS = "api-keys.db"


class NoPlaceError(CRAError):
    """Nobody said where the server keeps its own files."""


def state_folder(trace: str | Path, state: str | Path | None = None, *, is_new: bool = True) -> Path:
    """Where a server that writes to ``trace`` keeps its own files; made when it is not there, and may be new.

    Raises:
        NoPlaceError: when ``trace`` is no place on this machine, and ``state`` is not given; or it cannot be made, or
            is not there and may not be new.
    """
    folder = beside(trace) if state is None else Path(state)
    if folder is None:
        raise NoPlaceError("say where the server keeps its own files: --state DIR")
    if not is_new and not presence.is_dir(folder):
        raise NoPlaceError(f"{folder} is not there: no server ran, and no key was made, at this place")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoPlaceError(f"{folder} cannot be made: {error.strerror}") from error
    return folder


def beside(trace: str | Path) -> Path | None:
    """The folder of the server's own files where nothing else is said; None when ``trace`` is not on this machine."""
    text = str(trace)
    if text.startswith(SQLITE):
        return Path(f"{text.removeprefix(SQLITE)}.{STATE}")
    return Path(text) / STATE if is_folder(text) else None


def approvals_file(folder: Path) -> Path:
    """The questions, in a state folder."""
    return folder / "approvals.db"


def counters_file(folder: Path) -> Path:
    """What limits count, in a state folder."""
    return folder / "counters.db"


def book_file(folder: Path) -> Path:
    """The index of sessions, in a state folder."""
    return folder / "book.db"


def open_keys(folder: Path) -> SqliteApiKeys:
    """The keys in a state folder.

    Raises:
        ApiKeyError: when they cannot be read.
    """
    return SqliteApiKeys(folder / _KEYS)


def check_never_made(folder: Path) -> None:
    """That there are no keys is what somebody wanted, and no loss.

    Raises:
        ApiKeyError: when keys were made in this state folder once.
    """
    made = made_beside(folder / _KEYS)
    if made.exists():
        raise ApiKeyError(
            f"keys were made here once, and {folder / _KEYS} holds none: put a backup in its place, or make new ones "
            f"(cra apikeys create); to let in everybody on this machine, remove {made}"
        )


def open_shared_keys(store: str) -> PostgresApiKeys:
    """The keys in the database that several servers share.

    Raises:
        NoPlaceError: when ``store`` names no PostgreSQL database.
        ApiKeyError: when they cannot be read.
    """
    if not store.startswith(POSTGRES):
        raise NoPlaceError("several servers share a PostgreSQL database: --store postgresql://user@host/name")
    return PostgresApiKeys(store)


def open_logins(folder: Path) -> SqliteLogins:
    """Who is logged in, in a state folder.

    Raises:
        LoginError: when it cannot be read.
    """
    return SqliteLogins(folder / "logins.db")
