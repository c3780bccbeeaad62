"""AutoGen: ``AssistantAgent(..., workbench=CRAWorkbench(runtime, [tool, ...], agent="name"))`` governs the tools.

Functions, ``BaseTool``s and other workbenches (MCP) go in. A tool decides in its ``run``, on the validated arguments,
streamed or not; a tool of another workbench is decided on the arguments it is called with and the defaults of its
schema. ``govern_tools`` makes tools that decide, for ``tools=``, for a ``ToolAgent`` or a loop of your own. A refusal
is the tool's error result. AutoGen cannot pause at a tool call: the runtime's approver is asked, or the model is told
to wait.

The framework tells a tool neither agent nor run: name the agent, and a session lasts as long as its workbench, to
``reset`` or ``stop``. Agents of a team share one only inside ``with runtime.session(...)``; each has its own below it.

Holes: a call of a tool that the agent does not have, or that is hidden from it, runs nothing and is not recorded;
handoffs are not decided; code executors and the tools you keep (``tool.run_json``) never come by. A governed component
cannot be dumped, because what is loaded again would not be governed.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, NoReturn, Self

from autogen_core import CancellationToken
from autogen_core.tools import (
    BaseStreamTool,
    BaseTool,
    FunctionTool,
    StaticStreamWorkbench,
    StaticWorkbench,
    TextResultContent,
    ToolResult,
    ToolSchema,
    Workbench,
)
from pydantic import BaseModel, ValidationError

from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, require

FRAMEWORK = "autogen"


class CRAWorkbench(StaticStreamWorkbench):
    """The tools of one agent, and those of other workbenches, decided and recorded."""

    def __init__(
        self,
        runtime: Runtime | None,
        *sources: Any,
        actions: dict[str, str] | None = None,
        agent: str | None = None,
        goal: str | None = None,
        hide_denied: bool = True,
    ) -> None:
        """Govern ``sources``: functions, tools, workbenches, and lists of them.

        Args:
            runtime: None leaves it to the session that is current at a call; a call outside any is refused.
            actions: tool names to action ids, before what the Atlas maps.
            agent: the name of the agent that gets the workbench, for policies and the trace.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            hide_denied: tools that no call could be allowed to use are not shown to the model.

        Raises:
            RuntimeError: when this version of AutoGen lacks a hook that the gate stands on.
            TypeError: for what is no tool, and for a ``StaticWorkbench``, whose tools have to be given themselves.
        """
        point = _point(runtime, actions, agent, goal)
        self._origin = _Origin(point, agent)
        several = [item for one in sources for item in (one if isinstance(one, (list, tuple)) else [one])]
        self._others = [item for item in several if isinstance(item, Workbench)]
        self._hide_denied = hide_denied
        for other in self._others:
            if isinstance(other, StaticWorkbench):
                raise TypeError(
                    "give the tools of a StaticWorkbench themselves: only so the decision is about what runs"
                )
        super().__init__([_governed(item, self._origin) for item in several if not isinstance(item, Workbench)])

    async def list_tools(self) -> list[ToolSchema]:
        schemas: list[ToolSchema] = await super().list_tools()
        for other in self._others:
            schemas += await other.list_tools()
        if not self._hide_denied:
            return schemas
        session = self._origin.point.session(run=self._origin.run, agent=self._origin.agent)
        return [schema for schema in schemas if _described(self._origin.point, schema).is_shown(session)]

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> ToolResult:
        items = [item async for item in self.call_tool_stream(name, arguments, cancellation_token, call_id)]
        result: ToolResult = items[-1]
        return result

    async def call_tool_stream(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        if any(tool.name == name for tool in self._tools):
            async for item in super().call_tool_stream(name, arguments, cancellation_token, call_id):
                yield item
            return
        try:
            other, schema = await self._found(name)
            if other is None or schema is None:
                tool, place = self._origin.point.tool(name), self._origin
                raise tool.missing(arguments, call_id=call_id, agent=place.agent, run=place.run)
            arguments = copy.deepcopy(arguments)  # the caller may hold them
            filled = arguments if arguments and not isinstance(arguments, Mapping) else _filled(schema, arguments)
            call = self._origin.call(_described(self._origin.point, schema, type(other).__name__), filled, call_id)
            async for item in _streamed(call, lambda: _outcomes(other, name, arguments, cancellation_token, call_id)):
                yield item
        except ToolResultError as error:
            yield error.result
        except CallRefused as refusal:
            yield ToolResult(name=name, result=[TextResultContent(content=str(refusal))], is_error=True)

    async def _found(self, name: str) -> tuple[Workbench | None, ToolSchema | None]:
        for other in self._others:
            for schema in await other.list_tools():
                if schema["name"] == name:
                    return other, schema
        return None, None

    async def start(self) -> None:
        for other in self._others:
            await other.start()

    async def stop(self) -> None:
        self._origin.end()
        for other in self._others:
            await other.stop()

    async def reset(self) -> None:
        self._origin.end()
        for other in self._others:
            await other.reset()

    async def save_state(self) -> Mapping[str, Any]:
        return {"tools": await super().save_state(), "others": [await other.save_state() for other in self._others]}

    async def load_state(self, state: Mapping[str, Any]) -> None:
        await super().load_state(state["tools"])
        for other, kept in zip(self._others, state["others"], strict=True):
            await other.load_state(kept)

    def _to_config(self) -> NoReturn:
        raise _undumpable(self)


def govern_tools(
    tools: Iterable[Any],
    runtime: Runtime | None,
    actions: dict[str, str] | None = None,
    *,
    agent: str | None = None,
    goal: str | None = None,
) -> list[BaseTool[Any, Any]]:
    """Tools that decide whenever they are run, by whomever; a refused one raises ``CallRefused``.

    Raises:
        RuntimeError: when this version of AutoGen lacks a hook that the gate stands on.
        TypeError: for what is neither a tool nor a function.
    """
    origin = _Origin(_point(runtime, actions, agent, goal), agent)
    return [_governed(tool, origin) for tool in tools]


class _Origin:
    """Who calls, and in which run: as long as a workbench is neither reset nor stopped."""

    def __init__(self, point: EnforcementPoint, agent: str | None) -> None:
        self.point = point
        self.agent = agent
        self.run = uuid.uuid4().hex

    def call(self, tool: GovernedTool, arguments: object, call_id: str | None) -> GovernedCall:
        return tool.call(arguments, call_id=call_id, agent=self.agent, run=self.run)

    def end(self) -> None:
        self.point.end(self.run)
        self.run = uuid.uuid4().hex


class _GovernedTool(BaseTool[Any, Any]):
    """A tool whose ``run`` decides first."""

    def __init__(self, tool: BaseTool[Any, Any], origin: _Origin) -> None:
        super().__init__(tool.args_type(), tool.return_type(), tool.name, tool.description)
        self.tool = tool
        self.origin = origin
        self.call_id: str | None = None

    @property
    def schema(self) -> ToolSchema:
        return self.tool.schema

    async def run(self, args: Any, cancellation_token: CancellationToken) -> Any:
        own = copy.deepcopy(args)  # the caller may hold them
        return await self._call(own).arun(lambda: self.tool.run(own, cancellation_token))

    async def run_json(
        self, args: Mapping[str, Any], cancellation_token: CancellationToken, call_id: str | None = None
    ) -> Any:
        checked = self._checked(args, call_id)
        if type(self.tool).run_json is BaseTool.run_json:
            return await BaseTool.run_json(self._for(call_id), args, cancellation_token, call_id)
        given = dict(BaseModel.__iter__(checked))  # a tool that reads its arguments by itself reads what was decided
        call = self._for(call_id)._call(checked)
        return await call.arun(lambda: self.tool.run_json(given, cancellation_token, call_id))

    def return_value_as_string(self, value: Any) -> str:
        text: str = self.tool.return_value_as_string(value)
        return text

    async def save_state_json(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = await self.tool.save_state_json()
        return state

    async def load_state_json(self, state: Mapping[str, Any]) -> None:
        await self.tool.load_state_json(state)

    def _for(self, call_id: str | None) -> Self:
        """Itself, for one call: ``run`` is not told which."""
        one = copy.copy(self)
        one.call_id = call_id
        return one

    def _checked(self, args: Any, call_id: str | None) -> BaseModel:
        """The arguments as the tool takes them; others are recorded."""
        try:
            checked: BaseModel = self.args_type().model_validate(args)
        except ValidationError:
            call = self.origin.call(self._described(), args, call_id)
            raise call.reject("the arguments do not fit the tool's schema") from None
        return checked

    def _call(self, args: BaseModel) -> GovernedCall:
        return self.origin.call(self._described(), dict(BaseModel.__iter__(args)), self.call_id)

    def _described(self) -> GovernedTool:
        return _described(self.origin.point, self.schema, type(self.tool).__name__, getattr(self.tool, "_func", None))

    def _to_config(self) -> NoReturn:
        raise _undumpable(self)


class _GovernedStreamTool(_GovernedTool, BaseStreamTool[Any, Any, Any]):
    """The same for a tool that streams."""

    tool: BaseStreamTool[Any, Any, Any]

    async def run_stream(self, args: Any, cancellation_token: CancellationToken) -> AsyncGenerator[Any, None]:
        own = copy.deepcopy(args)  # as in run
        async for item in _streamed(self._call(own), lambda: self.tool.run_stream(own, cancellation_token)):
            yield item

    async def run_json_stream(
        self, args: Mapping[str, Any], cancellation_token: CancellationToken, call_id: str | None = None
    ) -> AsyncGenerator[Any, None]:
        checked = self._checked(args, call_id)
        one = self._for(call_id)
        if type(self.tool).run_json_stream is BaseStreamTool.run_json_stream:
            stream = BaseStreamTool.run_json_stream(one, args, cancellation_token, call_id)
        else:
            given = dict(BaseModel.__iter__(checked))
            own = self.tool.run_json_stream
            stream = _streamed(one._call(checked), lambda: own(given, cancellation_token, call_id))
        async for item in stream:
            yield item


class ToolResultError(Exception):
    """A tool of another workbench failed, and said so in its result."""

    def __init__(self, result: ToolResult) -> None:
        super().__init__(result.to_text())
        self.result = result


async def _outcomes(
    other: Workbench, name: str, arguments: Any, token: CancellationToken | None, call_id: str | None
) -> AsyncGenerator[Any, None]:
    stream = getattr(other, "call_tool_stream", None)
    if stream is not None:
        async for item in stream(name, arguments, token, call_id):
            if isinstance(item, ToolResult) and item.is_error:
                raise ToolResultError(item)
            yield item
        return
    result = await other.call_tool(name, arguments, token, call_id)
    if result.is_error:
        raise ToolResultError(result)
    yield result


async def _streamed(call: GovernedCall, stream: Callable[[], AsyncGenerator[Any, None]]) -> AsyncGenerator[Any, None]:
    """What ``stream`` yields, which is the body of one call: in a task of its own, so that all of it is inside."""
    items: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
    end = object()
    is_read = True

    async def body() -> None:
        async for item in stream():
            await items.put(item)

    async def run() -> None:
        try:
            await call.arun(body)
        finally:
            if is_read:
                await items.put(end)

    task = asyncio.create_task(run())
    try:
        while (item := await items.get()) is not end:
            yield item
        await task
    finally:
        is_read = False
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def _governed(tool: Any, origin: _Origin) -> BaseTool[Any, Any]:
    if isinstance(tool, _GovernedTool):
        return tool
    made = _tool(tool)
    return (_GovernedStreamTool if isinstance(made, BaseStreamTool) else _GovernedTool)(made, origin)


def _tool(tool: Any) -> BaseTool[Any, Any]:
    """As an ``AssistantAgent`` takes it."""
    if isinstance(tool, BaseTool):
        return tool
    if not callable(tool):
        raise TypeError(f"{type(tool).__name__} is no AutoGen tool, function or workbench")
    return FunctionTool(tool, description=getattr(tool, "__doc__", None) or "")


def _described(
    point: EnforcementPoint, schema: ToolSchema, origin: str | None = None, body: Any = None
) -> GovernedTool:
    parameters: Any = schema.get("parameters")
    without = ("cancellation_token",) if body is not None else ()
    description = schema.get("description", "")
    return point.tool(
        schema["name"], body=body, description=description, schema=parameters, origin=origin, without=without
    )


def _filled(schema: ToolSchema, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments, and what the other side fills in for those that are not given."""
    parameters: Any = schema.get("parameters") or {}
    properties = parameters.get("properties") or {}
    defaults = {name: item["default"] for name, item in properties.items() if "default" in item}
    return {**defaults, **(arguments or {})}


def _point(
    runtime: Runtime | None, actions: dict[str, str] | None, agent: str | None, goal: str | None
) -> EnforcementPoint:
    require(
        "autogen-core",
        "0.7.1",
        {BaseTool: ("run", "run_json"), StaticStreamWorkbench: ("call_tool", "call_tool_stream", "list_tools")},
    )
    return EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent, goal=goal)


def _undumpable(component: object) -> NotImplementedError:
    return NotImplementedError(f"{type(component).__name__} cannot be dumped: what is loaded would not be governed")


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of a list of tools and functions, or of one.

    Raises:
        TypeError: when something in it is neither.
    """
    several = found if isinstance(found, (list, tuple)) else [found]
    schemas = [_tool(item).schema for item in several]
    return [(one["name"], one.get("description", ""), dict(one.get("parameters") or {}) or None) for one in schemas]
