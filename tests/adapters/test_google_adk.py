"""Google ADK, for real: a scripted model drives ``Runner.run``, ``run_async`` and SSE streaming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("google.adk", reason="the Google ADK adapter needs the google-adk extra")

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_response import LlmResponse
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService, Session
from google.adk.tools.agent_tool import AgentTool
from google.genai import types
from pydantic import PrivateAttr

from cra_adapters.google_adk import CRAPlugin
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from tests.adapters.contract import Bench, check

CONFIRM = "adk_request_confirmation"


class Model(BaseLlm):
    """Follows a script, turn by turn, and remembers what it was shown first."""

    _turns: Iterator[Any] = PrivateAttr()
    _first: Any = PrivateAttr(default=None)

    def __init__(self, turns: Iterator[Any]) -> None:
        super().__init__(model="scripted")
        self._turns = turns

    @property
    def shown(self) -> list[str]:
        groups = self._first.config.tools or [] if self._first else []
        return [item.name for group in groups for item in group.function_declarations or []]

    @property
    def prompt(self) -> str:
        return str(self._first.config.system_instruction) if self._first else ""

    async def generate_content_async(self, llm_request: Any, stream: bool = False) -> AsyncIterator[LlmResponse]:
        self._first = self._first or llm_request
        calls: list[Scripted] = next(self._turns, [])
        parts = [
            types.Part(function_call=types.FunctionCall(name=call.tool, args=dict(call.arguments), id=call.call_id))
            for call in calls
        ]
        if stream and not parts:
            yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text="do")]), partial=True)
        yield LlmResponse(content=types.Content(role="model", parts=parts or [types.Part(text="done")]))


class Retry(BasePlugin):
    """A neighbour that runs a failed call twice more."""

    async def on_tool_error_callback(self, *, tool: Any, tool_args: Any, tool_context: Any, error: Exception) -> Any:
        for _ in range(2):
            try:
                return {"result": await tool.run_async(args=tool_args, tool_context=tool_context)}
            except TimeoutError:
                continue
        return None


def change(tool: Any, args: dict[str, Any], tool_context: Any) -> None:
    """A neighbour that changes arguments as late as it can."""
    args.update({key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in args})


def user(text: str) -> types.Content:
    return types.Content(role="user", parts=[types.Part(text=text)])


class GoogleADK:
    framework = "google_adk"
    modes: tuple[Mode, ...] = ("sync", "async", "stream")
    abilities = frozenset(
        {"call_ids", "agent_names", "pause", "retry", "change", "nested", "handoff", "hide", "context"}
    )
    holes: ClassVar[dict[str, str]] = {}

    def agent(self, task: Task) -> tuple[LlmAgent, Model]:
        turns, tools, below = [list(turn) for turn in task.turns], list(task.tools), []
        if task.nested is not None:
            inner, _ = self.agent(task.nested)
            if turns[0][0].tool == "delegate":
                turns = [[replace(turns[0][0], tool=inner.name)]]
                tools.append(AgentTool(inner))
            else:
                turns.append([Scripted("transfer_to_agent", {"agent_name": inner.name}, "call_handoff")])
                below.append(inner)
        model = Model(iter(turns))
        changing = {"before_tool_callback": change} if task.neighbour == "change" else {}
        return LlmAgent(name=task.agent, model=model, tools=tools, sub_agents=below, **changing), model

    def run(self, task: Task, message: types.Content | None = None, kept: str | None = None) -> Outcome:
        agent, model = self.agent(task)
        plugin = CRAPlugin(
            task.runtime, hide_denied=task.adds_context, inject_context=task.adds_context, confirm=task.pauses
        )
        neighbours: list[Any] = [Retry("retry")] if task.neighbour == "retry" else []
        runner = Runner(
            app_name="app", agent=agent, plugins=[plugin, *neighbours], session_service=InMemorySessionService()
        )
        events: list[Any] = []
        stored = ""
        try:
            session_id = asyncio.run(self.restored(runner, kept))
            given = {"user_id": "u", "session_id": session_id, "new_message": message or user("hi")}
            if task.mode == "sync":
                events += runner.run(**given)
            else:
                asyncio.run(self.collected(runner, given, task.mode, events))
            stored = asyncio.run(self.stored(runner, session_id))
        except Exception as error:
            return Outcome(error=error, shown=model.shown, prompt=model.prompt)
        parts = [part for event in events if event.content for part in event.content.parts or []]
        answers = [part.function_response for part in parts if part.function_response]
        asked = [part.function_call for part in parts if part.function_call and part.function_call.name == CONFIRM]
        texts = [part.text for part in parts if part.text]
        return Outcome(
            [str(answer.response) for answer in answers],
            texts[-1] if texts else "",
            None,
            model.shown,
            model.prompt,
            (stored, [call.id for call in asked]) if asked else None,
        )

    async def collected(self, runner: Runner, given: dict[str, Any], mode: Mode, events: list[Any]) -> None:
        streaming = StreamingMode.SSE if mode == "stream" else StreamingMode.NONE
        async for event in runner.run_async(**given, run_config=RunConfig(streaming_mode=streaming)):
            events.append(event)

    async def restored(self, runner: Runner, kept: str | None) -> str:
        session = await runner.session_service.create_session(app_name="app", user_id="u")
        for event in Session.model_validate_json(kept).events if kept else []:
            await runner.session_service.append_event(session, event)
        return session.id

    async def stored(self, runner: Runner, session_id: str) -> str:
        session = await runner.session_service.get_session(app_name="app", user_id="u", session_id=session_id)
        assert session is not None
        return session.model_dump_json()

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        stored, asked = paused
        response = {"confirmed": approved is not False}
        answers = [
            types.Part(function_response=types.FunctionResponse(id=item, name=CONFIRM, response=response))
            for item in asked
        ]
        return self.run(replace(task, turns=[]), types.Content(role="user", parts=answers), stored)


@pytest.mark.parametrize("case", adapter_contract(GoogleADK()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)
