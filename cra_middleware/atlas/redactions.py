"""The entries under ``redact`` and ``personal``: which values are not recorded.

*.email, ticket.reply.body              an argument, by the action and its name
ticket.reply#/customer/email            a place in the arguments or in the result: a JSON pointer (RFC 6901)
*#/items/*/email                        in which * is any key or index
pattern:email, pattern:all              what has that form, in any text (``redact`` only)
"""

from __future__ import annotations

import re
from typing import NamedTuple

FACTS = "context"
"""Stands for an action where the facts of a session are recorded."""
PATTERNS = ("email", "phone", "card", "key", "jwt", "ip")
_PATTERN = "pattern:"
_GLOB = re.compile(r"[^\s:/#]+").fullmatch
_BAD_ESCAPE = re.compile("~(?![01])").search


class Argument(NamedTuple):
    """One argument of some actions."""

    actions: str
    """A glob."""
    name: str


class Pointed(NamedTuple):
    """One place in the arguments and results of some actions."""

    actions: str
    """A glob."""
    steps: tuple[str, ...]
    """Keys and indices; ``*`` is any."""


class Forms(NamedTuple):
    """Whatever has one of these forms."""

    names: tuple[str, ...]


def parse_redaction(entry: str) -> Argument | Pointed | Forms:
    """Read one entry of ``redact``.

    Raises:
        ValueError: when it is none; the message says what one looks like, and does not quote it.
    """
    if not entry.startswith(_PATTERN):
        return parse_personal(entry)
    name = entry.removeprefix(_PATTERN)
    if name != "all" and name not in PATTERNS:
        raise ValueError(f"no such pattern: there are {', '.join(PATTERNS)}, and all")
    return Forms(PATTERNS if name == "all" else (name,))


def parse_personal(entry: str) -> Argument | Pointed:
    """Read one entry of ``personal``.

    Raises:
        ValueError: as ``parse_redaction``.
    """
    if entry.startswith(_PATTERN):
        raise ValueError("a pattern finds no place to keep a value for: put it under redact")
    actions, cross, pointer = entry.partition("#")
    if cross:
        steps = pointer.split("/")
        if not _GLOB(actions) or steps[0] or not all(steps[1:]) or len(steps) < 2 or _BAD_ESCAPE(pointer):
            raise ValueError("not of the form <action>#/<key>/<key>, such as ticket.reply#/customer/email")
        return Pointed(actions, tuple(step.replace("~1", "/").replace("~0", "~") for step in steps[1:]))
    actions, _, name = entry.rpartition(".")
    if not _GLOB(actions) or not name:
        raise ValueError("not of the form <action>.<argument>, such as *.email or ticket.reply.body")
    return Argument(actions, name)
