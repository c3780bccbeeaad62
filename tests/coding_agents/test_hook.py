"""The hook as agents run it: one process an event, one trace an agent session."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Answer, verify
from cra_middleware._clock import SystemClock
from cra_middleware.approvals.sqlite_store import SqliteApprovals
from tests.coding_agents.events import AGENTS, Hook, after, before, blocks, ended, passes, shell

ENDING = [agent for agent in AGENTS if agent != "codex"]


def traces(hook: Hook) -> list[list[dict[str, Any]]]:
    """Every session's events; each chain has been verified."""
    files = sorted(hook.trace.glob("*.trace.jsonl"))
    assert all(verify(file).intact for file in files)
    return [[json.loads(line) for line in file.read_bytes().splitlines()] for file in files]


def calls(events: list[dict[str, Any]]) -> list[str]:
    return [event["event_type"] for event in events if event["event_type"].startswith("action.")]


def codes(events: list[dict[str, Any]]) -> list[str]:
    return [event["payload"]["error_code"] for event in events if event["event_type"] == "error.occurred"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_session(real: Hook, agent: str) -> None:
    """Allowed, told of, denied: three processes write one chain, in the spans of their calls."""
    tool, given = shell(agent, "git status", real.project)
    assert passes(agent, real.tell(agent, before(agent, tool, given, real.project)))
    assert real.tell(agent, after(agent, tool, given, real.project)).returncode == 0
    tool, given = shell(agent, "rm -rf /", real.project)
    done = real.tell(agent, before(agent, tool, given, real.project, call="call-2"))
    assert blocks(agent, done)
    assert b"was not run" in done.stderr
    (events,) = traces(real)
    assert calls(events) == [
        *("action.requested", "action.approved", "action.executed", "action.requested", "action.denied")
    ]
    assert len({event["span_id"] for event in events if event["event_type"].startswith("action.")}) == 2
    started = events[0]["payload"]
    assert (started["agent_id"], started["metadata"]["external_id"]) == (agent, "s-1")
    (executed,) = [event["payload"] for event in events if event["event_type"] == "action.executed"]
    assert executed["reported_by"] == agent
    assert sum(event["event_type"] == "carp.resolution.completed" for event in events) == 1


@pytest.mark.parametrize("agent", ENDING)
def test_a_failure_and_the_end(hook: Hook, agent: str) -> None:
    """A failed tool is recorded as failed; the end seals; what was never told of is said to be lost."""
    tool, given = shell(agent, "git status", hook.project)
    for number in (1, 2):
        given = {**given, "command": f"git log -{number}"}
        assert passes(agent, hook.tell(agent, before(agent, tool, given, hook.project, call=f"call-{number}")))
    assert hook.tell(agent, after(agent, tool, given, hook.project, call="call-2", failed=True)).returncode == 0
    assert hook.tell(agent, ended(agent, hook.project)).returncode == 0
    (events,) = traces(hook)
    failed = [event["payload"]["error_code"] for event in events if event["event_type"] == "action.failed"]
    assert failed == ["ToolFailed", "LostOutcomeError"]
    assert events[-1]["event_type"] == "session.ended"
    assert events[-1]["payload"]["action_count"] == 2
    assert passes(agent, hook.tell(agent, before(agent, tool, given, hook.project)))  # resumed under the same id
    assert len(traces(hook)) == 2
    assert hook.tell(agent, ended(agent, hook.project, "never-seen")).returncode == 0
    assert len(traces(hook)) == 2


@pytest.mark.parametrize("agent", AGENTS)
def test_an_approval(hook: Hook, agent: str) -> None:
    """It waits, is told how it can be approved, passes once, and waits again."""
    tool, given = shell(agent, "pytest -q", hook.project)

    def call(number: int) -> Any:
        return hook.tell(agent, before(agent, tool, given, hook.project, call=f"call-{number}"))

    done = call(1)
    assert blocks(agent, done)
    assert b"cra approvals approve" in done.stderr
    store = SqliteApprovals(hook.trace / "approvals.db")
    (waiting,) = store.listed("pending")
    assert waiting.pending.approval_id[-8:].encode() in done.stderr
    assert blocks(agent, call(2))
    assert len(store.listed("pending")) == 1
    store.answer(waiting.pending.approval_id, Answer(True, "ann"), SystemClock().wall_us())
    store.close()
    assert passes(agent, call(3))
    assert blocks(agent, call(4))
    (events,) = traces(hook)
    (approved,) = [event["payload"] for event in events if event["event_type"] == "action.approved"]
    assert (approved["approver"], approved["approval_id"]) == ("ann", waiting.pending.approval_id)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_outcome_of_no_call(hook: Hook, agent: str) -> None:
    """It is noted, in a session of its own where there is none, and nothing is said against it."""
    tool, given = shell(agent, "git status", hook.project)
    assert hook.tell(agent, after(agent, tool, given, hook.project)).returncode == 0
    assert passes(agent, hook.tell(agent, before(agent, tool, given, hook.project)))
    assert hook.tell(agent, after(agent, tool, given, hook.project, session="other")).returncode == 0
    one, other = sorted(traces(hook), key=lambda events: events[0]["payload"]["metadata"]["external_id"], reverse=True)
    assert codes(one) == codes(other) == ["unmatched_outcome"]
    assert "action.executed" not in calls(one)


@pytest.mark.slow
def test_parallel_calls(real: Hook) -> None:
    """Eight calls at once of one session, and of another: two chains, each whole, every call in it once."""
    running = []
    for number in range(8):
        tool, given = shell("claude-code", f"git log -{number}", real.project)
        process = real.start("claude-code")
        event = before("claude-code", tool, given, real.project, f"s-{number % 2}", f"call-{number}")
        assert process.stdin is not None
        process.stdin.write(json.dumps(event).encode())
        process.stdin.close()
        running.append(process)
    assert [process.wait(60) for process in running] == [0] * 8
    for process in running:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
    found = traces(real)
    assert [calls(events) for events in found] == [["action.requested", "action.approved"] * 4] * 2


def test_a_subagent_is_named(hook: Hook) -> None:
    """Its calls are in its parent's trace, under its name."""
    tool, given = shell("claude-code", "git status", hook.project)
    event = {**before("claude-code", tool, given, hook.project), "agent_id": "sub-7", "agent_type": "Explore"}
    assert passes("claude-code", hook.tell("claude-code", event))
    (events,) = traces(hook)
    assert [event["payload"].get("agent_name") for event in events if event["event_type"] == "action.requested"] == [
        "sub-7"
    ]


def test_a_patch_is_about_a_path(hook: Hook) -> None:
    """A patch of one file is decided by where the file is; one of several is denied."""

    def patch(*lines: str) -> Any:
        text = "\n".join(("*** Begin Patch", *lines, "*** End Patch"))
        return hook.tell("codex", before("codex", "apply_patch", {"command": text}, hook.project))

    assert passes("codex", patch("*** Add File: a.txt", "+x"))
    for lines in (
        ("*** Update File: /etc/hosts", "+x"),
        ("*** Update File: .codex/hooks.json", "+x"),
        ("*** Update File: a.txt", "*** Move to: .codex/hooks.json", "+x"),
        ("*** Add File: a.txt", "+x", "*** Add File: .codex/hooks.json", "+x"),
        ("no patch",),
    ):
        assert blocks("codex", patch(*lines)), lines
    assert b"cra approvals" in patch("*** Delete File: a.txt").stderr


@pytest.mark.parametrize("end", ["\r", "\u00a0", "\x0b", "\x0c", "\x85", "\u2003", "\u2028", "\t", " ", "\u200b"])
def test_a_patch_names_its_file_plainly(hook: Hook, end: str) -> None:
    """Codex takes blanks of every kind from the end of a name: what it then touches must not be another file."""
    for header in (f" prod.env{end}", f"{end}prod.env", f" {end}prod.env"):
        patch = f"*** Begin Patch\n*** Update File:{header}\n@@\n-a\n+b\n*** End Patch"
        assert blocks("codex", hook.tell("codex", before("codex", "apply_patch", {"command": patch}, hook.project)))


def test_cursors_older_events(hook: Hook) -> None:
    """Shell and MCP events without a call's id find their outcome by what was called."""
    common = {"conversation_id": "c", "generation_id": "g"}
    event = {**common, "hook_event_name": "beforeReadFile", "file_path": str(hook.project / "a.txt"), "content": "x"}
    assert passes("cursor", hook.tell("cursor", event))
    event = {**common, "hook_event_name": "beforeMCPExecution", "tool_name": "pay", "tool_input": '{"amount": 1}'}
    assert blocks("cursor", hook.tell("cursor", event))
    event = {**common, "hook_event_name": "beforeShellExecution", "command": "ls", "cwd": str(hook.project)}
    assert passes("cursor", hook.tell("cursor", event))
    told = {**common, "hook_event_name": "afterShellExecution", "command": "ls", "output": "", "duration": 3}
    assert hook.tell("cursor", told).returncode == 0
    refused = {**common, "hook_event_name": "postToolUseFailure", "tool_name": "Shell", "tool_input": {}}
    refused |= {"tool_use_id": "x", "failure_type": "permission_denied", "error_message": "CRA"}
    assert hook.tell("cursor", refused).returncode == 0
    (events,) = traces(hook)
    assert codes(events) == []
    assert calls(events)[-1] == "action.executed"


@pytest.mark.slow
def test_killed_between_before_and_after(real: Hook) -> None:
    """A process that dies in the middle of anything costs its own call, never the chain."""
    tool, given = shell("claude-code", "git status", real.project)
    assert passes("claude-code", real.tell("claude-code", before("claude-code", tool, given, real.project)))
    for number, pause in enumerate((0.02, 0.1, 0.15, 0.2, 0.25, 0.3)):
        process = real.start("claude-code")
        assert process.stdin is not None
        process.stdin.write(json.dumps(before("claude-code", tool, given, real.project, call=f"k-{number}")).encode())
        process.stdin.close()
        time.sleep(pause)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for child in children.read_text().split() if children.exists() else ():
            os.kill(int(child), signal.SIGKILL)
        process.stdin = None
        _, err = process.communicate(timeout=60)  # the parent lives, and blocks when it got no whole answer
        assert (process.returncode, bool(err)) in ((0, False), (2, True))
    assert real.tell("claude-code", after("claude-code", tool, given, real.project)).returncode == 0
    assert real.tell("claude-code", ended("claude-code", real.project)).returncode == 0
    (events,) = traces(real)
    assert "action.executed" in calls(events)
    assert events[-1]["event_type"] == "session.ended"


@pytest.mark.parametrize("agent", AGENTS)
def test_a_line_runs_in_a_folder(hook: Hook, agent: str) -> None:
    """The same line is allowed in the project and denied elsewhere, however the agent tells where it runs."""
    tool, given = shell(agent, "ls", hook.project)
    assert passes(agent, hook.tell(agent, before(agent, tool, given, hook.project)))
    tool, given = shell(agent, "ls", "/etc")
    assert blocks(agent, hook.tell(agent, before(agent, tool, given, "/etc")))
    if agent == "gemini":
        assert blocks(agent, hook.tell(agent, before(agent, tool, {**given, "dir_path": "/etc"}, hook.project)))


@pytest.mark.parametrize("agent", AGENTS)
def test_the_model_does_not_say_where_a_line_runs(hook: Hook, agent: str) -> None:
    """What the agent does not tell, no argument of the call makes up."""
    event = before(agent, *shell(agent, "git status", hook.project), hook.project)
    event["tool_input"] = {"command": "git status", "folder": str(hook.project)}
    assert passes(agent, hook.tell(agent, event))
    event |= {"cwd": "", "workspace_roots": []}
    assert blocks(agent, hook.tell(agent, event))


def test_where_a_tool_runs_counts(hook: Hook) -> None:
    """A relative path is taken from the agent's folder, not from where the hook was started."""
    (hook.project / "sub").mkdir()
    event = before("gemini", "read_file", {"file_path": "../a.txt"}, hook.project / "sub")
    assert passes("gemini", hook.tell("gemini", event))
    event = before("gemini", "read_file", {"file_path": "../a.txt"}, hook.project)
    assert blocks("gemini", hook.tell("gemini", event))
    event = before("gemini", "read_file", {"file_path": "a.txt"}, hook.project / "nowhere")
    assert blocks("gemini", hook.tell("gemini", event))


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    ("path", "command"),
    [
        (".claude/settings.json", "cra approvals approve 3f9c11aa"),
        (".codex/hooks.json", "cra hook uninstall codex"),
        (".gemini/settings.json", "python -m cra_middleware approvals list"),
        (".cursor/hooks.json", "pkill -f entry.py"),
    ],
)
def test_no_agent_changes_its_keepers(hook: Hook, agent: str, path: str, command: str) -> None:
    """Not by its file tools, not by its shell."""
    whole = str(hook.project / path)
    writes = {
        "claude-code": ("Edit", {"file_path": whole, "old_string": "a", "new_string": "b"}),
        "codex": ("apply_patch", {"command": f"*** Begin Patch\n*** Update File: {path}\n+x\n*** End Patch"}),
        "gemini": ("replace", {"file_path": whole, "old_string": "a", "new_string": "b"}),
        "cursor": ("Write", {"file_path": whole, "contents": "b"}),
    }
    for tool, given in (writes[agent], shell(agent, command, hook.project)):
        done = hook.tell(agent, before(agent, tool, given, hook.project))
        assert blocks(agent, done)
        assert b"not-your" in done.stderr, done.stderr
