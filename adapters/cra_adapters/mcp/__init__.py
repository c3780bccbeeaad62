"""MCP: ``govern_server(server, runtime)`` for tools, ``govern_client(client, runtime)`` for calls of an agent.

A server that is written with the SDK (``MCPServer``, the low-level ``Server``) or with FastMCP is governed in its
tools: an ``MCPServer``'s and FastMCP's function tools in the function, on the arguments that it gets; all others as
they are run. A client (``ClientSession``, ``mcp.Client``, ``fastmcp.Client``) is governed as a request is sent. Where
the body is elsewhere, arguments have to fit the schema that the server listed, and are decided with its defaults.

Holes: a tool's Python function that is called by its own name; tools of FastMCP that are taken from a provider or from
a mounted server instead of the governed server; ``Resolve`` parameters, which an ``MCPServer`` finds before its tool is
reached; what goes past a client's session, by the class's own methods or by its dispatcher; requests other than
``tools/call``. A task that a FastMCP server runs in a worker is decided there; that is not tested.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakSet

from mcp import ClientSession
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.tools.tool_manager import ToolManager

from cra_adapters.mcp.client import Sessions, govern_sessions
from cra_adapters.mcp.listed import FRAMEWORK, Listed
from cra_adapters.mcp.server import govern_lowlevel, govern_mcp_server
from cra_adapters.mcp.serving import Serving
from cra_middleware import Runtime
from cra_middleware.enforcement import EnforcementPoint, require

__all__ = ["describe_tools", "govern_client", "govern_server"]

S = TypeVar("S")
C = TypeVar("C")
_servers: WeakSet[Any] = WeakSet()
_SEAMS: dict[object, tuple[str, ...]] = {
    ClientSession: ("send_request", "list_tools", "server_info"),
    Server: ("get_request_handler",),
    Tool: ("run", "model_copy"),
    ToolManager: ("call_tool", "get_tool"),
}


def govern_server(
    server: S,
    runtime: Runtime,
    *,
    name: str | None = None,
    actions: Mapping[str, str] | None = None,
    agent_id: str | None = None,
    goal: str | None = None,
    hide_denied: bool = True,
    elicit: bool = False,
) -> S:
    """Decide and record every tool call of ``server``, and return it.

    Args:
        server: an ``MCPServer``, a low-level ``Server``, or a ``FastMCP``; its tools may be added later.
        name: how the trace, ``atlas.lock`` and keys ``server/tool`` of an Atlas call it; its own name, if left out.
        actions: tool names to action ids, before what the Atlas maps.
        agent_id: how policies and the trace name whoever calls; left out, a client's own word counts.
        goal: the operator's sentence, recorded in the trace.
        hide_denied: tools that no call could be allowed to use are not listed.
        elicit: ask the client's user where a call needs a person and the runtime has no approver. The answer comes
            from the client's program, which may have no person before it.

    Raises:
        RuntimeError: when the SDK lacks a hook that the gate stands on, or the server is governed already.
        TypeError: when it is no server that is known.
    """
    require("mcp", "2.0.1", _SEAMS)
    if server in _servers:
        raise RuntimeError("this server is governed already")
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
    serving = Serving(point, agent_id=agent_id, elicit=elicit)
    listed = Listed(point, name or str(getattr(server, "name", "")) or "server")
    if isinstance(server, MCPServer):
        govern_mcp_server(server, listed, serving, hide_denied=hide_denied)
    elif isinstance(server, Server):
        govern_lowlevel(server, listed, serving, hide_denied=hide_denied)
    elif _is_fastmcp(server):
        require("fastmcp", "4.0.11")
        from cra_adapters.mcp.fast_server import govern_fastmcp

        govern_fastmcp(server, listed, serving, hide_denied=hide_denied)  # type: ignore[arg-type]
    else:
        raise TypeError(f"{type(server).__name__} is no MCPServer, Server or FastMCP")
    _servers.add(server)
    return server


def govern_client(
    client: C,
    runtime: Runtime | None = None,
    *,
    server: str | None = None,
    actions: Mapping[str, str] | None = None,
    agent: str | None = None,
    goal: str | None = None,
    hide_denied: bool = True,
) -> C:
    """Decide and record every tool call that is made by ``client``, and return it.

    Args:
        client: a ``ClientSession``, a ``ClientSessionGroup``, a ``mcp.Client`` or a ``fastmcp.Client``, connected or
            not.
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
        server: the operator's name for the server. What it calls itself is in the trace and in ``atlas.lock`` without
            one, but begins no key ``server/tool`` of an Atlas.
        actions: tool names to action ids, before what the Atlas maps.
        agent: whose calls these are.
        goal: the operator's sentence, recorded in the trace.
        hide_denied: tools that no call could be allowed to use are not listed.

    Raises:
        RuntimeError: when the SDK lacks a hook that the gate stands on.
        TypeError: when it is no client that is known.
    """
    require("mcp", "2.0.1", _SEAMS)
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent, goal=goal)
    govern_sessions(client, Sessions(point, server=server, agent=agent, hide_denied=hide_denied))
    return client


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of an ``MCPServer`` or a ``FastMCP``.

    Raises:
        TypeError: when it is neither.
    """
    if isinstance(found, MCPServer):
        return [(tool.name, tool.description or "", tool.input_schema) for tool in asyncio.run(found.list_tools())]
    if _is_fastmcp(found):
        from cra_adapters.mcp.fast_server import listing

        told = [listing(tool) for tool in asyncio.run(found.list_tools())]
        return [(tool.name, tool.description, dict(tool.schema)) for tool in told]
    raise TypeError(f"{type(found).__name__} is no MCPServer or FastMCP; ask a running server: mcp:COMMAND or mcp:URL")


def _is_fastmcp(server: object) -> bool:
    """Asked without importing FastMCP, which a program that has no such server need not have."""
    return any(f"{kind.__module__}.{kind.__name__}" == "fastmcp.server.server.FastMCP" for kind in type(server).mro())
