"""The hooks of Gemini CLI.

Facts, from its hooks reference (github.com/google-gemini/gemini-cli, ``docs/hooks/reference.md``, read November 2026):
``BeforeTool``, ``AfterTool`` and ``SessionEnd`` are told on stdin as one JSON object with ``session_id``, ``cwd`` and
``hook_event_name``; those about tools add ``tool_name`` and ``tool_input``, afterwards ``tool_response`` (with
``error`` when it failed). There is no id of a call, so one is made of the tool and its arguments. stdout is JSON and
nothing else. Exit code 2 blocks, with stderr as the reason that the model reads. Other codes, and a time-out, are
documented as warnings; seen with 0.61: 1 lets the tool run, 2 without a word does, too, and 127 with the shell's own
words blocks. No setting changes that. After a tool, exit code 2 hides its result from the model.

The folder that a shell line runs in (``dir_path``, else ``cwd``) is told beside its arguments, as ``folder``.
"""

from __future__ import annotations

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
    placed,
    text,
)

FRAMEWORK = "gemini_cli"


def parse(event: Mapping[str, object], /) -> Event:
    """Read one event.

    Raises:
        MalformedEventError: when it is none.
    """
    name, session_id = text(event, "hook_event_name"), text(event, "session_id")
    if name == "SessionEnd":
        return Ended(session_id)
    if name not in ("BeforeTool", "AfterTool"):
        raise MalformedEventError(f"{name[:80]!r} is no event of a tool")
    tool_name, given = text(event, "tool_name"), arguments(event)
    call_id = made_id(tool_name, given)
    if name == "BeforeTool":
        cwd = folder(event)
        if tool_name == "run_shell_command":
            given = placed(given, given.get("dir_path"), cwd)
        return Before(session_id, cwd, tool_name, given, call_id)
    response = event.get("tool_response")
    has_failed = isinstance(response, dict) and bool(response.get("error"))
    return After(session_id, tool_name, call_id, "ToolFailed" if has_failed else None)


def passed(event: Event, /) -> Said:
    """An empty object: no decision, so that the user's own confirmations still count."""
    return Said(stdout="{}")


def blocked(reason: str, event: Event | None, /) -> Said:
    """Exit code 2; the model reads stderr."""
    return Said(stderr=reason, code=BLOCKED)
