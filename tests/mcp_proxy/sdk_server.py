"""An MCP server made with the SDK, for tests: over stdio, or over streamable HTTP on the port given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult
from pydantic import BaseModel, Field

server = MCPServer("sdk")
QUESTION = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


class Name(BaseModel):
    """What is asked for."""

    name: str


@server.tool()
def read_file(path: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Path"})]) -> str:
    """Read a file."""
    return Path(path).read_bytes().decode("latin-1")


@server.tool()
def write_file(path: str, text: str) -> str:
    """Write a file."""
    Path(path).write_text(text)
    return "written"


@server.tool()
async def echo(ctx: Context, words: str) -> str:
    """Say how far it is, then say it."""
    for step in range(3):
        await ctx.report_progress(step, 3)
    return words


@server.tool()
async def slow(ctx: Context) -> str:
    """Ask the client's user, before 2026."""
    answer = await ctx.elicit("Who are you?", Name)
    return f"{answer.action} {getattr(answer, 'data', None)}"


@server.tool()
async def fail(ctx: Context) -> str | InputRequiredResult:
    """Ask the client's user, since 2026."""
    if ctx.input_responses is None:
        params = ElicitRequestFormParams(message="Who are you?", requested_schema=QUESTION)
        return InputRequiredResult(input_requests={"who": ElicitRequest(params=params)}, request_state="state")
    return f"{ctx.input_responses['who']} {ctx.request_state}"


@server.resource("words://one")
def one() -> str:
    """A word."""
    return "eins"


@server.prompt()
def greet(name: str) -> str:
    """A greeting."""
    return f"Hello {name}"


if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run("stdio")
