"""Anthropic: the tools of a loop of your own, and those of ``client.beta.messages.tool_runner``.

    tools = GovernedTools(runtime, [lookup_ticket])
    message = client.messages.create(…, messages=messages, tools=tools.schemas())
    messages += [message.to_param(), {"role": "user", "content": tools.calls(message.content)}]

or, with functions or ``@beta_tool`` and ``@beta_async_tool`` objects in ``tools``:

    client.beta.messages.tool_runner(…, tools=tools.runnables())

Arguments are validated by the function's annotations, and what the function gets is what is decided. A refusal is a
``tool_result`` with ``is_error``. Of a runnable tool without a function (memory, MCP, a class of your own) the input
itself is decided, with the defaults of its schema. A call that needs a person is answered with a sentence that says so;
after ``runtime.approvals.approve`` the same call, made again, runs once.

Holes: only what is called through here is governed. The tool runner tells no tool the id of a call, and answers a call
of a tool that is not there, or hidden, by itself, so such calls are not in the trace. Server tools run at Anthropic's.
Toolsets are refused.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from anthropic.lib import tools as lib
from anthropic.lib.tools import (
    BetaAsyncBuiltinFunctionTool,
    BetaAsyncFunctionTool,
    BetaBuiltinFunctionTool,
    BetaFunctionTool,
    ToolError,
)

from cra_middleware import CallRefused, Runtime
from cra_middleware.dispatch import DispatchedTool, Dispatcher, Said
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, require

FRAMEWORK = "anthropic"


class GovernedTools:
    """The tools of one agent, or of one conversation."""

    def __init__(
        self,
        runtime: Runtime | None,
        tools: Sequence[Any] | Mapping[str, Callable[..., Any]],
        actions: dict[str, str] | None = None,
        *,
        agent: str | None = None,
        goal: str | None = None,
        run: str | None = None,
        hide_denied: bool = True,
    ) -> None:
        """Govern with ``runtime``; None leaves it to the session that is current at a call.

        Args:
            tools: functions, coroutine functions, or runnable tools; or functions by the names that the model knows.
            actions: tool names to action ids, before what the Atlas maps.
            agent: the agent's name, for policies and the trace.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            run: your id of the conversation, recorded in the trace.
            hide_denied: tools that no call could be allowed to use are not shown to the model.

        Raises:
            RuntimeError: when this version of the SDK has no runnable tools.
            TypeError: when something in ``tools`` cannot be governed.
        """
        require("anthropic", "2.12", {lib: ("BetaBuiltinFunctionTool", "BetaAsyncBuiltinFunctionTool", "ToolError")})
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent, goal=goal)
        self._hide_denied = hide_denied
        self._about = _About(agent, run)
        found = [_read(self._point, item, name) for item, name in _named(tools)]
        self._functions = [item for item in found if isinstance(item, _Function)]
        self._others = [item for item in found if isinstance(item, _Other)]
        self._dispatcher = Dispatcher(self._point, [one.dispatched for one in self._functions], agent=agent, run=run)

    def schemas(self) -> list[dict[str, Any]]:
        """What to give as ``tools=`` in a loop of your own: the functions that are shown.

        Raises:
            CallRefused: when no session governs them.
        """
        shown = self._shown()
        return [one.definition for one in self._functions if one.dispatched in shown]

    def runnables(self, *, on_event_loop: bool = False) -> list[Any]:
        """What to give to ``tool_runner`` as ``tools=``: those that are shown.

        Args:
            on_event_loop: makes asynchronous tools of plain functions, too, as the runner of ``AsyncAnthropic`` wants.

        Raises:
            CallRefused: when no session governs them.
        """
        shown = self._shown()
        made: list[Any] = []
        for one in self._functions:
            if one.dispatched in shown:
                kind = _AsyncRunnable if on_event_loop or one.dispatched.is_async else _Runnable
                made.append(kind(one.definition, one.source, one.dispatched.name, self._dispatcher))
        session = self._point.session(agent=self._about.agent, run=self._about.run)
        for other in self._others:
            if not self._hide_denied or other.governed.is_shown(session):
                kind_of_other = (
                    _AsyncOther
                    if isinstance(other.tool, BetaAsyncBuiltinFunctionTool | BetaAsyncFunctionTool)
                    else _SyncOther
                )
                made.append(kind_of_other(other, self._about))
        return made

    def _shown(self) -> list[DispatchedTool]:
        return self._dispatcher.permitted() if self._hide_denied else [one.dispatched for one in self._functions]

    @property
    def context_text(self) -> str:
        """The Atlas's documents, for the system prompt."""
        return self._dispatcher.context_text

    def call(self, block: Any) -> dict[str, Any]:
        """Run one ``tool_use`` block, or not; the ``tool_result`` to send back.

        Raises:
            TypeError: when ``block`` is none.
        """
        name, given, call_id = _used(block)
        return _result(call_id, self._dispatcher.answer(name, given, call_id))

    async def acall(self, block: Any) -> dict[str, Any]:
        """As ``call``, on an event loop; functions that are no coroutine functions run in threads."""
        name, given, call_id = _used(block)
        return _result(call_id, await self._dispatcher.aanswer(name, given, call_id))

    def calls(self, content: Iterable[Any]) -> list[dict[str, Any]]:
        """The results for the ``tool_use`` blocks in a message's content, in order."""
        return [self.call(block) for block in content if _part(block, "type") == "tool_use"]

    async def acalls(self, content: Iterable[Any]) -> list[dict[str, Any]]:
        """As ``calls``; they run at once."""
        return list(await asyncio.gather(*(self.acall(one) for one in content if _part(one, "type") == "tool_use")))

    def close(self) -> None:
        """The conversation is over: its session ends, unless a person is still being asked in it."""
        self._dispatcher.end()

    def __enter__(self) -> GovernedTools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _About(NamedTuple):
    agent: str | None
    run: str | None


class _Function:
    """A function, or a runnable tool that was made of one."""

    def __init__(self, point: EnforcementPoint, source: Any, name: str | None) -> None:
        self.source = source
        if isinstance(source, BetaFunctionTool | BetaAsyncFunctionTool):
            self.definition: dict[str, Any] = dict(source.to_dict())
            self.dispatched = DispatchedTool(
                point, source.func, source.name, source.description, self.definition["input_schema"]
            )
        else:
            self.dispatched = DispatchedTool(point, source, name)
            self.definition = {
                "name": self.dispatched.name,
                "description": self.dispatched.description,
                "input_schema": self.dispatched.schema,
            }


class _Other:
    """A runnable tool without a function: its input is all there is to decide on."""

    def __init__(self, point: EnforcementPoint, tool: Any) -> None:
        self.tool = tool
        self.definition: dict[str, Any] = dict(tool.to_dict())
        schema = self.definition.get("input_schema")
        properties = schema.get("properties", {}) if isinstance(schema, Mapping) else {}
        self.defaults = {name: one["default"] for name, one in properties.items() if "default" in one}
        description = self.definition.get("description", "")
        self.governed: GovernedTool = point.tool(
            tool.name, description=description, schema=schema, origin=type(tool).__qualname__
        )

    def asked(self, given: object, about: _About) -> GovernedCall:
        arguments = {**self.defaults, **given} if isinstance(given, Mapping) else given
        return self.governed.call(arguments, agent=about.agent, run=about.run)


class _Standing:
    """Stands for a tool of the user's; what else the SDK asks of it (``close``, for one) is the tool's own."""

    def __init__(self, definition: dict[str, Any], source: Any) -> None:
        self._definition = definition
        self._source = source

    def to_dict(self) -> Any:
        return dict(self._definition)

    def __getattr__(self, name: str) -> Any:
        if name in ("_source", "call", "func"):
            raise AttributeError(name)
        return getattr(self._source, name)


class _Runnable(_Standing, BetaBuiltinFunctionTool):
    def __init__(self, definition: dict[str, Any], source: Any, name: str, dispatcher: Dispatcher) -> None:
        super().__init__(definition, source)
        self._called = name
        self._dispatcher = dispatcher

    def call(self, input: object) -> Any:
        try:
            return _content(self._dispatcher.invoke(self._called, input))
        except CallRefused as refusal:
            raise ToolError(str(refusal)) from refusal


class _AsyncRunnable(_Standing, BetaAsyncBuiltinFunctionTool):
    def __init__(self, definition: dict[str, Any], source: Any, name: str, dispatcher: Dispatcher) -> None:
        super().__init__(definition, source)
        self._called = name
        self._dispatcher = dispatcher

    async def call(self, input: object) -> Any:
        try:
            return _content(await self._dispatcher.ainvoke(self._called, input))
        except CallRefused as refusal:
            raise ToolError(str(refusal)) from refusal


class _SyncOther(_Standing, BetaBuiltinFunctionTool):
    def __init__(self, other: _Other, about: _About) -> None:
        super().__init__(other.definition, other.tool)
        self._other = other
        self._about = about

    def call(self, input: object) -> Any:
        given = copy.deepcopy(input)  # it is the message's own
        try:
            return self._other.asked(given, self._about).run(lambda: self._other.tool.call(given))
        except CallRefused as refusal:
            raise ToolError(str(refusal)) from refusal


class _AsyncOther(_Standing, BetaAsyncBuiltinFunctionTool):
    def __init__(self, other: _Other, about: _About) -> None:
        super().__init__(other.definition, other.tool)
        self._other = other
        self._about = about

    async def call(self, input: object) -> Any:
        given = copy.deepcopy(input)  # it is the message's own
        try:
            return await self._other.asked(given, self._about).arun(lambda: self._other.tool.call(given))
        except CallRefused as refusal:
            raise ToolError(str(refusal)) from refusal


def _read(point: EnforcementPoint, item: Any, name: str | None) -> _Function | _Other:
    if type(item) in (BetaFunctionTool, BetaAsyncFunctionTool):
        return _Function(point, item, None)
    if isinstance(
        item, BetaFunctionTool | BetaAsyncFunctionTool | BetaBuiltinFunctionTool | BetaAsyncBuiltinFunctionTool
    ):
        return _Other(point, item)  # one with a ``call`` of its own may do anything with its input
    if callable(item):
        return _Function(point, item, name)
    raise TypeError(f"{type(item).__name__} is no function and no runnable tool, and cannot be governed")


def _named(tools: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, str | None]]:
    return [(fn, name) for name, fn in tools.items()] if isinstance(tools, Mapping) else [(one, None) for one in tools]


def _used(block: Any) -> tuple[str, object, str]:
    if _part(block, "type") != "tool_use":
        raise TypeError(f"{_part(block, 'type') or type(block).__name__} is no tool_use block")
    return _part(block, "name"), _part(block, "input"), _part(block, "id")


def _part(block: Any, name: str) -> Any:
    return block.get(name) if isinstance(block, Mapping) else getattr(block, name, None)


def _result(call_id: str, said: Said) -> dict[str, Any]:
    content = said.text if said.is_error else _content(said.value)
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, "is_error": said.is_error}


def _content(value: object) -> Any:
    """A result as the API takes it: text, or the content blocks that a tool made itself."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) and "type" in one for one in value):
        return list(value)
    return Said(value, False).text


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool: functions and runnable tools, or functions by name.

    Raises:
        TypeError: when something in it is neither.
    """
    several = found if isinstance(found, (Mapping, list, tuple)) else [found]
    point = EnforcementPoint(None, FRAMEWORK)
    described = []
    for item, name in _named(several):
        read = _read(point, item, name)
        definition = read.definition
        described.append((definition["name"], definition.get("description", ""), definition.get("input_schema")))
    return described
