"""How the contract drives LangChain: a scripted model, neighbours, and runs that are begun, gone on with, and read."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import Field

from cra_middleware.testing import Mode, Outcome, Scripted, Task


class Model(GenericFakeChatModel):
    """Follows a script, and remembers what it was shown first."""

    shown: list[Any] = Field(default_factory=list)
    prompts: list[Any] = Field(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        self.shown.append([item.name for item in tools])
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.prompts.append(messages)
        return super()._generate(messages, *args, **kwargs)


def scripted(turns: Sequence[Sequence[Scripted]]) -> Model:
    said = [
        AIMessage("", tool_calls=[{"name": one.tool, "args": dict(one.arguments), "id": one.call_id} for one in turn])
        for turn in turns
    ]
    return Model(messages=iter([*said, *(AIMessage("done") for _ in range(8))]))


class Retry(AgentMiddleware[Any, Any, Any]):
    """A neighbour that runs a failed call twice more."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        for _ in range(2):
            try:
                return handler(request)
            except TimeoutError:
                continue
        return handler(request)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        for _ in range(2):
            try:
                return await handler(request)
            except TimeoutError:
                continue
        return await handler(request)


class Change(AgentMiddleware[Any, Any, Any]):
    """A neighbour that changes arguments as late as it can."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(self.changed(request))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(self.changed(request))

    def changed(self, request: Any) -> Any:
        args = request.tool_call["args"]
        other = {key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in args}
        return request.override(tool_call={**request.tool_call, "args": {**args, **other}})


NEIGHBOURS: dict[str | None, list[Any]] = {None: [], "retry": [Retry()], "change": [Change()]}


class OfAgents:
    """What the subjects share: how a run is begun, gone on with, and read."""

    framework = "langchain"
    modes: tuple[Mode, ...] = ("sync", "async", "stream")

    def build(self, task: Task, model: Model, tools: list[BaseTool], saver: Any) -> Any:
        raise NotImplementedError

    def agent(self, task: Task, saver: Any = None) -> tuple[Any, Model]:
        tools: list[BaseTool] = []
        for fn in task.tools:
            asynchronous = inspect.iscoroutinefunction(fn)
            made = StructuredTool.from_function(None if asynchronous else fn, fn if asynchronous else None)
            tools.append(made)
        if task.nested is not None:
            inner, _ = self.agent(task.nested)
            given = {"messages": [("user", "hi")]}

            def delegate(request: str) -> str:
                """Ask the helper."""
                return str(inner.invoke(given)["messages"][-1].content)

            async def adelegate(request: str) -> str:
                """Ask the helper."""
                return str((await inner.ainvoke(given))["messages"][-1].content)

            tools.append(StructuredTool.from_function(delegate, adelegate))
        model = scripted(task.turns)
        return self.build(task, model, tools, saver), model

    def run(self, task: Task) -> Outcome:
        return self.drive(task, InMemorySaver() if task.pauses else None, {"messages": [("user", "hi")]})

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        answer: Any = "go on" if approved is None else approved
        return self.drive(replace(task, turns=[]), paused, Command(resume=answer))

    def drive(self, task: Task, saver: Any, given: Any) -> Outcome:
        agent, model = self.agent(task, saver)
        config = {"configurable": {"thread_id": task.run or "t"}} if task.run or saver else None
        try:
            state = self.invoke(agent, task.mode, given, config)
        except Exception as error:
            return Outcome(error=error, shown=self.shown(model), prompt=self.prompt(model))
        messages = state["messages"]
        seen = [str(message.content) for message in messages if isinstance(message, ToolMessage)]
        paused = saver if state.get("__interrupt__") else None
        return Outcome(seen, str(messages[-1].content), None, self.shown(model), self.prompt(model), paused)

    def invoke(self, agent: Any, mode: Mode, given: Any, config: Any) -> Any:
        if mode == "sync":
            return agent.invoke(given, config)
        if mode == "async":
            return asyncio.run(agent.ainvoke(given, config))

        async def stream() -> Any:
            last: dict[str, Any] = {}
            async for state in agent.astream(given, config, stream_mode="values"):
                last = {**last, **state}
            return last

        return asyncio.run(stream())

    def shown(self, model: Model) -> Sequence[str]:
        return model.shown[0] if model.shown else []

    def prompt(self, model: Model) -> str:
        first = model.prompts[0][0] if model.prompts else None
        return str(first.content) if isinstance(first, SystemMessage) else ""
