"""CrewAI, for real: a scripted model drives crews by ``kickoff`` and ``akickoff``, with native calls and with text."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", CREWAI_TRACING_ENABLED="false", CREWAI_TESTING="true")
pytest.importorskip("crewai", reason="the CrewAI adapter needs the crewai extra")

from crewai import Agent, BaseLLM, Crew, Process
from crewai import Task as CrewTask
from crewai.flow.flow import Flow, listen, start
from crewai.hooks import register_before_tool_call_hook, unregister_before_tool_call_hook
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.tools import BaseTool, tool
from pydantic import BaseModel, PrivateAttr, create_model

from cra_adapters.crewai import describe_tools, govern, govern_tools
from cra_middleware import Atlas, Runtime
from cra_middleware._canonical import canonical, digest
from cra_middleware.testing import ContractCase, Mode, Outcome, Task, adapter_contract
from cra_middleware.testing import Scripted as Call
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.workbench import ATLAS
from tests.adapters.contract import Bench, check

DELEGATE = "delegate_work_to_coworker"


class Scripted(BaseLLM):
    """Follows a script, turn by turn, and remembers what it was shown."""

    _turns: Any = PrivateAttr()
    _native: bool = PrivateAttr()
    _shown: list[str] | None = PrivateAttr(default=None)
    _first: str = PrivateAttr(default="")
    _last: str = PrivateAttr(default="")

    def __init__(self, turns: Any, native: bool) -> None:
        super().__init__(model="scripted")
        self._native = native
        self._turns = iter(turns if native else [[call] for turn in turns for call in turn])

    def supports_function_calling(self) -> bool:
        return self._native

    def supports_stop_words(self) -> bool:
        return True

    def get_context_window_size(self) -> int:
        return 100_000

    def call(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
        text = messages if isinstance(messages, str) else "\n".join(str(item.get("content")) for item in messages)
        if self._shown is None:
            self._first = text
            named = re.findall(r"^Tool Name: (\w+)", text, re.MULTILINE)
            self._shown = [item["function"]["name"] for item in tools or []] if self._native else named
        self._last = text
        calls = next(self._turns, [])
        if self._native:
            return [self._native_call(call) for call in calls] or "done"
        if not calls:
            return "Thought: I now know the final answer\nFinal Answer: done"
        return f"Thought: go on\nAction: {calls[0].tool}\nAction Input: {json.dumps(dict(calls[0].arguments))}"

    def _native_call(self, call: Any) -> dict[str, Any]:
        return {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.tool, "arguments": json.dumps(dict(call.arguments))},
        }

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


def change(context: Any) -> None:
    """A neighbour that changes arguments as late as it can."""
    changed = {key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in context.tool_input}
    context.tool_input.update(changed)


class CrewAI:
    framework = "crewai"
    modes: tuple[Mode, ...] = ("sync", "async")
    abilities = frozenset({"agent_names", "change", "nested", "handoff", "hide", "context"})

    def __init__(self, protocol: Literal["native", "text"]) -> None:
        self.way = f"{protocol} calls"
        self.native = protocol == "native"
        self.holes: dict[str, str] = (
            {} if self.native else {"unknown_tool": "CrewAI tells nobody of an unknown tool in the text protocol"}
        )

    def agent(self, task: Task) -> tuple[Agent, Scripted]:
        model = Scripted(task.turns, self.native)
        role = Agent(
            role=task.agent,
            goal="help",
            backstory="none",
            llm=model,
            tools=[tool(fn) for fn in task.tools],
            allow_delegation=task.nested is not None and task.turns[0][0].tool == DELEGATE,
            max_iter=8,
        )
        return role, model

    def run(self, task: Task) -> Outcome:
        if task.nested is not None and task.turns[0][0].tool == "delegate":
            told = {"task": "Look T-1 up.", "context": "none", "coworker": "helper"}
            call = task.turns[0][0]
            task = replace(task, turns=[[replace(call, tool=DELEGATE, arguments=told)]])
        agents = [self.agent(item) for item in (task, task.nested) if item is not None]
        each = agents if task.nested is None or task.turns[0][0].tool == "lookup" else agents[:1]
        tasks = [CrewTask(description="do it", expected_output="text", agent=agent) for agent, _ in each]
        crew = Crew(agents=[agent for agent, _ in agents], tasks=tasks, cache=True)
        govern(
            crew,
            task.runtime,
            {DELEGATE: "ticket.list", "ask_question_to_coworker": "ticket.list"},
            hide_denied=task.adds_context,
            inject_context=task.adds_context,
        )
        if task.neighbour == "change":
            register_before_tool_call_hook(change)
        model = agents[0][1]
        error: BaseException | None = None
        final = ""
        try:
            final = str(crew.kickoff() if task.mode == "sync" else asyncio.run(crew.akickoff()))
        except Exception as raised:
            error = raised
        finally:
            unregister_before_tool_call_hook(change)
        return Outcome([model._last], final, error, model._shown or [], model._first)


CASES = [case for protocol in ("native", "text") for case in adapter_contract(CrewAI(protocol))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{'native' if case.subject.native else 'text'}")
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


RAN: list[Any] = []


@tool
def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    RAN.append(("remove", ticket_id))
    return "gone"


@tool
def lookup(ticket_id: str) -> str:
    """Look a ticket up."""
    RAN.append(("lookup", ticket_id))
    return f"{ticket_id} is open"


class Lookup(BaseTool):
    name: str = "lookup"
    description: str = "Look a ticket up, in a class of its own."

    def _run(self, ticket_id: str, verbose: bool = False) -> str:
        RAN.append(("sync", ticket_id))
        return "open"

    async def _arun(self, ticket_id: str, verbose: bool = False) -> str:
        RAN.append(("async", ticket_id))
        return "open"


class PastTheGate(Lookup):
    def run(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


REMOVE = ("remove", {"ticket_id": "T-1"})
LOOKUP = ("lookup", {"ticket_id": "T-1"})


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    RAN.clear()
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces") as made:
        yield made


def worker(
    *turns: tuple[str, dict[str, Any]], tools: Any = (remove, lookup), native: bool = True, **given: Any
) -> Agent:
    script = [[Call(name, arguments, f"c{number}")] for number, (name, arguments) in enumerate(turns)]
    model = Scripted(script, native)
    return Agent(role="worker", goal="help", backstory="none", llm=model, tools=list(tools), **given)


def crew_of(*agents: Agent, tools: Any = None, **given: Any) -> Crew:
    tasks = [
        CrewTask(description=f"do it {number}", expected_output="text", agent=agent, tools=tools or [])
        for number, agent in enumerate(agents)
    ]
    return Crew(agents=list(agents), tasks=tasks, **given)


def shown(target: Any, runtime: Runtime, actions: Any = None) -> Any:
    """Governed, with denied tools shown all the same: what is hidden could not be tried."""
    return govern(target, runtime, actions, hide_denied=False)


def told(agent: Agent) -> str:
    return str(agent.llm._last)


@pytest.mark.parametrize("native", [True, False])
def test_a_cached_result_is_no_way_around_a_decision(runtime: Runtime, tmp_path: Path, native: bool) -> None:
    agent = worker(LOOKUP, REMOVE, LOOKUP, native=native, cache=True)
    shown(crew_of(agent, cache=True), runtime).kickoff()
    assert RAN == [("lookup", "T-1")] * 2
    assert len(Evidence(tmp_path / "traces").of("action.executed")) == 2


@pytest.mark.parametrize("native", [True, False])
def test_a_denial_is_never_the_answer(runtime: Runtime, native: bool) -> None:
    @tool("remove", result_as_answer=True)
    def answering(ticket_id: str) -> str:
        """Delete a ticket."""
        raise AssertionError("this never runs")

    agent = worker(REMOVE, tools=[answering], native=native)
    assert str(shown(crew_of(agent), runtime).kickoff()) == "done"
    assert "Close it instead." in told(agent)


def test_an_allowed_result_may_be_the_answer(runtime: Runtime) -> None:
    @tool("lookup", result_as_answer=True)
    def answering(ticket_id: str) -> str:
        """Look a ticket up."""
        return "open"

    assert str(shown(crew_of(worker(LOOKUP, tools=[answering])), runtime).kickoff()) == "open"


def test_a_usage_limit_still_counts(runtime: Runtime, tmp_path: Path) -> None:
    @tool("lookup", max_usage_count=1)
    def limited(ticket_id: str) -> str:
        """Look a ticket up."""
        RAN.append(ticket_id)
        return "open"

    agent = worker(LOOKUP, ("lookup", {"ticket_id": "T-2"}), tools=[limited])
    shown(crew_of(agent), runtime).kickoff()
    assert RAN == ["T-1"]
    assert "usage limit" in told(agent)


def test_a_neighbours_hook_that_breaks_or_says_yes_changes_nothing(runtime: Runtime) -> None:
    def broken(context: Any) -> bool:
        raise RuntimeError("swallowed, and the tool would run")

    def yes(context: Any) -> bool:
        return True

    agent = worker(REMOVE)
    for hook in (broken, yes):
        register_before_tool_call_hook(hook)
    try:
        shown(crew_of(agent), runtime).kickoff()
    finally:
        for hook in (broken, yes):
            unregister_before_tool_call_hook(hook)
    assert RAN == []
    assert "Close it instead." in told(agent)


def test_a_tool_of_a_task_is_governed(runtime: Runtime) -> None:
    agent = worker(REMOVE, tools=[])
    shown(crew_of(agent, tools=[remove]), runtime).kickoff()
    assert RAN == []


def test_copies_are_governed(runtime: Runtime) -> None:
    agent = worker(REMOVE)
    shown(crew_of(agent), runtime).kickoff_for_each([{}])
    assert RAN == []
    again = shown(worker(REMOVE), runtime).copy()
    again.kickoff("go")
    assert RAN == []


def test_agents_that_join_later_are_governed(runtime: Runtime) -> None:
    crew = shown(crew_of(worker(LOOKUP)), runtime)
    crew.tasks[0].agent = worker(REMOVE)
    crew.kickoff()
    assert RAN == []


def test_an_agent_that_joins_during_the_kickoff_uses_no_tool(runtime: Runtime) -> None:
    late = worker(REMOVE)

    def join(inputs: Any) -> Any:
        crew.tasks[0].agent = late
        late.crew = crew
        return inputs

    crew = shown(crew_of(worker(LOOKUP), before_kickoff_callbacks=[join]), runtime)
    crew.kickoff()
    assert RAN == []
    assert "blocked by hook" in told(late)


def test_a_manager_is_governed_and_so_are_those_below(runtime: Runtime, tmp_path: Path) -> None:
    order = {"task": "Delete T-1.", "context": "none", "coworker": "worker"}
    manager = Scripted([[Call(DELEGATE, order, "m")]], True)
    agent = worker(REMOVE)
    crew = Crew(
        agents=[agent],
        tasks=[CrewTask(description="do it", expected_output="text")],
        process=Process.hierarchical,
        manager_llm=manager,
    )
    shown(crew, runtime, {DELEGATE: "ticket.list", "ask_question_to_coworker": "ticket.list"}).kickoff()
    evidence = Evidence(tmp_path / "traces")
    assert RAN == []
    assert evidence.of("action.executed", "ticket.list")
    assert evidence.denials("ticket.delete") == ["policy_denied"]


def test_the_net_stops_a_tool_that_came_some_other_way(runtime: Runtime, tmp_path: Path) -> None:
    agent = shown(worker(LOOKUP, REMOVE, native=False, tools=[lookup]), runtime)
    agent.create_agent_executor(task=CrewTask(description="do it", expected_output="text", agent=agent))
    agent.agent_executor.tools.append(remove.to_structured_tool())
    agent.agent_executor.invoke({"input": "go", "tool_names": "", "tools": "", "ask_for_human_input": False})
    assert RAN == [("lookup", "T-1")]
    assert "blocked by hook" in told(agent)
    assert Evidence(tmp_path / "traces").denials("ticket.delete") == ["policy_denied"]


def test_kickoffs_of_an_agent_and_streams_are_runs(runtime: Runtime, tmp_path: Path) -> None:
    shown(worker(LOOKUP), runtime).kickoff("go")
    asyncio.run(shown(worker(LOOKUP), runtime).kickoff_async("go"))
    asyncio.run(shown(crew_of(worker(LOOKUP)), runtime).kickoff_async())
    streaming = shown(crew_of(worker(LOOKUP), stream=True), runtime).kickoff()
    list(streaming)
    evidence = Evidence(tmp_path / "traces")
    assert RAN == [("lookup", "T-1")] * 4
    assert len(evidence.sessions) == len(evidence.of("session.ended")) == 4


def test_a_crew_and_a_tool_in_a_flow_are_governed(runtime: Runtime, tmp_path: Path) -> None:
    crew = shown(crew_of(worker(REMOVE, LOOKUP)), runtime)
    (denied,) = govern_tools([remove], runtime)

    class Steps(Flow[Any]):
        @start()
        def first(self) -> str:
            return str(crew.kickoff())

        @listen(first)
        def second(self, said: str) -> str:
            return said + denied.run(ticket_id="T-1").message

    with runtime.session("flow") as session:
        assert "Close it instead." in str(Steps().kickoff())
    assert RAN == [("lookup", "T-1")]
    evidence = Evidence(tmp_path / "traces")
    assert evidence.denials("ticket.delete") == ["policy_denied"] * 2
    assert list(evidence.sessions) == [session.id]


def test_a_class_of_tool_is_decided_in_both_its_bodies(runtime: Runtime, tmp_path: Path) -> None:
    (governed,) = govern_tools([Lookup()], runtime)
    assert governed.run(ticket_id="T-1") == "open"
    assert asyncio.run(governed.arun(ticket_id="T-2")) == "open"
    assert governed._run("T-3") == "open"
    assert governed.to_structured_tool().invoke({"ticket_id": "T-4"}) == "open"
    assert [ran[1] for ran in RAN] == ["T-1", "T-2", "T-3", "T-4"]
    assert len(Evidence(tmp_path / "traces").of("action.executed", "ticket.get")) == 4
    (denied,) = govern_tools([Lookup()], runtime, {"lookup": "ticket.delete"})
    assert "Close it instead." in denied.run(ticket_id="T-1").message
    assert "Close it instead." in asyncio.run(denied.arun(ticket_id="T-1")).message
    assert len(RAN) == 4


def test_an_empty_star_is_no_argument(runtime: Runtime, tmp_path: Path) -> None:
    class Remote(Lookup):
        args_schema: type[BaseModel] = create_model("Remote", ticket_id=(str, ...))

        def _run(self, *args: Any, **kwargs: Any) -> str:
            return str(kwargs)

    (governed,) = govern_tools([Remote()], runtime)
    assert governed.run(ticket_id="T-1") == "{'ticket_id': 'T-1'}"
    (asked,) = Evidence(tmp_path / "traces").of("action.requested")
    assert asked["parameters_hash"] == digest(canonical({"ticket_id": "T-1"}))


def test_a_copy_of_a_governed_tool_is_decided_once(runtime: Runtime, tmp_path: Path) -> None:
    (twice,) = govern_tools(govern_tools([lookup], runtime), runtime)
    twice.model_copy().run(ticket_id="T-1")
    assert len(Evidence(tmp_path / "traces").of("action.requested")) == 1


def test_a_tool_that_would_go_past_the_gate_is_refused(runtime: Runtime) -> None:
    with pytest.raises(TypeError, match="run of its own"):
        govern_tools([PastTheGate()], runtime)
    with pytest.raises(TypeError):
        govern_tools([print], runtime)  # type: ignore[list-item]


def test_what_is_no_copy_is_not_governed(runtime: Runtime) -> None:
    shown(worker(REMOVE), runtime)
    assert remove.run(ticket_id="T-1") == "gone", "a hole that the page names"


def test_no_other_crew_is_restored_and_run(runtime: Runtime) -> None:
    with pytest.raises(RuntimeError, match="restore"):
        shown(crew_of(worker(REMOVE)), runtime).kickoff(from_checkpoint=CheckpointConfig(restore_from="x"))


def test_one_governor_each(runtime: Runtime) -> None:
    crew = shown(crew_of(worker(LOOKUP)), runtime)
    with pytest.raises(RuntimeError, match="another governor"):
        govern(crew, runtime)
    with pytest.raises(TypeError):
        govern(object(), runtime)  # type: ignore[type-var]


def test_an_old_version_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "1.14.0")
    with pytest.raises(RuntimeError, match="too old"):
        shown(crew_of(worker(LOOKUP)), runtime)


def test_tools_are_described() -> None:
    (name, description, schema), _ = describe_tools(crew_of(worker()))
    assert (name, description) == ("remove", "Delete a ticket.")
    assert schema is not None
    assert schema["required"] == ["ticket_id"]
    assert describe_tools([remove]) == [(name, description, schema)]
    with pytest.raises(TypeError):
        describe_tools([print])
