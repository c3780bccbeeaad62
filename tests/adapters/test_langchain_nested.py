"""Tools that call tools, and agents inside tools: what is seen, what is stopped, and whose session it is."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("langchain", reason="the LangChain adapter needs the langchain extra")

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from cra_adapters.langchain import CRAMiddleware, govern_tools
from cra_middleware import Atlas, Runtime, governed
from cra_middleware.testing.evidence_of_runs import Evidence
from tests.adapters.test_langchain import ATLAS, RAN, broken, lookup, model, pay, remove, run, tool_messages

MODES = pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
OUTER = ("outer", {"ticket_id": "T"})
LOOKUP = ("lookup", {"ticket_id": "T"})
REMOVE = ("remove", {"ticket_id": "T"})


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path, approvals=tmp_path / "approvals.db") as made:
        yield made


def calling(inner: Any, given: Any) -> BaseTool:
    """A tool named ``outer`` that invokes something: a tool, or an agent."""

    def outer(ticket_id: str) -> str:
        """Calls another."""
        return said(inner.invoke(given))

    async def aouter(ticket_id: str) -> str:
        """Calls another."""
        return said(await inner.ainvoke(given))

    def said(result: Any) -> str:
        return str(result["messages"][-1].content if isinstance(result, dict) else result)

    return StructuredTool.from_function(outer, aouter)


HI = {"messages": [("user", "hi")]}


def sessions(folder: Path) -> dict[str, tuple[str, Any, list[str]]]:
    """By agent: the session's id, whose child it is, and the actions asked for in it."""
    found = {}
    for session_id, events in Evidence(folder).sessions.items():
        started = events[0].payload
        asked = [str(event.payload["action_id"]) for event in events if event.event_type == "action.requested"]
        metadata: Any = started["metadata"]
        found[str(started["agent_id"])] = (session_id, metadata.get("parent_session_id"), asked)
    return found


@MODES
def test_a_tool_that_calls_a_governed_tool(runtime: Runtime, tmp_path: Path, mode: str) -> None:
    """The inner call is decided on its own; a denial comes to the outer tool as the exception."""
    (gone,) = govern_tools([remove], runtime)
    agent = create_agent(model([OUTER]), [calling(gone, {"ticket_id": "T"})], middleware=[CRAMiddleware(runtime)])
    (message,) = tool_messages(run(agent, mode))
    assert (message.status, RAN) == ("error", [])
    assert "Close it instead" in message.content
    assert [row[2] for row in sessions(tmp_path).values()] == [["ticket.list", "ticket.delete"]]


@MODES
def test_a_tool_that_calls_one_that_nothing_governs(runtime: Runtime, tmp_path: Path, mode: str) -> None:
    """A hole: code that calls an ungoverned tool, by ``invoke`` or its function, is the outer tool's own doing."""
    agent = create_agent(model([OUTER]), [calling(remove, {"ticket_id": "T"})], middleware=[CRAMiddleware(runtime)])
    run(agent, mode)
    assert RAN == [("remove", "T")]
    assert [row[2] for row in sessions(tmp_path).values()] == [["ticket.list"]]


def test_a_tool_that_calls_a_governed_function(runtime: Runtime) -> None:
    """``@governed`` on what does the work closes that hole, whoever calls it."""

    @governed("ticket.delete")
    def work(ticket_id: str) -> str:
        RAN.append(("work", ticket_id))
        return "gone"

    outer = StructuredTool.from_function(lambda ticket_id: work(ticket_id), name="outer", description="works")
    agent = create_agent(model([OUTER]), [outer], middleware=[CRAMiddleware(runtime)])
    (message,) = tool_messages(run(agent, "invoke"))
    assert (message.status, RAN) == ("error", [])


class Quiet(AgentMiddleware[Any, Any, Any]):
    """A neighbour in the subagent that makes a message of whatever fails."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        try:
            return handler(request)
        except Exception as error:
            return _message(request, error)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        try:
            return await handler(request)
        except Exception as error:
            return _message(request, error)


def _message(request: Any, error: Exception) -> ToolMessage:
    return ToolMessage(str(error), tool_call_id=request.tool_call["id"], status="error")


@MODES
@pytest.mark.parametrize("gate", ["middleware", "tools"])
@pytest.mark.parametrize("quiet", [False, True])
def test_an_agent_that_nothing_governs_runs_no_tool(
    runtime: Runtime, tmp_path: Path, mode: str, gate: str, quiet: bool
) -> None:
    """A subagent without a gate cannot do what its caller was denied: its tools do not run, and that is noted."""
    inner = create_agent(model([REMOVE, LOOKUP]), [remove, lookup], middleware=[Quiet()] if quiet else [])
    agent = outer_agent(runtime, calling(inner, HI), gate)
    state = run(agent, mode)
    assert RAN == []
    assert "nothing governs that agent" in tool_messages(state)[0].content or quiet
    noted = [payload["error_code"] for payload in Evidence(tmp_path).of("error.occurred")]
    assert set(noted) == {"ungoverned_tool"}


def outer_agent(runtime: Runtime, tool: BaseTool, gate: str, subagents: Literal["governed", "any"] = "governed") -> Any:
    if gate == "middleware":
        return create_agent(model([OUTER]), [tool], middleware=[CRAMiddleware(runtime, subagents=subagents)])
    return create_agent(model([OUTER]), govern_tools([tool], runtime, subagents=subagents))


class Listener(BaseCallbackHandler):
    """What a program may pass to an agent that it invokes."""


@MODES
def test_callbacks_of_its_own_do_not_help_it(runtime: Runtime, mode: str) -> None:
    """An agent that is invoked with callbacks of its own is watched all the same."""
    inner = create_agent(model([REMOVE]), [remove]).with_config(callbacks=[Listener()])
    run(outer_agent(runtime, calling(inner, HI), "middleware"), mode)
    assert RAN == []


@MODES
def test_an_agent_in_a_thread_of_its_own(runtime: Runtime, tmp_path: Path, mode: str) -> None:
    """A hole: nothing of the outer tool's context is there. With the gate it is governed, in a session of its own."""

    def outer(ticket_id: str) -> str:
        """Starts a thread."""
        for gates in ([], [CRAMiddleware(runtime)]):
            inner = create_agent(model([REMOVE]), [remove], middleware=gates, name="helper")
            thread = threading.Thread(target=inner.invoke, args=(HI,))
            thread.start()
            thread.join()
        return "ok"

    run(outer_agent(runtime, StructuredTool.from_function(outer), "middleware"), mode)
    assert RAN == [("remove", "T")]
    assert sessions(tmp_path)["helper"][1:] == (None, ["ticket.delete"])


@MODES
@pytest.mark.parametrize("gate", ["middleware", "tools"])
def test_subagents_can_be_let(runtime: Runtime, mode: str, gate: str) -> None:
    """``subagents="any"`` takes what runs in a tool as the tool's own doing."""
    inner = create_agent(model([REMOVE]), [remove])
    run(outer_agent(runtime, calling(inner, HI), gate, "any"), mode)
    assert RAN == [("remove", "T")]


@MODES
@pytest.mark.parametrize("gate", ["middleware", "tools"])
def test_a_governed_agent_in_a_tool(runtime: Runtime, tmp_path: Path, mode: str, gate: str) -> None:
    """It works in a session of its own below, three agents deep, each denied what policies deny."""
    last = create_agent(model([REMOVE, LOOKUP]), [remove, lookup], name="last", middleware=[CRAMiddleware(runtime)])
    middle = create_agent(model([OUTER, REMOVE]), govern_tools([calling(last, HI), remove], runtime), name="middle")
    first = create_agent(model([OUTER]), [calling(middle, HI)], name="first", middleware=[CRAMiddleware(runtime)])
    run(first, mode)
    assert RAN == [("lookup", "T")]
    found = sessions(tmp_path)
    assert {name: parent for name, (_, parent, _) in found.items()} == {
        "first": None,
        "middle": found["first"][0],
        "last": found["middle"][0],
    }
    assert sorted(found["last"][2]) == ["ticket.delete", "ticket.get"]


@MODES
def test_agents_without_names_share_the_session(runtime: Runtime, tmp_path: Path, mode: str) -> None:
    """And the inner one's end is not the outer one's: its next call is still governed in it."""
    gate = CRAMiddleware(runtime)
    inner = create_agent(model([REMOVE]), [remove], middleware=[gate])
    agent = create_agent(model([OUTER], [LOOKUP]), [calling(inner, HI), lookup], middleware=[gate])
    run(agent, mode)
    assert RAN == [("lookup", "T")]
    (row,) = sessions(tmp_path).values()
    assert row[2] == ["ticket.list", "ticket.delete", "ticket.get"]
    assert [event.event_type for event in Evidence(tmp_path).events][-1] == "session.ended"


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("again", [False, True])
def test_a_nested_agent_that_waits_for_a_person(tmp_path: Path, mode: str, again: bool) -> None:
    """The whole run stops, and goes on in both sessions, in another process, too; the inner call runs once."""
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "t"}}
    inner_model, outer_model = model([("pay", {"order_id": "A", "amount": 60})]), model([OUTER])

    def made() -> tuple[Runtime, Any]:
        runtime = Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "t", approvals=tmp_path / "approvals.db")
        inner = create_agent(inner_model, [pay], name="helper", middleware=[CRAMiddleware(runtime)])
        gate = CRAMiddleware(runtime)
        return runtime, create_agent(
            outer_model, [calling(inner, HI)], name="worker", middleware=[gate], checkpointer=saver
        )

    runtime, agent = made()
    state = run(agent, mode, config)
    assert state["__interrupt__"][0].value["agent_id"] == "helper"
    assert RAN == []
    if again:
        runtime.close()
        runtime, agent = made()
    run(agent, mode, config, Command(resume=True))
    runtime.close()
    assert RAN == [("pay", "A", 60.0)]


@MODES
def test_agents_of_one_graph(runtime: Runtime, tmp_path: Path, mode: str) -> None:
    """Agents that are nodes of one graph, one after the other: in a thread, the second works below the first."""
    gate = CRAMiddleware(runtime)
    graph = StateGraph(MessagesState)
    graph.add_node("front", create_agent(model([LOOKUP]), [lookup], name="front", middleware=[gate]))
    graph.add_node("back", create_agent(model([REMOVE]), [remove], name="back", middleware=[gate]))
    graph.add_edge(START, "front")
    graph.add_edge("front", "back")
    graph.add_edge("back", END)
    run(graph.compile(), mode, {"configurable": {"thread_id": "t"}})
    assert RAN == [("lookup", "T")]
    found = sessions(tmp_path)
    assert found["back"][1] == found["front"][0]
    assert (found["front"][2], found["back"][2]) == (["ticket.get"], ["ticket.delete"])


def test_a_wrapper_of_a_tool_node_that_is_only_async(runtime: Runtime) -> None:
    """LangGraph passes one by under ``invoke``; governed tools decide all the same."""

    async def wrapper(request: Any, handler: Any) -> Any:
        raise AssertionError("not reached under invoke")

    node = ToolNode(govern_tools([remove], runtime), awrap_tool_call=wrapper)
    graph = StateGraph(MessagesState)
    graph.add_node("tools", node)
    graph.add_edge(START, "tools")
    call = AIMessage("", tool_calls=[{"name": "remove", "args": {"ticket_id": "T"}, "id": "c1"}])
    (message,) = tool_messages(graph.compile().invoke({"messages": [call]}))
    assert (message.status, RAN) == ("error", [])


def test_parallel_subagents(runtime: Runtime, tmp_path: Path) -> None:
    """Several at once, of one name: one session below, nothing is lost or mixed up."""
    inner = create_agent(model(*([[LOOKUP]] * 3)), [lookup], name="helper", middleware=[CRAMiddleware(runtime)])
    agent = create_agent(
        model([OUTER, OUTER, OUTER]), [calling(inner, HI), broken], name="worker", middleware=[CRAMiddleware(runtime)]
    )
    asyncio.run(agent.ainvoke(HI))
    found = sessions(tmp_path)
    assert len(RAN) == len(found["helper"][2])
    assert found["helper"][1] == found["worker"][0]
    assert json.dumps(found["worker"][2]) == '["ticket.list", "ticket.list", "ticket.list"]'
