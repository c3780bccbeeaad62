"""A value's stand-in in a trace: it gives nothing away, and once the value is shown, anybody can check it.

    {"$commit": "sha256:<hex>", "ref": "<id>"}      hex = SHA256("cra-redact/1" NUL salt value)

``salt`` is 16 random bytes, so that not even an e-mail address can be tried out; ``value`` is its canonical JSON.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import NamedTuple

from cra_middleware._ids import new_id

SALT_BYTES = 16
KEY = "$commit"
_DOMAIN = b"cra-redact/1\0"


class Commitment(NamedTuple):
    """A value, and what stands for it."""

    ref: str
    """Names the value in the sidecar."""
    salt: bytes
    value: bytes
    """Canonical JSON."""

    @property
    def text(self) -> str:
        """``sha256:`` and 64 hex digits."""
        return commitment_text(self.salt, self.value)

    def mapping(self) -> dict[str, str]:
        """What stands in the trace."""
        return {KEY: self.text, "ref": self.ref}


def commit(value: bytes) -> Commitment:
    """A new commitment to ``value``, which is canonical JSON."""
    return Commitment(new_id(), secrets.token_bytes(SALT_BYTES), value)


def commitment_text(salt: bytes, value: bytes) -> str:
    """What a salt and a value must give, if they are what was committed to."""
    return "sha256:" + sha256(_DOMAIN + salt + value).hexdigest()


def as_commitment(value: object) -> tuple[str, str] | None:
    """The text and the ref of a value that stands for another; None when it is just a value."""
    if not isinstance(value, dict) or value.keys() != {KEY, "ref"}:
        return None
    text, ref = value[KEY], value["ref"]
    return (text, ref) if isinstance(text, str) and isinstance(ref, str) else None
