"""Anthropic's own client over a transport that follows a script: loops as people write them, and the tool runner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("anthropic", reason="the Anthropic adapter needs the anthropic extra")
pytest.importorskip("httpx2", reason="the Anthropic client that is tested speaks httpx2")

import anthropic
import httpx2 as httpx
from anthropic import beta_async_tool, beta_tool
from anthropic.lib.tools import BetaBuiltinFunctionTool, BetaFunctionTool, BetaRunnableToolset

from cra_adapters.anthropic import GovernedTools, describe_tools
from cra_middleware import Atlas, Runtime
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.workbench import ATLAS
from tests.adapters.contract import Bench, check


class Api:
    """Anthropic's servers, as far as a tool loop needs them."""

    def __init__(self, turns: Any) -> None:
        self.turns = iter(turns)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: Any) -> Any:
        body = json.loads(request.content)
        self.asked.append(body)
        calls: list[Scripted] = next(self.turns, [])
        message = self.message(calls)
        if not body.get("stream"):
            return httpx.Response(200, json=message)
        events = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in self.events(message))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=events)

    async def later(self, request: Any) -> Any:
        return self(request)

    def message(self, calls: list[Scripted]) -> dict[str, Any]:
        content: list[Any] = [
            {"type": "tool_use", "id": call.call_id, "name": call.tool, "input": dict(call.arguments)} for call in calls
        ]
        return {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": content or [{"type": "text", "text": "done"}],
            "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }

    def events(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
        for index, block in enumerate(message["content"]):
            if block["type"] == "text":
                empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
            else:
                empty = {**block, "input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield {"type": "content_block_start", "index": index, "content_block": empty}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        stopped = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        yield {"type": "message_delta", "delta": stopped, "usage": {"output_tokens": 1}}
        yield {"type": "message_stop"}


def client(api: Api) -> Any:
    return anthropic.Anthropic(
        api_key="none", http_client=anthropic.DefaultHttpxClient(transport=httpx.MockTransport(api))
    )


def aclient(api: Api) -> Any:
    return anthropic.AsyncAnthropic(
        api_key="none", http_client=anthropic.DefaultAsyncHttpxClient(transport=httpx.MockTransport(api.later))
    )


def results(bodies: list[dict[str, Any]]) -> list[str]:
    """What the model was given as the results of its calls; the tool runner may send only what is new."""
    found: dict[str, Any] = {}
    for message in [message for body in bodies for message in body["messages"]]:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_result":
                found[block["tool_use_id"]] = block["content"]
    return [one if isinstance(one, str) else json.dumps(one) for one in found.values()]


class Loop:
    """A loop as people write it."""

    way = "loop"

    framework = "anthropic"
    modes: tuple[Mode, ...] = ("sync", "async")
    abilities = frozenset({"call_ids", "agent_names", "nested", "hide", "context"})
    holes: ClassVar[dict[str, str]] = {}

    def run(self, task: Task) -> Outcome:
        functions = list(task.tools)
        if task.nested is not None:
            inner = task.nested

            def delegate(request: str) -> str:
                """Ask the helper."""
                return self.run(inner).final

            functions.append(delegate)
        api = Api(task.turns)
        try:
            with GovernedTools(
                task.runtime, functions, agent=task.agent, run=task.run, hide_denied=task.adds_context
            ) as tools:
                given = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
                if task.adds_context:
                    given["system"] = tools.context_text
                final = self.drive(api, tools, task, given)
        except Exception as error:
            return Outcome(error=error)
        first = api.asked[0]
        shown = [tool["name"] for tool in first.get("tools", [])]
        return Outcome(results(api.asked), final, None, shown, first.get("system", ""))

    def drive(self, api: Api, tools: GovernedTools, task: Task, given: dict[str, Any]) -> str:
        given["tools"] = tools.schemas() if task.adds_context else []
        if task.mode == "sync":
            return self.loop(client(api), tools, given)
        return asyncio.run(self.aloop(aclient(api), tools, given))

    def loop(self, api: Any, tools: GovernedTools, given: dict[str, Any]) -> str:
        while True:
            message = api.messages.create(**given)
            answers = tools.calls(message.content)
            if not answers:
                return str(message.content[0].text)
            turn = [{"role": "assistant", "content": message.content}, {"role": "user", "content": answers}]
            given["messages"] = [*given["messages"], *turn]

    async def aloop(self, api: Any, tools: GovernedTools, given: dict[str, Any]) -> str:
        while True:
            message = await api.messages.create(**given)
            answers = await tools.acalls(message.content)
            if not answers:
                return str(message.content[0].text)
            turn = [{"role": "assistant", "content": message.content}, {"role": "user", "content": answers}]
            given["messages"] = [*given["messages"], *turn]

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise NotImplementedError


class Runner(Loop):
    """The SDK's own loop, with its tools."""

    way = "tool runner"

    modes: tuple[Mode, ...] = ("sync", "async", "stream")
    abilities = frozenset({"agent_names", "nested", "hide", "context"})
    holes: ClassVar[dict[str, str]] = {
        "unknown_tool": "the runner answers a call of an unknown tool by itself, and tells nobody",
    }

    def drive(self, api: Api, tools: GovernedTools, task: Task, given: dict[str, Any]) -> str:
        if task.mode == "sync":
            runner = client(api).beta.messages.tool_runner(**given, tools=tools.runnables())
            return str(runner.until_done().content[0].text)
        return asyncio.run(self.adrive(api, tools, task, given))

    async def adrive(self, api: Api, tools: GovernedTools, task: Task, given: dict[str, Any]) -> str:
        runnables = tools.runnables(on_event_loop=True)
        if task.mode == "async":
            runner = aclient(api).beta.messages.tool_runner(**given, tools=runnables)
            return str((await runner.until_done()).content[0].text)
        runner = aclient(api).beta.messages.tool_runner(**given, tools=runnables, stream=True)
        async for stream in runner:
            message = await stream.get_final_message()
        return str(message.content[0].text)


@pytest.mark.parametrize("case", adapter_contract(Loop()), ids=str)
def test_contract_of_a_loop(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.mark.filterwarnings("ignore:Tool 'nosuch' not found")
@pytest.mark.parametrize("case", adapter_contract(Runner()), ids=str)
def test_contract_of_the_tool_runner(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    case.check(tmp_path, bench_type)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces") as made:
        yield made


RAN: list[object] = []


@beta_tool(name="pay", description="Pay a refund", strict=True)
def pay(order_id: str, amount: float = 500.0) -> str:
    """Pay."""
    RAN.append((order_id, amount))
    return "paid"


@beta_async_tool
async def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    RAN.append(ticket_id)
    return "gone"


class Memory(BetaBuiltinFunctionTool):
    """A tool without a function."""

    closed = False

    def to_dict(self) -> Any:
        properties = {"amount": {"type": "number", "default": 500}}
        return {"name": "pay", "description": "d", "input_schema": {"type": "object", "properties": properties}}

    def call(self, input: object) -> str:
        RAN.append(input)
        return "done so"

    def close(self) -> None:
        self.closed = True


class Odd(BetaFunctionTool[Any]):
    """One that makes something else of its input than its function gets."""

    def call(self, input: object) -> str:
        RAN.append(("odd", input))
        return "done so"


def use(name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": given}


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def test_runnable_tools_in_a_loop_of_ones_own(runtime: Runtime) -> None:
    """``@beta_tool`` objects can be given; their definitions stay as they are, and coroutine functions run."""
    tools = GovernedTools(runtime, [pay, remove], hide_denied=False)
    assert tools.schemas() == [pay.to_dict(), remove.to_dict()]
    denied = tools.call(use("pay", order_id="O"))
    assert (denied["tool_use_id"], denied["is_error"]) == ("toolu_1", True)
    assert "Too much money." in denied["content"]
    assert tools.call(use("pay", order_id="O", amount="20"))["is_error"] is False
    assert asyncio.run(tools.acalls([{"type": "text"}, use("remove", ticket_id="1")]))[0]["is_error"] is True
    assert RAN == [("O", 20.0)]
    with pytest.raises(TypeError, match="no tool_use block"):
        tools.call({"type": "text"})


def test_results_that_are_blocks(runtime: Runtime) -> None:
    """Content blocks that a tool made go on as they are; other values become JSON."""

    def blocks() -> Any:
        return [{"type": "text", "text": "a"}]

    def values() -> Any:
        return [1, {"a": 2}]

    tools = GovernedTools(runtime, [blocks, values], {"blocks": "ticket.get", "values": "ticket.get"})
    assert tools.call(use("blocks"))["content"] == [{"type": "text", "text": "a"}]
    assert tools.call(use("values"))["content"] == '[1,{"a":2}]'


def test_tools_without_a_function(runtime: Runtime) -> None:
    """Their input is decided, with the defaults of the schema; what else the SDK asks of them is theirs."""
    memory = Memory()
    (tool,) = GovernedTools(runtime, [memory]).runnables()
    with pytest.raises(anthropic.lib.tools.ToolError, match="Too much money"):
        tool.call({})
    assert tool.call({"amount": 20}) == "done so"
    assert (tool.name, tool.to_dict(), RAN) == ("pay", memory.to_dict(), [{"amount": 20}])
    tool.close()
    assert memory.closed


def test_a_tool_with_a_call_of_its_own(runtime: Runtime) -> None:
    """A subclass may do anything with its input, so its input is what is decided."""
    (tool,) = GovernedTools(runtime, [Odd(pay.func, name="pay")]).runnables()
    with pytest.raises(anthropic.lib.tools.ToolError, match="Too much money"):
        tool.call({"order_id": "O", "amount": 700})
    tool.call({"order_id": "O", "amount": 20})
    assert RAN == [("odd", {"order_id": "O", "amount": 20})]


def test_what_cannot_be_governed(runtime: Runtime) -> None:
    """Toolsets and definitions without anything to run are refused when they are given."""

    class Set(BetaRunnableToolset):
        def to_dict(self) -> Any:
            return {"type": "set"}

        def call(self, *args: Any) -> Any:
            return None

    for wrong in (Set.__new__(Set), {"name": "pay", "input_schema": {}}):
        with pytest.raises(TypeError, match="cannot be governed"):
            GovernedTools(runtime, [wrong])


def test_a_hidden_tool_in_the_runner(runtime: Runtime, tmp_path: Path) -> None:
    """A hole: what is hidden is unknown to the runner, which answers a call of it by itself."""
    api = Api([[Scripted("remove", {"ticket_id": "1"}, "c1")]])

    async def run() -> None:
        tools = GovernedTools(runtime, [remove]).runnables()
        given: dict[str, Any] = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
        await aclient(api).beta.messages.tool_runner(**given, tools=tools).until_done()

    with pytest.warns(UserWarning, match="not found"):
        asyncio.run(run())
    runtime.close()
    assert (RAN, Evidence(tmp_path / "traces").of("action.requested")) == ([], [])


def test_the_sdk_must_be_new_enough(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "0.40.0")
    with pytest.raises(RuntimeError, match=r"anthropic 0\.40\.0 is too old"):
        GovernedTools(runtime, [])


def test_describe_tools() -> None:
    """As a model is shown them."""
    assert describe_tools([pay, Memory()]) == [
        ("pay", "Pay a refund", pay.input_schema),
        ("pay", "d", Memory().to_dict()["input_schema"]),
    ]
    assert describe_tools({"look": remove.func})[0][:2] == ("look", "Delete a ticket.")
    with pytest.raises(TypeError, match="cannot be governed"):
        describe_tools(["text"])
