"""Who is logged in at the page: a row for each browser, found by the digest of what the browser holds.

A login that is forgotten here counts nowhere, and what is kept opens nothing: it is no secret.
"""

from __future__ import annotations

import json
import threading
from typing import NamedTuple, Protocol, cast

from cra_middleware.server.access import Caller, Role
from cra_middleware.server.faults import StoreError


class Login(NamedTuple):
    """One browser, and who showed what to be let in."""

    digest: str
    """SHA-256 of what the browser holds: 256 random bits, so nothing to guess."""
    ends_us: int
    prefix: str = ""
    """How the key begins that was shown; asked for again each time, so that it may be revoked."""
    caller: Caller | None = None
    """Whom the token spoke for that was shown instead."""


class LoginError(StoreError):
    """Logins cannot be read or written."""


class Logins(Protocol):
    """Where logins are kept. Safe under threads; raises ``LoginError``."""

    def add(self, login: Login, now_us: int) -> None:
        """Keep one, and forget those that are over."""
        ...

    def find(self, digest: str) -> Login | None:
        """The login of a browser, whether it is over or not."""
        ...

    def remove(self, digest: str) -> None:
        """Forget one, at once and for all servers."""
        ...

    def close(self) -> None:
        """Let go of the place; it is opened again when it is used again."""
        ...


class MemoryLogins:
    """Ends with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logins: dict[str, Login] = {}

    def add(self, login: Login, now_us: int) -> None:
        with self._lock:
            kept = {digest: known for digest, known in self._logins.items() if known.ends_us > now_us}
            self._logins = {**kept, login.digest: login}

    def find(self, digest: str) -> Login | None:
        return self._logins.get(digest)

    def remove(self, digest: str) -> None:
        with self._lock:
            self._logins.pop(digest, None)

    def close(self) -> None:
        pass


def who_text(login: Login) -> str:
    """Who is logged in, as it is kept."""
    caller = login.caller
    told = None if caller is None else {**caller._asdict(), "roles": sorted(caller.roles)}
    return json.dumps({"prefix": login.prefix, "caller": told})


def read_login(digest: str, ends_us: int, who: str) -> Login:
    """The login that was kept."""
    told = json.loads(who)
    caller = told["caller"]
    if caller is None:
        return Login(digest, ends_us, told["prefix"])
    lists = {name: tuple(value) for name, value in caller.items() if isinstance(value, list)}
    roles = cast("frozenset[Role]", frozenset(caller["roles"]))
    return Login(digest, ends_us, told["prefix"], Caller(**{**caller, **lists, "roles": roles}))
