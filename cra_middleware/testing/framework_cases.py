"""The contract's cases about a framework's own doings: ids, neighbours, agents below agents, what a model is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cra_middleware.testing.workbench import Workbench

LOOKUP = ("lookup", {"ticket_id": "T-1"})
REMOVE = ("remove", {"ticket_id": "T-1"})


def call_id(bench: Workbench) -> None:
    """The trace names the framework's own id of each call, one it denied included."""
    task = bench.task([LOOKUP], [REMOVE])
    bench.subject.run(task)
    requested = bench.evidence().of("action.requested")
    assert [payload.get("tool_call_id") for payload in requested] == [
        call.call_id for turn in task.turns for call in turn
    ]


def agent_name(bench: Workbench) -> None:
    """The trace names the agent that calls, and its session is that agent's."""
    bench.run([LOOKUP], agent="worker")
    evidence = bench.evidence()
    assert [payload.get("agent_name") for payload in evidence.of("action.requested")] == ["worker"]
    assert [payload["agent_id"] for payload in evidence.of("session.started")] == ["worker"]


def two_agents_of_one_name(bench: Workbench) -> None:
    """Two runs of agents with one name are two runs: nothing of theirs is mixed up or lost."""
    bench.went_on(bench.run([LOOKUP], run="first"))
    bench.went_on(bench.run([("lookup", {"ticket_id": "T-2"})], run="second"))
    assert len(bench.bodies.ran) == 2


def retrying_neighbour(bench: Workbench) -> None:
    """A neighbour that runs a failed call again meets a decision each time."""
    bench.bodies.fails = 2
    bench.run([("flaky", {"ticket_id": "T-1"})], neighbour="retry")
    assert len(bench.bodies.runs("flaky")) == 3
    evidence = bench.evidence()
    assert len(evidence.of("action.requested", "ticket.update")) == 3
    assert len(evidence.of("action.failed", "ticket.update")) == 2


def changing_neighbour(bench: Workbench) -> None:
    """A neighbour that changes arguments after the model chose them changes what is decided, or nothing runs."""
    bench.run([("pay", {"order_id": "O-1", "amount": 20.0})], [LOOKUP], neighbour="change")
    assert bench.bodies.runs("pay") == []


def nested_agent(bench: Workbench) -> None:
    """An agent inside another's tool is governed, in a session of its own below the outer one's."""
    _two_agents(bench, bench.task([("delegate", {"request": "Look T-1 up."})], agent="worker"))


def handed_over(bench: Workbench) -> None:
    """An agent that is handed over to is governed, in a session of its own below the first one's."""
    _two_agents(bench, bench.task([("lookup", {"ticket_id": "T-0"})], agent="worker"))


def _two_agents(bench: Workbench, task: Any) -> None:
    inner = bench.task([REMOVE], [LOOKUP], agent="helper")
    outcome = bench.subject.run(replace(task, nested=inner))
    assert bench.bodies.runs("remove") == []
    assert LOOKUP in bench.bodies.ran, outcome
    started = {payload["agent_id"]: payload for payload in bench.evidence().of("session.started")}
    ids = {events[0].payload["agent_id"]: session for session, events in bench.evidence().sessions.items()}
    assert set(started) == {"worker", "helper"}
    assert started["helper"]["metadata"]["parent_session_id"] == ids["worker"]


def hidden_tools(bench: Workbench) -> None:
    """A model is not shown the tools that it could never use."""
    task = bench.task([LOOKUP], adds_context=True)
    tools = bench.bodies.tools("lookup", "remove", "pay")
    outcome = bench.subject.run(replace(task, tools=tools))
    bench.went_on(outcome)
    assert sorted(outcome.shown) == ["lookup", "pay"]


def context_in_prompt(bench: Workbench) -> None:
    """The Atlas's documents are in the system prompt."""
    outcome = bench.run([LOOKUP], adds_context=True)
    bench.went_on(outcome)
    assert "Be kind." in outcome.prompt


FRAMEWORK_CASES: Mapping[str, tuple[str | None, Callable[[Workbench], None]]] = {
    "call_id": ("call_ids", call_id),
    "agent_name": ("agent_names", agent_name),
    "two_agents_of_one_name": (None, two_agents_of_one_name),
    "retrying_neighbour": ("retry", retrying_neighbour),
    "changing_neighbour": ("change", changing_neighbour),
    "nested_agent": ("nested", nested_agent),
    "handed_over": ("handoff", handed_over),
    "hidden_tools": ("hide", hidden_tools),
    "context_in_prompt": ("context", context_in_prompt),
}
