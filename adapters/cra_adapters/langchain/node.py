"""``governed_tool_node``: LangGraph's ``ToolNode`` for a graph of your own, with governed tools in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from cra_adapters.langchain.inside import agent_of, thread_of
from cra_adapters.langchain.tools import FRAMEWORK, govern_tools
from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint

_Result = ToolMessage | Command[Any]


def governed_tool_node(
    tools: Sequence[BaseTool],
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    interrupt: bool = True,
    **options: Any,
) -> ToolNode:
    """A ``ToolNode`` whose tools are governed, and which records calls of tools that it does not have.

    The decision is made inside the tools (``govern_tools``), so that it is the same under ``invoke`` and ``ainvoke``.

    Args:
        options: of ``ToolNode``, without ``wrap_tool_call`` and ``awrap_tool_call``.
    """
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions)

    def missing(request: ToolCallRequest) -> ToolMessage | None:
        if request.tool is not None:
            return None
        call, config = request.tool_call, request.runtime.config
        try:
            refusal = point.tool(call["name"]).missing(
                call["args"], call_id=call["id"], agent=agent_of(config), run=thread_of(config)
            )
        except CallRefused as error:
            refusal = error
        return ToolMessage(str(refusal), name=call["name"], tool_call_id=call["id"] or "", status="error")

    def sync(request: ToolCallRequest, handler: Callable[[ToolCallRequest], _Result]) -> _Result:
        return missing(request) or handler(request)

    async def asynchronous(
        request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[_Result]]
    ) -> _Result:
        return missing(request) or await handler(request)

    governed = govern_tools(tools, runtime, actions, interrupt=interrupt)
    return ToolNode(governed, wrap_tool_call=sync, awrap_tool_call=asynchronous, **options)
