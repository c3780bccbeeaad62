"""Ids: UUIDv7, 36 characters, lower case (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
import re

from uuid_utils import reseed_rng, uuid7

UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
"""The ids we read: any 8-4-4-4-12 lower-case hex (we only write version 7)."""


def new_id() -> str:
    """A new UUIDv7 as text."""
    return str(uuid7())


def is_id(text: str) -> bool:
    """Whether ``text`` is an id and nothing else: only such text may become a file name."""
    return UUID_TEXT.fullmatch(text) is not None


if hasattr(os, "register_at_fork"):  # a child that keeps the parent's random state would repeat its ids
    os.register_at_fork(after_in_child=reseed_rng)
