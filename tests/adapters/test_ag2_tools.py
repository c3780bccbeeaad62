"""AG2: kinds of tools, subtasks, the person behind the hook, and the holes, each as it is."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ag2", reason="the AG2 adapter needs the ag2 extra")

from ag2 import Agent, Context, Plugin, TaskConfig, Toolkit, tool
from ag2.events import ToolCallEvent
from ag2.tools.final import FunctionTool
from ag2.tools.tool import Tool

from cra_adapters.ag2 import describe_tools, govern
from cra_middleware import CallRefused
from cra_middleware.testing import Scripted
from cra_middleware.testing.workbench import Workbench
from tests.adapters.test_ag2 import AG2, Script, change

LOOKUP = {"ticket_id": "T-1"}
PAY = {"order_id": "O-1", "amount": 70.0}
CLOSE = "Close it instead."


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with Workbench(AG2(), "async", tmp_path) as made:
        made.runtime()
        yield made


def script(*turns: list[tuple[str, dict[str, Any]]]) -> Script:
    return Script([[Scripted(name, args, f"c{n}") for n, (name, args) in enumerate(turn)] for turn in turns])


def ask(bench: Workbench, config: Script, tools: Any = (), **given: Any) -> list[str]:
    """What the model of a governed agent was told."""
    passed = {key: given.pop(key) for key in ("to_ask",) if key in given}
    governs = {key: given.pop(key) for key in ("ask", "actions") if key in given}
    agent = govern(Agent("worker", config=config, tools=list(tools), **given), bench._runtime, **governs)
    asyncio.run(agent.ask("hi", **passed.get("to_ask", {})))
    return config.told


class Other(Tool):
    """A tool of a kind of its own, as a shell or a server's toolkit is."""

    name = "remove"

    def __init__(self, function: Any, *middleware: Any) -> None:
        self.inner = tool(function, middleware=middleware)

    async def schemas(self, context: Any) -> Any:
        return await self.inner.schemas(context)

    def register(self, stack: Any, context: Any, *, middleware: Any = ()) -> None:
        self.inner.register(stack, context, middleware=middleware)


def test_a_toolkit_is_governed_in_its_members(bench: Workbench) -> None:
    kit = Toolkit(*bench.bodies.tools("remove", "pay"), middleware=[change])
    told = ask(bench, script([("remove", LOOKUP), ("pay", {**PAY, "amount": 1.0})]), [kit])
    assert CLOSE in told[0]
    assert "Traceback" not in told[0]
    assert "Too much money." in told[1]
    assert bench.bodies.ran == []


def test_a_tool_of_another_kind_is_governed(bench: Workbench) -> None:
    def remove(ticket_id: str) -> str:
        bench.bodies.note("lookup", ticket_id=ticket_id)
        return "gone"

    assert CLOSE in ask(bench, script([("remove", LOOKUP)]), [Other(remove)])[0]
    assert bench.bodies.ran == []
    assert ask(bench, script([("remove", LOOKUP)]), [Other(remove)], actions={"remove": "ticket.get"}) == ["gone"]
    assert bench.evidence().of("action.requested", "ticket.get")[0]["tool_call_id"] == "c0"


def test_a_failure_of_a_tool_of_another_kind_is_recorded(bench: Workbench) -> None:
    (broken,) = bench.bodies.tools("broken")
    kind = Other(broken)
    kind.name = "broken"
    assert "slow" in ask(bench, script([("broken", LOOKUP)]), [kind])[0]
    assert [payload["error_code"] for payload in bench.evidence().of("action.failed")] == ["TimeoutError"]


@pytest.mark.parametrize("way", ["ask", "plugin", "later"])
def test_tools_that_come_later_are_governed(bench: Workbench, way: str) -> None:
    remove = tool(bench.bodies.tools("remove")[0])
    config = script([("remove", LOOKUP)])
    agent = govern(Agent("worker", config=config), bench._runtime)
    given: dict[str, Any] = {}
    if way == "ask":
        given = {"tools": [remove]}
    elif way == "plugin":
        given = {"plugins": [Plugin(tools=[remove])]}
    else:
        agent.tools.append(remove)
    asyncio.run(agent.ask("hi", **given))
    assert CLOSE in config.told[0]
    assert bench.bodies.ran == []


def test_a_later_tool_of_a_governed_name_is_governed(bench: Workbench) -> None:
    config = script([("remove", LOOKUP)])
    agent = govern(Agent("worker", config=config, tools=bench.bodies.tools("remove")), bench._runtime)
    asyncio.run(agent.ask("hi", tools=[tool(bench.bodies.tools("remove")[0])]))
    assert CLOSE in config.told[0]
    assert bench.bodies.ran == []


def test_a_subtask_keeps_governed_tools_without_the_middleware(bench: Workbench) -> None:
    below = script([("remove", LOOKUP), ("lookup", LOOKUP)])
    config = script([("run_subtask", {"task": "do it"})])
    extra = bench.bodies.tools("lookup")
    tasks = TaskConfig(config=below, extra_tools=extra)
    actions = {"run_subtask": "ticket.list"}
    ask(bench, config, bench.bodies.tools("remove"), tasks=tasks, actions=actions)
    assert CLOSE in below.told[0]
    assert bench.bodies.ran == [("lookup", LOOKUP)]
    parents = [
        event.payload["metadata"].get("parent_session_id")
        for event in bench.evidence().events
        if event.event_type == "session.started"
    ]
    assert len([parent for parent in parents if parent]) == 1


def test_what_the_framework_fills_in_is_no_argument(bench: Workbench) -> None:
    def lookup(ticket_id: str, ctx: Context) -> str:
        bench.bodies.note("lookup", ticket_id=ticket_id)
        return str(ctx.tool_call_id)

    assert ask(bench, script([("lookup", LOOKUP)]), [lookup]) == ["c0"]


def test_an_argument_that_no_parameter_names_is_decided(bench: Workbench) -> None:
    def pay(order_id: str, **more: Any) -> str:
        bench.bodies.note("pay", order_id=order_id, **more)
        return "paid"

    agent = govern(Agent("worker", config=script(), tools=[pay]), bench._runtime)
    with pytest.raises(CallRefused, match="Too much money"):
        asyncio.run(agent.tools[0].model.call(order_id="O-1", amount=500))  # type: ignore[attr-defined]
    assert bench.bodies.ran == []


def test_arguments_that_are_no_json_are_recorded(bench: Workbench) -> None:
    config = script([("lookup", LOOKUP)])

    async def spoil(call_next: Any, event: Any, context: Any) -> Any:
        spoilt = ToolCallEvent(event.name, id=event.id, arguments="{")
        return await call_next(spoilt, context)

    (lookup,) = bench.bodies.tools("lookup")
    told = ask(bench, config, [tool(lookup, middleware=[spoil])])
    assert "do not fit" in told[0]
    assert bench.evidence().denials("ticket.get") == ["invalid_parameters"]


@pytest.mark.parametrize(("said", "ran"), [("y", 1), ("Yes ", 1), ("no, wait", 0), ("", 0)])
def test_the_person_behind_the_hook_is_asked(bench: Workbench, said: str, ran: int) -> None:
    asked: list[str] = []

    def hook(event: Any) -> str:
        asked.append(event.content)
        return said

    told = ask(bench, script([("pay", PAY)]), bench.bodies.tools("pay"), hitl_hook=hook)
    assert len(bench.bodies.runs("pay")) == ran
    assert '"amount": 70.0' in asked[0]
    assert ("paid" in told[0]) == bool(ran)
    if said == "no, wait":
        assert "no, wait" in told[0]


def test_a_hook_that_is_not_there_is_no_yes(bench: Workbench) -> None:
    told = ask(bench, script([("pay", PAY)]), bench.bodies.tools("pay"), ask=True)
    assert bench.bodies.ran == []
    assert "refund.create was not run" in told[0]


def test_a_session_ends_with_its_turn(bench: Workbench) -> None:
    ask(bench, script([("lookup", LOOKUP)]), bench.bodies.tools("lookup"))
    ((*_, last),) = bench.evidence().sessions.values()
    assert last.event_type == "session.ended"


def test_a_governed_tool_of_a_tool_is_a_call_of_its_own(bench: Workbench) -> None:
    (lookup,) = bench.bodies.tools("lookup")
    agent = govern(Agent("worker", config=script(), tools=[lookup]), bench._runtime)
    (inner,) = agent.tools

    async def broken(ticket_id: str) -> str:
        bench.bodies.note("broken", ticket_id=ticket_id)
        return str(await inner.model.call(ticket_id=ticket_id))  # type: ignore[attr-defined]

    ask(bench, script([("broken", LOOKUP)]), [broken])
    requested = bench.evidence().of("action.requested")
    assert [payload.get("tool_call_id") for payload in requested] == ["c0", None]


def test_governed_twice_is_decided_once(bench: Workbench) -> None:
    config = script([("lookup", LOOKUP)])
    agent = govern(Agent("worker", config=config, tools=bench.bodies.tools("lookup")), bench._runtime)
    other = govern(Agent("other", config=config, tools=agent.tools), bench._runtime)
    asyncio.run(other.ask("hi"))
    assert len(bench.evidence().of("action.requested")) == 1


def test_a_refusal_outside_of_agents_is_raised(bench: Workbench) -> None:
    agent = govern(Agent("worker", config=script(), tools=bench.bodies.tools("remove")), bench._runtime)
    with pytest.raises(CallRefused, match=CLOSE):
        asyncio.run(agent.tools[0].model.call(ticket_id="T-1"))  # type: ignore[attr-defined]


def test_hole_middleware_of_a_tool_of_another_kind_comes_after_the_decision(bench: Workbench) -> None:
    def remove(ticket_id: str) -> str:
        got.append(ticket_id)
        return "gone"

    got: list[str] = []
    told = ask(bench, script([("remove", LOOKUP)]), [Other(remove, change)], actions={"remove": "ticket.list"})
    assert (told, got) == (["gone"], ["T-9"])


def test_hole_the_tool_itself_is_not_governed(bench: Workbench) -> None:
    remove = tool(bench.bodies.tools("remove")[0])
    govern(Agent("worker", config=script(), tools=[remove]), bench._runtime)
    asyncio.run(remove.model.call(ticket_id="T-1"))
    assert bench.bodies.runs("remove") == [LOOKUP]
    bench.bodies.ran.clear()


def test_the_classic_agents_are_not_in_this_version() -> None:
    assert importlib.util.find_spec("ag2.agentchat") is None
    assert importlib.util.find_spec("autogen") is None


def test_describe_tools() -> None:
    def look(ticket_id: str, amount: float = 1.0) -> str:
        """Look."""
        return ticket_id

    agent = Agent("worker", config=script(), tools=[look, Toolkit(tool(look, name="again"))])
    first, second = describe_tools(agent)
    assert (first[0], second[0], first[1]) == ("look", "again", "Look.")
    assert first[2] is not None
    assert set(first[2]["properties"]) == {"ticket_id", "amount"}
    assert describe_tools(look) == [first] == describe_tools([FunctionTool.ensure_tool(look)])
    with pytest.raises(TypeError, match="no AG2 tool"):
        describe_tools(7)


def test_an_old_framework_is_refused(monkeypatch: pytest.MonkeyPatch, bench: Workbench) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "1.1.0")
    with pytest.raises(RuntimeError, match="too old"):
        govern(Agent("worker", config=script()), bench._runtime)
