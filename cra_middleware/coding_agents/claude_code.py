"""Claude Code's hooks.

Facts, from the hooks reference (code.claude.com/docs/en/hooks, as of October 2026) and seen with 2.1.330:
``PreToolUse``, ``PostToolUse``, ``PostToolUseFailure`` and ``SessionEnd`` are told on stdin as one JSON object with
``session_id``, ``cwd`` and ``hook_event_name``; those about tools add ``tool_name``, ``tool_input``, ``tool_use_id``, a
subagent's ``agent_id``, and, afterwards, ``duration_ms``. Exit code 2 blocks the call and stderr is the reason that
the model reads; 0 says nothing about the call, which goes on through the user's own permission rules. Any other code,
a command that cannot be started and a time-out let the tool run, unless the hook's entry says ``onFailure: "block"``
(from 2.1.295).

``cwd`` follows the agent's own ``cd``; it is told beside the arguments of ``Bash``, as ``folder``.
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
    milliseconds,
    placed,
    text,
    text_or_none,
)

FRAMEWORK = "claude_code"


def parse(event: Mapping[str, object], /) -> Event:
    """Read one event.

    Raises:
        MalformedEventError: when it is none.
    """
    name, session_id = text(event, "hook_event_name"), text(event, "session_id")
    if name == "SessionEnd":
        return Ended(session_id)
    if name not in ("PreToolUse", "PostToolUse", "PostToolUseFailure"):
        raise MalformedEventError(f"{name[:80]!r} is no event of a tool")
    tool_name, call_id = text(event, "tool_name"), text(event, "tool_use_id")
    if name == "PreToolUse":
        subagent = text_or_none(event, "agent_id")
        given, cwd = arguments(event), folder(event)
        return Before(
            session_id, cwd, tool_name, placed(given, cwd) if tool_name == "Bash" else given, call_id, subagent
        )
    error = None
    if name == "PostToolUseFailure":
        error = "Interrupted" if event.get("is_interrupt") is True else "ToolFailed"
    return After(session_id, tool_name, call_id, error, milliseconds(event, "duration_ms"))


def passed(event: Event, /) -> Said:
    """Nothing is said, so that the user's own permission rules still count."""
    return Said()


def blocked(reason: str, event: Event | None, /) -> Said:
    """Exit code 2 blocks; stdout decides the same, so that the model reads the reason without the hook's command."""
    if not isinstance(event, Before):
        return Said(stderr=reason, code=BLOCKED)
    decision = {"hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": reason}
    return Said(json.dumps({"hookSpecificOutput": decision}), reason, BLOCKED)
