"""LlamaIndex: ``FunctionAgent(tools=govern_tools(tools, runtime), ...)``, or ``govern_agent(agent, runtime)``.

A function's tool is decided around the function itself, sync and async, on the arguments that it gets: partial
parameters and defaults are in them, the context that the framework injects is not. Any other tool is decided around
its ``call`` and ``acall``. A refused call is a ``ToolOutput`` with ``is_error``, and the run goes on.

A call that needs a person stops the run where ``pause=True`` and the runtime has no approver: the stream of events has
an ``InputRequiredEvent`` with an ``approval_id``, and the run goes on after
``ctx.send_event(HumanResponseEvent(approval_id=..., approved=True, by="ann"))``, in another process, too, from
``ctx.to_dict()``. Only ``approved=True`` is a yes.

Holes: a call of a tool that is not there reaches no tool and is not recorded; the framework's own ``handoff`` is not
decided, only what the next agent then calls; ``CodeActAgent`` runs code in an executor of yours, whose functions want
``@governed``; an engine that takes ``QueryEngineTool``s apart (``tool.query_engine``) does not get them governed; tools
that a provider runs on its own servers never come by. The session of tools without ``govern_agent`` ends with the
runtime, or is yours (``with runtime.session(...)``).
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

from llama_index.core.agent.workflow import AgentWorkflow
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent
from llama_index.core.tools import AsyncBaseTool, BaseTool, FunctionTool, ToolOutput, adapt_to_async_tool
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from llama_index_instrumentation.dispatcher import (
    active_instrument_tags,
)
from workflows.runtime.types.results import (
    StepWorkerStateContextVar,
    WaitingForEvent,
)

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, govern_function, require

_logger = logging.getLogger("cra_adapters")
A = TypeVar("A", BaseWorkflowAgent, AgentWorkflow)
FRAMEWORK = "llama_index"
BY = "human response event"
"""Who is recorded to have answered, when a ``HumanResponseEvent`` does not say ``by``."""


def govern_tools(
    tools: Sequence[BaseTool | Callable[..., Any]],
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    agent: str | None = None,
    goal: str | None = None,
    pause: bool = False,
) -> list[AsyncBaseTool]:
    """The same tools, governed. Tools that are governed already stay as they are.

    Args:
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        agent: the agent that these are for. An ``AgentWorkflow`` knows which of its agents calls; a single agent's
            name is known here only.
        goal: the operator's sentence, recorded in the trace. Never a user's message.
        pause: whether a call that needs a person stops the run with an ``InputRequiredEvent``, where the runtime has
            no approver; else the model is told to wait. Somebody has to answer the event.

    Raises:
        RuntimeError: when this version of LlamaIndex lacks something that the gate stands on.
    """
    gate = _Gate(_point(runtime, actions, agent, goal), agent, pause)
    return [_governed(tool, gate) for tool in tools]


def govern_agent(
    agent: A,
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    goal: str | None = None,
    pause: bool = False,
) -> A:
    """The agent, or every agent of the workflow, with its tools governed in place, those of its retriever, too.

    Args are those of ``govern_tools``. Each run has a session, which ends with it; an agent that is
    handed over to has its own below.

    Raises:
        RuntimeError: as for ``govern_tools``.
    """
    point = _point(runtime, actions, None, goal)
    for one in agent.agents.values() if isinstance(agent, AgentWorkflow) else [agent]:
        gate = _Gate(point, one.name, pause)
        one.tools = [_governed(tool, gate) for tool in one.tools or []]
        if one.tool_retriever is not None:
            one.tool_retriever = cast(Any, _Retriever(one.tool_retriever, gate))
    object.__setattr__(agent, "run", _ending(agent.run, point))  # an agent is a pydantic model, which has no such field
    return agent


def _point(
    runtime: Runtime | None, actions: Mapping[str, str] | None, agent: str | None, goal: str | None
) -> EnforcementPoint:
    require("llama-index-core", "0.14.13", {FunctionTool: ("call", "acall", "real_fn")})
    require("llama-index-workflows", "2.25", {Context: ("get_step_context", "wait_for_event")})
    return EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent, goal=goal)


def _ending(run: Callable[..., Any], point: EnforcementPoint) -> Callable[..., Any]:
    """``run``, after which the session of that run ends, however it came out."""
    ends: set[asyncio.Task[None]] = set()

    async def ended(handler: Any) -> None:
        try:
            await handler.stop_event_result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  whoever awaits the handler is told
            _logger.debug("a run came to its end with %s", type(error).__name__)
        finally:
            point.end(handler.run_id)

    @functools.wraps(run)
    def governed(*args: Any, **kwargs: Any) -> Any:
        handler = run(*args, **kwargs)
        task = asyncio.ensure_future(ended(handler))
        ends.add(task)
        task.add_done_callback(ends.discard)
        return handler

    return governed


class _Retriever:
    """Tools that are looked up for each question, governed as they are found."""

    def __init__(self, inner: Any, gate: _Gate) -> None:
        self._inner = inner
        self._gate = gate

    def retrieve(self, query: Any) -> list[AsyncBaseTool]:
        return [_governed(tool, self._gate) for tool in self._inner.retrieve(query)]

    async def aretrieve(self, query: Any) -> list[AsyncBaseTool]:
        return [_governed(tool, self._gate) for tool in await self._inner.aretrieve(query)]


class _Where(NamedTuple):
    """Who calls, and from where."""

    agent: str | None
    call_id: str | None = None
    approver: _Waiting | None = None
    is_resumed: bool = False
    """The run was stopped for a person, and goes on."""


class _Gate:
    """Decides the calls of some tools."""

    def __init__(self, point: EnforcementPoint, agent: str | None, pause: bool) -> None:
        self.point = point
        self._agent = agent
        self._pause = pause

    def nowhere(self) -> _Where:
        """Sync code: no step of a workflow waits for it, so nothing can be paused."""
        return _Where(self._agent)

    async def where(self) -> _Where:
        """The step of a workflow that calls, if there is one."""
        step = StepWorkerStateContextVar.get(None)
        if step is None:
            return self.nowhere()
        context = Context.get_step_context()
        agent = await context.store.get("current_agent_name", default=None) or self._agent
        approver = _Waiting(context) if self._pause else None
        is_resumed = any(waiter.waiter_id.startswith(WAITER) for waiter in step.state.collected_waiters)
        return _Where(agent, getattr(step.event, "tool_id", None), approver, is_resumed)

    def prepare(self, tool: GovernedTool, at: _Where, arguments: object) -> GovernedCall:
        run = _run_id()
        if at.is_resumed and at.call_id is not None:
            self.point.session(run=run, agent=at.agent, resumed=(at.call_id,))
        return tool.call(arguments, call_id=at.call_id, agent=at.agent, run=run, approver=at.approver)


class _Waiting:
    """Asks a person by an event, for whose answer the step of the workflow waits."""

    suspends = (WaitingForEvent,)

    def __init__(self, context: Any) -> None:
        self._context = context

    async def __call__(self, pending: Pending) -> Answer:
        shown: dict[str, Any] = {
            "prefix": f"{pending.agent_id} wants to call {pending.action_id}: {pending.reason}",
            "approval_id": pending.approval_id,
            "policy_id": pending.policy_id,
            "tool_name": pending.tool_name,
        }
        answer = await self._context.wait_for_event(
            HumanResponseEvent,
            waiter_event=InputRequiredEvent(**shown),
            waiter_id=f"{WAITER}{pending.approval_id}",
            requirements={"approval_id": pending.approval_id},
            timeout=None,
        )
        return Answer(answer.get("approved", False) is True, str(answer.get("by", BY)), answer.get("reason", None))


def _governed(tool: BaseTool | Callable[..., Any], gate: _Gate) -> AsyncBaseTool:
    if isinstance(tool, AsyncBaseTool) and hasattr(tool, "cra_gate"):
        return tool
    given = tool if isinstance(tool, BaseTool) else FunctionTool.from_defaults(tool)
    if isinstance(given, FunctionTool) and not any(_overrides(given, name) for name in ("call", "acall")):
        return _function(given, gate)
    return _Around(adapt_to_async_tool(given), gate)


def _overrides(tool: FunctionTool, name: str) -> bool:
    return inspect.getattr_static(type(tool), name) is not inspect.getattr_static(FunctionTool, name)


def _function(tool: FunctionTool, gate: _Gate) -> FunctionTool:
    """A copy of the tool whose function is governed, whichever way it is reached."""
    body, run_sync, run_async = tool.real_fn, tool.fn, tool.async_fn
    without = () if tool.ctx_param_name is None else (tool.ctx_param_name,)
    governed = _described(gate.point, tool, body=body, without=without)

    @functools.wraps(body)
    def through(*args: Any, **kwargs: Any) -> Any:
        return run_sync(*args, **kwargs)

    @functools.wraps(body)
    async def athrough(*args: Any, **kwargs: Any) -> Any:
        return await run_async(*args, **kwargs)

    @functools.wraps(body)
    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        at = await gate.where()
        return await govern_function(athrough, functools.partial(gate.prepare, governed, at), _raised)(*args, **kwargs)

    sync = govern_function(through, functools.partial(gate.prepare, governed, gate.nowhere()), _raised)
    twin = copy.copy(tool)
    kind: Any = type(tool)
    twin.__class__ = _telling(kind)
    twin.cra_gate = gate  # type: ignore[attr-defined]
    twin._fn, twin._async_fn = sync, asynchronous
    twin._real_fn = asynchronous if inspect.iscoroutinefunction(body) else sync
    return twin


@functools.lru_cache
def _telling(kind: Any) -> Any:
    """The class of a tool that gives a refusal as its output."""

    class Telling(kind):  # type: ignore[misc]
        def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
            try:
                return super().call(*args, **kwargs)  # type: ignore[no-any-return]
            except CallRefused as refusal:
                return _refused(self, kwargs, refusal)

        async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
            try:
                return await super().acall(*args, **kwargs)  # type: ignore[no-any-return]
            except CallRefused as refusal:
                return _refused(self, kwargs, refusal)

    Telling.__name__ = Telling.__qualname__ = f"Governed{kind.__name__}"
    return Telling


class _Around(AsyncBaseTool):
    """A tool that is no plain function, decided around its ``call``."""

    def __init__(self, inner: AsyncBaseTool, gate: _Gate) -> None:
        self._inner = inner
        self.cra_gate = gate
        self._tool = _described(gate.point, inner)

    @property
    def metadata(self) -> Any:
        return self._inner.metadata

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        try:
            call = self.cra_gate.prepare(self._tool, self.cra_gate.nowhere(), self._named(args, kwargs))
            return call.run(lambda: self._inner.call(*args, **kwargs))
        except CallRefused as refusal:
            return _refused(self, kwargs, refusal)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        try:
            call = self.cra_gate.prepare(self._tool, await self.cra_gate.where(), self._named(args, kwargs))
            return await call.arun(lambda: self._inner.acall(*args, **kwargs))
        except CallRefused as refusal:
            return _refused(self, kwargs, refusal)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by position get the names that the schema has for them, the others ``args``."""
        names = list((self._tool.schema or {}).get("properties", {}))
        named = dict(zip(names, args, strict=False))
        rest = {"args": list(args[len(named) :])} if len(args) > len(named) else {}
        return {**rest, **named, **kwargs}


def _described(point: EnforcementPoint, tool: BaseTool, **more: Any) -> GovernedTool:
    data = tool.metadata
    return point.tool(
        data.get_name(),
        description=data.description,
        schema=data.get_parameters_dict(),
        origin=type(tool).__name__,
        **more,
    )


def _refused(tool: BaseTool, kwargs: dict[str, Any], refusal: CallRefused) -> ToolOutput:
    given = {key: value for key, value in kwargs.items() if not isinstance(value, Context)}
    text = str(refusal)
    name = tool.metadata.get_name()
    return ToolOutput(name, text, raw_input=given, raw_output=text, is_error=True, exception=refusal)


def _raised(refusal: CallRefused) -> NoReturn:
    raise refusal


def _run_id() -> str | None:
    found = active_instrument_tags.get().get("llamaindex.run_id")
    return found if isinstance(found, str) else None


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of an agent, of a workflow of agents, or of tools and functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    if isinstance(found, AgentWorkflow):
        return [item for agent in found.agents.values() for item in describe_tools(agent)]
    several = (found.tools or []) if isinstance(found, BaseWorkflowAgent) else found
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for item in several if isinstance(several, (list, tuple)) else [several]:
        if not isinstance(item, BaseTool) and not callable(item):
            raise TypeError(f"{type(item).__name__} is no LlamaIndex tool; name an agent, tools or functions")
        tool = item if isinstance(item, BaseTool) else FunctionTool.from_defaults(item)
        described.append((tool.metadata.get_name(), tool.metadata.description, tool.metadata.get_parameters_dict()))
    return described


WAITER = "cra "
"""Begins the names under which steps of a workflow wait for a person, stored with the run."""
