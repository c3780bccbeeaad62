"""Who a browser is: a random cookie that a key or a token was exchanged for, and what each form of it carries.

The cookie says nothing. Who is logged in is kept under its digest; a browser that nobody has logged in with has one all
the same, for its forms, and nothing is kept of it.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from cra_middleware.server.access import ANYONE, KEY_PREFIX, Caller, Guard
from cra_middleware.server.faults import Fault
from cra_middleware.server.logins import Login, Logins

SECONDS = 8 * 3600
"""How long a login counts at most: a working day."""
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class Ticket(NamedTuple):
    """A browser's cookie."""

    secret: str
    seconds: int = SECONDS
    """How long the browser is to keep it."""

    @property
    def digest(self) -> str:
        """What is kept of it."""
        return _digest("visit", self.secret)


class Visits:
    """Issues cookies and reads them. Safe under threads."""

    def __init__(self, guard: Guard, logins: Logins, now_us: Callable[[], int]) -> None:
        self._guard = guard
        self._logins = logins
        self._now_us = now_us

    @property
    def is_open(self) -> bool:
        """Whether nobody has to log in."""
        return self._guard.is_open

    @property
    def wanted(self) -> str:
        """What a person has to show."""
        kinds = (("key", self._guard.takes_keys), ("token", self._guard.takes_tokens))
        return " or ".join(kind for kind, is_taken in kinds if is_taken) or "key"

    def login(self, shown: str, address: str) -> Ticket:
        """Exchange a person's key or token.

        Raises:
            Fault: when it does not count, is an agent's, or too many failed from this address.
        """
        is_key = shown.startswith(KEY_PREFIX) or not self._guard.takes_tokens
        kind = "key" if is_key else "token"
        try:
            caller = self._guard.caller({"authorization": f"Bearer {shown}"}, address)
        except Fault as fault:
            if fault.code != "UNAUTHORIZED":
                raise
            raise Fault("UNAUTHORIZED", f"this {kind} does not count here") from None
        if "agent" in caller.roles:
            raise Fault("FORBIDDEN", f"this is an agent's {kind}; a person needs one of its own")
        if not caller.roles:
            raise Fault("FORBIDDEN", f"this {kind} has none of the roles that open this page")
        now_us = self._now_us()
        most_us = now_us + SECONDS * 1_000_000
        ends_us = most_us if caller.ends_us is None else min(most_us, caller.ends_us)
        if ends_us <= now_us:
            raise Fault("UNAUTHORIZED", f"this {kind} does not count here")
        ticket = Ticket(secrets.token_urlsafe(32), -((now_us - ends_us) // 1_000_000))
        login = Login(ticket.digest, ends_us)
        self._logins.add(login._replace(prefix=shown[:12]) if is_key else login._replace(caller=caller), now_us)
        return ticket

    def issue(self) -> Ticket:
        """For somebody who has not logged in, or need not."""
        return Ticket(secrets.token_urlsafe(32))

    def read(self, cookie: str | None) -> Ticket | None:
        """The ticket of a cookie; None when it cannot be one of ours."""
        return Ticket(cookie) if cookie is not None and _SECRET.fullmatch(cookie) else None

    def caller(self, ticket: Ticket | None) -> Caller | None:
        """Who holds a ticket; None when nobody whom we know, or no more.

        Raises:
            LoginError: when that cannot be read now.
        """
        if self.is_open:
            return ANYONE
        login = None if ticket is None else self._logins.find(ticket.digest)
        if login is None or self._now_us() >= login.ends_us:
            return None
        if login.caller is not None:
            return login.caller if self._guard.believes(login.caller) else None
        caller = self._guard.known(login.prefix)
        return None if caller is None or "agent" in caller.roles else caller

    def token(self, ticket: Ticket) -> str:
        """What a form of this visit carries: nobody can make it who does not hold the cookie."""
        return _digest("form", ticket.secret)

    def is_token(self, ticket: Ticket, given: str) -> bool:
        """Whether a form was made for this visit."""
        return hmac.compare_digest(given.encode(errors="replace"), self.token(ticket).encode())

    def end(self, ticket: Ticket) -> None:
        """Make it count no more.

        Raises:
            LoginError: when that cannot be kept; it counts as before.
        """
        self._logins.remove(ticket.digest)


def _digest(purpose: str, secret: str) -> str:
    return sha256(f"cra {purpose} {secret}".encode()).hexdigest()
