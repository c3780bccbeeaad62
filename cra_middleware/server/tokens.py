"""Bearer tokens (JWT) of an identity provider: read with PyJWT, its public keys from a JWKS address or file."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import jwt

from cra_middleware.server.access import ROLES, Caller
from cra_middleware.server.faults import Fault

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures that only the provider can make: never ``none``, never a secret that this server would know too."""
_LEEWAY_SECONDS = 30
_PAUSE_SECONDS = 10.0
"""How long a provider that did not answer is not asked again: whoever asks waits for the one who does."""


_logger = logging.getLogger("cra_middleware.server")


class KeySource(Protocol):
    """Where a provider's public keys come from; ``jwt.PyJWKClient`` is one."""

    def get_signing_key_from_jwt(self, token: str | bytes) -> jwt.PyJWK:
        """The key that a token names."""
        ...


class PublishedKeys(jwt.PyJWKClient):
    """The keys at an address. They are believed for five minutes; a new one is asked for at most each half minute."""

    def __init__(self, address: str) -> None:
        super().__init__(address, timeout=5)
        self._asks_after = 0.0

    def fetch_data(self) -> Any:
        """Ask for the keys.

        Raises:
            jwt.PyJWKClientConnectionError: when the provider does not answer with keys, or did not a moment ago.
        """
        if time.monotonic() < self._asks_after:
            raise jwt.PyJWKClientConnectionError("it did not answer a moment ago")
        try:
            return super().fetch_data()
        except Exception as error:  # whatever another's server sends: it is no fault of who shows a token
            self._asks_after = time.monotonic() + _PAUSE_SECONDS
            _logger.error("the keys at %s cannot be had: %s", self.uri, error)
            raise jwt.PyJWKClientConnectionError("the keys cannot be had") from error


class JwtTokens:
    """Tokens of one issuer for one audience. Claims: ``sub``, ``roles``, ``agent_ids``, ``atlas_ids``, ``groups``."""

    def __init__(self, keys: KeySource | str, *, issuer: str, audience: str, roles_claim: str = "roles") -> None:
        """``keys`` is an ``https://`` address of a JWKS document, or where keys come from.

        Raises:
            ValueError: when the address is not one to trust, or issuer or audience is empty.
        """
        if isinstance(keys, str) and not keys.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise ValueError("a JWKS address begins with https://")
        if not issuer or not audience:
            raise ValueError("a token's issuer and audience have to be known")
        self._keys: KeySource = PublishedKeys(keys) if isinstance(keys, str) else keys
        self.issuer = issuer
        self._audience = audience
        self._roles_claim = roles_claim

    def caller(self, token: str) -> Caller:
        """Who the token speaks for.

        Raises:
            Fault: when it does not count.
        """
        try:
            if jwt.get_unverified_header(token).get("alg") not in ALGORITHMS:
                raise Fault("UNAUTHORIZED", "the token is not signed in a way that counts")
            claims: Mapping[str, object] = jwt.decode(
                token,
                self._keys.get_signing_key_from_jwt(token),
                algorithms=list(ALGORITHMS),
                audience=self._audience,
                issuer=self.issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWKClientConnectionError as error:
            message = "the identity provider's keys cannot be had now"
            raise Fault("UNAVAILABLE", message, recoverable=True, retry_after_seconds=_PAUSE_SECONDS) from error
        except (jwt.PyJWTError, ValueError) as error:
            raise Fault("UNAUTHORIZED", "the token does not count") from error
        subject = str(claims["sub"])
        roles = frozenset(role for role in _texts(claims.get(self._roles_claim)) if role in ROLES)
        return Caller(
            name=subject,
            identity=f"token:{self.issuer} {subject}",
            roles=roles,
            agent_ids=_texts(claims["agent_ids"]) if "agent_ids" in claims else (_literal(subject),),
            atlas_ids=_texts(claims["atlas_ids"]) if "atlas_ids" in claims else ("*",),
            groups=_texts(claims.get("groups")),
            ends_us=int(cast("float", claims["exp"])) * 1_000_000,
        )


def _texts(claim: object) -> tuple[str, ...]:
    if isinstance(claim, str):
        return tuple(claim.split())
    return tuple(item for item in claim if isinstance(item, str)) if isinstance(claim, Sequence) else ()


def _literal(subject: str) -> str:
    """A subject that nobody can write as a glob."""
    return subject if "*" not in subject and "?" not in subject else "\0"
