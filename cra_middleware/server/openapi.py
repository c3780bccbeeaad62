"""The document that says what this server speaks: the published one, with our additions."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files


@cache
def document() -> tuple[bytes, str]:
    """The document (YAML), and its digest."""
    text = (files("cra_middleware.server") / "openapi.yaml").read_bytes()
    return text, sha256(text).hexdigest()[:32]
