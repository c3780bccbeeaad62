"""OpenAI's own client over a transport that follows a script, in loops as people write them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("openai", "3.54", reason="the OpenAI adapter is tested with the openai extra")
pytest.importorskip("httpx2", reason="the OpenAI client that is tested speaks httpx2")

import httpx2 as httpx
import openai

from cra_adapters.openai import GovernedTools, describe_tools
from cra_middleware import Atlas, Runtime
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.workbench import ATLAS
from tests.adapters.contract import Bench, check


class Api:
    """OpenAI's servers, as far as a tool loop needs them."""

    def __init__(self, turns: Any) -> None:
        self.turns = iter(turns)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: Any) -> Any:
        body = json.loads(request.content)
        self.asked.append(body)
        calls: list[Scripted] = next(self.turns, [])
        make = self.chat if request.url.path.endswith("/chat/completions") else self.responses
        return httpx.Response(200, json=make(calls))

    async def later(self, request: Any) -> Any:
        return self(request)

    def chat(self, calls: list[Scripted]) -> dict[str, Any]:
        tool_calls = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.tool, "arguments": json.dumps(call.arguments)},
            }
            for call in calls
        ]
        message = {"role": "assistant", "content": None if calls else "done", "tool_calls": tool_calls or None}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}

    def responses(self, calls: list[Scripted]) -> dict[str, Any]:
        text = {"type": "output_text", "text": "done", "annotations": []}
        output: list[Any] = [
            {
                "id": f"fc_{call.call_id}",
                "type": "function_call",
                "status": "completed",
                "call_id": call.call_id,
                "name": call.tool,
                "arguments": json.dumps(call.arguments),
            }
            for call in calls
        ] or [{"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [text]}]
        return {
            "id": "r",
            "object": "response",
            "created_at": 1,
            "model": "m",
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "status": "completed",
        }


class Loop:
    """A loop as people write it, with chat completions."""

    way = "chat completions"

    framework = "openai"
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
            with GovernedTools(task.runtime, functions, agent=task.agent, run=task.run) as tools:
                if task.mode == "sync":
                    final, seen = self.loop(api, tools, task)
                else:
                    final, seen = asyncio.run(self.aloop(api, tools, task))
        except Exception as error:
            return Outcome(error=error)
        first = api.asked[0]
        return Outcome(seen, final, None, self.shown(first), self.prompt(first))

    def client(self, api: Api) -> Any:
        http = openai.DefaultHttpxClient(transport=httpx.MockTransport(api))
        return openai.OpenAI(api_key="none", http_client=http)

    def aclient(self, api: Api) -> Any:
        http = openai.DefaultAsyncHttpxClient(transport=httpx.MockTransport(api.later))
        return openai.AsyncOpenAI(api_key="none", http_client=http)

    def begin(self, tools: GovernedTools, task: Task) -> tuple[list[Any], list[Any]]:
        if not task.adds_context:
            return [{"role": "user", "content": "hi"}], [{"type": "function", "function": {"name": "any"}}]
        return [{"role": "system", "content": tools.context_text}, {"role": "user", "content": "hi"}], tools.schemas()

    def loop(self, api: Api, tools: GovernedTools, task: Task) -> tuple[str, list[str]]:
        messages, schemas = self.begin(tools, task)
        client = self.client(api)
        while True:
            message = client.chat.completions.create(model="m", messages=messages, tools=schemas).choices[0].message
            messages.append(message)
            if not message.tool_calls:
                return message.content, [
                    item["content"] for item in messages if isinstance(item, dict) and "tool_call_id" in item
                ]
            messages += tools.calls(message.tool_calls)

    async def aloop(self, api: Api, tools: GovernedTools, task: Task) -> tuple[str, list[str]]:
        messages, schemas = self.begin(tools, task)
        client = self.aclient(api)
        while True:
            answer = await client.chat.completions.create(model="m", messages=messages, tools=schemas)
            message = answer.choices[0].message
            messages.append(message)
            if not message.tool_calls:
                return message.content, [
                    item["content"] for item in messages if isinstance(item, dict) and "tool_call_id" in item
                ]
            messages += await tools.acalls(message.tool_calls)

    def answers(self, messages: list[Any]) -> list[str]:
        return [item["content"] for item in messages if isinstance(item, dict) and "tool_call_id" in item]

    def shown(self, body: dict[str, Any]) -> list[str]:
        return [tool["function"]["name"] for tool in body["tools"]]

    def prompt(self, body: dict[str, Any]) -> str:
        return " ".join(item["content"] for item in body["messages"] if item["role"] == "system")

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise NotImplementedError


class Responses(Loop):
    """The same with the Responses API."""

    way = "responses"

    def begin(self, tools: GovernedTools, task: Task) -> tuple[list[Any], list[Any]]:
        if not task.adds_context:
            return [{"role": "user", "content": "hi"}], []
        messages, _ = super().begin(tools, task)
        return messages, tools.schemas("responses")

    def loop(self, api: Api, tools: GovernedTools, task: Task) -> tuple[str, list[str]]:
        items, schemas = self.begin(tools, task)
        client = self.client(api)
        while True:
            response = client.responses.create(model="m", input=items, tools=schemas)
            items += response.output
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text, self.outputs(items)
            items += tools.calls(calls)

    async def aloop(self, api: Api, tools: GovernedTools, task: Task) -> tuple[str, list[str]]:
        items, schemas = self.begin(tools, task)
        client = self.aclient(api)
        while True:
            response = await client.responses.create(model="m", input=items, tools=schemas)
            items += response.output
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text, self.outputs(items)
            items += await tools.acalls(calls)

    def outputs(self, items: list[Any]) -> list[str]:
        return [item["output"] for item in items if isinstance(item, dict) and "output" in item]

    def shown(self, body: dict[str, Any]) -> list[str]:
        return [tool["name"] for tool in body["tools"]]

    def prompt(self, body: dict[str, Any]) -> str:
        return " ".join(item["content"] for item in body["input"] if item.get("role") == "system")


@pytest.mark.parametrize("case", adapter_contract(Loop()), ids=str)
def test_contract_of_chat_completions(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.mark.parametrize("case", adapter_contract(Responses()), ids=str)
def test_contract_of_responses(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    case.check(tmp_path, bench_type)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces") as made:
        yield made


def lookup(ticket_id: str) -> Any:
    """Look a ticket up."""
    return {"id": ticket_id, "open": True}


async def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    raise AssertionError("this never runs")


class Pay:
    """Pays."""

    def __call__(self, order_id: str, *, amount: float = 20.0) -> str:
        """Pay."""
        return f"paid {amount}"


def chat(name: str, arguments: str, call_id: str = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{", "invalid_parameters"),
        ("[1]", "the arguments are no object but a list"),
        ('"text"', "the arguments are no object but a str"),
        ("", "Missing required argument"),
        ('{"ticket_id": {}}', "ticket_id: Input should be a valid string"),
        ('{"ticket_id": NaN}', "invalid_parameters"),
        ('{"ticket_id": "1", "more": 1}', "more: Unexpected keyword argument"),
    ],
)
def test_broken_arguments(runtime: Runtime, arguments: str, words: str) -> None:
    """What a model got wrong is told to it, and runs nothing."""
    answer = GovernedTools(runtime, [lookup]).call(chat("lookup", arguments))
    assert answer["tool_call_id"] == "c1"
    assert "ticket.get was not run" in answer["content"]
    assert words in answer["content"]


def test_what_a_tool_gives_back(runtime: Runtime) -> None:
    """Text stays text, the rest becomes JSON; a callable object is a tool as well."""
    tools = GovernedTools(runtime, {"lookup": lookup, "pay": Pay()})
    assert json.loads(tools.call(chat("lookup", '{"ticket_id": "T"}'))["content"]) == {"id": "T", "open": True}
    assert tools.call(chat("pay", '{"order_id": "O"}'))["content"] == "paid 20.0"
    assert "Too much money." in tools.call(chat("pay", '{"order_id": "O", "amount": "900"}'))["content"]


def test_calls_of_all_forms(runtime: Runtime) -> None:
    """Custom tools, the items of the Responses API, and a mapping in place of an object."""

    def sql(input: str) -> str:
        """Run SQL."""
        return f"ran {input}"

    tools = GovernedTools(runtime, [sql], {"sql": "ticket.get"})
    custom = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "a"}}
    assert tools.call(custom) == {"role": "tool", "tool_call_id": "c1", "content": "ran a"}
    item = {"type": "custom_tool_call", "call_id": "c2", "name": "sql", "input": "b"}
    assert tools.call(item) == {"type": "custom_tool_call_output", "call_id": "c2", "output": "ran b"}
    item = {"type": "function_call", "call_id": "c3", "name": "sql", "arguments": '{"input": "c"}'}
    assert tools.call(item) == {"type": "function_call_output", "call_id": "c3", "output": "ran c"}
    for wrong in ({"type": "web_search_call", "id": "w"}, object()):
        with pytest.raises(TypeError, match="no tool call"):
            tools.call(wrong)


def test_the_wrong_kind_of_function(runtime: Runtime) -> None:
    """A coroutine function in a loop without an event loop is told of; a plain one on an event loop blocks nothing."""
    running = threading.Event()

    def slow(ticket_id: str) -> str:
        """Look."""
        return str(running.wait(10))

    async def quick(ticket_id: str) -> str:
        """Look."""
        running.set()
        return "set"

    tools = GovernedTools(runtime, [slow, quick], {"slow": "ticket.get", "quick": "ticket.list"})
    calls = [chat(name, '{"ticket_id": "1"}', name) for name in ("slow", "quick")]
    answers = asyncio.run(tools.acalls(calls))
    assert [answer["content"] for answer in answers] == ["True", "set"]
    assert "only the asynchronous call" in tools.call(calls[1])["content"]


def test_what_is_shown(runtime: Runtime) -> None:
    """Tools that no call may use are not in ``schemas``; a call of one is denied all the same."""
    tools = GovernedTools(runtime, [lookup, remove])
    assert [one["function"]["name"] for one in tools.schemas()] == ["lookup"]
    assert tools.schemas("responses")[0]["parameters"]["required"] == ["ticket_id"]
    assert "Close it instead." in asyncio.run(tools.acall(chat("remove", '{"ticket_id": "1"}')))["content"]


def test_a_conversation_that_is_over(runtime: Runtime, tmp_path: Path) -> None:
    """Its session ends with it, and is named by its id."""
    with GovernedTools(runtime, [lookup], agent="bot", run="chat-7") as tools:
        tools.call(chat("lookup", '{"ticket_id": "1"}'))
    (events,) = Evidence(tmp_path / "traces").sessions.values()
    assert events[0].payload["metadata"]["external_id"] == "chat-7"
    assert events[-1].event_type == "session.ended"


def test_describe_tools() -> None:
    """As ``schemas`` shows them; what cannot be validated cannot be a tool."""
    (described,) = describe_tools([lookup])
    assert described[:2] == ("lookup", "Look a ticket up.")
    assert described[2] is not None
    assert described[2]["properties"]["ticket_id"]["type"] == "string"

    def odd(value: "NoSuchType") -> str:  # type: ignore[name-defined]  # noqa: F821, UP037
        return ""

    with pytest.raises(TypeError, match="odd cannot be a tool"):
        describe_tools([odd])


def test_hole_a_function_in_a_thread_cannot_be_stopped(runtime: Runtime) -> None:
    """Its call is recorded as cancelled, and the function goes on to its end."""
    started, over = threading.Event(), threading.Event()

    def lookup() -> str:
        """Look up."""
        started.set()
        time.sleep(0.2)
        over.set()
        return "open"

    async def cancelled() -> None:
        task = asyncio.create_task(GovernedTools(runtime, {"lookup": lookup}).acall(chat("lookup", "{}")))
        await asyncio.to_thread(started.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not over.is_set()

    asyncio.run(cancelled())
    assert over.wait(5)
