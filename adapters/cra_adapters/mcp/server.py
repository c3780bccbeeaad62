"""``MCPServer`` and the low-level ``Server``: each tool's function is decided, or the handler of ``tools/call``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import anyio
from mcp.server.lowlevel.server import HandlerEntry, Server
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, ListToolsResult, PaginatedRequestParams, TextContent
from pydantic import ValidationError

from cra_adapters.mcp.listed import Listed, Listing, invalid, missing
from cra_adapters.mcp.outcome import ServerReportedError, reported
from cra_adapters.mcp.serving import Request, Serving
from cra_middleware import CallRefused

Handler = Callable[[Request, Any], Any]


def denied(refusal: CallRefused) -> CallToolResult:
    """A refusal, as a result that a model can act on."""
    return CallToolResult(content=[TextContent(type="text", text=str(refusal))], is_error=True)


def listings(tools: Any) -> list[Listing]:
    """Tools as they are listed."""
    return [Listing(tool.name, tool.description or "", tool.input_schema) for tool in tools]


def shown(listed: Listed, serving: Serving, tools: list[Any]) -> list[Any]:
    """The tools that some call could be allowed to use; none, where no session can be had."""
    try:
        caller = serving.caller()
        session = listed.point.session(run=caller.run, agent=caller.agent)
        return [tool for tool in tools if listed.tool(tool.name).is_shown(session)]
    except CallRefused:
        return []


class _GovernedTools(dict[str, Tool]):
    """The tools of an ``MCPServer``: whatever is put in is governed from then on."""

    def __init__(self, governed: Callable[[Tool], Tool]) -> None:
        super().__init__()
        self._governed = governed

    def __setitem__(self, name: str, tool: Tool) -> None:
        super().__setitem__(name, self._governed(tool))


def govern_mcp_server(server: MCPServer[Any], listed: Listed, serving: Serving, *, hide_denied: bool) -> None:
    """Decide in the functions of its tools, those of today and of later."""
    manager = server._tool_manager
    tools = _GovernedTools(lambda tool: _governed(tool, listed, serving))
    for name, tool in manager._tools.items():
        tools[name] = tool
    manager._tools = tools
    run = manager.call_tool

    async def call_tool(name: str, arguments: dict[str, Any], context: Any, convert_result: bool = False) -> Any:
        caller = serving.caller()
        tool = manager.get_tool(name)
        try:
            if tool is None:
                raise missing(listed.tool(name), arguments, caller)
            with serving.attempt() as attempt:
                try:
                    return await run(name, arguments, context, convert_result=convert_result)
                except ToolError as error:
                    if not attempt.is_decided and isinstance(error.__cause__, ValidationError):
                        invalid(_described(tool, listed), arguments, caller)
                    raise
        except CallRefused as refusal:
            raise ToolError(str(refusal)) from refusal

    manager.call_tool = call_tool  # type: ignore[method-assign]

    def wrap(method: str, handler: Handler) -> Handler:
        async def served(ctx: Request, params: Any) -> Any:
            with serving.request(ctx):
                result = await handler(ctx, params)
                if method == "tools/list" and hide_denied and isinstance(result, ListToolsResult):
                    listed.see(listings(result.tools))
                    return result.model_copy(update={"tools": shown(listed, serving, result.tools)})
                return result

        return served

    wrap_handlers(server._lowlevel_server, wrap)


def _described(tool: Tool, listed: Listed, body: Callable[..., Any] | None = None) -> Any:
    return listed.point.tool(
        tool.name,
        body=body,
        description=tool.description,
        schema=tool.parameters,
        server=listed.server,
        without={*tool.resolved_params, *([] if tool.context_kwarg is None else [tool.context_kwarg])},
    )


def _governed(tool: Tool, listed: Listed, serving: Serving) -> Tool:
    """The tool with a function that is decided; it stays on the event loop, where a person can be asked."""
    described = _described(tool, listed, tool.fn)

    @functools.wraps(tool.fn)
    async def decided(**kwargs: Any) -> Any:
        serving.reached()
        caller = serving.caller()
        try:
            call = described.call(
                kwargs, call_id=caller.call_id, agent=caller.agent, run=caller.run, approver=caller.approver
            )
            return await call.arun(lambda: _body(tool, kwargs))
        except CallRefused as refusal:
            raise ToolError(str(refusal)) from refusal

    return tool.model_copy(update={"fn": decided, "is_async": True})


async def _body(tool: Tool, kwargs: dict[str, Any]) -> Any:
    if tool.is_async:
        return await tool.fn(**kwargs)
    return await anyio.to_thread.run_sync(functools.partial(tool.fn, **kwargs))


def govern_lowlevel(server: Server[Any], listed: Listed, serving: Serving, *, hide_denied: bool) -> None:
    """Decide before the handler of ``tools/call``, whichever it will be."""

    def wrap(method: str, handler: Handler) -> Handler:
        async def listing(ctx: Request, params: Any) -> Any:
            result = await handler(ctx, params)
            if not isinstance(result, ListToolsResult):
                raise TypeError("a list of tools that is no ListToolsResult cannot be governed")
            listed.see(listings(result.tools), is_first=params is None or params.cursor is None)
            with serving.request(ctx):
                kept = shown(listed, serving, result.tools) if hide_denied else result.tools
            return result.model_copy(update={"tools": kept})

        async def calling(ctx: Request, params: Any) -> Any:
            with serving.request(ctx):
                try:
                    if not listed.knows(params.name):
                        await _learn(server, ctx)
                    call = listed.call(params.name, params.arguments or {}, serving.caller())
                    return await call.arun(lambda: reported(handler(ctx, params)))
                except CallRefused as refusal:
                    return denied(refusal)
                except ServerReportedError as error:
                    return error.result

        return listing if method == "tools/list" else calling

    wrap_handlers(server, wrap)


async def _learn(server: Server[Any], ctx: Request) -> None:
    """Ask the server's own list for what is not known yet."""
    entry = server.get_request_handler("tools/list")
    cursor: str | None = None
    for _ in range(100 if entry is not None else 0):
        page: Any = await entry.handler(ctx, PaginatedRequestParams(cursor=cursor))  # type: ignore[union-attr]
        cursor = page.next_cursor
        if cursor is None:
            return


def wrap_handlers(server: Server[Any], wrap: Callable[[str, Handler], Handler]) -> None:
    """Wrap the handlers of tools as they are looked up: one that is put in another's place is wrapped, too."""
    find = server.get_request_handler

    def wrapped(method: str) -> HandlerEntry[Any] | None:
        entry = find(method)
        if entry is None or method not in ("tools/call", "tools/list"):
            return entry
        return HandlerEntry(entry.params_type, wrap(method, entry.handler))

    server.get_request_handler = wrapped  # type: ignore[method-assign]
