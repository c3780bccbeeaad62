"""AutoGen: teams, streams, other workbenches, and the holes, each as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat", reason="the AutoGen adapter needs the autogen extra")

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import Handoff
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.teams import RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_agentchat.tools import TeamTool
from autogen_core import CancellationToken
from autogen_core.tools import BaseStreamTool, BaseTool, FunctionTool, StaticWorkbench
from pydantic import BaseModel

from cra_adapters.autogen import CRAWorkbench, describe_tools, govern_tools
from cra_middleware import CallRefused
from cra_middleware.testing import Scripted
from cra_middleware.testing.workbench import Workbench as Bench
from tests.adapters.test_autogen import AutoGen, Client, Remote

LOOKUP = {"ticket_id": "T-1"}
PAY = {"order_id": "O-1", "amount": 70.0}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(AutoGen(), "async", tmp_path) as made:
        made.runtime()
        yield made


def agent(bench: Bench, name: str, *turns: list[tuple[str, dict[str, Any]]], tools: Any = (), **given: Any) -> Any:
    """An agent whose model makes these calls, with a workbench of its own."""
    script = [[Scripted(tool, args, f"{name}-{n}") for n, (tool, args) in enumerate(turn)] for turn in turns]
    gate = CRAWorkbench(bench._runtime, list(tools), agent=name)
    return AssistantAgent(name, Client(script), workbench=gate, description=name, **given)


def started(bench: Bench) -> dict[str, str | None]:
    """The agents that have a session, each with the agent of the session above."""
    first = {session: events[0].payload for session, events in bench.evidence().sessions.items()}
    return {
        payload["agent_id"]: first.get(payload["metadata"].get("parent_session_id"), {}).get("agent_id")
        for payload in first.values()
    }


@pytest.mark.parametrize("kind", ["round_robin", "selector"])
def test_agents_of_a_team_have_sessions_below_the_one_around_it(bench: Bench, kind: str) -> None:
    one = agent(bench, "one", [("lookup", LOOKUP)], tools=bench.bodies.tools("lookup"))
    two = agent(bench, "two", [("remove", LOOKUP)], tools=bench.bodies.tools("remove"))
    end = MaxMessageTermination(3)
    order = iter(("one", "two"))
    team: Any = RoundRobinGroupChat([one, two], termination_condition=end)
    if kind == "selector":
        team = SelectorGroupChat(
            [one, two], Client([]), termination_condition=end, selector_func=lambda messages: next(order)
        )

    async def run() -> None:
        with bench._runtime.session("desk"):  # type: ignore[union-attr]
            await team.run(task="hi")

    asyncio.run(run())
    assert bench.bodies.ran == [("lookup", LOOKUP)]
    assert set(started(bench)) >= {"desk"}
    assert set(started(bench).values()) <= {None, "desk"}


def test_agents_of_a_team_alone_have_a_session_each(bench: Bench) -> None:
    """And a handoff is followed, which is no call that is decided."""
    two = agent(bench, "two", [("lookup", LOOKUP)], tools=bench.bodies.tools("lookup"))
    one = agent(
        bench,
        "one",
        [("lookup", LOOKUP)],
        [("transfer_to_two", {})],
        tools=bench.bodies.tools("lookup"),
        handoffs=["two"],
        max_tool_iterations=3,
    )
    team = Swarm([one, two], termination_condition=TextMentionTermination("done") | MaxMessageTermination(12))
    asyncio.run(team.run(task="hi"))
    assert [ran for ran, _ in bench.bodies.ran] == ["lookup", "lookup"]
    assert started(bench) == {"one": None, "two": None}
    assert bench.evidence().denials("transfer_to_two") == []


def test_hole_a_handoff_is_code_that_is_not_decided(bench: Bench) -> None:
    ran: list[str] = []

    class Loud(Handoff):
        @property
        def handoff_tool(self) -> BaseTool[Any, Any]:
            def go() -> str:
                ran.append("go")
                return "going"

            return FunctionTool(go, name=self.name, description="")

    one = agent(bench, "one", [("transfer_to_two", {})], handoffs=[Loud(target="two")])
    asyncio.run(one.run(task="hi"))
    assert ran == ["go"]


def test_a_team_in_a_tool_is_below_the_agent_that_calls_it(bench: Bench) -> None:
    inner = agent(bench, "inner", [("lookup", LOOKUP)], tools=bench.bodies.tools("lookup"))
    team = RoundRobinGroupChat([inner], termination_condition=MaxMessageTermination(2))
    outer = agent(bench, "outer", [("helper", {"task": "x"})], tools=[TeamTool(team, "helper", "Helps.")])
    asyncio.run(outer.run(task="hi"))
    assert bench.bodies.ran == [("lookup", LOOKUP)]
    assert started(bench) == {"outer": None, "inner": "outer"}


class Args(BaseModel):
    ticket_id: str


class Steps(BaseStreamTool[Args, str, str]):
    """Yields step by step."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(Args, str, "lookup", "Look.")
        self.bench = bench
        self.left = False

    async def run(self, args: Args, cancellation_token: CancellationToken) -> str:
        raise AssertionError

    async def run_stream(self, args: Args, cancellation_token: CancellationToken) -> AsyncGenerator[str, None]:
        self.bench.bodies.note("lookup", ticket_id=args.ticket_id)
        try:
            for step in ("one", "two", "three"):
                yield step
        finally:
            self.left = True


@pytest.mark.parametrize("way", ["tool", "workbench"])
def test_a_stream_is_one_call(bench: Bench, way: str) -> None:
    steps = Steps(bench)
    (tool,) = govern_tools([steps], bench._runtime)
    stream: Any = (
        tool.run_json_stream(LOOKUP, CancellationToken(), "c1")  # type: ignore[attr-defined]
        if way == "tool"
        else CRAWorkbench(bench._runtime, steps).call_tool_stream("lookup", LOOKUP, None, "c1")
    )

    async def run() -> list[str]:
        return [str(item) for item in [item async for item in stream]]

    assert asyncio.run(run())[:2] == ["one", "two"]
    (payload,) = bench.evidence().of("action.requested")
    assert payload["tool_call_id"] == "c1"


def test_a_stream_that_nobody_reads_on_is_left(bench: Bench) -> None:
    steps = Steps(bench)
    (tool,) = govern_tools([steps], bench._runtime)

    async def run() -> None:
        stream = tool.run_json_stream(LOOKUP, CancellationToken())  # type: ignore[attr-defined]
        async for _ in stream:
            await asyncio.sleep(0.01)  # the tool is ahead, and waits for its next item to be taken
            break
        await stream.aclose()

    asyncio.run(asyncio.wait_for(run(), 5))
    assert steps.left
    assert len(bench.evidence().of("action.failed")) == 1


def test_a_tool_that_reads_its_arguments_by_itself_gets_the_decided_ones(bench: Bench) -> None:
    got: list[Any] = []

    class Own(FunctionTool):
        async def run_json(self, args: Any, cancellation_token: Any, call_id: str | None = None) -> Any:
            got.append(dict(args))
            bench.bodies.note("pay", **args)
            return "paid"

    def pay(order_id: str, amount: float = 20.0) -> str:
        raise AssertionError

    (tool,) = govern_tools([Own(pay, name="pay", description="")], bench._runtime)
    asyncio.run(tool.run_json({"order_id": "O-1"}, CancellationToken()))
    assert got == [{"order_id": "O-1", "amount": 20.0}]
    with pytest.raises(CallRefused, match="Too much money"):
        asyncio.run(tool.run_json({"order_id": "O-1", "amount": "700"}, CancellationToken()))


def test_reset_ends_the_session(bench: Bench) -> None:
    gate = CRAWorkbench(bench._runtime, bench.bodies.tools("lookup"), agent="one")
    for ending in (gate.reset, gate.stop):
        asyncio.run(gate.call_tool("lookup", LOOKUP))
        asyncio.run(gate.call_tool("lookup", LOOKUP))
        asyncio.run(ending())
    sessions = bench.evidence().sessions
    assert [events[-1].event_type for events in sessions.values()] == ["session.ended", "session.ended"]
    assert len(bench.bodies.ran) == 4


def test_a_tool_that_no_workbench_has_is_recorded_where_the_workbench_is_asked(bench: Bench) -> None:
    result = asyncio.run(CRAWorkbench(bench._runtime).call_tool("nosuch", {}))
    assert result.is_error
    assert bench.evidence().denials("nosuch") == ["unknown_action"]


def test_another_workbench_that_streams_says_that_it_failed(bench: Bench) -> None:
    class Streaming(Remote):
        async def call_tool_stream(self, name: str, *given: Any) -> AsyncGenerator[Any, None]:
            yield "half"
            yield await self.call_tool(name, *given)

    gate = CRAWorkbench(bench._runtime, Streaming(bench.bodies.tools("lookup", "broken")))

    async def run(name: str) -> list[Any]:
        return [item async for item in gate.call_tool_stream(name, LOOKUP)]

    assert [asyncio.run(run("lookup"))[0], asyncio.run(run("broken"))[0]] == ["half", "half"]
    assert asyncio.run(run("broken"))[-1].is_error
    assert len(bench.evidence().of("action.executed")) == 1
    assert len(bench.evidence().of("action.failed")) == 2


def test_a_governed_tool_in_a_governed_workbench_is_decided_once(bench: Bench) -> None:
    gate = CRAWorkbench(bench._runtime, govern_tools(bench.bodies.tools("lookup"), bench._runtime))
    asyncio.run(gate.call_tool("lookup", LOOKUP))
    assert len(bench.evidence().of("action.requested")) == 1


def test_state_is_that_of_the_parts(bench: Bench) -> None:
    remote = Remote([])
    gate = CRAWorkbench(bench._runtime, bench.bodies.tools("lookup"), remote)

    async def run() -> None:
        await gate.load_state(await gate.save_state())

    asyncio.run(run())
    assert remote.loaded == {"kept": 1}


def test_what_would_come_back_ungoverned_is_not_dumped(bench: Bench) -> None:
    one = agent(bench, "one", tools=bench.bodies.tools("lookup"))
    with pytest.raises(NotImplementedError, match="would not be governed"):
        one._workbench[0].dump_component()
    with pytest.raises(NotImplementedError, match="would not be governed"):
        govern_tools(bench.bodies.tools("lookup"), bench._runtime)[0].dump_component()


def test_a_static_workbench_has_to_be_opened(bench: Bench) -> None:
    with pytest.raises(TypeError, match="give the tools"):
        CRAWorkbench(bench._runtime, StaticWorkbench([]))
    with pytest.raises(TypeError, match="no AutoGen tool"):
        CRAWorkbench(bench._runtime, 7)


def test_hole_the_tool_itself_is_not_governed(bench: Bench) -> None:
    tool = FunctionTool(bench.bodies.tools("remove")[0], description="")
    CRAWorkbench(bench._runtime, tool)
    asyncio.run(tool.run_json(LOOKUP, CancellationToken()))
    assert bench.bodies.runs("remove") == [LOOKUP]
    bench.bodies.ran.clear()


def test_plain_functions_are_governed_too(bench: Bench) -> None:
    def lookup(ticket_id: str, cancellation_token: CancellationToken) -> str:
        bench.bodies.note("lookup", ticket_id=ticket_id)
        return "open"

    asyncio.run(agent(bench, "one", [("lookup", LOOKUP)], tools=[lookup]).run(task="hi"))
    assert bench.bodies.ran == [("lookup", LOOKUP)]


def test_describe_tools() -> None:
    def look(ticket_id: str, amount: float = 1.0) -> str:
        """Look."""
        return ticket_id

    ((name, description, schema),) = describe_tools(look)
    assert (name, description) == ("look", "Look.")
    assert schema is not None
    assert set(schema["properties"]) == {"ticket_id", "amount"}
    assert describe_tools([FunctionTool(look, description="Look.")]) == describe_tools(look)
    with pytest.raises(TypeError, match="no AutoGen tool"):
        describe_tools(7)


def test_an_old_framework_is_refused(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "0.6.4")
    with pytest.raises(RuntimeError, match="too old"):
        CRAWorkbench(bench._runtime)
