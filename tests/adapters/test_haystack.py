"""Haystack, for real: a scripted chat generator drives ``Agent.run`` and ``run_async``."""

# No `from __future__ import annotations`: Haystack reads the annotations of components.
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("haystack", reason="the Haystack adapter needs the haystack extra")

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from haystack import Pipeline, component
from haystack.components.agents import Agent, State
from haystack.dataclasses import ChatMessage, StreamingChunk, ToolCall
from haystack.hooks.human_in_the_loop import AlwaysAskPolicy, BlockingConfirmationStrategy, ConfirmationHook
from haystack.hooks.human_in_the_loop.dataclasses import ConfirmationUIResult
from haystack.tools import (
    AgentTool,
    ComponentTool,
    PipelineTool,
    SearchableToolset,
    Tool,
    Toolset,
    create_tool_from_function,
)
from haystack.tools.errors import ToolInvocationError

from cra_adapters.haystack import describe_tools, govern_agent, govern_tools
from cra_middleware import ActionDenied
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from cra_middleware.testing.workbench import Workbench
from tests.adapters.contract import Bench, check


@component
class Model:
    """Follows a script, turn by turn."""

    def __init__(self, turns: Any) -> None:
        self.turns = iter(turns)

    @component.output_types(replies=list[ChatMessage])
    def run(self, messages: list[ChatMessage], tools: Any = None, streaming_callback: Any = None) -> dict[str, Any]:
        calls = [ToolCall(call.tool, dict(call.arguments), id=call.call_id) for call in next(self.turns, [])]
        return {"replies": [ChatMessage.from_assistant(None if calls else "done", tool_calls=calls)]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self, messages: list[ChatMessage], tools: Any = None, streaming_callback: Any = None
    ) -> dict[str, Any]:
        return self.run(messages)


class Change:
    """A hook that changes arguments as late as it can."""

    def run(self, state: State) -> None:
        for call in state.data["messages"][-1].tool_calls:
            new = {"amount": 500.0, "ticket_id": "T-9"}
            call.arguments.update({key: value for key, value in new.items() if key in call.arguments})

    def to_dict(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Change":
        return cls()


class Haystack:
    framework = "haystack"
    modes: tuple[Mode, ...] = ("sync", "async", "stream")
    abilities = frozenset({"agent_names", "change", "nested"})
    holes: ClassVar[dict[str, str]] = {}

    def agent(self, task: Task) -> Agent:
        functions = list(task.tools)
        if task.nested is not None:
            inner = self.agent(task.nested)

            def delegate(request: str) -> str:
                """Ask the helper."""
                return str(inner.run(messages=[ChatMessage.from_user(request)])["last_message"].text)

            async def adelegate(request: str) -> str:
                """Ask the helper."""
                return str((await inner.run_async(messages=[ChatMessage.from_user(request)]))["last_message"].text)

            adelegate.__name__ = "delegate"
            functions.append(delegate if task.mode == "sync" else adelegate)
        agent = Agent(
            chat_generator=Model(task.turns),
            tools=[create_tool_from_function(function) for function in functions],
            hooks={"before_tool": [Change()]} if task.neighbour else None,
        )
        return govern_agent(agent, task.runtime, name=task.agent)

    def run(self, task: Task) -> Outcome:
        agent = self.agent(task)
        messages = [ChatMessage.from_user("hi")]
        chunks: list[StreamingChunk] = []

        async def heard(chunk: StreamingChunk) -> None:
            chunks.append(chunk)

        try:
            if task.mode == "sync":
                result = agent.run(messages=messages)
            else:
                more = {"streaming_callback": heard} if task.mode == "stream" else {}
                result = asyncio.run(agent.run_async(messages=messages, **more))
        except Exception as error:
            return Outcome(error=error)
        seen = [str(item.result) for message in result["messages"] for item in message.tool_call_results]
        return Outcome(seen, str(result["last_message"].text))

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise NotImplementedError


@pytest.mark.parametrize("case", adapter_contract(Haystack()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with Workbench(Haystack(), "sync", tmp_path) as made:
        yield made


def call(tool: str, **arguments: Any) -> Scripted:
    return Scripted(tool, arguments, "call_1")


def told(agent: Agent, **more: Any) -> str:
    """What the model is given for its one call."""
    result = agent.run(messages=[ChatMessage.from_user("hi")], **more)
    (item,) = [item for message in result["messages"] for item in message.tool_call_results]
    return str(item.result)


def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    raise AssertionError("this never runs")


REMOVE = [[call("remove", ticket_id="T-1")]]


def scripted(turns: Any, tools: Any, **more: Any) -> Agent:
    return Agent(chat_generator=Model(turns), tools=tools, **more)


def test_tools_of_a_single_run(bench: Workbench) -> None:
    """Tools that only one run is given are governed before they are called."""
    agent = govern_agent(scripted(REMOVE, []), bench.runtime())
    assert "Close it instead." in told(agent, tools=[create_tool_from_function(remove)])


def test_each_run_has_its_session(bench: Workbench) -> None:
    """A session is a run's, and ends with it."""
    turns = [[call("lookup", ticket_id="T-1")], [], [call("lookup", ticket_id="T-2")]]
    agent = scripted(turns, [create_tool_from_function(bench.bodies.tools("lookup")[0])])
    govern_agent(agent, bench.runtime())
    assert told(agent) == "ticket T-1 is open"
    assert told(agent) == "ticket T-2 is open"
    assert len(bench.evidence().of("session.ended")) == 2


def erase() -> Tool:
    return create_tool_from_function(remove)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Toolset([erase()]),
        lambda: [Toolset([erase()])],
        lambda: SearchableToolset(catalog=[erase()]),
        lambda: [SearchableToolset(catalog=[Toolset([erase()])])],
    ],
)
def test_toolsets(bench: Workbench, make: Any) -> None:
    """The tools of a toolset are governed, whichever way they are asked for."""
    tools = make()
    assert "Close it instead." in told(govern_agent(scripted(REMOVE, tools), bench.runtime()))
    (toolset,) = tools if isinstance(tools, list) else [tools]
    for tool in (*toolset, *toolset.get_selectable_tools(), *toolset.spawn()):
        with pytest.raises(ToolInvocationError, match="Close it instead"):
            tool.invoke(ticket_id="T-1")


def test_a_toolset_that_fills_later(bench: Workbench) -> None:
    """A tool that a toolset gets after it was governed is governed, too."""
    (toolset,) = govern_tools([Toolset([])], bench.runtime())
    toolset.add(erase())
    with pytest.raises(ToolInvocationError, match="Close it instead"):
        toolset[0].invoke(ticket_id="T-1")


@component
class Pay:
    """Pay a refund."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    @component.output_types(result=str)
    def run(self, order_id: str, amount: float = 500.0) -> dict[str, str]:
        self.bench.bodies.note("pay", order_id=order_id, amount=amount)
        return {"result": f"paid {amount}"}

    @component.output_types(result=str)
    async def run_async(self, order_id: str, amount: float = 500.0) -> dict[str, str]:
        return self.run(order_id, amount)


def piped(made: Pay) -> PipelineTool:
    pipeline = Pipeline()
    pipeline.add_component("pay", made)
    mapping = {"order_id": ["pay.order_id"], "amount": ["pay.amount"]}
    return PipelineTool(pipeline=pipeline, name="pay", description="Pay a refund.", input_mapping=mapping)


@pytest.mark.parametrize("kind", [ComponentTool, piped])
@pytest.mark.parametrize("is_async", [False, True])
def test_tools_of_components(bench: Workbench, kind: Any, is_async: bool) -> None:
    """They are decided on what the component gets: converted, and with its defaults."""
    (tool,) = govern_tools([kind(Pay(bench))], bench.runtime())

    def run(**arguments: Any) -> Any:
        return asyncio.run(tool.invoke_async(**arguments)) if is_async else tool.invoke(**arguments)

    for arguments in ({"amount": "700"}, {}):
        if kind is piped and not arguments:
            continue  # the default is the component's inside, which the pipeline does not tell of
        with pytest.raises(ToolInvocationError, match="Too much money"):
            run(order_id="O-1", **arguments)
    with pytest.raises(ToolInvocationError, match="invalid_parameters"):
        run(order_id="O-1", amount="much")
    with pytest.raises(ToolInvocationError, match="invalid_parameters"):
        run(order_id="O-1", wrong=1)
    assert bench.bodies.ran == []
    assert "20.0" in str(run(order_id="O-1", amount="20"))


def test_an_agent_as_a_tool(bench: Workbench) -> None:
    """An agent that is a tool is governed as both, in a session of its own below."""
    runtime = bench.runtime()
    inner = govern_agent(scripted(REMOVE, [erase()]), runtime, name="helper")
    asked = [ChatMessage.from_user("Delete T-1.").to_dict()]
    tool = AgentTool(agent=inner, name="delegate", description="Ask the helper.")
    outer = govern_agent(scripted([[call("delegate", messages=asked)]], [tool]), runtime, name="worker")
    assert told(outer) == "done"
    started = {payload["agent_id"]: payload for payload in bench.evidence().of("session.started")}
    assert set(started) == {"worker", "helper"}
    assert "parent_session_id" in started["helper"]["metadata"]
    assert bench.evidence().denials("ticket.delete") == ["policy_denied"]


def test_the_state(bench: Workbench) -> None:
    """A value from the state is decided; the state itself is no argument of the call."""

    def pay(order_id: str, state: State, amount: float) -> str:
        """Pay a refund."""
        bench.bodies.note("pay", order_id=order_id, amount=amount)
        return f"paid {amount} {type(state).__name__}"

    def agent() -> Agent:
        tool = create_tool_from_function(pay, inputs_from_state={"money": "amount"})
        made = scripted([[call("pay", order_id="O-1")]], [tool], state_schema={"money": {"type": float}})
        return govern_agent(made, bench.runtime())

    assert "Too much money." in told(agent(), money=500.0)
    assert told(agent(), money=20.0) == "paid 20.0 State"


def test_a_run_that_raises(bench: Workbench) -> None:
    """Where a tool's failure ends the run, a refusal does."""
    agent = govern_agent(scripted(REMOVE, [erase()], raise_on_tool_invocation_failure=True), bench.runtime())
    with pytest.raises(ToolInvocationError, match="Close it instead"):
        told(agent)


def test_no_way_around(bench: Workbench) -> None:
    """The function that a tool gives away is governed; a tool that runs otherwise is not accepted."""
    tool = erase()
    runtime = bench.runtime()
    govern_tools([tool], runtime)
    assert govern_tools([tool], runtime) == [tool]
    assert tool.function is not None
    with pytest.raises(ActionDenied):
        tool.function(ticket_id="T-1")

    class Own(Tool):
        def invoke(self, **kwargs: Any) -> Any:
            raise AssertionError("this never runs")

    own = Own(name="remove", description="", parameters={"type": "object"}, function=remove)
    with pytest.raises(TypeError, match="overrides"):
        govern_tools([own], bench.runtime())
    with pytest.raises(TypeError, match="overrides"):
        told(govern_agent(scripted(REMOVE, []), bench.runtime()), tools=[own])
    with pytest.raises(TypeError, match="no Haystack tool"):
        govern_tools([remove], bench.runtime())  # type: ignore[list-item]


def test_nothing_governed_is_stored(bench: Workbench) -> None:
    """A stored agent would come back without its gate."""
    agent = govern_agent(scripted(REMOVE, [erase(), Toolset([])]), bench.runtime())
    for part in (*agent.tools, *agent.hooks["before_run"]):
        with pytest.raises(RuntimeError, match="cannot be stored"):
            part.to_dict()


@pytest.mark.parametrize("words", ["Close it instead.", "no such ticket"])
def test_a_confirmation_in_place(bench: Workbench, words: str) -> None:
    """What a person confirmed or changed by Haystack's own hook is decided all the same; what was refused is not."""

    class Person:
        def get_user_confirmation(self, *args: Any) -> ConfirmationUIResult:
            action = "confirm" if words.startswith("Close") else "reject"
            return ConfirmationUIResult(action=action, feedback=words)

    strategy = BlockingConfirmationStrategy(confirmation_policy=AlwaysAskPolicy(), confirmation_ui=Person())  # type: ignore[arg-type]
    hook = ConfirmationHook(confirmation_strategies={"*": strategy})
    agent = scripted(REMOVE, [erase()], hooks={"before_tool": [hook]})
    assert words in told(govern_agent(agent, bench.runtime()))


def test_too_old(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "3.3.9")
    with pytest.raises(RuntimeError, match="too old"):
        govern_tools([erase()], bench.runtime())


def test_describe_tools(bench: Workbench) -> None:
    """What an Atlas is drafted from is what the gate compares with."""
    tools = [erase(), Toolset([ComponentTool(Pay(bench), name="pay")])]
    described = describe_tools(scripted([], tools))
    assert [name for name, _, _ in described] == ["remove", "pay"]
    assert described[0][1] == "Delete a ticket."
    assert describe_tools(govern_tools(tools, bench.runtime())) == described
    with pytest.raises(TypeError, match="no Haystack tool"):
        describe_tools([1])
