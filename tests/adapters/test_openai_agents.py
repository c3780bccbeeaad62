"""The OpenAI Agents SDK, for real: a scripted model drives ``Runner.run_sync``, ``run`` and ``run_streamed``."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("agents.testing", reason="the OpenAI Agents adapter needs the openai-agents extra")

import mcp_types
from agents import (
    Agent,
    ApplyPatchTool,
    ComputerTool,
    CustomTool,
    FunctionTool,
    LocalShellTool,
    ModelBehaviorError,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    RunState,
    ShellTool,
    WebSearchTool,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from agents.mcp import MCPServer
from agents.testing import ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseApplyPatchToolCall, ResponseCustomToolCall, ResponseFunctionShellToolCall
from openai.types.responses.response_output_item import LocalShellCall
from pydantic import BaseModel

from cra_adapters.openai_agents import answer, describe_tools, install
from cra_middleware import Atlas, Runtime
from cra_middleware._canonical import canonical, digest
from cra_middleware.testing import ContractCase, Mode, Outcome, Task, adapter_contract
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.workbench import ATLAS
from tests.adapters.contract import Bench, check

set_tracing_disabled(True)


def model(task: Task, then: str = "done") -> ScriptedModel:
    """A model that follows a task's turns."""
    turns = [
        [function_call(call.tool, json.dumps(call.arguments), call_id=call.call_id) for call in turn]
        for turn in task.turns
    ]
    return ScriptedModel([*turns, *[[assistant_message(then)]] * 3])


def as_tool(fn: Any) -> Any:
    return function_tool(
        fn, strict_mode=False, failure_error_function=lambda ctx, error: f"{type(error).__name__}: {error}"
    )


class Change(RunHooks[Any]):
    """A neighbour that changes arguments as late as it can."""

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        given = json.loads(context.tool_call.arguments)
        changed = {key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in given}
        context.tool_call.arguments = json.dumps({**given, **changed})


class OpenAIAgents:
    framework = "openai_agents"
    modes: tuple[Mode, ...] = ("sync", "async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "pause", "change", "nested", "handoff", "hide", "context"})
    holes: ClassVar[dict[str, str]] = {}

    def agent(self, task: Task) -> Agent[Any]:
        tools = [as_tool(fn) for fn in task.tools]
        handoffs: list[Any] = []
        if task.nested is not None:
            inner = self.agent(task.nested)
            if any(call.tool == "delegate" for turn in task.turns for call in turn):

                async def delegate(request: str) -> str:
                    """Ask the helper."""
                    return str((await Runner.run(inner, request)).final_output)

                tools.append(as_tool(delegate))
            else:
                handoffs.append(inner)
                first = [function_call("transfer_to_helper", {}, call_id="handoff_1")]
                calls = [
                    function_call(call.tool, json.dumps(call.arguments), call_id=call.call_id) for call in task.turns[0]
                ]
                return Agent(
                    name=task.agent,
                    instructions="Be brief.",
                    tools=tools,
                    handoffs=handoffs,
                    model=ScriptedModel([calls, first, [assistant_message("done")]]),
                )
        return Agent(name=task.agent, instructions="Be brief.", tools=tools, handoffs=handoffs, model=model(task))

    def run(self, task: Task, given: Any = "hi", agent: Any = None) -> Outcome:
        agent = agent or self.agent(task)
        hooks = Change() if task.neighbour == "change" else None
        with install(task.runtime, hide_denied=task.adds_context, inject_context=task.adds_context, pauses=task.pauses):
            try:
                if task.mode == "sync":
                    result: Any = Runner.run_sync(agent, given, hooks=hooks)
                elif task.mode == "async":
                    result = asyncio.run(Runner.run(agent, given, hooks=hooks))
                else:
                    result = asyncio.run(self.streamed(agent, given, hooks))
            except Exception as error:
                return Outcome(error=error)
        call = agent.model.calls[0] if agent.model.calls else None
        return Outcome(
            [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"],
            str(result.final_output),
            None,
            [tool.name for tool in call.tools] if call else (),
            (call.system_instructions or "") if call else "",
            result.to_state().to_json() if result.interruptions else None,
        )

    async def streamed(self, agent: Agent[Any], given: Any, hooks: Any) -> Any:
        result = Runner.run_streamed(agent, given, hooks=hooks)
        async for _ in result.stream_events():
            pass
        return result

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        agent = self.agent(replace(task, turns=[]))
        state: Any = asyncio.run(RunState.from_json(agent, json.loads(json.dumps(paused))))
        for interruption in state.get_interruptions():
            if approved is True:
                state.approve(interruption)
            elif approved is False:
                state.reject(interruption)
        if approved is None:
            answer(state, task.runtime)
        return self.run(task, state, agent)


@pytest.mark.parametrize("case", adapter_contract(OpenAIAgents()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


RAN: list[Any] = []


class Server(MCPServer):
    """An MCP server in this process, whose tools appear when they are asked for."""

    name = "desk"

    async def connect(self) -> None: ...
    async def cleanup(self) -> None: ...
    async def list_prompts(self) -> Any: ...
    async def get_prompt(self, name: str, arguments: Any = None) -> Any: ...

    async def list_tools(self, run_context: Any = None, agent: Any = None) -> Any:
        properties = {"order_id": {"type": "string"}, "amount": {"type": "number", "default": 500}}
        schema = {"type": "object", "properties": properties, "required": ["order_id"]}
        tool: Any = mcp_types.Tool
        return [tool(name=name, description=name, input_schema=schema) for name in ("pay", "remove")]

    async def call_tool(self, tool_name: str, arguments: Any, meta: Any = None) -> Any:
        RAN.append((tool_name, arguments))
        if arguments.get("order_id") == "broken":
            raise TimeoutError("the server is slow")
        return mcp_types.CallToolResult(content=[mcp_types.TextContent(type="text", text="did it")])


@function_tool
def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    RAN.append(("remove", ticket_id))
    return "gone"


@function_tool
def lookup(ticket_id: str) -> str:
    """Look a ticket up."""
    RAN.append(("lookup", ticket_id))
    return "open"


REMOVE = function_call("remove", {"ticket_id": "T-1"}, call_id="call_1")
LOOKUP = function_call("lookup", {"ticket_id": "T-1"}, call_id="call_2")


def scripted(*turns: Any) -> ScriptedModel:
    return ScriptedModel([*[list(turn) for turn in turns], *[[assistant_message("done")]] * 3])


def atlas(**parts: Any) -> Atlas:
    return Atlas.from_dict({**ATLAS, **parts})


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    RAN.clear()
    with Runtime(atlas(), trace=tmp_path / "traces", approvals=tmp_path / "approvals.db") as made:
        yield made


def told(result: Any) -> list[str]:
    return [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"]


async def go(agent: Any, given: Any = "hi", **kwargs: Any) -> Any:
    return await Runner.run(agent, given, **kwargs)


def run(agent: Any, given: Any = "hi", **kwargs: Any) -> Any:
    return asyncio.run(go(agent, given, **kwargs))


def decided(runtime: Runtime, folder: Path) -> list[tuple[str, str]]:
    """Each call's action and how it ended."""
    runtime.close()
    finals = ("action.executed", "action.failed", "action.denied")
    return [
        (str(event.payload["action_id"]), event.event_type)
        for event in Evidence(folder / "traces").events
        if event.event_type in finals
    ]


def test_mcp_tools(runtime: Runtime, tmp_path: Path) -> None:
    """What an MCP server offers is decided, with the defaults that its schema names, and a failure is one."""
    calls = [
        function_call("remove", {"order_id": "O-1"}, call_id="c1"),
        function_call("pay", {"order_id": "O-1"}, call_id="c2"),
        function_call("pay", {"order_id": "O-2", "amount": 20}, call_id="c3"),
        function_call("pay", {"order_id": "broken", "amount": 20}, call_id="c4"),
        function_call("pay", "no json", call_id="c5"),
    ]
    agent = Agent(name="worker", model=scripted(calls), mcp_servers=[Server()])
    with install(runtime, hide_denied=False):
        result = run(agent)
    assert RAN == [("pay", {"order_id": "O-2", "amount": 20}), ("pay", {"order_id": "broken", "amount": 20})]
    first, second, third, *_ = told(result)
    assert "Close it instead." in first
    assert "Too much money." in second
    assert "did it" in third
    assert sorted(decided(runtime, tmp_path)) == [
        ("refund.create", "action.denied"),
        ("refund.create", "action.denied"),
        ("refund.create", "action.executed"),
        ("refund.create", "action.failed"),
        ("ticket.delete", "action.denied"),
    ]


def test_hidden_mcp_tools(runtime: Runtime) -> None:
    """A tool of a server that no call may use is not shown; a call of it all the same is recorded as refused."""
    agent = Agent(name="worker", model=scripted([function_call("remove", {"order_id": "1"}, call_id="c1")]))
    agent.mcp_servers = [Server()]
    with install(runtime), pytest.raises(ModelBehaviorError):
        run(agent)
    assert [tool.name for tool in agent.model.calls[0].tools] == ["pay"]  # type: ignore[union-attr]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_class_with_its_own_tools(runtime: Runtime, tmp_path: Path, late: bool) -> None:
    """A kind of agent that says itself what its tools are is governed, whether it was made before or after."""

    def make() -> type[Agent[Any]]:
        @dataclass
        class Mine(Agent[Any]):
            async def get_all_tools(self, run_context: Any) -> Any:
                return [*await super().get_all_tools(run_context), remove]

        return Mine

    early = None if late else make()
    with install(runtime, hide_denied=False):
        kind = early or make()
        result = run(kind(name="worker", model=scripted([REMOVE, LOOKUP]), tools=[lookup]))
    assert RAN == [("lookup", "T-1")]
    assert "Close it instead." in told(result)[0]
    assert sorted(decided(runtime, tmp_path)) == [("ticket.delete", "action.denied"), ("ticket.get", "action.executed")]


def test_an_agent_with_its_own_tools(runtime: Runtime) -> None:
    """An agent whose ``get_all_tools`` was set on itself does not run at all."""
    agent = Agent(name="worker", model=scripted([REMOVE]))

    async def own(run_context: Any) -> Any:
        return [remove]

    agent.get_all_tools = own  # type: ignore[method-assign]
    with install(runtime), pytest.raises(RuntimeError, match="own get_all_tools"):
        run(agent)
    assert RAN == []


def test_handed_over_to_an_agent_with_its_own_tools(runtime: Runtime) -> None:
    """The same after a handoff."""
    helper = Agent(name="helper", model=scripted([REMOVE]))

    async def own(run_context: Any) -> Any:
        return [remove]

    helper.get_all_tools = own  # type: ignore[method-assign]
    first = [function_call("transfer_to_helper", {}, call_id="h")]
    with install(runtime), pytest.raises(RuntimeError, match="own get_all_tools"):
        run(Agent(name="worker", model=scripted(first), handoffs=[helper]))
    assert RAN == []


def test_a_circle_of_agents(runtime: Runtime, tmp_path: Path) -> None:
    """Agents that hand over to each other, clones of them, and agents as tools are all governed."""
    one: Agent[Any] = Agent(name="one", tools=[remove])
    two: Agent[Any] = Agent(name="two", tools=[remove], handoffs=[one])
    one.handoffs = [two]
    three = two.clone(name="three", model=scripted([REMOVE]))
    tool = three.as_tool("helper", "Ask the helper")
    one.tools = [remove, tool]
    one.model = scripted([function_call("transfer_to_two", {}, call_id="h1")], [REMOVE])
    two.model = scripted([REMOVE], [function_call("transfer_to_one", {}, call_id="h2")])
    with install(runtime, hide_denied=False):
        run(one)
        one.model = scripted([function_call("helper", {"input": "go"}, call_id="t")])
        run(one)
    assert RAN == []
    runtime.close()
    begun = Evidence(tmp_path / "traces").of("session.started")
    assert [payload["agent_id"] for payload in begun] == ["one", "two", "one", "three"]
    assert ["parent_session_id" in payload["metadata"] for payload in begun] == [False, True, False, True]


def test_tools_made_by_hand(runtime: Runtime, tmp_path: Path) -> None:
    """A ``FunctionTool`` without a function, subclassed or not, is decided before it is invoked."""

    async def invoke(ctx: Any, text: str) -> str:
        RAN.append(text)
        return "did it"

    @dataclass
    class Mine(FunctionTool):
        pass

    made = [
        kind(name=name, description="", params_json_schema={}, strict_json_schema=False, on_invoke_tool=invoke)
        for kind, name in ((FunctionTool, "remove"), (Mine, "lookup"))
    ]
    with install(runtime, hide_denied=False):
        result = run(Agent(name="worker", model=scripted([REMOVE, LOOKUP]), tools=[*made]))
    assert RAN == ['{"ticket_id":"T-1"}']
    assert "Close it instead." in told(result)[0]
    assert sorted(decided(runtime, tmp_path)) == [("ticket.delete", "action.denied"), ("ticket.get", "action.executed")]


def test_a_replaced_invoker(runtime: Runtime) -> None:
    """A tool whose ``on_invoke_tool`` was replaced is decided before that."""
    tool = copy.copy(remove)
    inner = tool.on_invoke_tool

    async def invoke(ctx: Any, text: str) -> Any:
        return await inner(ctx, text)

    tool.on_invoke_tool = invoke
    with install(runtime, hide_denied=False):
        run(Agent(name="worker", model=scripted([REMOVE]), tools=[tool]))
    assert RAN == []


@pytest.mark.parametrize("behaviour", ["stop_on_first_tool", {"stop_at_tool_names": ["remove"]}])
def test_a_run_that_ends_with_a_tool(runtime: Runtime, behaviour: Any) -> None:
    """Where a tool's result is the last word, the refusal is."""
    agent = Agent(name="worker", model=scripted([REMOVE]), tools=[remove], tool_use_behavior=behaviour)
    with install(runtime, hide_denied=False):
        result = run(agent)
    assert (RAN, "Close it instead." in str(result.final_output)) == ([], True)


def test_tools_enabled_late(runtime: Runtime) -> None:
    """A tool that ``is_enabled`` lets in, and one added to an agent's list after the installation, are governed."""
    late = copy.copy(remove)
    late.is_enabled = lambda ctx, agent: True
    agent = Agent(name="worker", model=scripted([REMOVE]), tools=[late])
    with install(runtime, hide_denied=False):
        run(agent)
        other: Agent[Any] = Agent(name="other", model=scripted([REMOVE]))
        other.tools.append(remove)
        run(other)
    assert RAN == []


def test_an_agent_run_by_a_tool(runtime: Runtime) -> None:
    """An agent that nobody named, run by a tool's own code, is governed below the one that called."""

    @function_tool
    async def lookup(ticket_id: str) -> str:
        """Look a ticket up."""
        return str((await go(Agent(name="hidden", model=scripted([REMOVE]), tools=[remove]))).final_output)

    with install(runtime, hide_denied=False):
        result = run(Agent(name="worker", model=scripted([LOOKUP]), tools=[lookup]))
    assert (RAN, told(result)) == ([], ["done"])


LOCAL_CALLS = {
    "shell": ResponseFunctionShellToolCall(
        id="i1", call_id="c1", type="shell_call", status="completed", action={"commands": ["rm -r /"]}
    ),
    "local_shell": LocalShellCall(
        id="i2",
        call_id="c2",
        type="local_shell_call",
        status="completed",
        action={"type": "exec", "command": ["rm"], "env": {}},
    ),
    "apply_patch": ResponseApplyPatchToolCall(
        id="i3",
        call_id="c3",
        type="apply_patch_call",
        status="completed",
        operation={"type": "delete_file", "path": "a.py"},
    ),
    "sql": ResponseCustomToolCall(call_id="c4", type="custom_tool_call", name="sql", input="drop table a"),
}


class Editor:
    def delete_file(self, operation: Any) -> str:
        RAN.append(operation.path)
        return "deleted"

    create_file = update_file = delete_file


def local_tools() -> dict[str, Any]:
    def execute(request: Any) -> str:
        RAN.append(request.data.action)
        return "done so"

    async def invoke(ctx: Any, text: str) -> str:
        RAN.append(text)
        return "done so"

    return {
        "shell": ShellTool(executor=execute),
        "local_shell": LocalShellTool(executor=execute),
        "apply_patch": ApplyPatchTool(editor=Editor()),
        "sql": CustomTool(name="sql", description="SQL", on_invoke_tool=invoke),
    }


@pytest.mark.parametrize("name", LOCAL_CALLS)
@pytest.mark.parametrize("action", ["ticket.delete", "ticket.get"])
def test_local_tools(name: str, action: str, tmp_path: Path) -> None:
    """Shells, patches and custom tools, which run here, are decided like functions."""
    RAN.clear()
    made = atlas(adapters={"any": {"tools": {name: action}}})
    with Runtime(made, trace=tmp_path / "traces") as runtime:
        agent = Agent(name="worker", model=scripted([LOCAL_CALLS[name]]), tools=[local_tools()[name]])
        with install(runtime, hide_denied=False):
            result = run(agent)
        assert len(RAN) == (action == "ticket.get")
        assert ("Close it instead." in told(result)[0]) == (action == "ticket.delete")
        ended = "action.denied" if action == "ticket.delete" else "action.executed"
        assert decided(runtime, tmp_path) == [(action, ended)]


def test_what_cannot_be_governed_is_taken_away(runtime: Runtime) -> None:
    """A computer is not given to an agent; what runs at the provider's is, and is none of ours."""

    class Screen:
        pass

    agent = Agent(name="worker", model=scripted(), tools=[ComputerTool(computer=Screen()), WebSearchTool()])  # type: ignore[arg-type]
    with install(runtime, hide_denied=False):
        run(agent)
    assert [type(tool) for tool in agent.model.calls[0].tools] == [WebSearchTool]  # type: ignore[union-attr]


class Order(BaseModel):
    order_id: str
    amount: float = 500.0


class Shop:
    """Looks orders up."""

    def __call__(self, order: Order) -> str:
        """Pay."""
        RAN.append(order)
        return "paid"


@function_tool(name_override="pay", strict_mode=False)
def pay_with_context(ctx: RunContextWrapper[Any], order_id: str, *, amount: float = 500.0, **more: int) -> str:
    """Pay."""
    assert ctx.context == "mine"
    RAN.append((order_id, amount, more))
    return "paid"


def test_functions_of_any_make(runtime: Runtime, tmp_path: Path) -> None:
    """Context parameters are no arguments, ``**`` is flattened, models and callable objects are seen through."""
    nested = {
        "policies": [
            {"policy_id": "allow-all", "type": "allow"},
            {
                "policy_id": "big",
                "type": "deny",
                "actions": ["ticket.update"],
                "conditions": {
                    "parameters": {
                        "type": "object",
                        "required": ["order"],
                        "properties": {
                            "order": {"type": "object", "properties": {"amount": {"exclusiveMinimum": 100}}}
                        },
                    }
                },
            },
        ]
    }
    pay = function_call("pay", {"order_id": "O", "amount": "20", "more": {"extra": 1}}, call_id="c1")
    with install(runtime, hide_denied=False):
        run(Agent(name="worker", model=scripted([pay]), tools=[pay_with_context]), context="mine")
    assert RAN == [("O", 20.0, {"extra": 1})]
    runtime.close()
    (requested,) = Evidence(tmp_path / "traces").of("action.requested")
    assert requested["parameters_hash"] == digest(canonical({"order_id": "O", "amount": 20.0, "extra": 1}))
    RAN.clear()
    with Runtime(atlas(**nested, adapters={"any": {"tools": {"shop": "ticket.update"}}})) as other:
        shop = function_tool(Shop(), name_override="shop")
        calls = [function_call("shop", {"order": {"order_id": "O", "amount": n}}, call_id=f"c{n}") for n in (20, 500)]
        with install(other, hide_denied=False):
            run(Agent(name="worker", model=scripted(calls), tools=[shop]))
    assert RAN == [Order(order_id="O", amount=20)]


def test_a_result_with_a_schema(runtime: Runtime) -> None:
    """Where a result must fit a schema, no sentence would: the model is told what the SDK says of failed tools."""

    @function_tool(name_override="remove", output_type=Order)
    def remove_order(ticket_id: str) -> Order:
        """Remove."""
        RAN.append(ticket_id)
        return Order(order_id=ticket_id)

    with install(runtime, hide_denied=False):
        result = run(Agent(name="worker", model=scripted([REMOVE]), tools=[remove_order]))
    assert (RAN, told(result)) == ([], ["An error occurred while running the tool. Please try again."])


@pytest.mark.parametrize("pauses", [False, True])
def test_an_approval_policy_of_the_users_own(runtime: Runtime, pauses: bool) -> None:
    """It is asked as before: also where the SDK asks a person because a default would be filled in unseen."""
    asked: list[Any] = []

    async def policy(ctx: Any, given: Any, call_id: str) -> bool:
        asked.append(given)
        return given["order_id"] == "O-9"

    @function_tool(strict_mode=False, needs_approval=policy)
    def pay(order_id: str, amount: float = 20.0) -> str:
        """Pay."""
        RAN.append(order_id)
        return "paid"

    calls = [
        {"order_id": "O-1"},
        {"order_id": "O-2", "amount": 20.0},
        {"order_id": "O-9", "amount": 20.0},
    ]
    script = [function_call("pay", given, call_id=f"c{number}") for number, given in enumerate(calls)]
    with install(runtime, pauses=pauses):
        result = run(Agent(name="worker", model=scripted(script), tools=[pay]))
    assert RAN == ["O-2"]
    assert sorted(item.call_id for item in result.interruptions) == ["c0", "c2"]
    assert {given["order_id"] for given in asked} == {"O-2", "O-9"}


def test_a_state_from_before(runtime: Runtime) -> None:
    """A run that was interrupted before the installation is decided when it goes on."""

    @function_tool(name_override="remove", needs_approval=True)
    def guarded(ticket_id: str) -> str:
        """Delete."""
        RAN.append(ticket_id)
        return "gone"

    agent = Agent(name="worker", model=scripted([REMOVE]), tools=[guarded])
    state = run(agent).to_state()
    state.approve(state.get_interruptions()[0])
    with install(runtime, hide_denied=False):
        result = run(agent, state)
    assert (RAN, "Close it instead." in told(result)[-1]) == ([], True)


def test_a_state_for_a_class_made_late(runtime: Runtime) -> None:
    """Nor does a state that another process stored let a tool run, of an agent whose kind was made meanwhile."""

    @function_tool(name_override="remove", needs_approval=True)
    def guarded(ticket_id: str) -> str:
        """Delete."""
        RAN.append(ticket_id)
        return "gone"

    stored = run(Agent(name="worker", model=scripted([REMOVE]), tools=[guarded])).to_state().to_json()
    with install(runtime, hide_denied=False):

        @dataclass
        class Mine(Agent[Any]):
            async def get_all_tools(self, run_context: Any) -> Any:
                return [guarded]

        agent = Mine(name="worker", model=scripted())
        state: Any = asyncio.run(RunState.from_json(agent, stored))
        state.approve(state.get_interruptions()[0])
        run(agent, state)
    assert RAN == []


@function_tool
def pay(order_id: str, amount: float) -> str:
    """Pay."""
    RAN.append((order_id, amount))
    return "paid"


PAY = function_call("pay", {"order_id": "O-1", "amount": 70.0}, call_id="call_9")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("handed", [False, True], ids=["as a tool", "handed over"])
def test_an_agent_below_another_that_pauses(runtime: Runtime, tmp_path: Path, handed: bool, restart: bool) -> None:
    """Its call interrupts the outer run; after a yes it runs once, and every agent keeps its own session."""
    inner = Agent(name="helper", model=scripted([PAY], [LOOKUP]), tools=[pay, lookup])
    call = function_call("transfer_to_helper" if handed else "helper", {} if handed else {"input": "go"}, call_id="o1")
    outer = Agent(
        name="worker",
        model=scripted([call], *([] if handed else [[LOOKUP]])),
        tools=[lookup] if handed else [lookup, inner.as_tool("helper", "Ask")],
        handoffs=[inner] if handed else [],
    )
    with install(runtime, pauses=True):
        result = run(outer)
    assert (RAN, [item.call_id for item in result.interruptions]) == ([], ["call_9"])
    state = result.to_state()
    if restart:
        text = json.dumps(state.to_json())
        runtime.close()
        runtime = Runtime(atlas(), trace=tmp_path / "traces", approvals=tmp_path / "approvals.db")
        state = asyncio.run(RunState.from_json(outer, json.loads(text)))
    with install(runtime, pauses=True):
        state.approve(state.get_interruptions()[0])
        assert run(outer, state).final_output == "done"
    assert RAN == [("O-1", 70.0), ("lookup", "T-1")] + ([] if handed else [("lookup", "T-1")])
    runtime.close()
    evidence = Evidence(tmp_path / "traces")
    assert sorted(events[0].payload["agent_id"] for events in evidence.sessions.values()) == ["helper", "worker"]
    for events in evidence.sessions.values():
        names = {event.payload["agent_name"] for event in events if "agent_name" in event.payload}
        assert names <= {events[0].payload["agent_id"]}


def test_a_yes_is_used_once(runtime: Runtime) -> None:
    """A second identical call interrupts again, and a no is recorded with the question."""
    again = function_call("pay", {"order_id": "O-1", "amount": 70.0}, call_id="call_10")
    agent = Agent(name="worker", model=scripted([PAY], [again]), tools=[pay])
    with install(runtime, pauses=True):
        state = run(agent).to_state()
        state.approve(state.get_interruptions()[0])
        second = run(agent, state)
        assert RAN == [("O-1", 70.0)]
        state = second.to_state()
        (interruption,) = state.get_interruptions()
        state.reject(interruption, rejection_message="Not today.")
        run(agent, state)
    assert RAN == [("O-1", 70.0)]
    states = [(item.pending.tool_call_id, item.state, item.reason) for item in runtime.approvals.list(None)]
    assert states == [("call_9", "consumed", None), ("call_10", "rejected", "Not today.")]


def test_always_approved(runtime: Runtime) -> None:
    """``always_approve`` says yes for the SDK alone: where a policy wants a person, each call needs its own yes."""
    again = function_call("pay", {"order_id": "O-2", "amount": 80.0}, call_id="call_10")
    agent = Agent(name="worker", model=scripted([PAY], [again]), tools=[pay])
    with install(runtime, pauses=True):
        state = run(agent).to_state()
        state.approve(state.get_interruptions()[0], always_approve=True)
        result = run(agent, state)
    assert RAN == [("O-1", 70.0)]
    assert "the answer was given to another question" in told(result)[-1]


class Noting(RunHooks[Any]):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            heard = self.heard

            async def note(*args: Any, **kwargs: Any) -> None:
                heard.append(name)

            return note
        return super().__getattribute__(name)


def test_the_users_hooks(runtime: Runtime) -> None:
    """They hear everything, as without a gate."""
    helper = Agent(name="helper", model=scripted([LOOKUP]), tools=[lookup])
    agent = Agent(
        name="worker", model=scripted([function_call("transfer_to_helper", {}, call_id="h")]), handoffs=[helper]
    )
    plain, governed = Noting(), Noting()
    run(agent, hooks=plain)
    helper.model, agent.model = scripted([LOOKUP]), scripted([function_call("transfer_to_helper", {}, call_id="h")])
    with install(runtime):
        run(agent, hooks=governed)
    assert set(governed.heard) == {name for name in dir(RunHooks) if name.startswith("on_")}
    assert governed.heard == plain.heard


def test_unknown_tools_that_the_sdk_answers(runtime: Runtime, tmp_path: Path) -> None:
    """Where the SDK tells the model that there is no such tool, the call is recorded, once; a handoff is none."""
    agent = Agent(name="worker", model=scripted([function_call("nosuch", {}, call_id="c")]), tools=[lookup])
    with install(runtime):
        result = run(agent, run_config=RunConfig(tool_not_found_behavior="return_error_to_model"))
    assert result.final_output == "done"
    assert decided(runtime, tmp_path) == [("nosuch", "action.denied")]


def test_a_handoff_runs_code_undecided(runtime: Runtime, tmp_path: Path) -> None:
    """A hole: ``on_handoff`` is called with what the model wrote, and no policy sees it."""
    helper = Agent(name="helper", model=scripted())
    over = handoff(helper, on_handoff=lambda ctx, order: RAN.append(order), input_type=Order)
    call = function_call("transfer_to_helper", {"order_id": "O", "amount": 700}, call_id="h")
    with install(runtime):
        run(Agent(name="worker", model=scripted([call]), handoffs=[over]))
    assert RAN == [Order(order_id="O", amount=700)]
    assert decided(runtime, tmp_path) == []


def test_calling_a_tool_oneself_is_no_call_of_an_agents(runtime: Runtime, tmp_path: Path) -> None:
    """A hole: a program that calls a tool's function."""
    with install(runtime):
        assert remove.__wrapped__("T-1") == "gone"
    assert decided(runtime, tmp_path) == []


def test_installing(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once at a time; afterwards all is as it was; an SDK that is too old is refused."""
    before = {name: vars(Runner)[name] for name in ("run", "run_sync", "run_streamed")}
    tools = vars(Agent.__mro__[1])["get_all_tools"]
    with install(runtime):
        assert vars(Agent.__mro__[1])["get_all_tools"] is not tools
        with pytest.raises(RuntimeError, match="already"):
            install(runtime)
    assert {name: vars(Runner)[name] for name in before} == before
    assert vars(Agent.__mro__[1])["get_all_tools"] is tools
    run(Agent(name="worker", model=scripted([REMOVE]), tools=[remove]))
    assert RAN == [("remove", "T-1")]
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "0.8.0")
    with pytest.raises(RuntimeError, match=r"openai-agents 0\.8\.0 is too old"):
        install(runtime)


def test_an_sdk_that_does_it_in_another_way(runtime: Runtime) -> None:
    """What the gate stands on is tried when it is installed: a name that is gone raises, and nothing is installed."""
    for owner, name in (
        (FunctionTool, "__wrapped__"),
        (type(remove.on_invoke_tool), "prepare_arguments"),
        (type(remove.on_invoke_tool), "__agents_bind_function_tool__"),
        (Runner, "run_streamed"),
    ):
        kept = vars(owner)[name]
        delattr(owner, name)
        try:
            with pytest.raises(RuntimeError, match=r"in another way|has no Runner\.run_streamed"):
                install(runtime)
        finally:
            setattr(owner, name, kept)
    install(runtime).uninstall()


def test_without_a_runtime(runtime: Runtime) -> None:
    """``install(None)`` leaves it to the current session; outside any, nothing runs."""
    with install(None):
        run(Agent(name="worker", model=scripted([LOOKUP]), tools=[lookup]))
        assert RAN == []
        with runtime.session("desk"):
            run(Agent(name="worker", model=scripted([LOOKUP]), tools=[lookup]))
    assert RAN == [("lookup", "T-1")]


def test_describe_tools() -> None:
    """As a model is shown them."""
    custom = local_tools()["sql"]
    agent = Agent(name="worker", tools=[lookup, custom, WebSearchTool()])
    assert describe_tools(agent) == [
        ("lookup", "Look a ticket up.", lookup.params_json_schema),
        ("sql", "SQL", None),
    ]
    with pytest.raises(TypeError, match="no tool"):
        describe_tools([print])
