"""Events as the agents send them.

Claude Code: recorded from 2.1.330, as its ``PreToolUse``, ``PostToolUse``, ``PostToolUseFailure`` and ``SessionEnd``
hooks got them (paths and ids shortened). Codex CLI: after ``codex-rs/hooks/schema/generated`` of openai/codex. Gemini
CLI: after ``docs/hooks/reference.md`` of google-gemini/gemini-cli. Cursor: after cursor.com/docs/hooks, with the
values that a public protocol of Cursor 3.9.16 shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cra_middleware.coding_agents import entry
from cra_middleware.coding_agents.answering import Options, answer

AGENTS = ("claude-code", "codex", "gemini", "cursor")
ENTRY = str(Path(entry.__file__).resolve())
SHELLS = {"claude-code": "Bash", "codex": "Bash", "gemini": "run_shell_command", "cursor": "Shell"}


def _claude(name: str, session: str, cwd: str, **more: Any) -> dict[str, Any]:
    common = {"session_id": session, "transcript_path": f"/t/{session}.jsonl", "cwd": cwd, "hook_event_name": name}
    return {**common, "prompt_id": "11eef4e8-e15d-463d-aa12-ef6b505544f7", **more}


def _codex(name: str, session: str, cwd: str, **more: Any) -> dict[str, Any]:
    common = {"session_id": session, "turn_id": "turn-1", "transcript_path": None, "cwd": cwd, "hook_event_name": name}
    return {**common, "model": "gpt-5-codex", "permission_mode": "default", **more}


def _gemini(name: str, session: str, cwd: str, **more: Any) -> dict[str, Any]:
    common = {"session_id": session, "transcript_path": f"/t/{session}.json", "cwd": cwd, "hook_event_name": name}
    return {**common, "timestamp": "2026-11-26T12:00:00.000Z", **more}


def _cursor(name: str, session: str, cwd: str, **more: Any) -> dict[str, Any]:
    common = {"conversation_id": session, "session_id": session, "generation_id": "g-1", "hook_event_name": name}
    about = {"model": "default", "cursor_version": "3.9.16", "workspace_roots": [cwd], "user_email": None}
    return {**common, **about, "transcript_path": None, **more}


_COMMON = {"claude-code": _claude, "codex": _codex, "gemini": _gemini, "cursor": _cursor}
_BEFORE = {"claude-code": "PreToolUse", "codex": "PreToolUse", "gemini": "BeforeTool", "cursor": "preToolUse"}
_AFTER = {"claude-code": "PostToolUse", "codex": "PostToolUse", "gemini": "AfterTool", "cursor": "postToolUse"}
_END = {"claude-code": "SessionEnd", "gemini": "SessionEnd", "cursor": "sessionEnd"}


def before(
    agent: str, tool: str, given: dict[str, Any], cwd: object, session: str = "s-1", call: str = "call-1"
) -> Any:
    """A tool is about to run."""
    more: dict[str, Any] = {"tool_name": tool, "tool_input": given}
    if agent == "claude-code":
        more["permission_mode"] = "default"
    if agent != "gemini":
        more["tool_use_id"] = call
    return _COMMON[agent](_BEFORE[agent], session, str(cwd), **more)


def after(
    agent: str,
    tool: str,
    given: dict[str, Any],
    cwd: object,
    session: str = "s-1",
    call: str = "call-1",
    failed: bool = False,
) -> Any:
    """A tool has run."""
    more: dict[str, Any] = {"tool_name": tool, "tool_input": given}
    name = _AFTER[agent]
    if agent != "gemini":
        more["tool_use_id"] = call
    if agent == "claude-code":
        if failed:
            name, more = "PostToolUseFailure", {**more, "error": "Exit code 1", "is_interrupt": False}
        else:
            more["tool_response"] = {"stdout": "x", "stderr": "", "interrupted": False, "isImage": False}
        more["duration_ms"] = 11
    elif agent == "codex":
        more["tool_response"] = "x"
    elif agent == "gemini":
        more["tool_response"] = {
            "llmContent": "x",
            "returnDisplay": "x",
            **({"error": {"message": "x"}} if failed else {}),
        }
    elif failed:
        name, more = "postToolUseFailure", {**more, "error_message": "x", "failure_type": "error", "duration": 7.5}
    else:
        more |= {"tool_output": json.dumps({"output": "x", "exitCode": 0}), "duration": 728.221}
    return _COMMON[agent](name, session, str(cwd), **more)


def ended(agent: str, cwd: object, session: str = "s-1") -> Any:
    """The agent's session is over."""
    return _COMMON[agent](_END[agent], session, str(cwd), reason="other")


def shell(agent: str, command: str, cwd: object) -> tuple[str, dict[str, Any]]:
    """The agent's shell tool and its arguments."""
    return SHELLS[agent], {"command": command, **({"cwd": str(cwd)} if agent == "cursor" else {})}


def blocks(agent: str, done: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether the agent, as its documentation says, does not run the tool after this."""
    if agent == "codex":
        return done.returncode == 2 and bool(done.stderr.strip())
    return done.returncode == 2


def passes(agent: str, done: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether the agent goes on with the tool, and reads nothing else into the answer."""
    said = {"claude-code": b"", "codex": b"", "gemini": b"{}", "cursor": b'{"permission":"allow"}'}[agent]
    return done.returncode == 0 and done.stdout == said


class Hook:
    """The hook as an agent runs it: a command of full paths, an event on stdin. ``is_inside``: its work, in here."""

    def __init__(self, atlas: Path, trace: Path, project: Path, is_inside: bool = False) -> None:
        self.atlas, self.trace, self.project, self.is_inside = atlas, trace, project, is_inside

    def words(self, agent: str, *more: str) -> list[str]:
        options = ["--atlas", str(self.atlas), "--trace", str(self.trace), "--project", str(self.project)]
        return [sys.executable, "-I", ENTRY, agent, *options, *more]

    def start(self, agent: str, *more: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.words(agent, *more), stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.project)

    def tell(self, agent: str, event: Any, *more: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        if self.is_inside:
            said = answer(Options(agent, (str(self.atlas),), str(self.trace), project=str(self.project)), data)
            return subprocess.CompletedProcess([], said.code, said.stdout.encode(), said.stderr.encode())
        return subprocess.run(
            self.words(agent, *more),
            input=data,
            capture_output=True,
            cwd=self.project,
            env={**os.environ, **environment},
            timeout=60,
            check=False,
        )
