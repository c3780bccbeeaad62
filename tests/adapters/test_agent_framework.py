"""Microsoft Agent Framework, for real: a scripted chat client drives ``Agent.run``, streamed or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("agent_framework", reason="the Agent Framework adapter needs the agent-framework extra")

from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    ContextProvider,
    FunctionInvocationLayer,
    FunctionMiddleware,
    Message,
    ResponseStream,
)

from cra_adapters.agent_framework import CRAMiddleware
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from tests.adapters.contract import Bench, check


class Client(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):  # type: ignore[misc]
    """Follows a script, turn by turn, and remembers what it was shown first."""

    def __init__(self, turns: Any) -> None:
        super().__init__()
        self.turns = iter(turns)
        self.shown: list[str] | None = None
        self.prompt = ""

    def _inner_get_response(self, *, messages: Any, stream: bool, options: Any, **kwargs: Any) -> Any:
        if self.shown is None:
            self.shown = [item.name for item in options.get("tools") or []]
            self.prompt = options.get("instructions") or ""
        calls: list[Scripted] = next(self.turns, [])
        contents = [
            Content.from_function_call(call.call_id, call.tool, arguments=json.dumps(call.arguments)) for call in calls
        ] or [Content.from_text("done")]
        if stream:

            async def updates() -> AsyncIterator[ChatResponseUpdate]:
                yield ChatResponseUpdate(contents=contents, role="assistant")

            return ResponseStream(updates(), finalizer=ChatResponse.from_updates)

        async def response() -> ChatResponse:
            return ChatResponse(messages=[Message("assistant", contents)])

        return response()


class Retry(FunctionMiddleware):
    """A neighbour that runs a failed call twice more."""

    async def process(self, context: Any, call_next: Any) -> None:
        for left in (2, 1, 0):
            try:
                await call_next()
                break
            except TimeoutError:
                if not left:
                    raise


class Change(FunctionMiddleware):
    """A neighbour that changes arguments as late as it can."""

    async def process(self, context: Any, call_next: Any) -> None:
        changed = {"amount": 500.0, "ticket_id": "T-9"}
        context.arguments = {**context.arguments, **{k: v for k, v in changed.items() if k in context.arguments}}
        await call_next()


class Provider(ContextProvider):
    """Puts its function middleware behind everybody else's."""

    def __init__(self, *several: FunctionMiddleware) -> None:
        super().__init__("late")
        self.several = several

    async def before_run(self, *, agent: Any, session: Any, context: Any, state: Any) -> None:
        context.extend_middleware("late", list(self.several))


NEIGHBOURS: dict[str | None, list[FunctionMiddleware]] = {None: [], "retry": [Retry()], "change": [Change()]}


class AgentFramework:
    framework = "agent_framework"
    modes: tuple[Mode, ...] = ("async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "pause", "retry", "change", "nested", "hide", "context"})
    holes: ClassVar[dict[str, str]] = {}

    def agent(self, task: Task) -> Agent[Any]:
        tools: list[Any] = list(task.tools)
        if task.nested is not None:
            tools.append(self.agent(task.nested).as_tool(name="delegate", arg_name="request"))
        gate = CRAMiddleware(task.runtime, hide_denied=task.adds_context, inject_context=task.adds_context)
        neighbours = NEIGHBOURS[task.neighbour]
        return Agent(
            client=Client(task.turns),
            name=task.agent,
            tools=tools,
            middleware=[gate],
            context_providers=[Provider(*neighbours)] if neighbours else None,
        )

    def run(self, task: Task, messages: Any = "hi", session: AgentSession | None = None) -> Outcome:
        agent = self.agent(task)
        session = session or (AgentSession() if task.pauses else None)

        async def run() -> Any:
            if task.mode != "stream":
                return await agent.run(messages, session=session)
            stream = agent.run(messages, session=session, stream=True)
            async for _ in stream:
                pass
            return await stream.get_final_response()

        client: Any = agent.client
        try:
            result = asyncio.run(run())
        except Exception as error:
            return Outcome(error=error, shown=client.shown or [], prompt=client.prompt)
        contents = [item for message in result.messages for item in message.contents]
        seen = [f"{item.result} {item.exception or ''}" for item in contents if item.type == "function_result"]
        paused = None
        if result.user_input_requests:
            requests = [request.to_dict() for request in result.user_input_requests]
            paused = json.dumps([session.to_dict() if session else None, requests])
        return Outcome(seen, result.text, None, client.shown or [], client.prompt, paused)

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        kept, requests = json.loads(paused)
        answers = [Content.from_dict(item).to_function_approval_response(approved is not False) for item in requests]
        session = AgentSession.from_dict(kept)
        return self.run(replace(task, turns=[]), [Message("user", answers)], session)


@pytest.mark.parametrize("case", adapter_contract(AgentFramework()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)
