"""Who a browser is: a signed cookie that a key was exchanged for, and the token that each form of it carries.

Nothing is kept but the logins that were ended. Several processes behave as one when they share the secret.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cra_middleware.server.access import ANYONE, Caller, Guard
from cra_middleware.server.faults import Fault, StoreError

SECONDS = 8 * 3600
"""How long a login counts: a working day."""
MAX_ENDED = 10_000
_SECRET_BYTES = 32


class Ticket(NamedTuple):
    """What a cookie says."""

    holder: str
    """The prefix of a key, or nothing while nobody is logged in."""
    ends_us: int
    nonce: str

    def text(self) -> str:
        """What is signed."""
        return f"{self.holder}.{self.ends_us}.{self.nonce}"


class Visits:
    """Issues cookies and reads them. Safe under threads."""

    def __init__(self, guard: Guard, secret: bytes, now_us: Callable[[], int]) -> None:
        self._guard = guard
        self._secret = secret
        self._now_us = now_us
        self._lock = threading.Lock()
        self._ended: dict[str, int] = {}

    @property
    def is_open(self) -> bool:
        """Whether nobody has to log in."""
        return self._guard.is_open

    def login(self, key: str, address: str) -> Ticket:
        """Exchange a person's key.

        Raises:
            Fault: when it does not count, is an agent's, or too many failed from this address.
        """
        try:
            caller = self._guard.caller({"x-api-key": key}, address)
        except Fault as fault:
            if fault.code != "UNAUTHORIZED":
                raise
            raise Fault("UNAUTHORIZED", "this key does not count here") from None
        if "agent" in caller.roles:
            raise Fault("FORBIDDEN", "this is an agent's key; a person needs one of its own")
        return self._ticket(key[:12])

    def issue(self) -> Ticket:
        """For somebody who has not logged in, or need not."""
        return self._ticket("")

    def cookie(self, ticket: Ticket) -> str:
        """A ticket as the cookie's value."""
        return f"{ticket.text()}.{self._sign('visit', ticket)}"

    def read(self, cookie: str | None) -> Ticket | None:
        """The ticket of a cookie; None when it is not ours, or counts no more."""
        parts = (cookie or "").split(".")
        if len(parts) != 4 or not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 20):
            return None
        ticket = Ticket(parts[0], int(parts[1]), parts[2])
        if not _is_same(parts[3], self._sign("visit", ticket)):
            return None
        if self._now_us() >= ticket.ends_us or ticket.nonce in self._ended:
            return None
        return ticket

    def caller(self, ticket: Ticket | None) -> Caller | None:
        """Who holds a ticket; None when nobody whom we know, or no more."""
        if self.is_open:
            return ANYONE
        caller = self._guard.known(ticket.holder) if ticket is not None and ticket.holder else None
        return None if caller is None or "agent" in caller.roles else caller

    def token(self, ticket: Ticket) -> str:
        """What a form of this visit carries."""
        return self._sign("form", ticket)

    def is_token(self, ticket: Ticket, given: str) -> bool:
        """Whether a form was made for this visit."""
        return _is_same(given, self.token(ticket))

    def end(self, ticket: Ticket) -> None:
        """Make it count no more."""
        now_us = self._now_us()
        with self._lock:
            self._ended[ticket.nonce] = ticket.ends_us
            if len(self._ended) > MAX_ENDED:
                self._ended = {nonce: ends_us for nonce, ends_us in self._ended.items() if ends_us > now_us}

    def _ticket(self, holder: str) -> Ticket:
        return Ticket(holder, self._now_us() + SECONDS * 1_000_000, secrets.token_urlsafe(18))

    def _sign(self, purpose: str, ticket: Ticket) -> str:
        return hmac.new(self._secret, f"{purpose} {ticket.text()}".encode(errors="replace"), sha256).hexdigest()


def open_secret(folder: Path | None) -> bytes:
    """The secret that cookies are signed with: from a file in the server's folder, made when it is not there.

    Raises:
        StoreError: when it can be neither read nor made.
    """
    if folder is None:
        return secrets.token_bytes(_SECRET_BYTES)
    path = folder / "page-secret"
    try:
        with suppress(FileExistsError):
            _make(path)
        found = bytes.fromhex(path.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be used: {error}") from error
    if len(found) < _SECRET_BYTES:
        raise StoreError(f"{path} holds less than {_SECRET_BYTES} bytes in hexadecimal digits")
    return found


def _make(path: Path) -> None:
    """Written whole or not at all, and by one process only."""
    if path.exists():
        return
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_SECRET_BYTES))
        os.link(fresh, path)
    finally:
        os.unlink(fresh)


def _is_same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())
