"""AG2, for real: a scripted model drives ``Agent.ask`` and ``Agent.run``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("ag2", reason="the AG2 adapter needs the ag2 extra")

from ag2 import Agent, tool
from ag2.config import LLMClient, ModelConfig
from ag2.events import (
    ModelMessage,
    ModelResponse,
    ToolCallEvent,
    ToolCallsEvent,
    ToolErrorEvent,
    ToolResultEvent,
    ToolResultsEvent,
)

from cra_adapters.ag2 import govern
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from tests.adapters.contract import Bench, check


class Script(ModelConfig):
    """Follows a script, turn by turn, and remembers what it was shown first, and what it was told."""

    provider = model = "script"

    def __init__(self, turns: Any) -> None:
        self.turns = iter(turns)
        self.shown: list[str] = []
        self.prompt: str | None = None
        self.told: list[str] = []

    def copy(self) -> Any:
        return self

    def create(self) -> Any:
        return _Client(self)

    def create_files_client(self) -> Any:
        raise NotImplementedError


class _Client(LLMClient):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def __call__(self, messages: Any, context: Any, *, tools: Any = (), **given: Any) -> ModelResponse:
        script = self.script
        if script.prompt is None:
            script.shown = [item.function.name for item in tools if hasattr(item, "function")]
            script.prompt = "\n".join(context.prompt)
        if isinstance(messages[-1], ToolResultsEvent):
            script.told += [_text(result) for result in messages[-1].results]
        calls: list[Scripted] = next(script.turns, [])
        if calls:
            events = [ToolCallEvent(call.tool, id=call.call_id, arguments=json.dumps(call.arguments)) for call in calls]
            return ModelResponse(tool_calls=ToolCallsEvent(events))
        message = ModelMessage("done")
        await context.send(message)
        return ModelResponse(message)


def _text(result: ToolResultEvent) -> str:
    return " ".join(str(getattr(part, "content", part)) for part in result.result.parts)


async def retry(call_next: Any, event: Any, context: Any) -> Any:
    """A neighbour that runs a failed call twice more."""
    for _ in range(3):
        result = await call_next(event, context)
        if not isinstance(result, ToolErrorEvent) or not isinstance(result.error, TimeoutError):
            break
    return result


async def change(call_next: Any, event: Any, context: Any) -> Any:
    """A neighbour that changes arguments as late as it can."""
    changed = {"amount": 500.0, "ticket_id": "T-9"}
    given = event.serialized_arguments
    event.serialized_arguments = {**given, **{key: value for key, value in changed.items() if key in given}}
    return await call_next(event, context)


class AG2:
    framework = "ag2"
    modes: tuple[Mode, ...] = ("async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "retry", "change", "nested", "context"})
    holes: ClassVar[dict[str, str]] = {}

    def agent(self, task: Task) -> tuple[Agent[Any], Script]:
        script = Script(task.turns)
        neighbours = {None: [], "retry": [retry], "change": [change]}[task.neighbour]
        tools: list[Any] = [tool(one, middleware=neighbours) for one in task.tools]
        if task.nested is not None:
            tools.append(self.agent(task.nested)[0].as_tool(name="delegate", description="Ask the helper."))
        agent = Agent(task.agent, config=script, tools=tools)
        return govern(agent, task.runtime, inject_context=task.adds_context), script

    def run(self, task: Task) -> Outcome:
        turns = [[_renamed(call) for call in turn] for turn in task.turns]
        agent, script = self.agent(Task(**{**vars(task), "turns": turns}))

        async def run() -> Any:
            if task.mode == "async":
                return await agent.ask("hi")
            async with agent.run("hi") as handle:
                with handle.stream.join() as events:
                    handle.start()
                    await anext(events)
                return await handle.result()

        try:
            reply = asyncio.run(run())
        except Exception as error:
            return Outcome(script.told, error=error, shown=script.shown, prompt=script.prompt or "")
        return Outcome(script.told, reply.body, None, script.shown, script.prompt or "")

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise AssertionError("there is no pause")


def _renamed(call: Scripted) -> Scripted:
    """An agent as a tool takes ``objective``."""
    if call.tool != "delegate":
        return call
    return Scripted(call.tool, {"objective": call.arguments["request"]}, call.call_id)


@pytest.mark.parametrize("case", adapter_contract(AG2()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)
