"""OpenAI, in a loop of your own: ``GovernedTools(runtime, [fn, …]).call(tool_call)`` runs what a model calls.

    tools = GovernedTools(runtime, [lookup_ticket])
    message = client.chat.completions.create(model=…, messages=messages, tools=tools.schemas()).choices[0].message
    messages += [message, *tools.calls(message.tool_calls or [])]

Arguments are validated by the function's annotations, and what the function gets is what is decided. Tool calls of chat
completions are answered with ``role: tool`` messages, ``function_call`` and ``custom_tool_call`` items of the Responses
API with their output items; refusals and a tool's exceptions are words in those. A call that needs a person is answered
with a sentence that says so; after ``runtime.approvals.approve`` the same call, made again, runs once.

Holes: only what is called through here is governed; hosted tools of the Responses API run at OpenAI's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple

from cra_middleware import Runtime
from cra_middleware.dispatch import DispatchedTool, Dispatcher, Said
from cra_middleware.enforcement import EnforcementPoint

FRAMEWORK = "openai"
Functions = Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]]


class GovernedTools:
    """The tools of one agent, or of one conversation."""

    def __init__(
        self,
        runtime: Runtime | None,
        tools: Functions,
        actions: dict[str, str] | None = None,
        *,
        agent: str | None = None,
        goal: str | None = None,
        run: str | None = None,
        hide_denied: bool = True,
    ) -> None:
        """Govern with ``runtime``; None leaves it to the session that is current at a call.

        Args:
            tools: functions or coroutine functions, by the names that the model knows them by, or a list of them.
            actions: tool names to action ids, before what the Atlas maps.
            agent: the agent's name, for policies and the trace.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            run: your id of the conversation, recorded in the trace.
            hide_denied: tools that no call could be allowed to use are not shown to the model.

        Raises:
            TypeError: when a function's annotations are none that arguments can be validated with.
        """
        point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent, goal=goal)
        self._tools = _dispatched(point, tools)
        self._dispatcher = Dispatcher(point, self._tools, agent=agent, run=run)
        self._hide_denied = hide_denied

    def schemas(self, api: Literal["chat", "responses"] = "chat") -> list[dict[str, Any]]:
        """What to give as ``tools=``: those that are shown.

        Raises:
            CallRefused: when no session governs them.
        """
        found = []
        for tool in self._dispatcher.permitted() if self._hide_denied else self._tools:
            function = {"name": tool.name, "description": tool.description, "parameters": tool.schema}
            found.append(
                {"type": "function", "function": function} if api == "chat" else {"type": "function", **function}
            )
        return found

    @property
    def context_text(self) -> str:
        """The Atlas's documents, for the system prompt."""
        return self._dispatcher.context_text

    def call(self, item: Any) -> dict[str, Any]:
        """Run one tool call of a model, or not; the message or item to send back.

        Raises:
            TypeError: when ``item`` is no tool call.
        """
        call = _read(item)
        return call.answer(self._dispatcher.answer(call.name, call.arguments, call.id))

    async def acall(self, item: Any) -> dict[str, Any]:
        """As ``call``, on an event loop; functions that are no coroutine functions run in threads."""
        call = _read(item)
        return call.answer(await self._dispatcher.aanswer(call.name, call.arguments, call.id))

    def calls(self, items: Iterable[Any]) -> list[dict[str, Any]]:
        """The answers to several calls, in order."""
        return [self.call(item) for item in items]

    async def acalls(self, items: Iterable[Any]) -> list[dict[str, Any]]:
        """The answers to several calls, which run at once, in order."""
        return list(await asyncio.gather(*(self.acall(item) for item in items)))

    def close(self) -> None:
        """The conversation is over: its session ends, unless a person is still being asked in it."""
        self._dispatcher.end()

    def __enter__(self) -> GovernedTools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Call(NamedTuple):
    name: str
    arguments: object
    id: str
    kind: str

    def answer(self, said: Said) -> dict[str, Any]:
        if self.kind == "chat":
            return {"role": "tool", "tool_call_id": self.id, "content": said.text}
        return {"type": f"{self.kind}_output", "call_id": self.id, "output": said.text}


def _read(item: Any) -> _Call:
    kind = _part(item, "type")
    match kind:
        case "function":
            function = _part(item, "function")
            return _Call(_part(function, "name"), _part(function, "arguments"), _part(item, "id"), "chat")
        case "custom":
            custom = _part(item, "custom")
            return _Call(_part(custom, "name"), {"input": _part(custom, "input")}, _part(item, "id"), "chat")
        case "function_call":
            return _Call(_part(item, "name"), _part(item, "arguments"), _part(item, "call_id"), kind)
        case "custom_tool_call":
            return _Call(_part(item, "name"), {"input": _part(item, "input")}, _part(item, "call_id"), kind)
    raise TypeError(f"{kind or type(item).__name__} is no tool call that is run here")


def _part(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _dispatched(point: EnforcementPoint, tools: Functions) -> list[DispatchedTool]:
    named = tools.items() if isinstance(tools, Mapping) else [(None, fn) for fn in tools]
    return [DispatchedTool(point, fn, name) for name, fn in named]


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each function: a list of functions, or functions by name.

    Raises:
        TypeError: when something in it is no function, or none that can be a tool.
    """
    several = found if isinstance(found, (Mapping, list, tuple)) else [found]
    tools = _dispatched(EnforcementPoint(None, FRAMEWORK), several)
    return [(tool.name, tool.description, tool.schema) for tool in tools]
