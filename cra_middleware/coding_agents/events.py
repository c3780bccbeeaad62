"""What a coding agent tells its hook, whichever agent it is, and what the hook answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple, Protocol

MAX_TEXT = 1024
"""Letters of an agent's own ids and names that are looked at; longer ones are none."""


class MalformedEventError(ValueError):
    """What was read is no event that this agent is documented to send."""


class Before(NamedTuple):
    """A tool is about to run."""

    session_id: str
    """The agent's own id of its session."""
    cwd: str | None
    """Where the tool runs, when that is told."""
    tool_name: str
    arguments: Mapping[str, object]
    call_id: str
    """The same before and after one call."""
    subagent: str | None = None


class After(NamedTuple):
    """A tool has run, or has not after all."""

    session_id: str
    tool_name: str
    call_id: str
    error: str | None = None
    """What went wrong, in one word; None when it went well."""
    duration_ms: int | None = None
    is_refusal: bool = False
    """The tool did not run: the hook, or a person at the agent, refused it."""


class Ended(NamedTuple):
    """The agent's session is over."""

    session_id: str


Event = Before | After | Ended


class Said(NamedTuple):
    """What the hook's process leaves behind."""

    stdout: str = ""
    stderr: str = ""
    code: int = 0


BLOCKED = 2
"""The exit code by which each of these agents lets a tool not run."""


class Format(Protocol):
    """One agent's hook format; a module of this package."""

    FRAMEWORK: str
    """Its name in an Atlas's ``adapters``."""

    def parse(self, event: Mapping[str, object], /) -> Event:
        """Read one event.

        Raises:
            MalformedEventError: when it is none.
        """
        ...

    def passed(self, event: Event, /) -> Said:
        """The tool may run, or what was told is noted."""
        ...

    def blocked(self, reason: str, event: Event | None, /) -> Said:
        """The tool must not run; or, afterwards, its outcome could not be noted. None: an event nobody could read."""
        ...


def text(event: Mapping[str, object], key: str) -> str:
    """A text that has to be there.

    Raises:
        MalformedEventError: when it is not.
    """
    value = event.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise MalformedEventError(f"{key} is no text of 1 to {MAX_TEXT} letters")
    return value


def text_or_none(event: Mapping[str, object], key: str) -> str | None:
    """A text that may be missing, null or empty.

    Raises:
        MalformedEventError: when it is something else.
    """
    return None if event.get(key) in (None, "") else text(event, key)


def folder(event: Mapping[str, object], key: str = "cwd") -> str | None:
    """An absolute folder that may be missing, null or empty.

    Raises:
        MalformedEventError: when it is something else.
    """
    value = event.get(key)
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise MalformedEventError(f"{key} is no absolute folder")
    return value


def arguments(event: Mapping[str, object], key: str = "tool_input") -> dict[str, object]:
    """A tool's arguments.

    Raises:
        MalformedEventError: when they are no JSON object.
    """
    value = event.get(key)
    if not isinstance(value, dict):
        raise MalformedEventError(f"{key} is no object")
    return value


def placed(given: Mapping[str, object], *folders: object) -> dict[str, object]:
    """A shell tool's arguments with the folder that its line runs in, told beside them as ``folder``."""
    where = next((found for found in folders if isinstance(found, str) and found), None)
    own = {key: value for key, value in given.items() if key != "folder"}  # the model's word is none about it
    return own if where is None else {**own, "folder": where}


def milliseconds(event: Mapping[str, object], key: str) -> int | None:
    """A duration, when one is told that can be true."""
    value = event.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value <= 10**12 else None  # type: ignore[operator,call-overload]


def made_id(tool_name: str, given: Mapping[str, object]) -> str:
    """An id for a call of an agent that gives none: the same before and after, for the same tool and arguments."""
    whole = json.dumps([tool_name, given], sort_keys=True).encode(errors="surrogatepass")
    return f"cra-{hashlib.sha256(whole).hexdigest()[:32]}"
