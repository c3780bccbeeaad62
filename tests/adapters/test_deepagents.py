"""Deep Agents, for real: file tools on a disk, and subagents that are started by the ``task`` tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepagents", reason="needs the deepagents distribution")

from deepagents import create_deep_agent
from deepagents.backends import FilesystemBackend
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from cra_adapters.langchain import CRAMiddleware
from cra_middleware import Atlas, Runtime
from cra_middleware.testing.evidence_of_runs import Evidence
from tests.adapters.test_langchain import model, run, tool_messages
from tests.conftest import manifest

MODES = pytest.mark.parametrize("mode", ["invoke", "ainvoke", "astream"])
SECRET = {"properties": {"file_path": {"type": "string", "pattern": "secret"}}, "required": ["file_path"]}
ASKED = {"properties": {"file_path": {"type": "string", "pattern": "asked"}}, "required": ["file_path"]}
ATLAS = manifest(
    actions=[
        {"action_id": f"file.{name}", "name": name, "description": name}
        for name in ("read", "write", "run", "delegate")
    ],
    policies=[
        {"policy_id": "allow-all", "type": "allow"},
        {"policy_id": "no-secrets", "type": "deny", "actions": ["file.*"], "conditions": {"parameters": SECRET}},
        {"policy_id": "ask", "type": "require_approval", "actions": ["file.*"], "conditions": {"parameters": ASKED}},
        {"policy_id": "no-shell", "type": "deny", "actions": ["file.run"]},
    ],
    adapters={
        "langchain": {
            "tools": {
                "read_file": "file.read",
                "ls": "file.read",
                "write_file": "file.write",
                "edit_file": "file.write",
                "execute": "file.run",
                "task": "file.delegate",
            }
        }
    },
)


def write(name: str) -> tuple[str, dict[str, Any]]:
    return ("write_file", {"file_path": f"/{name}", "content": "hello"})


def task(agent: str) -> tuple[str, dict[str, Any]]:
    return ("task", {"description": "write it", "subagent_type": agent})


class Desk:
    """A runtime, and a folder that the agent's file tools write to."""

    def __init__(self, folder: Path) -> None:
        self.traces = folder / "traces"
        self.files = folder / "files"
        self.files.mkdir()
        self.runtime = Runtime(Atlas.from_dict(ATLAS), trace=self.traces, approvals=folder / "approvals.db")
        self.gate = CRAMiddleware(self.runtime)

    def agent(self, *turns: Any, **options: Any) -> Any:
        backend = FilesystemBackend(root_dir=self.files, virtual_mode=True)
        return create_deep_agent(model(*turns), backend=backend, middleware=[self.gate], name="main", **options)

    def written(self) -> list[str]:
        return sorted(file.name for file in self.files.rglob("*") if file.is_file())

    def sessions(self) -> dict[str, tuple[str, Any]]:
        found = {}
        for session_id, events in Evidence(self.traces).sessions.items():
            metadata: Any = events[0].payload["metadata"]
            found[str(events[0].payload["agent_id"])] = (session_id, metadata.get("parent_session_id"))
        return found


def subagent(name: str, *turns: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": "works", "system_prompt": "Work.", "model": model(*turns), **more}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.runtime.close()


@MODES
def test_file_tools(desk: Desk, mode: str) -> None:
    """What is denied leaves nothing on the disk; what is allowed is written."""
    state = run(desk.agent([write("secret.txt"), write("notes.txt")]), mode)
    said = {str(message.content)[:20]: message.status for message in tool_messages(state)}
    assert desk.written() == ["notes.txt"]
    assert sorted(said.values()) == ["error", "success"]
    assert any("no-secrets" in str(message.content) for message in tool_messages(state))


@MODES
@pytest.mark.parametrize("name", ["helper", "general-purpose"])
def test_a_subagent_with_the_gate(desk: Desk, mode: str, name: str) -> None:
    """It is governed, in a session of its own below the main agent's."""
    inner = subagent(name, [write("secret.txt"), write("notes.txt")], middleware=[desk.gate])
    state = run(desk.agent([task(name)], [write("after.txt")], subagents=[inner]), mode)
    assert desk.written() == ["after.txt", "notes.txt"]
    assert tool_messages(state)[0].status == "success"
    found = desk.sessions()
    assert set(found) == {"main", name}
    assert found[name][1] == found["main"][0]
    assert Evidence(desk.traces).denials("file.write") == ["policy_denied"]


@MODES
def test_a_subagent_without_the_gate_runs_nothing(desk: Desk, mode: str) -> None:
    """``middleware=`` does not reach subagents: what such a one calls is stopped, and the main agent is told."""
    inner = subagent("helper", [write("notes.txt")])
    state = run(desk.agent([task("helper")], [write("after.txt")], subagents=[inner]), mode)
    assert desk.written() == ["after.txt"]
    assert "nothing governs that agent" in str(tool_messages(state)[0].content)


@MODES
def test_the_subagent_that_is_always_there(desk: Desk, mode: str) -> None:
    """The general-purpose one that Deep Agents adds by itself has no gate, so it runs nothing either."""
    turns = [[task("general-purpose")], [write("secret.txt")], [write("after.txt")]]  # they share the model
    run(desk.agent(*turns), mode)
    assert "secret.txt" not in desk.written()
    assert [payload["error_code"] for payload in Evidence(desk.traces).of("error.occurred")] == ["ungoverned_tool"]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("yes", [True, False])
def test_a_subagent_waits_for_a_person(desk: Desk, mode: str, yes: bool) -> None:
    """The question comes up through the main agent's run, and the answer goes down to the call."""
    inner = subagent("helper", [write("asked.txt")], middleware=[desk.gate])
    agent = desk.agent([task("helper")], subagents=[inner], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    (question,) = run(agent, mode, config)["__interrupt__"]
    assert question.value["agent_id"] == "helper"
    assert desk.written() == []
    run(agent, mode, config, Command(resume=yes))
    assert desk.written() == (["asked.txt"] if yes else [])


def test_tools_that_nothing_allows_are_not_shown(desk: Desk) -> None:
    """The shell is hidden, and the Atlas's tools are not."""
    shown = model([write("notes.txt")])
    backend = FilesystemBackend(root_dir=desk.files, virtual_mode=True)
    run(create_deep_agent(shown, backend=backend, middleware=[desk.gate]), "invoke")
    assert "write_file" in shown.shown[0]
    assert not {"execute", "glob"} & set(shown.shown[0])
