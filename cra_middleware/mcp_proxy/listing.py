"""Asking a server once for its tools: for a first Atlas, and for its lock."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from contextlib import suppress

from pydantic import JsonValue

from cra_middleware.mcp_proxy.catalogue import Catalogue
from cra_middleware.mcp_proxy.http import HttpServer
from cra_middleware.mcp_proxy.messages import UnreadableError, as_object, read_server_line, write
from cra_middleware.mcp_proxy.serve import GRACE_SECONDS, Server
from cra_middleware.mcp_proxy.stdio import ServerError, ServerProcess

__all__ = ["ServerError", "list_tools"]

SECONDS = 60.0
"""For the first answer, as ``npx`` may have to fetch the server first; and for all pages of tools together."""
_VERSION = "2025-06-18"
_MOST_PAGES = 1000

Described = tuple[str, str, dict[str, JsonValue] | None]


def list_tools(where: str) -> tuple[str, list[Described]]:
    """What the server calls itself, and its tools: name, description, schema of the arguments.

    ``where`` is a command as a shell would split it, or the URL of a streamable HTTP server.

    Raises:
        ServerError: when it cannot be started, does not answer in time, or answers with an error.
    """
    if where.startswith(("http://", "https://")):
        return asyncio.run(_ask(HttpServer(where, {}, Catalogue())))
    try:
        command = shlex.split(where)
    except ValueError as error:
        raise ServerError(f"the command is not one: {error}") from None
    if not command:
        raise ServerError("name its command")
    return asyncio.run(_ask(ServerProcess(command)))


async def _ask(server: Server) -> tuple[str, list[Described]]:
    loop = asyncio.get_running_loop()
    await server.start()
    answers: dict[int, asyncio.Future[Mapping[str, object]]] = {}

    async def deliver(line: bytes | None) -> None:
        with suppress(UnreadableError):  # what is no message is none of ours
            value = as_object(read_server_line(line or b""))
            request_id = value.get("id")
            waiting = answers.get(request_id) if isinstance(request_id, int) and "method" not in value else None
            if waiting is not None and not waiting.done():
                waiting.set_result(value)

    running = asyncio.create_task(server.run(deliver))

    async def ask(method: str, params: Mapping[str, object], until: float) -> Mapping[str, object]:
        number = len(answers) + 1
        answer = answers[number] = loop.create_future()
        server.write(write({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
        left = max(until - loop.time(), 0.0)
        await asyncio.wait({answer, running}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ServerError(await server.why() if running.done() else f"no answer to {method} in {SECONDS:g} s")
        response = answer.result()
        if "error" in response:
            raise ServerError(f"{method}: {as_object(response['error']).get('message')}")
        return as_object(response.get("result"))

    try:
        client = {"name": "cra", "version": "1"}
        hello = {"protocolVersion": _VERSION, "capabilities": {}, "clientInfo": client}
        name = as_object((await ask("initialize", hello, loop.time() + SECONDS)).get("serverInfo")).get("name")
        server.write(write({"jsonrpc": "2.0", "method": "notifications/initialized"}))
        found: list[Described] = []
        cursor: object = None
        until = loop.time() + SECONDS
        for _ in range(_MOST_PAGES):
            page = await ask("tools/list", {} if cursor is None else {"cursor": cursor}, until)
            tools = page.get("tools")
            for tool in tools if isinstance(tools, list) else ():
                if isinstance(as_object(tool).get("name"), str):
                    found.append(_described(tool))
            cursor = page.get("nextCursor")
            if cursor is None:
                break
        else:
            raise ServerError(f"its tools have more than {_MOST_PAGES} pages")
        return (name if isinstance(name, str) and name else "server"), found
    finally:
        await server.close(GRACE_SECONDS)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _described(tool: object) -> Described:
    fields = as_object(tool)
    schema = fields.get("inputSchema")
    description = fields.get("description")
    return (
        str(fields["name"]),
        description if isinstance(description, str) else "",
        schema if isinstance(schema, dict) else None,
    )
