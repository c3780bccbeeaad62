"""Who may do what: callers, their roles, and the rule of each endpoint."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

from cra_middleware.atlas.globs import any_glob
from cra_middleware.server.failures import Failures
from cra_middleware.server.faults import Fault, StoreError

Role = Literal["agent", "approver", "auditor", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
KEY_PREFIX = "cra_"
_REMEMBERED_SECONDS = 1.0
"""How long a key that was looked up counts without looking again: so long a revoked one may still be heard."""
_NOBODY = "name yourself: X-API-Key, or Authorization: Bearer"
_DOES_NOT_COUNT = "that key, or token, does not count here: it is unknown, expired or revoked"


class Caller(NamedTuple):
    """Who makes a request."""

    name: str
    """What a person calls it; recorded as who approved."""
    identity: str
    """What nobody else has: ``key:NAME``, ``token:ISSUER SUBJECT`` or ``local``."""
    roles: frozenset[Role]
    agent_ids: tuple[str, ...] = ()
    """Globs: the agents it may be."""
    atlas_ids: tuple[str, ...] = ("*",)
    """Globs: the Atlases it may use."""
    groups: tuple[str, ...] = ()
    """Whom it speaks for when it approves."""
    ends_us: int | None = None
    """When what it showed counts no more; None where that is looked up each time."""

    @property
    def is_local(self) -> bool:
        """Whether nobody had to say who they are: the server has no keys."""
        return self.identity == LOCAL

    def is_any(self, *roles: Role) -> bool:
        """Whether it has one of these roles; an admin has all."""
        return "admin" in self.roles or not self.roles.isdisjoint(roles)

    def may_be(self, agent_id: str) -> bool:
        """Whether it may speak for this agent."""
        return bool(self.agent_ids) and any_glob(self.agent_ids)(agent_id)

    def may_use(self, atlas_id: str) -> bool:
        """Whether it may use this Atlas."""
        return bool(self.atlas_ids) and any_glob(self.atlas_ids)(atlas_id)


LOCAL = "local"
ANYONE = Caller("local", LOCAL, frozenset(ROLES), ("*",), ("*",))
"""Whoever reaches a server that has no keys."""


class ApiKey(NamedTuple):
    """A key, without its secret."""

    name: str
    prefix: str
    digest: str
    """SHA-256 of the secret. It is 256 random bits: there is nothing to guess, so nothing to make slow."""
    roles: tuple[Role, ...]
    agent_ids: tuple[str, ...] = ()
    atlas_ids: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ()
    created_us: int = 0
    expires_us: int | None = None
    revoked_us: int | None = None


class ApiKeyError(StoreError):
    """Keys cannot be read or written, or a name is taken."""


class ApiKeys(Protocol):
    """Where keys are kept. Safe under threads and processes; raises ``ApiKeyError``."""

    def add(self, key: ApiKey) -> None:
        """Keep a new one.

        Raises:
            ApiKeyError: when its name was ever used: a name is who somebody is.
        """
        ...

    def by_prefix(self, prefix: str) -> ApiKey | None:
        """The key that begins so."""
        ...

    def revoke(self, name: str, now_us: int) -> bool:
        """Make one count no more; False when there is none that counts."""
        ...

    def listed(self) -> Sequence[ApiKey]:
        """All of them, by name."""
        ...


def make_key(
    name: str,
    roles: Sequence[Role],
    now_us: int,
    *,
    agent_ids: Sequence[str] = (),
    atlas_ids: Sequence[str] = ("*",),
    groups: Sequence[str] = (),
    expires_us: int | None = None,
) -> tuple[str, ApiKey]:
    """A new key: its text, which is shown once, and what is kept of it.

    Raises:
        ValueError: when the name or the roles are not usable.
    """
    if not 0 < len(name) <= 100 or not name.isprintable() or ":" in name or name != name.strip():
        raise ValueError("a key's name is 1 to 100 letters, without a colon")
    if not roles or not set(roles) <= set(ROLES):
        raise ValueError(f"a key has one or more of the roles {', '.join(ROLES)}")
    if "agent" in roles and not agent_ids:
        raise ValueError("an agent's key says which agents it may be: '*' for any")
    prefix = KEY_PREFIX + secrets.token_hex(4)
    secret = secrets.token_urlsafe(32)
    kept = ApiKey(
        *(name, prefix, _digest(secret), tuple(roles), tuple(agent_ids), tuple(atlas_ids), tuple(groups)),
        now_us,
        expires_us,
    )
    return f"{prefix}_{secret}", kept


class Tokens(Protocol):
    """Reads bearer tokens that somebody else issued."""

    issuer: str
    """Who."""

    def caller(self, token: str) -> Caller:
        """Who it speaks for.

        Raises:
            Fault: when it does not count.
        """
        ...


class Guard:
    """Tells who a request comes from."""

    def __init__(
        self,
        keys: ApiKeys | None,
        tokens: Tokens | None,
        now_us: Callable[[], int],
        failures: Failures | None = None,
    ) -> None:
        """Without ``keys`` and ``tokens`` everybody is let in: only for a server that nobody else can reach."""
        self._keys = keys
        self._tokens = tokens
        self._now_us = now_us
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, ApiKey]] = {}
        self._failures = failures or Failures()

    @property
    def is_open(self) -> bool:
        """Whether nobody has to say who they are."""
        return self._keys is None and self._tokens is None

    @property
    def takes_keys(self) -> bool:
        """Whether API keys let somebody in."""
        return self._keys is not None

    @property
    def takes_tokens(self) -> bool:
        """Whether bearer tokens of an identity provider do."""
        return self._tokens is not None

    def believes(self, caller: Caller) -> bool:
        """Whether a caller, known from a token, is one of the provider whose tokens count now."""
        return self._tokens is not None and caller.identity == f"token:{self._tokens.issuer} {caller.name}"

    def check(self, caller: Caller, headers: Mapping[str, str]) -> None:
        """Whether somebody who was let in with these headers would be now; that they would not is no failed login.

        Raises:
            ApiKeyError: when the keys cannot be read.
            Fault: ``UNAUTHORIZED`` when they would not.
        """
        if self.is_open:
            return
        text = headers.get("x-api-key") or headers.get("authorization", "").partition(" ")[2].strip()
        is_over = self._by_key(text) is None if caller.ends_us is None else self._now_us() >= caller.ends_us
        if is_over:
            raise Fault("UNAUTHORIZED", "this counts no more")

    def caller(self, headers: Mapping[str, str], address: str) -> Caller:
        """Who sent these headers (their names in lower case).

        Raises:
            Fault: ``UNAUTHORIZED`` when that is not known, ``RATE_LIMIT_EXCEEDED`` after too many tries.
        """
        if self.is_open:
            return ANYONE
        key, bearer = headers.get("x-api-key"), headers.get("authorization", "")
        scheme, _, token = bearer.partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        text = key or (token if token.startswith(KEY_PREFIX) else "")
        if text and self._keys is not None:
            found = self._by_key(text)
            if found is not None:
                return found
        self._failures.check(address)
        try:
            if text or not token or self._tokens is None:
                raise Fault("UNAUTHORIZED", _DOES_NOT_COUNT if text or token else _NOBODY)
            return self._tokens.caller(token)
        except Fault as fault:
            if (text or token) and fault.code == "UNAUTHORIZED":  # to say nothing is no try
                self._failures.count(address)
            raise

    def _by_key(self, text: str) -> Caller | None:
        prefix, secret = text[:12], text[13:]
        found = self._remembered(prefix)
        if found is None or text[12:13] != "_" or not hmac.compare_digest(_digest(secret), found.digest):
            return None
        return self._counting(found)

    def known(self, prefix: str) -> Caller | None:
        """Who the key that begins so speaks for, if it counts now; its secret was shown to us before.

        Raises:
            ApiKeyError: when the keys cannot be read.
        """
        found = None if self._keys is None else self._remembered(prefix)
        return None if found is None else self._counting(found)

    def _counting(self, found: ApiKey) -> Caller | None:
        now_us = self._now_us()
        if found.revoked_us is not None or (found.expires_us is not None and now_us >= found.expires_us):
            return None
        return Caller(
            found.name, f"key:{found.name}", frozenset(found.roles), found.agent_ids, found.atlas_ids, found.groups
        )

    def _remembered(self, prefix: str) -> ApiKey | None:
        now = time.monotonic()
        known = self._known.get(prefix)
        if known is not None and now - known[0] < _REMEMBERED_SECONDS:
            return known[1]
        assert self._keys is not None
        found = self._keys.by_prefix(prefix)
        with self._lock:
            if found is None:
                self._known.pop(prefix, None)
            else:
                self._known[prefix] = (now, found)
        return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
