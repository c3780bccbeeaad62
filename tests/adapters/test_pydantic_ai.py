"""Pydantic AI, for real: a scripted model drives ``Agent.run_sync``, ``run`` and ``run_stream``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("pydantic_ai", reason="the Pydantic AI adapter needs the pydantic-ai extra")

from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ToolDenied
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from cra_adapters.pydantic_ai import CRACapability
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from tests.adapters.contract import Bench, check


class Model:
    """Follows a script, turn by turn, and remembers what it was shown first."""

    def __init__(self, turns: Iterator[Any]) -> None:
        self.turns = turns
        self.shown: list[str] = []
        self.prompt = ""
        self.model = FunctionModel(self.answer, stream_function=self.stream)

    def _next(self, info: AgentInfo) -> list[Scripted]:
        if not self.prompt and not self.shown:
            self.shown = [item.name for item in info.function_tools]
            self.prompt = info.instructions or " ".join(
                part.content for part in info.model_request_parameters.instruction_parts or []
            )
        return next(self.turns, [])

    def answer(self, messages: Any, info: AgentInfo) -> ModelResponse:
        calls = self._next(info)
        parts = [ToolCallPart(call.tool, dict(call.arguments), call.call_id) for call in calls]
        return ModelResponse(parts=parts or [TextPart("done")])

    async def stream(self, messages: Any, info: AgentInfo) -> AsyncIterator[Any]:
        calls = self._next(info)
        if not calls:
            yield "done"
        else:
            yield {
                number: DeltaToolCall(call.tool, json.dumps(call.arguments), tool_call_id=call.call_id)
                for number, call in enumerate(calls)
            }


class Retry(AbstractCapability[Any]):
    """A neighbour that runs a failed call twice more."""

    async def wrap_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        for _ in range(2):
            try:
                return await handler(args)
            except TimeoutError:
                continue
        return await handler(args)


class Change(AbstractCapability[Any]):
    """A neighbour that changes arguments as late as it can."""

    async def before_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any) -> Any:
        return {**args, **{key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in args}}


class PydanticAI:
    framework = "pydantic_ai"
    modes: tuple[Mode, ...] = ("sync", "async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "pause", "retry", "change", "nested", "hide", "context"})
    holes: ClassVar[dict[str, str]] = {}

    def agent(self, task: Task) -> tuple[Agent[Any, Any], Model]:
        model = Model(iter(task.turns))
        tools = list(task.tools)
        if task.nested is not None:
            inner, _ = self.agent(task.nested)

            async def delegate(request: str) -> str:
                """Ask the helper."""
                return str((await inner.run(request)).output)

            tools.append(delegate)
        neighbours = {None: [], "retry": [Retry()], "change": [Change()]}[task.neighbour]
        capability = CRACapability(task.runtime, hide_denied=task.adds_context, inject_context=task.adds_context)
        return (
            Agent(
                model.model,
                name=task.agent,
                tools=tools,
                capabilities=[capability, *neighbours],
                output_type=[str, DeferredToolRequests] if task.pauses else str,
            ),
            model,
        )

    def run(self, task: Task, **given: Any) -> Outcome:
        agent, model = self.agent(task)
        given = given or {"user_prompt": "hi"}
        try:
            if task.mode == "sync":
                result: Any = agent.run_sync(**given)
            elif task.mode == "async":
                result = asyncio.run(agent.run(**given))
            else:
                result = asyncio.run(self.streamed(agent, given))
        except Exception as error:
            return Outcome(error=error, shown=model.shown, prompt=model.prompt)
        history = result.all_messages()
        output = result.output if task.mode != "stream" else result.streamed_output
        paused = ModelMessagesTypeAdapter.dump_json(history) if isinstance(output, DeferredToolRequests) else None
        seen = [
            str(part.content)
            for message in history
            for part in message.parts
            if part.part_kind in ("tool-return", "retry-prompt")
        ]
        return Outcome(seen, str(output), None, model.shown, model.prompt, paused)

    async def streamed(self, agent: Agent[Any, Any], given: dict[str, Any]) -> Any:
        async with agent.run_stream(**given) as stream:
            stream.streamed_output = await stream.get_output()
            return stream

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        history = ModelMessagesTypeAdapter.validate_json(paused)
        calls = [part for message in history for part in message.parts if part.part_kind == "tool-call"]
        waiting = [part.tool_call_id for part in calls if part.tool_name == "pay"]
        answer: Any = ToolDenied("A person said no.") if approved is False else True
        results = DeferredToolResults(approvals=dict.fromkeys(waiting, answer))
        return self.run(replace(task, turns=[]), message_history=history, deferred_tool_results=results)


@pytest.mark.parametrize("case", adapter_contract(PydanticAI()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)
