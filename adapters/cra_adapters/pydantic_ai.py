"""Pydantic AI: ``Agent(..., capabilities=[CRACapability(runtime)])`` governs every function tool of the agent.

The decision is made in the innermost toolset wrapper, on the validated arguments, behind whatever other capabilities
do to a call: one that retries meets a decision each time, one that changes arguments changes what is decided. Output
functions (``output_type=fn``) run code, too, and are decided as tools of their function's name.

A call that needs a person is deferred where the runtime has no approver and the agent's ``output_type`` holds
``DeferredToolRequests``: the run ends with the request, and goes on with the message history and
``DeferredToolResults``, or after ``runtime.approvals.approve``. The yes counts once, for exactly that call.

Holes: a toolset of yours that wraps one of no functions (MCP) may run a call twice, or change it, on one decision.
Tools that a provider runs on its own servers never come by; a call of ``tool.function_schema.call`` or of a
toolset outside an agent is none of the agent's. Realtime sessions are not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic_ai import Agent, DeferredToolRequests, RunContext, Tool
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.capabilities.abstract import CapabilityOrdering
from pydantic_ai.exceptions import ApprovalRequired as Deferral
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import InstructionPart, ModelResponse, ToolReturnPart
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset, WrapperToolset
from pydantic_ai.toolsets.function import FunctionToolsetTool

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, require

FRAMEWORK = "pydantic_ai"
BY = "deferred tool results"
"""Who is recorded to have answered, when the answer came by ``DeferredToolResults``."""


class CRACapability(AbstractCapability[Any]):
    """Decides and records every tool call of an agent."""

    def __init__(
        self,
        runtime: Runtime,
        actions: dict[str, str] | None = None,
        *,
        agent_id: str | None = None,
        goal: str | None = None,
        hide_denied: bool = True,
        inject_context: bool = True,
        defer: bool | None = None,
    ) -> None:
        """Govern with ``runtime``.

        Args:
            actions: tool names to action ids, before what the Atlas maps.
            agent_id: how policies and the trace name an agent without a ``name``.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            hide_denied: tools that no call could be allowed to use are not shown to the model.
            inject_context: the Atlas's documents are added to the instructions.
            defer: whether a call that needs a person ends the run with ``DeferredToolRequests``, where the runtime has
                no approver; else the model is told to wait. None: where the agent's ``output_type`` allows it (that
                of a single run is not seen).

        Raises:
            RuntimeError: when this version of Pydantic AI lacks a hook that the gate stands on.
        """
        require(
            "pydantic-ai-slim",
            "2.16",
            {
                AbstractCapability: ("get_wrapper_toolset", "get_ordering", "wrap_output_process", "wrap_run"),
                WrapperToolset: ("call_tool",),
            },
        )
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
        self._hide_denied = hide_denied
        self._inject_context = inject_context
        self._defer = defer

    def get_ordering(self) -> CapabilityOrdering:
        return CapabilityOrdering(position="innermost")

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        return _GovernedToolset(toolset, self._point, self._defer)

    async def wrap_run(self, ctx: RunContext[Any], *, handler: Callable[[], Any]) -> Any:
        resumed = _unanswered(ctx)
        if resumed:
            self._point.session(run=ctx.run_id, agent=_agent(ctx), resumed=resumed)
        try:
            return await handler()
        finally:
            self._point.end(ctx.run_id)

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[Any]) -> list[Any]:
        if not self._hide_denied:
            return tool_defs
        session = self._point.session(run=ctx.run_id, agent=_agent(ctx))
        return [item for item in tool_defs if self._named(item.name, item).is_shown(session)]

    def _named(self, name: str, definition: Any) -> GovernedTool:
        return self._point.tool(name, declared=(definition.metadata or {}).get("cra_action"))

    async def before_model_request(self, ctx: RunContext[Any], request_context: Any) -> Any:
        for part in ctx.messages[-1].parts:
            if isinstance(part, ToolReturnPart) and part.outcome == "denied":
                session = self._point.session(run=ctx.run_id, agent=_agent(ctx))
                self._point.withdraw(session, part.tool_call_id, by=BY, reason=str(part.content))
        if not self._inject_context:
            return request_context
        text = self._point.session(run=ctx.run_id, agent=_agent(ctx)).context_text
        if not text:
            return request_context
        parameters = request_context.model_request_parameters
        parts = [*(parameters.instruction_parts or []), InstructionPart(text)]
        return replace(request_context, model_request_parameters=replace(parameters, instruction_parts=parts))

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: Any, response: ModelResponse
    ) -> ModelResponse:
        """Calls of tools that are not there reach no toolset; they are recorded here."""
        known = request_context.model_request_parameters.tool_defs
        for part in response.tool_calls:
            if part.tool_name not in known:
                self._point.tool(part.tool_name).missing(
                    part.args, call_id=part.tool_call_id, agent=_agent(ctx), run=ctx.run_id
                )
        return response

    async def on_tool_validate_error(
        self, ctx: RunContext[Any], *, call: Any, tool_def: Any, args: Any, error: Exception
    ) -> Any:
        given = args if isinstance(args, dict) else call.args_as_dict()
        tool = self._named(call.tool_name, tool_def)
        tool.call(given, call_id=call.tool_call_id, agent=_agent(ctx), run=ctx.run_id).reject(
            "the framework refused the arguments before the tool was reached"
        )
        raise error

    async def wrap_output_process(
        self, ctx: RunContext[Any], *, output_context: Any, output: Any, handler: Callable[[Any], Any]
    ) -> Any:
        """An output function is code that the model starts: it is decided as a tool of its name."""
        if not output_context.has_function:
            return await handler(output)
        name = output_context.function_name or getattr(output_context.tool_call, "tool_name", "output")
        call_id = getattr(output_context.tool_call, "tool_call_id", None)
        arguments = output if isinstance(output, dict) else {"output": output}
        try:
            call = self._point.tool(name).call(arguments, call_id=call_id, agent=_agent(ctx), run=ctx.run_id)
            return await call.arun(lambda: handler(output))
        except CallRefused as refusal:
            raise ToolFailed(str(refusal)) from refusal


@dataclass
class _GovernedToolset(WrapperToolset[Any]):
    """The last thing before a tool's function."""

    point: EnforcementPoint
    defer: bool | None

    async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: Any) -> Any:
        governed = self._described(name, tool)
        defers = _allows_requests(ctx.agent.output_type) if self.defer is None and ctx.agent is not None else self.defer
        approver = _Deferring(ctx) if defers else None
        given = dict(tool_args)  # others may hold the model's own

        def decided(arguments: dict[str, Any]) -> GovernedCall:
            return governed.call(
                arguments, call_id=ctx.tool_call_id, agent=_agent(ctx), run=ctx.run_id, approver=approver
            )

        try:
            call = decided(given)
            once = _guarded(tool, call, decided)
            return await call.arun(lambda: self.wrapped.call_tool(name, given, ctx, once))
        except CallRefused as refusal:
            raise ToolFailed(str(refusal)) from refusal

    def _described(self, name: str, tool: Any) -> GovernedTool:
        source = tool
        while hasattr(source, "source_tool"):
            source = source.source_tool
        schema = getattr(getattr(source, "call_func", None), "__self__", None)
        body = getattr(schema, "function", None) if isinstance(source, FunctionToolsetTool) else None
        definition = tool.tool_def
        return self.point.tool(
            name,
            body=body,
            declared=(definition.metadata or {}).get("cra_action"),
            description=definition.description or "",
            schema=definition.parameters_json_schema,
            origin=tool.toolset.label,
        )


def _guarded(tool: Any, call: GovernedCall, decided: Callable[[dict[str, Any]], GovernedCall]) -> Any:
    """``tool``, whose function runs once on ``call``: a toolset of the user's that wraps it, and runs it again or with
    other arguments, meets a decision each time."""
    if hasattr(tool, "source_tool"):
        return replace(tool, source_tool=_guarded(tool.source_tool, call, decided))
    if not isinstance(tool, FunctionToolsetTool):
        return tool
    is_free = True

    async def call_func(arguments: dict[str, Any], ctx: Any) -> Any:
        nonlocal is_free
        again = decided(arguments)
        if is_free and again.call.digest == call.call.digest:
            is_free = False
            return await tool.call_func(arguments, ctx)
        return await again.arun(lambda: tool.call_func(arguments, ctx))

    return replace(tool, call_func=call_func)


class _Deferring:
    """Asks a person by ending the run with ``DeferredToolRequests``."""

    suspends = (Deferral,)

    def __init__(self, ctx: RunContext[Any]) -> None:
        self._ctx = ctx

    def __call__(self, pending: Pending) -> Answer:
        if self._ctx.tool_call_approved:
            return Answer(True, BY)
        raise Deferral({"approval_id": pending.approval_id, "reason": pending.reason, "policy_id": pending.policy_id})


def _allows_requests(output_type: Any) -> bool:
    several = output_type if isinstance(output_type, (list, tuple)) else get_args(output_type) or (output_type,)
    return DeferredToolRequests in several


def _agent(ctx: RunContext[Any]) -> str | None:
    return getattr(ctx.agent, "name", None)


def _unanswered(ctx: RunContext[Any]) -> list[str]:
    """The calls at the end of a message history that a run begins with, but those that ran already."""
    answered: set[str] = set()
    for message in reversed(ctx.messages):
        if isinstance(message, ModelResponse):
            return [part.tool_call_id for part in message.tool_calls if part.tool_call_id not in answered]
        answered |= {part.tool_call_id for part in message.parts if isinstance(part, ToolReturnPart)}
    return []


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of an agent, of a ``FunctionToolset``, or of functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    several = found if isinstance(found, (list, tuple)) else [found]
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for item in several:
        if isinstance(item, Agent):
            toolsets = [one for one in item.toolsets if isinstance(one, FunctionToolset)]
        elif isinstance(item, FunctionToolset):
            toolsets = [item]
        elif isinstance(item, Tool) or callable(item):
            toolsets = [FunctionToolset([item])]
        else:
            raise TypeError(f"{type(item).__name__} is no Pydantic AI tool; name an agent, a toolset or functions")
        for toolset in toolsets:
            described += [
                (tool.name, tool.description or "", tool.function_schema.json_schema) for tool in toolset.tools.values()
            ]
    return described
