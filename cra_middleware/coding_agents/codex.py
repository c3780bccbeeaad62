"""The hooks of Codex CLI.

Facts, from github.com/openai/codex (``codex-rs/hooks``: ``schema/generated``, ``events/pre_tool_use.rs``, read November
2026): the events have Claude Code's shape, with ``turn_id`` and ``model`` beside it. ``tool_name`` is ``Bash`` for
every shell-like tool (``tool_input``: ``command``), ``apply_patch`` (``command`` is the patch), or
``mcp__server__tool``. Exit code 2 blocks only when stderr says why; with exit code 0 and an empty stdout the call goes
on, and an ``allow`` that changes nothing is refused as malformed. Everything else (another code, a time-out, a command
that cannot be started) lets the tool run, and no setting changes that. There is no event for the end of a session.

A patch is one text. The file it touches is told beside it, as ``path``, with what happens to it (``operation``), so
that rules about paths can speak of it; of a patch that touches several files no ``path`` is told, nor of one whose
name has blanks around it, or letters that cannot be seen: Codex may mean another file by it. ``cwd`` is where the
very call runs (seen with 0.171: the model may name any folder for a shell line); it is told beside the arguments of
``Bash``, as ``folder``. A hook runs only once a person has trusted it (``/hooks``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cra_middleware.coding_agents.events import (
    BLOCKED,
    After,
    Before,
    Event,
    MalformedEventError,
    Said,
    arguments,
    folder,
    placed,
    text,
    text_or_none,
)

FRAMEWORK = "codex"
_TOUCHES = re.compile(r"^\s*\*\*\* (?:(Add|Update|Delete) File|Move to|Environment ID):(.*)$", re.MULTILINE)


def parse(event: Mapping[str, object], /) -> Event:
    """Read one event.

    Raises:
        MalformedEventError: when it is none.
    """
    name, session_id = text(event, "hook_event_name"), text(event, "session_id")
    if name not in ("PreToolUse", "PostToolUse"):
        raise MalformedEventError(f"{name[:80]!r} is no event of a tool")
    tool_name, call_id = text(event, "tool_name"), text(event, "tool_use_id")
    if name == "PostToolUse":
        return After(session_id, tool_name, call_id)
    given, cwd = arguments(event), folder(event)
    if tool_name == "Bash":
        given = placed(given, cwd)
    if tool_name == "apply_patch":
        given = {**given, **_touched(given.get("command"))}
    return Before(session_id, cwd, tool_name, given, call_id, text_or_none(event, "agent_id"))


def passed(event: Event, /) -> Said:
    """Nothing is said: the call goes on, through Codex's own approvals."""
    return Said()


def blocked(reason: str, event: Event | None, /) -> Said:
    """Exit code 2, with a reason: without one it would not count."""
    return Said(stderr=reason or "denied", code=BLOCKED)


def _touched(patch: object) -> dict[str, object]:
    """The one file of a patch, and what happens to it."""
    found = _TOUCHES.findall(patch) if isinstance(patch, str) else []
    if len(found) != 1 or not found[0][0]:
        return {"operation": "several"}
    ((operation, rest),) = found
    path = rest[1:]
    if rest[:1] != " " or path != path.strip() or not path.isprintable():
        return {"operation": "several"}  # Codex takes blanks of any kind, \r among them, from the end of the name
    return {"operation": operation.lower(), "path": path}
