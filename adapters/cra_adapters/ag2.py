"""AG2: ``govern(agent, runtime)`` governs every tool of an agent.

A function tool decides in its body, on the validated arguments, after every middleware: one that retries meets a
decision each time, one that changes arguments changes what is decided. Other tools (MCP toolkits, shells), and those
that the agent is given later, by plugins and for one ``ask``, are decided by a middleware, on the call's arguments.
A refusal is a ``ToolErrorEvent`` with its sentence. Subtasks keep governed tools; an agent inside a tool has a session
below the outer one's.

AG2 cannot stop a run and go on with it elsewhere. Where the runtime has no approver, the person behind the agent's
``hitl_hook`` is asked; without one the model is told to wait.

Holes: what a provider runs on its side (builtin tools) never comes by; a tool's own middleware, and the middleware of
plugins and of one ``ask``, come after the decision about a tool that is not governed in its body; the tools that you
keep are not changed. The ``ConversableAgent`` of ag2 before 1.0 is not in this version, and is not governed.
"""

from __future__ import annotations

import copy
import inspect
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ag2 import Agent, Toolkit
from ag2.context import ConversationContext
from ag2.events import (
    HumanInputRequest,
    ToolApprovalRequest,
    ToolCallEvent,
    ToolErrorEvent,
    ToolNotFoundEvent,
    ToolResult,
)
from ag2.middleware import BaseMiddleware
from ag2.tools.final import FunctionTool
from ag2.tools.tool import Tool
from ag2.utils import AGENT_CONTEXT_DEPENDENCY_KEY, CONTEXT_OPTION_NAME

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, require

FRAMEWORK = "ag2"
BY = "human input hook"
"""Who is recorded to have answered, when the answer came by the agent's ``hitl_hook``."""


def govern(
    agent: Agent[Any],
    runtime: Runtime | None,
    actions: dict[str, str] | None = None,
    *,
    goal: str | None = None,
    inject_context: bool = True,
    ask: bool | None = None,
) -> Agent[Any]:
    """Decide and record every tool call of ``agent``, which is changed and returned.

    Args:
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        goal: the operator's sentence, recorded in the trace. Never a user's message.
        inject_context: the Atlas's documents are added to the prompt.
        ask: whether the person behind the ``hitl_hook`` is asked where the runtime has no approver. None: where the
            agent has such a hook (that of a single ``ask`` is not seen).

    Raises:
        RuntimeError: when this version of AG2 lacks a hook that the gate stands on.
    """
    require(
        "ag2",
        "1.2",
        {FunctionTool: ("middleware", "source", "register"), BaseMiddleware: ("on_tool_execution", "on_llm_call")},
    )
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent.name, goal=goal)
    gate = _Gate(point, agent.has_hitl_hook if ask is None else ask, inject_context)
    tools: list[Any] = [gate.governed(tool) for tool in agent.tools]
    agent.tools[:] = tools
    if agent.tasks is not None:
        agent.tasks.extra_tools = [gate.governed(FunctionTool.ensure_tool(tool)) for tool in agent.tasks.extra_tools]
    agent.add_middleware(gate)
    return agent


@dataclass(eq=False)
class _Place:
    """Where a call comes from, told to the tool's body by the tool's hook."""

    gate: _Gate
    context: ConversationContext
    call_id: str
    is_decided: bool = False

    def call(self, tool: GovernedTool, arguments: object) -> GovernedCall:
        self.is_decided = True
        approver = self._ask if self.gate.asks else None
        agent, run = _caller(self.context)
        return tool.call(arguments, call_id=self.call_id, agent=agent, run=run, approver=approver)

    async def _ask(self, pending: Pending) -> Answer:
        arguments = json.dumps(dict(pending.arguments), default=str)
        question = (
            f"{pending.agent_id} wants to call {pending.action_id} with {arguments}. {pending.reason} Approve? y/N"
        )
        answer = await self.context.ask(ToolApprovalRequest(question, tool_call_id=self.call_id))
        approved = answer.strip().lower() in ("y", "yes")
        return Answer(approved, BY, None if approved else answer.strip() or None)


_place: ContextVar[_Place | None] = ContextVar("cra_place", default=None)


class _Gate:
    """Makes the middleware of a turn, and the governed tools."""

    def __init__(self, point: EnforcementPoint, asks: bool, inject_context: bool) -> None:
        self.point = point
        self.asks = asks
        self.inject_context = inject_context
        self.sources: set[str] = set()
        """Of the tools that decide by themselves: the framework says with each call which one handles it. None can be
        guessed, so that a call which names its own is none of them."""

    def __call__(self, event: Any, context: ConversationContext) -> _TurnGate:
        return _TurnGate(event, context, self)

    def governed(self, tool: Tool) -> Tool:
        """The tool, deciding by itself."""
        if isinstance(tool, FunctionTool):
            return self._function(tool)
        if type(tool) is Toolkit:
            return Toolkit(*[self.governed(member) for member in tool.tools], name=tool.name)
        return tool if isinstance(tool, _OtherTool) else _OtherTool(tool, self)

    def _function(self, tool: FunctionTool) -> FunctionTool:
        if getattr(tool.model.call, "cra_governed", False):
            self.sources.add(tool.source)
            return tool
        governed = copy.copy(tool)
        governed.model = copy.copy(tool.model)
        governed.model.call = self._body(tool)
        governed._middleware = (self._hook(governed), *tool._middleware)
        self.sources.add(governed.source)
        return governed

    def _body(self, tool: FunctionTool) -> Callable[..., Awaitable[Any]]:
        call = tool.model.call
        signature = inspect.signature(call)
        filled = {CONTEXT_OPTION_NAME, *tool.model.custom_fields, *tool.model.dependencies}

        async def decided(*args: Any, **kwargs: Any) -> Any:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(name, {}))
            governed = _described(self.point, tool, call, filled)

            async def run() -> Any:
                token = _place.set(None)
                try:
                    result = call(*args, **kwargs)
                    return await result if inspect.isawaitable(result) else result
                finally:
                    _place.reset(token)

            place = _place.get()
            made = governed.call(arguments) if place is None else place.call(governed, arguments)
            return await made.arun(run)

        decided.__module__ = getattr(call, "__module__", __name__)
        decided.__qualname__ = f"{getattr(call, '__qualname__', type(call).__name__)}#governed{secrets.token_hex(8)}"
        decided.cra_governed = True  # type: ignore[attr-defined]
        return decided

    def _hook(self, tool: FunctionTool) -> Any:
        described = _described(self.point, tool)

        async def governed_call(call_next: Any, event: ToolCallEvent, context: ConversationContext) -> Any:
            place = _Place(self, context, event.id)
            token = _place.set(place)
            try:
                result = await call_next(event, context)
            finally:
                _place.reset(token)
            if not isinstance(result, ToolErrorEvent):
                return result
            if isinstance(result.error, CallRefused):
                return _refused(event, result.error)
            if not place.is_decided and isinstance(result.error, (ValueError, TypeError)):
                try:
                    refusal = place.call(described, _arguments(event)).reject("the arguments do not fit the tool")
                except CallRefused as error:
                    refusal = error
                return _refused(event, refusal)
            return result

        return governed_call

    async def decide(self, tool: GovernedTool, call_next: Any, event: ToolCallEvent, context: Any) -> Any:
        """Decide a call of a tool that does not decide by itself; what it returns as an error is a failure."""
        event = copy.deepcopy(event)  # neighbours hold the call's own

        async def run() -> Any:
            result = await call_next(event, context)
            if isinstance(result, ToolErrorEvent):
                results.append(result)
                raise result.error
            return result

        results: list[ToolErrorEvent] = []
        try:
            return await _Place(self, context, event.id).call(tool, _arguments(event)).arun(run)
        except CallRefused as refusal:
            return _refused(event, refusal)
        except Exception:  # the tool's own failure, which the framework had made a result of
            if not results:
                raise
            return results[0]


class _TurnGate(BaseMiddleware):
    """The gate in one turn of an agent."""

    def __init__(self, event: Any, context: ConversationContext, gate: _Gate) -> None:
        super().__init__(event, context)
        self._gate = gate
        self._calls: dict[str, ToolCallEvent] = {}

    async def on_turn(self, call_next: Any, event: Any, context: ConversationContext) -> Any:
        agent, run = _caller(context)

        async def missing(found: ToolNotFoundEvent) -> None:
            call = self._calls.get(found.parent_id)
            arguments = None if call is None else call.arguments
            self._gate.point.tool(str(found.name)).missing(arguments, call_id=found.parent_id, agent=agent, run=run)

        try:
            with context.stream.where(ToolNotFoundEvent).sub_scope(missing):
                return await call_next(event, context)
        finally:
            self._gate.point.end(run)

    async def on_llm_call(self, call_next: Any, events: Any, context: ConversationContext) -> Any:
        if self._gate.inject_context:
            agent, run = _caller(context)
            text = self._gate.point.session(run=run, agent=agent).context_text
            if text and text not in context.prompt:
                context.prompt.append(text)
        response = await call_next(events, context)
        self._calls.update({call.id: call for call in response.tool_calls.calls})
        return response

    async def on_tool_execution(self, call_next: Any, event: ToolCallEvent, context: ConversationContext) -> Any:
        if event.source in self._gate.sources:
            return await call_next(event, context)
        tool = self._gate.point.tool(event.name, origin=event.source)
        return await self._gate.decide(tool, call_next, event, context)


class _OtherTool(Tool):
    """A tool that is no function: its calls are decided next to it, wherever it is registered."""

    def __init__(self, tool: Tool, gate: _Gate) -> None:
        self.tool = tool
        self.gate = gate
        self.name = tool.name
        setattr(self, "declared_in_code", tool.declared_in_code)  # noqa: B010  typed as the class's, read from here

    async def schemas(self, context: ConversationContext) -> Iterable[Any]:
        schemas: Iterable[Any] = await self.tool.schemas(context)
        return schemas

    def register(self, stack: Any, context: ConversationContext, *, middleware: Iterable[BaseMiddleware] = ()) -> None:
        others = [item for item in middleware if not isinstance(item, _TurnGate)]
        self.tool.register(stack, context, middleware=(_Beside(self.tool, context, self.gate), *others))


class _Beside(BaseMiddleware):
    """The decision about a tool of a kind of its own."""

    def __init__(self, tool: Tool, context: ConversationContext, gate: _Gate) -> None:
        super().__init__(HumanInputRequest(""), context)
        self._tool = tool
        self._gate = gate

    async def on_tool_execution(self, call_next: Any, event: ToolCallEvent, context: ConversationContext) -> Any:
        functions = [getattr(schema, "function", None) for schema in await self._tool.schemas(context)]
        found = next((item for item in functions if item is not None and item.name == event.name), None)
        tool = self._gate.point.tool(
            event.name,
            description="" if found is None else found.description,
            schema=None if found is None else found.parameters,
            origin=type(self._tool).__name__,
        )
        return await self._gate.decide(tool, call_next, event, context)


def _described(
    point: EnforcementPoint, tool: FunctionTool, body: Any = None, filled: Iterable[str] = ()
) -> GovernedTool:
    function = tool.schema.function
    return point.tool(
        function.name,
        body=body,
        description=function.description,
        schema=function.parameters,
        without=frozenset(filled),
    )


def _caller(context: ConversationContext) -> tuple[str | None, str]:
    agent = context.dependencies.get(AGENT_CONTEXT_DEPENDENCY_KEY)
    return getattr(agent, "name", None), str(context.stream.id)


def _arguments(event: ToolCallEvent) -> object:
    try:
        return event.serialized_arguments
    except ValueError:
        return event.arguments


def _refused(event: ToolCallEvent, refusal: CallRefused) -> ToolErrorEvent:
    return ToolErrorEvent(parent_id=event.id, name=event.name, error=refusal, result=ToolResult(str(refusal)))


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each function tool of an agent, or of tools, toolkits and functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    several = found.tools if isinstance(found, (Agent, Toolkit)) else found
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for item in several if isinstance(several, (list, tuple)) else [several]:
        if isinstance(item, Toolkit):
            described += describe_tools(item)
        elif isinstance(item, FunctionTool) or (callable(item) and not isinstance(item, Tool)):
            function = FunctionTool.ensure_tool(item).schema.function  # type: ignore[attr-defined]
            described.append((function.name, function.description, dict(function.parameters)))
        elif not isinstance(item, Tool):
            raise TypeError(f"{type(item).__name__} is no AG2 tool; name an agent, tools, toolkits or functions")
    return described
