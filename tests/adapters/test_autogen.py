"""AutoGen, for real: a scripted model client drives ``AssistantAgent.run`` and ``run_stream``, alone and in teams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("autogen_agentchat", reason="the AutoGen adapter needs the autogen extra")

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.tools import AgentTool
from autogen_core import FunctionCall
from autogen_core.models import ChatCompletionClient, CreateResult, ModelInfo, RequestUsage
from autogen_core.tools import (
    FunctionTool,
    StaticWorkbench,
    Workbench,
)

from cra_adapters.autogen import CRAWorkbench, govern_tools
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from tests.adapters.contract import Bench, check


class Client(ChatCompletionClient):
    """Follows a script, turn by turn, and remembers what it was shown first."""

    component_type = "model"

    def __init__(self, turns: Any) -> None:
        self.turns = iter(turns)
        self.shown: list[str] | None = None

    async def create(self, messages: Any, *, tools: Any = (), **given: Any) -> CreateResult:
        if self.shown is None:
            self.shown = [item["name"] if isinstance(item, dict) else item.name for item in tools]
        calls: list[Scripted] = next(self.turns, [])
        content: Any = [FunctionCall(call.call_id, json.dumps(call.arguments), call.tool) for call in calls]
        return CreateResult(
            finish_reason="function_calls" if calls else "stop",
            content=content or "done",
            usage=RequestUsage(1, 1),
            cached=False,
        )

    async def create_stream(self, messages: Any, **given: Any) -> AsyncGenerator[Any, None]:
        yield await self.create(messages, **given)

    async def close(self) -> None: ...

    def actual_usage(self) -> RequestUsage:
        return RequestUsage(1, 1)

    total_usage = actual_usage

    def count_tokens(self, messages: Any, **given: Any) -> int:
        return 1

    def remaining_tokens(self, messages: Any, **given: Any) -> int:
        return 1000

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(
            vision=False, function_calling=True, json_output=False, family="unknown", structured_output=False
        )

    capabilities = model_info  # type: ignore[assignment]


def seen(messages: Any) -> list[str]:
    """What the model was told."""
    events = [message for message in messages if type(message).__name__ == "ToolCallExecutionEvent"]
    return [item.content for event in events for item in event.content]


class AutoGen:
    """Tools in a ``CRAWorkbench``."""

    way = "CRAWorkbench"

    framework = "autogen"
    modes: tuple[Mode, ...] = ("async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "nested", "hide"})
    holes: ClassVar[dict[str, str]] = {
        "unknown_tool": "an AssistantAgent answers a call of a tool that no workbench lists by itself"
    }

    def gives(self, task: Task, tools: list[Any]) -> dict[str, Any]:
        bench = CRAWorkbench(task.runtime, tools, agent=task.agent, hide_denied=task.adds_context)
        return {"workbench": bench}

    def agent(self, task: Task) -> tuple[AssistantAgent, Client]:
        client, tools = Client(task.turns), list(task.tools)
        if task.nested is not None:
            inner = AgentTool(self.agent(task.nested)[0])
            inner._name = "delegate"
            tools.append(inner)
        given = self.gives(task, tools)
        return AssistantAgent(task.agent, client, max_tool_iterations=len(task.turns) + 1, **given), client

    def run(self, task: Task) -> Outcome:
        turns = [[_renamed(call, task) for call in turn] for turn in task.turns]
        agent, client = self.agent(Task(**{**vars(task), "turns": turns}))

        async def run() -> Any:
            if task.mode == "async":
                return await agent.run(task="hi")
            return [item async for item in agent.run_stream(task="hi")][-1]

        try:
            result = asyncio.run(run())
        except Exception as error:
            return Outcome(error=error, shown=client.shown or [])
        return Outcome(seen(result.messages), result.messages[-1].to_text(), None, client.shown or [])

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise AssertionError("there is no pause")


def _renamed(call: Scripted, task: Task) -> Scripted:
    """An agent as a tool takes ``task``."""
    if call.tool != "delegate":
        return call
    return Scripted(call.tool, {"task": call.arguments["request"]}, call.call_id)


class AutoGenTools(AutoGen):
    """Tools of ``govern_tools``, for ``tools=``."""

    way = "govern_tools"

    abilities = frozenset({"call_ids", "agent_names", "nested"})

    def gives(self, task: Task, tools: list[Any]) -> dict[str, Any]:
        return {"tools": govern_tools(tools, task.runtime, agent=task.agent)}


class Remote(Workbench):
    """Another workbench, as one of MCP is: its tools run elsewhere, and say in their result that they failed."""

    def __init__(self, tools: list[Any]) -> None:
        self.inner = StaticWorkbench([FunctionTool(tool, description="") for tool in tools])

    async def list_tools(self) -> Any:
        return await self.inner.list_tools()

    async def call_tool(
        self, name: str, arguments: Any = None, cancellation_token: Any = None, call_id: Any = None
    ) -> Any:
        return await self.inner.call_tool(name, arguments, cancellation_token, call_id)

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def reset(self) -> None: ...
    async def save_state(self) -> Mapping[str, Any]:
        return {"kept": 1}

    async def load_state(self, state: Mapping[str, Any]) -> None:
        self.loaded = state


class AutoGenRemote(AutoGen):
    """A workbench inside a ``CRAWorkbench``."""

    way = "other workbench"

    abilities = frozenset({"call_ids", "agent_names", "hide"})
    holes: ClassVar[dict[str, str]] = {
        **AutoGen.holes,
        "tool_raises": "another workbench says that a tool failed, but not with which exception",
        "invalid_arguments": "another workbench refuses them by itself, in the call's result",
        "governed_body": "the function is on the other side: both decide",
    }

    def gives(self, task: Task, tools: list[Any]) -> dict[str, Any]:
        bench = CRAWorkbench(task.runtime, Remote(tools), agent=task.agent, hide_denied=task.adds_context)
        return {"workbench": bench}


@pytest.mark.parametrize("case", adapter_contract(AutoGen()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.mark.parametrize("case", adapter_contract(AutoGenTools()), ids=str)
def test_contract_of_governed_tools(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    case.check(tmp_path, bench_type)


@pytest.mark.parametrize("case", adapter_contract(AutoGenRemote()), ids=str)
def test_contract_of_another_workbench(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    case.check(tmp_path, bench_type)
