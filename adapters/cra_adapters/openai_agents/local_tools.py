"""Governed copies of the SDK's other tools that run on this machine: shells, patches, custom tools."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from agents import (
    ApplyPatchTool,
    CodeInterpreterTool,
    CustomTool,
    FileSearchTool,
    FunctionTool,
    HostedMCPTool,
    ImageGenerationTool,
    LocalShellTool,
    ShellTool,
    WebSearchTool,
)
from agents.editor import ApplyPatchResult
from agents.tool import ProgrammaticToolCallingTool, ToolSearchTool

from cra_adapters.openai_agents.caller import Caller
from cra_adapters.openai_agents.function_tools import describe_tool, govern_function_tool
from cra_middleware import CallRefused
from cra_middleware.enforcement import EnforcementPoint, GovernedTool

HOSTED = (
    CodeInterpreterTool,
    FileSearchTool,
    HostedMCPTool,
    ImageGenerationTool,
    ProgrammaticToolCallingTool,
    ToolSearchTool,
    WebSearchTool,
)
"""What runs at the provider's, or nowhere."""


def describe(tool: Any, point: EnforcementPoint) -> GovernedTool:
    """What the runtime is told about ``tool``."""
    if isinstance(tool, FunctionTool):
        return describe_tool(tool, point)
    return point.tool(tool.name, description=getattr(tool, "description", None) or "")


def govern_tool(tool: Any, caller: Caller) -> Any:
    """A copy of ``tool`` whose calls are decided; None for a tool that runs here and cannot be governed."""
    if isinstance(tool, FunctionTool):
        return govern_function_tool(tool, caller)
    if isinstance(tool, HOSTED):
        return tool
    changed = copy.copy(tool)
    governed = describe(tool, caller.point)
    if isinstance(tool, CustomTool):
        changed.on_invoke_tool = _custom(tool.on_invoke_tool, governed, caller)
    elif isinstance(tool, ShellTool):
        if tool.executor is not None:
            changed.executor = _shell(tool.executor, governed, caller, _shell_arguments)
    elif isinstance(tool, LocalShellTool):
        changed.executor = _shell(tool.executor, governed, caller, _local_shell_arguments)
    elif isinstance(tool, ApplyPatchTool):
        changed.editor = _Editor(tool.editor, governed, caller)
    else:
        return None
    return changed


async def _decided(
    governed: GovernedTool,
    caller: Caller,
    arguments: dict[str, Any],
    call_id: str | None,
    body: Callable[[], Any],
    refused: Callable[[str], Any] = str,
) -> Any:
    async def run() -> Any:
        result = body()
        return await result if inspect.isawaitable(result) else result

    try:
        return await caller.call(governed, arguments, call_id).arun(run)
    except CallRefused as refusal:
        return refused(str(refusal))


def _custom(body: Callable[..., Any], governed: GovernedTool, caller: Caller) -> Callable[..., Any]:
    async def invoke(ctx: Any, text: str) -> Any:
        return await _decided(governed, caller, {"input": text}, ctx.tool_call_id, lambda: body(ctx, text))

    return invoke


def _shell(
    body: Callable[..., Any], governed: GovernedTool, caller: Caller, read: Callable[[Any], dict[str, Any]]
) -> Callable[..., Any]:
    async def execute(request: Any) -> Any:
        request = copy.copy(request)
        request.data = copy.deepcopy(request.data)  # it is the response's own
        return await _decided(governed, caller, read(request.data), request.data.call_id, lambda: body(request))

    return execute


def _shell_arguments(data: Any) -> dict[str, Any]:
    return _given(asdict(data.action))


def _local_shell_arguments(data: Any) -> dict[str, Any]:
    return _given(data.action.model_dump(exclude={"type"}))


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


class _Editor:
    """Decides each operation of a patch by itself; the SDK does not say which call it belongs to."""

    def __init__(self, editor: Any, governed: GovernedTool, caller: Caller) -> None:
        self._editor = editor
        self._governed = governed
        self._caller = caller

    async def create_file(self, operation: Any) -> Any:
        return await self._decided(operation, self._editor.create_file)

    async def update_file(self, operation: Any) -> Any:
        return await self._decided(operation, self._editor.update_file)

    async def delete_file(self, operation: Any) -> Any:
        return await self._decided(operation, self._editor.delete_file)

    async def _decided(self, operation: Any, body: Callable[[Any], Any]) -> Any:
        operation = copy.copy(operation)
        arguments = _given({name: getattr(operation, name, None) for name in ("type", "path", "diff", "move_to")})
        return await _decided(
            self._governed,
            self._caller,
            arguments,
            None,
            lambda: body(operation),
            lambda sentence: ApplyPatchResult(status="failed", output=sentence),
        )
