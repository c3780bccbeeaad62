"""Microsoft Agent Framework: what the contract does not ask, and the holes, each as it is."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("agent_framework", reason="the Agent Framework adapter needs the agent-framework extra")

from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatContext,
    ChatMiddleware,
    ChatResponse,
    Content,
    FunctionInvocationContext,
    MCPStdioTool,
    Message,
    WorkflowBuilder,
    tool,
)

from cra_adapters.agent_framework import CRAMiddleware, describe_tools, govern_tool
from cra_middleware import CallRefused
from cra_middleware.testing import Scripted
from cra_middleware.testing.workbench import Workbench
from tests.adapters.test_agent_framework import AgentFramework, Change, Client, Provider, Retry


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with Workbench(AgentFramework(), "async", tmp_path) as made:
        yield made


PAY = {"order_id": "O-1", "amount": 70.0}
LOOKUP = {"ticket_id": "T-1"}
REMOVE = {"ticket_id": "T-1"}


def agent(bench: Workbench, *turns: list[tuple[str, dict[str, Any]]], tools: Any = (), **given: Any) -> Agent[Any]:
    """An agent whose model makes these calls."""
    script = [[Scripted(name, args, f"c{number}") for number, (name, args) in enumerate(turn)] for turn in turns]
    gate = CRAMiddleware(given.pop("runtime", None) or bench.runtime())
    middleware = [*given.pop("middleware", []), gate]
    return Agent(client=Client(script), name="worker", tools=list(tools), middleware=middleware, **given)


def results(response: Any) -> list[str]:
    """What the model was told."""
    contents = [item for message in response.messages for item in message.contents]
    return [str(item.result) for item in contents if item.type == "function_result"]


def test_a_plain_function_is_governed_off_the_event_loop(bench: Workbench) -> None:
    threads = set()

    def lookup(ticket_id: str) -> str:
        threads.add(threading.get_ident())
        bench.bodies.note("lookup", ticket_id=ticket_id)
        return "open"

    asyncio.run(agent(bench, [("lookup", LOOKUP)], tools=[lookup]).run("hi"))
    assert threads
    assert threading.get_ident() not in threads


def test_tools_of_a_run_and_tools_added_on_the_way_are_governed(bench: Workbench) -> None:
    remove, lookup = bench.bodies.tools("remove", "lookup")

    def broken(ticket_id: str, ctx: FunctionInvocationContext) -> str:
        bench.bodies.note("broken", ticket_id=ticket_id)
        ctx.add_tools(remove)
        return "added"

    made = agent(bench, [("broken", LOOKUP)], [("remove", REMOVE)], tools=[broken])
    assert "Close it instead." in results(asyncio.run(made.run("hi")))[1]
    for given in ({"tools": [remove]}, {"options": {"tools": [remove]}}):
        told = results(asyncio.run(agent(bench, [("remove", REMOVE)], tools=[lookup]).run("hi", **given)))
        assert "Close it instead." in told[0]
    assert bench.bodies.runs("remove") == []


def test_a_tool_keeps_its_instance_and_its_limit_of_invocations(bench: Workbench) -> None:
    class Desk:
        name = "desk"

        @tool(max_invocations=1)
        def lookup(self, ticket_id: str) -> str:
            """Look a ticket up."""
            bench.bodies.note("lookup", ticket_id=ticket_id)
            return f"{self.name}: open"

    runtime, desk = bench.runtime(), Desk()
    one = desk.lookup
    first = asyncio.run(agent(bench, [("lookup", LOOKUP)], tools=[one], runtime=runtime).run("hi"))
    assert results(first) == ["desk: open"]
    asyncio.run(agent(bench, [("lookup", LOOKUP)], tools=[one], runtime=runtime).run("hi"))
    assert len(bench.bodies.runs("lookup")) == 1
    assert bench.evidence().of("action.failed", "ticket.get")[0]["error_code"] == "ToolException"
    bench.bodies.ran.append(bench.bodies.ran[0])  # the second was let run, and stopped by the tool itself


def test_tools_of_an_mcp_server_are_governed(bench: Workbench, tmp_path: Path) -> None:
    pytest.importorskip("mcp.server.mcpserver", reason="an MCP server of version 2")
    (tmp_path / "server.py").write_text(SERVER)
    server = MCPStdioTool("desk", command=sys.executable, args=[str(tmp_path / "server.py"), str(tmp_path / "ran")])
    made = agent(bench, [("remove", REMOVE), ("lookup", LOOKUP)], tools=[server])

    async def run() -> list[str]:
        async with made:
            return results(await made.run("hi"))

    told = asyncio.run(run())
    assert "Close it instead." in told[0]
    assert "T-1 is open" in told[1]
    assert not (tmp_path / "ran").exists()
    bench.bodies.note("lookup", **LOOKUP)


SERVER = """
import pathlib, sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("desk")

@server.tool()
def remove(ticket_id: str) -> str:
    pathlib.Path(sys.argv[1]).touch()
    return "gone"

@server.tool()
def lookup(ticket_id: str) -> str:
    return f"{ticket_id} is open"

server.run()
"""


def test_a_turn_that_another_middleware_answered_is_governed(bench: Workbench) -> None:
    """Its tools were not replaced before: the function middleware decides."""

    class Cache(ChatMiddleware):
        used = False

        async def process(self, context: ChatContext, call_next: Any) -> None:
            if self.used:
                return await call_next()
            self.used = True
            call = Content.from_function_call("c0", "remove", arguments=json.dumps(REMOVE))
            context.result = ChatResponse(messages=[Message("assistant", [call])])
            return None

    made = agent(bench, tools=bench.bodies.tools("remove"), middleware=[Cache()])
    assert "Close it instead." in results(asyncio.run(made.run("hi")))[0]
    assert bench.bodies.ran == []


def test_what_stood_beside_a_question_is_not_approved_by_it(bench: Workbench) -> None:
    """The framework approves the sibling of a question by itself; no person said yes to it."""
    (pay,), (lookup,) = bench.bodies.tools("pay"), bench.bodies.tools("lookup")
    asked = tool(lookup, approval_mode="always_require")
    made = agent(bench, [("lookup", LOOKUP), ("pay", PAY)], tools=[asked, pay])

    async def run() -> None:
        session = AgentSession()
        first = await made.run("hi", session=session)
        assert [item.function_call.name for item in first.user_input_requests] == ["lookup"]
        yes = first.user_input_requests[0].to_function_approval_response(True)
        second = await made.run([Message("user", [yes])], session=session)
        assert bench.bodies.ran == [("lookup", LOOKUP)]
        (request,) = second.user_input_requests
        assert request.function_call.name == "pay"
        await made.run([Message("user", [request.to_function_approval_response(True)])], session=session)

    asyncio.run(run())
    assert bench.bodies.ran == [("lookup", LOOKUP), ("pay", PAY)]


def test_an_agent_in_a_workflow_pauses_the_workflow(bench: Workbench) -> None:
    runtime = bench.runtime(approvals=True)
    tools = bench.bodies.tools("remove", "pay")
    made = agent(bench, [("remove", REMOVE)], [("pay", PAY)], tools=tools, runtime=runtime)

    async def run() -> None:
        workflow = WorkflowBuilder(start_executor=made).build()
        (request,) = (await workflow.run("hi")).get_request_info_events()
        assert bench.bodies.ran == []
        await workflow.run(responses={request.request_id: request.data.to_function_approval_response(True)})

    asyncio.run(run())
    assert bench.bodies.ran == [("pay", PAY)]
    assert len(bench.evidence().sessions) == 1


def test_a_made_up_answer_is_none(bench: Workbench) -> None:
    runtime = bench.runtime(approvals=True)
    made = agent(bench, [("pay", PAY)], tools=bench.bodies.tools("pay"), runtime=runtime)

    async def run() -> None:
        session = AgentSession()
        (request,) = (await made.run("hi", session=session)).user_input_requests
        request.function_call.arguments = json.dumps({**PAY, "amount": 99.0})
        await made.run([Message("user", [request.to_function_approval_response(True)])], session=AgentSession())
        assert bench.bodies.ran == []
        await made.run([Message("user", [request.to_function_approval_response(True)])], session=session)

    asyncio.run(run())
    assert bench.bodies.ran == [("pay", PAY)]


def test_arguments_changed_after_a_yes_are_asked_about_again(bench: Workbench) -> None:
    runtime, neighbours = bench.runtime(approvals=True), [Provider()]
    made = agent(bench, [("pay", PAY)], tools=bench.bodies.tools("pay"), runtime=runtime, context_providers=neighbours)

    async def run() -> None:
        session = AgentSession()
        (request,) = (await made.run("hi", session=session)).user_input_requests
        neighbours[0].several = (Change(),)
        await made.run([Message("user", [request.to_function_approval_response(True)])], session=session)

    asyncio.run(run())
    assert bench.bodies.ran == []
    bench.bodies.ran.append(("pay", PAY))  # it was let run with these, and stopped by the framework


def test_hole_a_provider_that_retries_after_an_approval_does_so_on_one_decision(bench: Workbench) -> None:
    flaky = tool(bench.bodies.tools("flaky")[0], approval_mode="always_require")
    bench.bodies.fails = 1
    made = agent(bench, [("flaky", LOOKUP)], tools=[flaky], context_providers=[Provider(Retry())])

    async def run() -> None:
        session = AgentSession()
        (request,) = (await made.run("hi", session=session)).user_input_requests
        await made.run([Message("user", [request.to_function_approval_response(True)])], session=session)

    asyncio.run(run())
    assert len(bench.bodies.ran) == 2
    assert len(bench.evidence().of("action.requested", "ticket.update")) == 1
    bench.bodies.ran.pop()


def test_without_a_session_nothing_pauses(bench: Workbench) -> None:
    response = asyncio.run(agent(bench, [("pay", PAY)], tools=bench.bodies.tools("pay")).run("hi"))
    assert "approval_required" in results(response)[0]


def test_an_agent_inside_a_tool_is_told_to_wait(bench: Workbench) -> None:
    runtime = bench.runtime()
    inner = agent(bench, [("pay", PAY)], tools=bench.bodies.tools("pay"), runtime=runtime)
    outer = agent(bench, [("helper", {"task": "pay"})], tools=[inner.as_tool(name="helper")], runtime=runtime)
    response = asyncio.run(outer.run("hi", session=AgentSession()))
    assert results(response) == ["done"]
    assert bench.evidence().of("action.denied", "refund.create") == []
    assert [item.pending.action_id for item in runtime.approvals.list()] == ["refund.create"]


def test_a_governed_tool_decides_outside_of_agents_too(bench: Workbench) -> None:
    runtime = bench.runtime()
    remove, lookup = (govern_tool(one, runtime) for one in bench.bodies.tools("remove", "lookup"))
    with pytest.raises(CallRefused, match="Close it instead"):
        asyncio.run(remove.invoke(arguments=REMOVE))
    assert asyncio.run(lookup.invoke(arguments=LOOKUP))[0].text == "ticket T-1 is open"
    with pytest.raises(TypeError, match="no function tool"):
        govern_tool({"type": "web_search"}, runtime)


def test_a_governed_tool_in_a_governed_agent_is_decided_once(bench: Workbench) -> None:
    runtime = bench.runtime()
    lookup = govern_tool(bench.bodies.tools("lookup")[0], runtime)
    asyncio.run(agent(bench, [("lookup", LOOKUP)], tools=[lookup], runtime=runtime).run("hi"))
    assert len(bench.evidence().of("action.requested")) == 1


def test_an_agent_that_does_not_run_its_tools_is_refused(bench: Workbench) -> None:
    class Elsewhere(BaseChatClient):  # type: ignore[misc]
        def _inner_get_response(self, **given: Any) -> Any:
            raise AssertionError

    with pytest.raises(RuntimeError, match="does not run its tools here"):
        asyncio.run(Agent(client=Elsewhere(), middleware=[CRAMiddleware(bench.runtime())]).run("hi"))


def test_a_tool_inside_another_is_a_call_of_its_own(bench: Workbench) -> None:
    runtime = bench.runtime()
    inner = govern_tool(bench.bodies.tools("lookup")[0], runtime)

    async def broken(ticket_id: str) -> str:
        bench.bodies.note("broken", ticket_id=ticket_id)
        return str((await inner.invoke(arguments={"ticket_id": ticket_id}))[0].text)

    asyncio.run(agent(bench, [("broken", LOOKUP)], tools=[broken], runtime=runtime).run("hi"))
    requested = bench.evidence().of("action.requested")
    assert [payload.get("tool_call_id") for payload in requested] == ["c0", None]


def test_a_type_error_of_the_tool_is_its_own(bench: Workbench) -> None:
    def broken(ticket_id: str) -> str:
        bench.bodies.note("broken", ticket_id=ticket_id)
        raise TypeError("no ticket")

    asyncio.run(agent(bench, [("broken", LOOKUP)], tools=[broken]).run("hi"))
    assert bench.evidence().denials("ticket.update") == []


@pytest.mark.parametrize("streams", [False, True])
def test_a_session_ends_with_its_run(bench: Workbench, streams: bool) -> None:
    made = agent(bench, [("lookup", LOOKUP)], tools=bench.bodies.tools("lookup"))

    async def run() -> None:
        if not streams:
            await made.run("hi")
            return
        async for _ in made.run("hi", stream=True):
            pass

    asyncio.run(run())
    ((*_, last),) = bench.evidence().sessions.values()
    assert last.event_type == "session.ended"


def test_a_no_closes_the_question(bench: Workbench) -> None:
    runtime = bench.runtime(approvals=True)
    made = agent(bench, [("pay", PAY)], tools=bench.bodies.tools("pay"), runtime=runtime)

    async def run() -> None:
        session = AgentSession()
        (request,) = (await made.run("hi", session=session)).user_input_requests
        await made.run([Message("user", [request.to_function_approval_response(False)])], session=session)

    asyncio.run(run())
    assert runtime.approvals.list("pending") == []
    assert len(runtime.approvals.list("rejected")) == 1


def test_hole_the_tool_itself_is_not_governed(bench: Workbench) -> None:
    one = tool(bench.bodies.tools("remove")[0])
    agent(bench, tools=[one])
    asyncio.run(one.invoke(arguments=REMOVE))
    assert bench.bodies.runs("remove") == [REMOVE]
    bench.bodies.ran.clear()


def test_describe_tools() -> None:
    def look(ticket_id: str, amount: float = 1.0) -> str:
        """Look."""
        return ticket_id

    ((name, description, schema),) = describe_tools(Agent(client=Client([]), tools=[look]))
    assert (name, description) == ("look", "Look.")
    assert schema is not None
    assert set(schema["properties"]) == {"ticket_id", "amount"}
    assert describe_tools(look) == describe_tools([tool(look)])
    with pytest.raises(TypeError, match="holds no function tool"):
        describe_tools(7)


def test_an_old_framework_is_refused(monkeypatch: pytest.MonkeyPatch, bench: Workbench) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "1.19.0")
    with pytest.raises(RuntimeError, match="too old"):
        CRAMiddleware(bench.runtime())
