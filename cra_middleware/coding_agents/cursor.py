"""Cursor's hooks.

Facts, from its hooks reference (cursor.com/docs/hooks) and a public protocol of live runs with Cursor 3.9.16 (June
2026): every event is one JSON object on stdin with ``conversation_id`` and ``hook_event_name``. ``preToolUse``,
``postToolUse`` and ``postToolUseFailure`` are told of every tool (``Shell``, ``Read``, ``Write``, ``Grep``, ``Task``,
``MCP:<tool>``) with ``tool_name``, ``tool_input`` and ``tool_use_id``; ``sessionEnd`` of the end. The older
``beforeShellExecution``, ``beforeMCPExecution`` and ``beforeReadFile``, with their ``after…`` events, fire beside them
for the same call, without an id: use either those or these. Exit code 2 blocks; what is on stdout then is shown as it
is, unparsed. With ``failClosed: true`` in the hook's entry everything but an explicit permission blocks, silence too;
without it a failure lets the tool run. A call that a hook blocked is told of again as a ``postToolUseFailure`` with
``failure_type`` ``permission_denied``.

The folder that a shell line runs in (its ``cwd``, else the event's, else the first of ``workspace_roots``) is told
beside its arguments, as ``folder``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from cra_middleware.coding_agents.events import (
    BLOCKED,
    After,
    Before,
    Ended,
    Event,
    MalformedEventError,
    Said,
    arguments,
    folder,
    made_id,
    milliseconds,
    placed,
    text,
)

FRAMEWORK = "cursor"


def parse(event: Mapping[str, object], /) -> Event:
    """Read one event.

    Raises:
        MalformedEventError: when it is none.
    """
    name, session_id = text(event, "hook_event_name"), text(event, "conversation_id")
    match name:
        case "sessionEnd":
            return Ended(session_id)
        case "preToolUse":
            return _before(event, session_id, text(event, "tool_name"), arguments(event), text(event, "tool_use_id"))
        case "postToolUse" | "postToolUseFailure":
            return _after(event, name, session_id)
        case "beforeShellExecution" | "afterShellExecution":
            return _granular(event, name, session_id, "Shell", {"command": event.get("command")})
        case "beforeMCPExecution" | "afterMCPExecution":
            return _granular(event, name, session_id, f"MCP:{text(event, 'tool_name')}", _mcp_arguments(event))
        case "beforeReadFile":
            return _granular(event, name, session_id, "Read", {"file_path": event.get("file_path")})
    raise MalformedEventError(f"{name[:80]!r} is no event of a tool")


def passed(event: Event, /) -> Said:
    """Where a permission is asked for, it has to be given: silence would block."""
    return Said(stdout='{"permission":"allow"}' if isinstance(event, Before) else "{}")


def blocked(reason: str, event: Event | None, /) -> Said:
    """Exit code 2, and the reason as it is to be shown."""
    return Said(stdout=reason, stderr=reason, code=BLOCKED)


def _before(
    event: Mapping[str, object], session_id: str, tool_name: str, given: Mapping[str, object], call_id: str
) -> Before:
    cwd, roots = folder(event), event.get("workspace_roots")
    if tool_name == "Shell":
        first = roots[0] if isinstance(roots, list) and roots else None
        given = placed(given, given.get("cwd"), cwd, first)
    return Before(session_id, cwd, tool_name, given, call_id)


def _after(event: Mapping[str, object], name: str, session_id: str) -> After:
    is_refusal = event.get("failure_type") == "permission_denied"
    error = None
    if name == "postToolUseFailure":
        error = "NotPermitted" if is_refusal else "ToolFailed"
    took = milliseconds(event, "duration")
    return After(session_id, text(event, "tool_name"), text(event, "tool_use_id"), error, took, is_refusal)


def _granular(
    event: Mapping[str, object], name: str, session_id: str, tool_name: str, given: Mapping[str, object]
) -> Event:
    call_id = made_id(tool_name, given)
    if name.startswith("after"):
        return After(session_id, tool_name, call_id, duration_ms=milliseconds(event, "duration"))
    return _before(event, session_id, tool_name, given, call_id)


def _mcp_arguments(event: Mapping[str, object]) -> dict[str, object]:
    """Arguments that are told as JSON text."""
    given = event.get("tool_input")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise MalformedEventError("tool_input is no JSON") from None
    return arguments({"tool_input": given})
