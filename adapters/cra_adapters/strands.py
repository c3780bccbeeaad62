"""Strands Agents: ``Agent(..., plugins=[CRAPlugin(runtime)])`` governs every tool call of the agent.

The decision is made at the end of the chain that runs a tool, behind every hook and every middleware, later ones too:
none can undo a denial, swap the tool, or change arguments afterwards. A ``@tool`` function is decided on the validated
arguments that it gets; any other tool on the input that its ``stream`` gets. Direct calls (``agent.tool.NAME(...)``)
and background tasks go the same way. Give the plugin to a ``Swarm`` or a graph as well: its agents then share one run.

A call that needs a person stops the run where the runtime has no approver: ``result.interrupts`` holds the question,
and the agent goes on with an ``interruptResponse``: ``True``, ``False``, or ``{"approved": True, "by": "ann"}``. It
counts for that question only. A session manager and kept approvals let another process go on.

Holes: calling a decorated function or a tool's ``stream`` by yourself, and a custom ``ToolExecutor`` that does so, are
none of the agent's; tools of a provider's servers never come by. An agent inside another's tool does not pause: its
model is told to wait. The tool that only carries structured output runs nothing and is not decided. Bidirectional
agents are not tested.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from uuid import uuid4

from strands import Agent
from strands.hooks import (
    AfterInvocationEvent,
    AfterMultiAgentInvocationEvent,
    BeforeInvocationEvent,
    BeforeMultiAgentInvocationEvent,
)
from strands.interrupt import InterruptException
from strands.middleware import ExecuteToolStage, InvokeModelStage
from strands.middleware._registry import MiddlewareRegistry
from strands.plugins import MultiAgentPlugin, Plugin
from strands.tools.decorator import DecoratedFunctionTool, FunctionToolMetadata
from strands.tools.structured_output.structured_output_tool import StructuredOutputTool
from strands.tools.tools import normalize_tool_spec
from strands.types._events import ToolInterruptEvent, ToolResultEvent
from strands.types.tools import AgentTool

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, govern_function, require

FRAMEWORK = "strands"
BY = "interrupt response"
"""Who is recorded to have answered, when the answer came by an interrupt's response that names nobody."""

_RUN = "cra_run"  # in the framework's own state of an invocation, which a swarm's agents share
_MARK = "_cra_plugin"
_DEFAULT_NAME = "Strands Agents"
_inside: ContextVar[bool] = ContextVar("cra_strands_inside", default=False)


class CRAPlugin(Plugin, MultiAgentPlugin):
    """Decides and records every tool call of the agents that it is given to."""

    name = "cra"

    def __init__(
        self,
        runtime: Runtime,
        actions: Mapping[str, str] | None = None,
        *,
        agent_id: str | None = None,
        goal: str | None = None,
        hide_denied: bool = True,
        inject_context: bool = True,
        interrupt: bool = True,
    ) -> None:
        """Govern with ``runtime``.

        Args:
            actions: tool names to action ids, before what the Atlas maps.
            agent_id: how policies and the trace name an agent without a ``name``.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            hide_denied: tools that no call could be allowed to use are not shown to the model.
            inject_context: the Atlas's documents are added to the system prompt.
            interrupt: a call that needs a person stops the run, where the runtime has no approver; else the model is
                told to wait.

        Raises:
            RuntimeError: when this version of Strands lacks a seam that the gate stands on.
        """
        require(
            "strands-agents",
            "1.62",
            {
                MiddlewareRegistry: ("compose", "invoke"),
                DecoratedFunctionTool: ("stream",),
                FunctionToolMetadata: ("validate_input", "_is_special_parameter"),
            },
        )
        super().__init__()
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
        self._hide_denied = hide_denied
        self._inject_context = inject_context
        self._interrupt = interrupt

    def init_agent(self, agent: Any) -> None:
        """Govern ``agent``; Strands calls this, and so may you for an agent that is there already.

        Raises:
            RuntimeError: when it cannot be governed, or another plugin of this kind governs it.
        """
        chain = getattr(agent, "_middleware_registry", None)
        if not isinstance(chain, MiddlewareRegistry):
            raise RuntimeError(f"{type(agent).__name__} has no middleware registry: its tools cannot be governed")
        governor = getattr(chain, _MARK, None)
        if governor is not None:
            if governor is self:
                return
            raise RuntimeError("this agent is governed by another CRAPlugin")
        compose = chain.compose

        def composed(stage: Any, terminal: Any) -> Any:
            return compose(stage, self._gate(terminal) if stage is ExecuteToolStage else terminal)

        chain.compose = composed  # type: ignore[method-assign]
        setattr(chain, _MARK, self)
        agent.add_middleware(InvokeModelStage.Input, self._prepare_model)
        agent.hooks.add_callback(BeforeInvocationEvent, lambda event: _begin(event.invocation_state, event.agent))
        agent.hooks.add_callback(AfterInvocationEvent, lambda event: self._end(event.invocation_state, event.agent))

    def init_multi_agent(self, orchestrator: Any) -> None:
        """Let the agents of a swarm or a graph share one run; each still needs the plugin itself."""
        orchestrator.add_hook(
            lambda event: _begin(event.invocation_state, event.source), BeforeMultiAgentInvocationEvent
        )
        orchestrator.add_hook(
            lambda event: self._end(event.invocation_state, event.source), AfterMultiAgentInvocationEvent
        )

    def _end(self, state: dict[str, Any] | None, owner: object) -> None:
        found = None if state is None else state.get(_RUN)
        if state is not None and found is not None and found[1] == id(owner):
            del state[_RUN]
            self._point.end(found[0])

    def _prepare_model(self, ctx: Any) -> Any:
        if not (self._hide_denied or self._inject_context):
            return ctx
        session = self._point.session(run=_run(ctx), agent=_agent(ctx))
        specs, prompt = ctx.tool_specs, ctx.system_prompt
        if self._hide_denied:
            dynamic = ctx.agent.tool_registry.dynamic_tools  # the carrier of structured output is one of these
            specs = [
                spec
                for spec in specs
                if isinstance(dynamic.get(spec["name"]), StructuredOutputTool)
                or self._point.tool(spec["name"]).is_shown(session)
            ]
        text = session.context_text if self._inject_context else ""
        if text:
            prompt = (
                [*prompt, {"text": text}] if isinstance(prompt, list) else f"{prompt}\n\n{text}" if prompt else text
            )
        return ctx.replace(tool_specs=specs, system_prompt=prompt)

    def _gate(self, terminal: Callable[[Any], AsyncGenerator[Any, None]]) -> Callable[[Any], AsyncGenerator[Any, None]]:
        """The end of the chain that runs a tool, decided."""

        async def gate(ctx: Any) -> AsyncGenerator[Any, None]:
            tool = ctx.tool
            if tool is not None and type(tool) is not StructuredOutputTool:
                ctx = replace(ctx, tool=_GovernedTool(self._point, tool, ctx, self._interrupt and not _inside.get()))
            elif tool is None:
                try:
                    refusal = self._point.tool(ctx.tool_use["name"]).missing(
                        ctx.tool_use["input"], call_id=ctx.tool_use["toolUseId"], agent=_agent(ctx), run=_run(ctx)
                    )
                except CallRefused as error:
                    refusal = error
                yield ToolResultEvent(_refused(refusal, ctx.tool_use), exception=refusal)
                return
            async with aclosing(terminal(ctx)) as events:
                async for event in events:
                    yield event

        return gate


class _GovernedTool(AgentTool):
    """A tool as it is run in one call."""

    def __init__(self, point: EnforcementPoint, tool: AgentTool, ctx: Any, pauses: bool) -> None:
        super().__init__()
        self._tool = tool
        self._ctx = ctx
        self._pauses = pauses
        self._is_decided = False
        self._governed = _described(point, tool)

    @property
    def tool_name(self) -> str:
        return str(self._tool.tool_name)

    @property
    def tool_spec(self) -> Any:
        return self._tool.tool_spec

    @property
    def tool_type(self) -> str:
        return str(self._tool.tool_type)

    async def stream(self, tool_use: Any, invocation_state: dict[str, Any], **kwargs: Any) -> AsyncGenerator[Any, None]:
        function = _as_function(self._tool)
        try:
            if function is None:
                if isinstance(tool_use["input"], dict):  # hooks hold the same dictionary while a person is asked
                    tool_use = {**tool_use, "input": dict(tool_use["input"])}
                call = self._call(tool_use["input"])
                events = _streamed(call, lambda: self._tool.stream(tool_use, invocation_state, **kwargs))
            else:
                decided = DecoratedFunctionTool(
                    function.tool_name, function.tool_spec, self._decided(function._tool_func), function._metadata
                )
                events = decided.stream(tool_use, invocation_state, **kwargs)
            async with aclosing(events):
                async for event in events:
                    if function is not None and isinstance(event, ToolResultEvent) and not self._is_decided:
                        self._call(tool_use["input"]).reject(str(event.exception))
                    yield event
        except CallRefused as refusal:
            yield ToolResultEvent(_refused(refusal, tool_use), exception=refusal)

    def _decided(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.isasyncgenfunction(fn):
            return govern_function(fn, self._call, lambda refusal: _refused(refusal, self._ctx.tool_use))

        async def decided(**arguments: Any) -> AsyncGenerator[Any, None]:
            try:
                async with aclosing(_streamed(self._call(arguments), lambda: fn(**arguments))) as values:
                    async for value in values:
                        yield value
            except CallRefused as refusal:
                yield _refused(refusal, self._ctx.tool_use)

        return decided

    def _call(self, arguments: object) -> GovernedCall:
        self._is_decided = True
        call_id, agent, run = self._ctx.tool_use["toolUseId"], _agent(self._ctx), _run(self._ctx)
        stopped = getattr(getattr(self._ctx.agent, "_interrupt_state", None), "interrupts", {})
        if any(one.name.startswith("cra-approval-") for one in stopped.values()):  # the agent is gone on with
            self._governed.point.session(run=run, agent=agent, resumed=(call_id,))
        return self._governed.call(
            arguments,
            call_id=call_id,
            agent=agent,
            run=run,
            approver=_Interrupting(self._ctx) if self._pauses else None,
        )


class _Interrupting:
    """Asks a person by stopping the agent. Each question has a name of its own, so that an answer is to it alone."""

    suspends = (InterruptException,)

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def __call__(self, pending: Pending) -> Answer:
        asked = {
            "approval_id": pending.approval_id,
            "action_id": pending.action_id,
            "tool_name": pending.tool_name,
            "arguments": repr(dict(pending.arguments)),
            "policy_id": pending.policy_id,
            "reason": pending.reason,
        }
        response = self._ctx.interrupt(f"cra-approval-{pending.approval_id}", reason=asked).response
        if isinstance(response, bool):
            return Answer(response, BY)
        if isinstance(response, Mapping) and isinstance(response.get("approved"), bool):
            reason = response.get("reason")
            return Answer(response["approved"], str(response.get("by") or BY), None if reason is None else str(reason))
        return Answer(False, BY, 'the interrupt was answered with neither True nor {"approved": True}')


class _Failed(Exception):
    """A tool's stream ended with the framework's error result."""


async def _streamed(call: GovernedCall, stream: Callable[[], AsyncIterator[Any]]) -> AsyncGenerator[Any, None]:
    """The events of a tool that may run; in a task of its own, so that what it calls is seen to be inside of it.

    Raises:
        CallRefused: when it did not run.
    """
    events: asyncio.Queue[Any] = asyncio.Queue()
    end = object()

    async def body() -> object:
        _inside.set(True)
        last: Any = None
        async for last in stream():
            events.put_nowait(last)
        if isinstance(last, ToolInterruptEvent):
            raise InterruptException(last.interrupts[0])
        if isinstance(last, ToolResultEvent):
            if last.exception is not None:
                raise last.exception
            last = last.tool_result
        if isinstance(last, Mapping) and last.get("status") == "error":
            raise _Failed(str(last.get("content")))
        return last

    async def run() -> None:
        try:
            await call.arun(body)
        finally:
            events.put_nowait(end)

    task = asyncio.create_task(run())
    seen = False
    try:
        while (event := await events.get()) is not end:
            seen = isinstance(event, (ToolInterruptEvent, ToolResultEvent, Mapping))
            yield event
        try:
            await task
        except CallRefused:
            raise
        except Exception:  # the tool's own, of any kind
            if not seen:  # else the framework has its error result already
                raise
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _as_function(tool: AgentTool) -> DecoratedFunctionTool[Any, Any] | None:
    """A tool that runs a Python function, and nothing of its own."""
    return (
        tool if isinstance(tool, DecoratedFunctionTool) and type(tool).stream is DecoratedFunctionTool.stream else None
    )


def _described(point: EnforcementPoint, tool: AgentTool) -> GovernedTool:
    function = _as_function(tool)
    name, description, schema = _shown(tool)  # its own name: a neighbour may run it under another
    if function is None:
        origin = f"{type(tool).__module__}.{type(tool).__qualname__}"
        return point.tool(name, description=description, schema=schema, origin=origin)
    metadata = function._metadata
    filled = [item for item in metadata.signature.parameters if metadata._is_special_parameter(item)]
    return point.tool(name, body=function._tool_func, description=description, schema=schema, without=filled)


def _shown(tool: AgentTool) -> tuple[str, str, dict[str, Any] | None]:
    spec = normalize_tool_spec(tool.tool_spec)
    return tool.tool_name, spec.get("description", ""), spec.get("inputSchema", {}).get("json")


def _refused(refusal: CallRefused, tool_use: Any) -> Any:
    return {"toolUseId": tool_use["toolUseId"], "status": "error", "content": [{"text": str(refusal)}]}


def _begin(state: dict[str, Any] | None, owner: object) -> None:
    if state is not None:
        state.setdefault(_RUN, (uuid4().hex, id(owner)))


def _run(ctx: Any) -> str | None:
    found = ctx.invocation_state.get(_RUN)
    return None if found is None else str(found[0])


def _agent(ctx: Any) -> str | None:
    name = getattr(ctx.agent, "name", None)
    return None if name == _DEFAULT_NAME else name


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of an agent, or of tools.

    Raises:
        TypeError: when something in it is none of these.
    """
    described = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        tools = list(item.tool_registry.registry.values()) if isinstance(item, Agent) else [item]
        for tool in tools:
            if not isinstance(tool, AgentTool):
                raise TypeError(f"{type(tool).__name__} is no Strands tool; name an agent or functions with @tool")
            described.append(_shown(tool))
    return described
