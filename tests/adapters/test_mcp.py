"""The MCP SDK and FastMCP, for real: scripted calls go over an in-memory connection, in both eras of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("mcp.server.mcpserver", reason="the MCP adapter needs the mcp extra (mcp 2)")
pytest.importorskip("fastmcp", reason="these tests drive FastMCP, too")

import mcp_types as types
from fastmcp import Client as FastClient
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError as FastToolError
from fastmcp.server.middleware import Middleware
from mcp import Client
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import MCPServer

from cra_adapters.mcp import govern_client, govern_server
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from tests.adapters.contract import Bench, check

ERAS = ("auto", "legacy")
ELSEWHERE = "the function is on the other side, and what is @governed there is decided there, too"
RESULT = "a server tells of a failure by a result, without its type"
CHANGED = {"amount": 500.0, "ticket_id": "T-9"}


def text(result: Any) -> str:
    return " ".join(part.text for part in result.content if part.type == "text")


async def retry(ctx: Any, call_next: Callable[[Any], Any]) -> Any:
    """A neighbour that runs a failed call twice more."""
    for _ in range(2):
        result = await call_next(ctx)
        if ctx.method != "tools/call" or not result.get("isError"):
            return result
    return await call_next(ctx)


async def change(ctx: Any, call_next: Callable[[Any], Any]) -> Any:
    """A neighbour that changes arguments."""
    if ctx.method != "tools/call":
        return await call_next(ctx)
    arguments = {key: CHANGED.get(key, value) for key, value in ctx.params["arguments"].items()}
    return await call_next(replace(ctx, params={**ctx.params, "arguments": arguments}))


class FastRetry(Middleware):
    async def on_call_tool(self, context: Any, call_next: Any) -> Any:
        for _ in range(2):
            try:
                return await call_next(context)
            except FastToolError:
                continue
        return await call_next(context)


class FastChange(Middleware):
    async def on_call_tool(self, context: Any, call_next: Any) -> Any:
        arguments = {key: CHANGED.get(key, value) for key, value in context.message.arguments.items()}
        message = context.message.model_copy(update={"arguments": arguments})
        return await call_next(context.copy(message=message))


class Subject:
    framework = "mcp"
    modes: tuple[Mode, ...] = ("async",)
    abilities: frozenset[str] = frozenset({"agent_names", "retry", "change", "nested", "hide"})
    holes: ClassVar[dict[str, str]] = {}

    def __init__(self, era: str = "auto") -> None:
        self.era = era

    def server(self, task: Task, tools: list[Any]) -> Any:
        raise NotImplementedError

    def client(self, task: Task, server: Any) -> Any:
        info = types.Implementation(name=task.agent, version="1")
        return Client(server, mode=self.era, client_info=info)

    async def drive(self, task: Task) -> Outcome:
        tools = list(task.tools)
        if task.nested is not None:
            inner = task.nested

            async def delegate(request: str) -> str:
                """Ask the helper."""
                return (await self.drive(inner)).final

            tools.append(delegate)
        seen: list[str] = []

        async def call(client: Any, one: Scripted) -> Any:
            return await client.call_tool(one.tool, dict(one.arguments))

        async with self.client(task, self.server(task, tools)) as client:
            shown = [tool.name for tool in (await client.list_tools()).tools]
            for turn in task.turns:
                seen += [text(result) for result in await asyncio.gather(*(call(client, one) for one in turn))]
        return Outcome(seen, "done", None, shown)

    def run(self, task: Task) -> Outcome:
        try:
            return asyncio.run(self.drive(task))
        except Exception as error:
            return Outcome(error=error)

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise NotImplementedError


class OnMCPServer(Subject):
    holes: ClassVar[dict[str, str]] = {
        "tool_raises": "the SDK keeps a crash's own text from the client",
    }

    def server(self, task: Task, tools: list[Any]) -> Any:
        middleware = {None: [], "retry": [retry], "change": [change]}[task.neighbour]
        server: MCPServer[Any] = MCPServer("desk", middleware=middleware, log_level="CRITICAL")
        govern_server(server, task.runtime, hide_denied=task.adds_context)
        for tool in tools:
            server.tool()(tool)
        return server


class OnFastMCP(Subject):
    def server(self, task: Task, tools: list[Any]) -> Any:
        middleware = {None: [], "retry": [FastRetry()], "change": [FastChange()]}[task.neighbour]
        server: FastMCP[Any] = FastMCP("desk", middleware=middleware)
        for tool in tools:
            server.tool(tool)
        return govern_server(server, task.runtime, hide_denied=task.adds_context)

    def client(self, task: Task, server: Any) -> Any:
        info = types.Implementation(name=task.agent, version="1")
        return Lenient(FastClient(server, mode=self.era, client_info=info))


class Lenient:
    """A FastMCP client whose calls give a result where they would raise, and a list as the SDK's gives it."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def __aenter__(self) -> Lenient:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.client.__aexit__(*error)

    async def list_tools(self) -> Any:
        return await self.client.list_tools_mcp()

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        return await self.client.call_tool_mcp(name, arguments)


class OnLowLevel(Subject):
    """A low-level server whose handlers are another server's: its tools take what is said, and fill in the rest."""

    holes: ClassVar[dict[str, str]] = {
        "tool_raises": RESULT,
        "governed_body": ELSEWHERE,
    }

    def server(self, task: Task, tools: list[Any]) -> Any:
        inner: MCPServer[Any] = MCPServer("inner", log_level="CRITICAL")
        for tool in tools:
            inner.tool()(tool)
        server: Server[Any] = Server(
            "desk", on_list_tools=inner._handle_list_tools, on_call_tool=inner._handle_call_tool
        )
        server.middleware.extend({None: [], "retry": [retry], "change": [change]}[task.neighbour])
        return govern_server(server, task.runtime, hide_denied=task.adds_context)


class OnClient(Subject):
    abilities = frozenset({"agent_names", "nested", "hide"})
    holes: ClassVar[dict[str, str]] = {"tool_raises": RESULT, "governed_body": ELSEWHERE}

    def server(self, task: Task, tools: list[Any]) -> Any:
        server: MCPServer[Any] = MCPServer("desk", log_level="CRITICAL")
        for tool in tools:
            server.tool()(tool)
        return server

    def client(self, task: Task, server: Any) -> Any:
        client = Client(server, mode=self.era)
        return govern_client(client, task.runtime, agent=task.agent, hide_denied=task.adds_context)


SUBJECTS = [kind(era) for kind in (OnMCPServer, OnFastMCP, OnLowLevel, OnClient) for era in ERAS]
CASES = [(subject, case) for subject in SUBJECTS for case in adapter_contract(subject)]


@pytest.mark.parametrize(
    ("subject", "case"), CASES, ids=[f"{type(subject).__name__}-{subject.era}-{case}" for subject, case in CASES]
)
def test_contract(subject: Subject, case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)
