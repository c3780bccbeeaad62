"""Microsoft Agent Framework: ``Agent(..., middleware=[CRAMiddleware(runtime)])`` governs every function of the agent.

For each run the agent's tools, those of MCP servers and those added on the way included, are replaced by copies whose
body decides first: on the validated arguments, after every function middleware. One that retries meets a decision each
time, one that changes arguments changes what is decided. A refusal is the result of the call.

A call that needs a person stops the run with a ``function_approval_request``, where the runtime has no approver and the
caller passed ``session=``; the same session (``to_dict`` and ``from_dict``, in another process, too) goes on with
``request.to_function_approval_response(True)``, or after ``runtime.approvals.approve``. Else, and in an agent that is
another's tool, the model is told to wait. Only a request that was made here counts: calls that the framework approves
by itself because they stood beside a question are asked about as any other.

Holes: tools that a provider or the caller runs (hosted, declaration-only, ``additional_tools``); a tool invoked outside
the agent, unless ``govern_tool`` made it. A call that goes on after an approval is decided in the last function
middleware but those of context providers, and not in the body: one of these that runs it twice does so on one decision.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from agent_framework import (
    AgentContext,
    AgentMiddleware,
    ChatContext,
    ChatMiddleware,
    Content,
    FunctionInvocationContext,
    FunctionInvocationLayer,
    FunctionMiddleware,
    FunctionTool,
    RawAgent,
    normalize_tools,
)
from agent_framework.exceptions import UserInputRequiredException

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, require

FRAMEWORK = "agent_framework"
BY = "function approval response"
"""Who is recorded to have answered, when the answer came by the framework's own content."""
_MARK = "cra_approval_id"
_NOT_GOVERNED = object()

Next = Callable[[], Awaitable[None]]


@dataclass(eq=False)
class _Run:
    """One run of an agent."""

    point: EnforcementPoint
    runtime: Runtime
    agent: str | None
    pauses: bool
    hide_denied: bool
    inject_context: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    copies: dict[int, tuple[FunctionTool, FunctionTool]] = field(default_factory=dict)

    def governed(self, tool: Any) -> Any:
        """The copy of a tool that decides; what this process does not run stays as it is."""
        if not _is_local(tool) or _is_governed(tool, self.point):
            return tool
        if id(tool) not in self.copies:
            runtime = getattr(tool, "cra_runtime", _NOT_GOVERNED)  # govern_tool's: the same is not asked twice
            source: FunctionTool = getattr(tool, "cra_tool", tool) if runtime in (None, self.runtime) else tool
            self.copies[id(tool)] = (tool, _govern(source, self.point, self.runtime))
        return self.copies[id(tool)][1]


@dataclass(eq=False)
class _Place:
    """Where a call comes from, told to the tool's copy by the function middleware."""

    run: _Run
    context: FunctionInvocationContext
    is_decided: bool = False

    @property
    def call_id(self) -> str | None:
        call_id = self.context.metadata.get("call_id")
        return call_id if isinstance(call_id, str) else None


_place: ContextVar[_Place | None] = ContextVar("cra_place", default=None)
_inside: ContextVar[bool] = ContextVar("cra_inside_a_tool", default=False)


class CRAMiddleware(AgentMiddleware):
    """Decides and records every function call of an agent."""

    def __init__(
        self,
        runtime: Runtime,
        actions: dict[str, str] | None = None,
        *,
        agent_id: str | None = None,
        goal: str | None = None,
        hide_denied: bool = True,
        inject_context: bool = True,
        pause: bool = True,
    ) -> None:
        """Govern with ``runtime``.

        Args:
            actions: tool names to action ids, before what the Atlas maps.
            agent_id: how policies and the trace name an agent without a ``name``.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            hide_denied: tools that no call could be allowed to use are not shown to the model.
            inject_context: the Atlas's documents are added to the instructions.
            pause: whether a call that needs a person stops a run that has a session, where the runtime has no
                approver; else the model is told to wait.

        Raises:
            RuntimeError: when this version of Agent Framework lacks a hook that the gate stands on.
        """
        _require()
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
        self._runtime = runtime
        self._pause = pause
        self._hide_denied = hide_denied
        self._inject_context = inject_context

    async def process(self, context: AgentContext, call_next: Next) -> None:
        client = getattr(context.agent, "client", None)
        if not isinstance(context.agent, RawAgent) or not isinstance(client, FunctionInvocationLayer):
            raise RuntimeError(f"{type(context.agent).__name__} does not run its tools here, so they are not governed")
        pauses = self._pause and context.session is not None and not _inside.get()
        run = _Run(self._point, self._runtime, context.agent.name, pauses, self._hide_denied, self._inject_context)
        answers = _answers(context)
        if answers:
            session = self._point.session(run=run.id, agent=run.agent, resumed=answers.keys())
            for call_id in (name for name, approved in answers.items() if not approved):
                self._point.withdraw(session, call_id, by=BY)
        given = context.client_kwargs.get("middleware") or []
        several = list(given) if isinstance(given, (list, tuple)) else [given]
        context.client_kwargs["middleware"] = [*several, _FunctionGate(run), _ChatGate(run)]
        if context.stream:
            context.stream_cleanup_hooks.append(lambda: self._point.end(run.id))
            await call_next()
            return
        try:
            await call_next()
        finally:
            self._point.end(run.id)


class _ChatGate(ChatMiddleware):
    """Before each turn of the model: the run's tools become governed, and those it may never use are left out."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    async def process(self, context: ChatContext, call_next: Next) -> None:
        run = self._run
        options: dict[str, Any] = dict(context.options or {})
        tools = options.get("tools")
        live = tools if isinstance(tools, list) else normalize_tools(tools)
        live[:] = [run.governed(tool) for tool in live]  # the very list that the calls of this turn are looked up in
        if run.hide_denied or run.inject_context:
            session = run.point.session(run=run.id, agent=run.agent)
            if run.hide_denied and live:
                options["tools"] = [
                    item for item in live if not _is_local(item) or _tool(run.point, item).is_shown(session)
                ]
            if run.inject_context and session.context_text:
                before = options.get("instructions")
                options["instructions"] = "\n\n".join(filter(None, [before, session.context_text]))
            context.options = options
        known = {getattr(item, "name", None) for item in live}
        extra = getattr(context.client, "function_invocation_configuration", {}).get("additional_tools") or ()
        known |= {item.name for item in extra}

        def missing(response: Any) -> Any:
            for message in response.messages:
                for item in message.contents:
                    if item.type == "function_call" and not getattr(item, "hosted", False) and item.name not in known:
                        run.point.tool(str(item.name)).missing(
                            item.arguments, call_id=item.call_id, agent=run.agent, run=run.id
                        )
            return response

        if context.stream:
            context.stream_result_hooks.append(missing)
        await call_next()
        if not context.stream and context.result is not None:
            missing(context.result)


class _FunctionGate(FunctionMiddleware):
    """Around each call: tells the governed copy where it comes from, and makes a refusal the call's result."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    async def process(self, context: FunctionInvocationContext, call_next: Next) -> None:
        place = _Place(self._run, context)
        token = _place.set(place)
        try:
            if _is_governed(context.function, self._run.point):
                await call_next()
            else:  # gone on with after an approval, before the model's turn in which the tools are replaced
                place.is_decided = True
                arguments = context.arguments
                given = arguments if isinstance(arguments, dict) else dict(arguments)
                await _call(context.function, self._run.point, given, place).arun(call_next)
        except CallRefused as refusal:
            context.result = f"Error: {refusal}"
        except TypeError:
            if not place.is_decided:
                self._rejected(context, place)
            raise
        finally:
            _place.reset(token)

    def _rejected(self, context: FunctionInvocationContext, place: _Place) -> None:
        call = _tool(self._run.point, context.function).call(
            context.arguments, call_id=place.call_id, agent=self._run.agent, run=self._run.id
        )
        call.reject("the framework refused the arguments before the tool was reached")


class _Pausing:
    """Asks a person by a ``function_approval_request``, with which the run ends."""

    suspends = (UserInputRequiredException,)

    def __init__(self, place: _Place, arguments: dict[str, Any]) -> None:
        self._place = place
        self._arguments = arguments

    def __call__(self, pending: Pending) -> Answer:
        metadata = self._place.context.metadata
        answer = metadata.get("approval_response")
        # The framework restores the call from its own record of the request: nobody but us put the mark there.
        asked = answer.function_call.additional_properties.get(_MARK) if answer is not None else None
        if answer is not None and answer.approved is True and asked == pending.approval_id:
            return Answer(True, BY)
        call_id = str(self._place.call_id)
        occurrence = str(metadata.get("function_call_occurrence_id") or call_id)
        call = Content.from_function_call(
            call_id,
            self._place.context.function.name,
            arguments=json.dumps(self._arguments, default=str),
            id=occurrence,
            additional_properties={_MARK: pending.approval_id},
        )
        told = {_MARK: pending.approval_id, "reason": pending.reason, "policy_id": pending.policy_id}
        request = Content.from_function_approval_request(occurrence, call, additional_properties=told)
        raise UserInputRequiredException([request])


def govern_tool(tool: Any, runtime: Runtime | None, actions: dict[str, str] | None = None) -> FunctionTool:
    """A copy of a tool, or a tool of a function, that decides whenever it is invoked, by whomever.

    Outside an agent with the middleware, a refused ``invoke`` raises ``CallRefused``.

    Args:
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
    """
    _require()
    (made,) = normalize_tools([tool])
    if not isinstance(made, FunctionTool):
        raise TypeError(f"{type(tool).__name__} is no function tool")
    return _govern(made, EnforcementPoint(runtime, FRAMEWORK, actions=actions), runtime)


def _govern(tool: FunctionTool, point: EnforcementPoint, runtime: Runtime | None) -> FunctionTool:
    body = tool.func

    async def decided(**given: Any) -> Any:
        place = _place.get()
        if place is not None:
            place.is_decided = True
        return await _call(tool, point, given, place).arun(lambda: run(given))

    async def run(given: dict[str, Any]) -> Any:
        tokens = _place.set(None), _inside.set(True)
        try:
            if inspect.iscoroutinefunction(body) or getattr(tool, "_invoke_sync_on_event_loop", False):
                result = tool(**given)
            else:
                result = await asyncio.to_thread(tool, **given)
            return await result if inspect.isawaitable(result) else result
        finally:
            _place.reset(tokens[0])
            _inside.reset(tokens[1])

    governed = copy.copy(tool)
    governed.func = decided
    governed._instance = None  # the tool itself is called, which knows its instance and counts its invocations
    governed.max_invocations = governed.max_invocation_exceptions = None
    governed.cra_point = point  # type: ignore[attr-defined]
    governed.cra_tool = tool  # type: ignore[attr-defined]
    governed.cra_runtime = runtime  # type: ignore[attr-defined]
    return governed


def _call(tool: FunctionTool, point: EnforcementPoint, given: dict[str, Any], place: _Place | None) -> GovernedCall:
    filled = {name for name, value in given.items() if isinstance(value, FunctionInvocationContext)}
    governed = _tool(point, tool, filled)
    if place is None:
        return governed.call(given)
    arguments = {name: value for name, value in given.items() if name not in filled}
    approver = _Pausing(place, arguments) if place.run.pauses else None
    return governed.call(given, call_id=place.call_id, agent=place.run.agent, run=place.run.id, approver=approver)


def _tool(point: EnforcementPoint, tool: FunctionTool, filled: set[str] | None = None) -> GovernedTool:
    source: FunctionTool = getattr(tool, "cra_tool", tool)
    own = str(getattr(source.func, "__module__", "")).partition(".")[0] != "agent_framework"  # else MCP, or an agent
    body = source.func if own and inspect.isroutine(source.func) else None
    return point.tool(
        source.name, body=body, description=source.description, schema=source.parameters(), without=filled or ()
    )


def _is_local(tool: Any) -> TypeGuard[FunctionTool]:
    return isinstance(tool, FunctionTool) and not tool.declaration_only


def _is_governed(tool: Any, point: EnforcementPoint) -> bool:
    return getattr(tool, "cra_point", None) is point


def _answers(context: AgentContext) -> dict[str, bool]:
    """What a person answered, by the ids of the calls."""
    found = [item for message in context.messages for item in message.contents]
    return {
        str(item.function_call.call_id): item.approved is True
        for item in found
        if item.type == "function_approval_response" and item.function_call is not None
    }


def _require() -> None:
    require(
        "agent-framework-core",
        "1.20",
        {
            FunctionTool: ("invoke", "parameters", "declaration_only"),
            FunctionMiddleware: ("process",),
            Content: ("from_function_approval_request", "to_function_approval_response"),
        },
    )


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each function of an agent, or of tools and functions.

    Raises:
        TypeError: when there is none in it.
    """
    tools = found.default_options.get("tools") if isinstance(found, RawAgent) else found
    try:
        several = [item for item in normalize_tools(tools) if isinstance(item, FunctionTool)]
    except (TypeError, ValueError):
        several = []
    if not several:
        raise TypeError(f"{type(found).__name__} holds no function tool; name an agent, tools or functions")
    return [(item.name, item.description, item.parameters()) for item in several]
