"""``FastMCP``: each tool that the server finds, and gives away, is one that is decided.

A function tool is decided in its function, on what FastMCP made of the arguments. A tool of any other kind (a proxy's,
a mounted server's, a transformed one, OpenAPI's) is decided as it is run, on arguments that fit its schema.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
from fastmcp import FastMCP
from fastmcp.exceptions import NotFoundError, ToolError, ValidationError
from fastmcp.server.dependencies import without_injected_parameters
from fastmcp.tools import FunctionTool, Tool

from cra_adapters.mcp.listed import Listed, Listing, invalid, missing
from cra_adapters.mcp.outcome import ServerReportedError, reported
from cra_adapters.mcp.server import shown, wrap_handlers
from cra_adapters.mcp.serving import Request, Serving
from cra_middleware import CallRefused
from cra_middleware.enforcement import GovernedTool, govern_function

_MARK = "__cra_listed__"


def listing(tool: Tool) -> Listing:
    """A tool as a client is told about it."""
    told = tool.to_mcp_tool()
    return Listing(tool.name, told.description or "", told.input_schema)


def govern_fastmcp(server: FastMCP[Any], listed: Listed, serving: Serving, *, hide_denied: bool) -> None:
    """Decide in the tools of a server, those of its mounted servers and of its proxies included."""
    find, tasks, run, show = server.get_tool, server.get_tasks, server.call_tool, server.list_tools

    async def get_tool(*args: Any, **kwargs: Any) -> Tool | None:
        found = await find(*args, **kwargs)
        return None if found is None else _governed(found, listed, serving)

    async def call_tool(
        name: str, arguments: dict[str, Any] | None = None, *, run_middleware: bool = True, **rest: Any
    ) -> Any:
        if run_middleware:
            return await run(name, arguments, run_middleware=True, **rest)
        caller = serving.caller()
        with serving.attempt() as attempt:
            try:
                return await run(name, arguments, run_middleware=False, **rest)
            except NotFoundError as error:
                if attempt.is_decided:
                    raise
                tool = listed.tool(name)
                raise ToolError(str(missing(tool, arguments or {}, caller))) from error
            except ValidationError:
                if not attempt.is_decided:
                    found = await get_tool(name)
                    if found is not None:
                        listed.see([listing(found)])
                    invalid(listed.tool(name), arguments or {}, caller)
                raise

    async def list_tools(*, run_middleware: bool = True) -> Any:
        found = [_governed(tool, listed, serving) for tool in await show(run_middleware=run_middleware)]
        if not run_middleware or not hide_denied:
            return found
        listed.see(listing(tool) for tool in found)
        return shown(listed, serving, found)

    async def get_tasks() -> Any:
        """What a worker is given to run in the background."""
        return [_governed(item, listed, serving) if isinstance(item, Tool) else item for item in await tasks()]

    def wrap(method: str, handler: Callable[[Request, Any], Any]) -> Callable[[Request, Any], Any]:
        async def served(ctx: Request, params: Any) -> Any:
            with serving.request(ctx):
                return await handler(ctx, params)

        return served

    for replacement in (get_tool, get_tasks, call_tool, list_tools):
        setattr(server, replacement.__name__, replacement)
    wrap_handlers(server._mcp_server, wrap)


def _governed(tool: Tool, listed: Listed, serving: Serving) -> Tool:
    if isinstance(tool, FunctionTool) and type(tool).run is FunctionTool.run and type(tool)._run is Tool._run:
        if getattr(tool.fn, _MARK, None) is listed:
            return tool
        return tool.model_copy(update={"fn": _governed_function(tool, listed, serving)})
    if getattr(tool, _MARK, None) is listed:
        return tool
    copy = tool.model_copy()
    object.__setattr__(copy, "__class__", _governed_class(type(tool)))  # type: ignore[arg-type]
    object.__setattr__(copy, _MARK, listed)
    object.__setattr__(copy, "__cra_serving__", serving)
    return copy


def _governed_function(tool: FunctionTool, listed: Listed, serving: Serving) -> Callable[..., Any]:
    fn = tool.fn
    told = listing(tool)
    parameters = set(inspect.signature(fn).parameters)
    described: GovernedTool = listed.point.tool(
        tool.name,
        body=fn,
        description=told.description,
        schema=told.schema,
        server=listed.server,
        without=parameters - set(inspect.signature(without_injected_parameters(fn)).parameters),
    )

    @functools.wraps(fn)
    async def body(*args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn) or not tool.run_in_thread:
            result = fn(*args, **kwargs)
        else:
            result = await anyio.to_thread.run_sync(lambda: _whole(fn(*args, **kwargs)))
        if inspect.isawaitable(result):
            result = await result
        if inspect.isasyncgen(result):
            return [item async for item in result]
        return _whole(result)

    def prepare(arguments: dict[str, object]) -> Any:
        serving.reached()
        caller = serving.caller()
        return described.call(
            arguments, call_id=caller.call_id, agent=caller.agent, run=caller.run, approver=caller.approver
        )

    decided = govern_function(body, prepare, _raise)
    setattr(decided, _MARK, listed)
    return decided


def _whole(result: Any) -> Any:
    """A generator's body runs as it is read: inside the call, or it would not be decided."""
    return list(result) if inspect.isgenerator(result) else result


def _raise(refusal: CallRefused) -> Any:
    raise ToolError(str(refusal)) from refusal


_inside: ContextVar[object] = ContextVar("cra_mcp_inside", default=None)


@functools.cache
def _governed_class(kind: type[Any]) -> type[Any]:
    """A kind of tool whose runs are decided; one that does both ``_run`` and ``run`` is decided once."""

    async def decide(tool: Any, arguments: dict[str, Any], body: Callable[..., Any]) -> Any:
        if _inside.get() is tool:
            return await body(tool, arguments)
        listed: Listed = getattr(tool, _MARK)
        serving: Serving = tool.__cra_serving__
        serving.reached()
        listed.see([listing(tool)])
        token = _inside.set(tool)
        try:
            call = listed.call(tool.name, arguments, serving.caller())
            return await call.arun(lambda: reported(body(tool, arguments)))
        except CallRefused as refusal:
            raise ToolError(str(refusal)) from refusal
        except ServerReportedError as error:
            return error.result
        finally:
            _inside.reset(token)

    class Governed(kind):  # type: ignore[misc]  # a kind that is known as it runs
        async def run(self, arguments: dict[str, Any]) -> Any:
            return await decide(self, arguments, kind.run)

        async def _run(self, arguments: dict[str, Any]) -> Any:
            return await decide(self, arguments, kind._run)

    return Governed
