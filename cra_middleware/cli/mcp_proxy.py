"""``cra mcp-proxy``: stands between an MCP client and an MCP server, and governs the server's tools."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.cli.exporting import exporting
from cra_middleware.cli.output import complain, stop
from cra_middleware.errors import CRAError
from cra_middleware.mcp_proxy.gate import Gate, Identity
from cra_middleware.mcp_proxy.http import HttpServer
from cra_middleware.mcp_proxy.relay import RelayTerms
from cra_middleware.mcp_proxy.serve import Server, serve
from cra_middleware.mcp_proxy.stdio import ServerProcess, take_stdout
from cra_middleware.runtime import Runtime


def mcp_proxy(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="How the server is started.", show_default=False)
    ] = None,
    atlas: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="An Atlas; may be repeated. Left out: $CRA_ATLAS.")
    ] = None,
    url: Annotated[str, typer.Option(metavar="URL", help="A streamable HTTP server, instead of a command.")] = "",
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VARIABLE", help="With --url: a header, its value from the environment."),
    ] = None,
    trace: Annotated[
        str, typer.Option(metavar="DIR", envvar="CRA_TRACE", help="Where everything is recorded. Left out: in memory.")
    ] = "",
    record: Annotated[str, typer.Option(help="full also records arguments and results.")] = "hash",
    approvals: Annotated[
        str, typer.Option(metavar="FILE", envvar="CRA_APPROVALS", help="Keeps what waits for a person.")
    ] = "",
    elicit: Annotated[
        bool, typer.Option("--elicit", help="Ask in the client. It is the client's program that answers.")
    ] = False,
    agent: Annotated[str, typer.Option(metavar="NAME", help="Who calls. Left out: as the client calls itself.")] = "",
    goal: Annotated[str, typer.Option(metavar="TEXT", help="Recorded with the session.")] = Identity.goal,
    name: Annotated[
        str, typer.Option(metavar="SERVER", help="What the server is called, also in the Atlas: SERVER/tool.")
    ] = "",
    project: Annotated[str, typer.Option(metavar="DIR", help="The folder that $PROJECT stands for.")] = ".",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="For one call.")
    ] = RelayTerms.timeout_seconds,
    observe: Annotated[bool, typer.Option("--observe", help="Refuse nothing; record what would be refused.")] = False,
) -> None:
    """Stand between an MCP client and an MCP server: list only permitted tools, decide each call, record everything.

    Neither needs to know. In the client's mcp.json, put the proxy before the server's own command:

    \b
    {"mcpServers": {"files": {
      "command": "cra",
      "args": ["mcp-proxy", "--atlas", "atlases/files", "--trace", "traces/", "--",
               "npx", "-y", "@modelcontextprotocol/server-filesystem", "/home/ann/notes"]
    }}}

    A tool stands for an action as the Atlas says (adapters: {mcp: {tools: {read_file: file.read}}}), or by having an
    action's name. What stands for no action is not listed, and denied. A denied call comes back as an error result
    that tells the model why. All other messages pass as they are.

    With OTEL_EXPORTER_OTLP_ENDPOINT set, each call is also exported as a span, and metrics are.

    \b
    Example:  cra mcp-proxy --atlas atlases/files --trace traces/ -- python server.py
              cra mcp-proxy --atlas atlases/github --name github --url https://example.com/mcp \\
                  --header Authorization=GITHUB_AUTHORIZATION

    Exit code: 0 when the client left, 1 when the server ended before, 2 for wrong usage or no server.
    """
    if bool(command) == bool(url):
        raise stop("name the server: either -- COMMAND..., or --url URL", 2)
    if record not in ("hash", "full"):
        raise stop("--record is hash or full", 2)
    paths = atlas or [path for path in (os.environ.get("CRA_ATLAS"),) if path]
    if not paths and not observe:
        raise stop("name an Atlas: --atlas PATH (or set CRA_ATLAS), or --observe to refuse nothing", 2)
    with exporting("cra-mcp-proxy", _stop):
        try:
            runtime = Runtime(
                paths,
                trace=trace or None,
                approvals=approvals or None,
                mode="observe" if observe else "enforce",
                record="full" if record == "full" else "hash",
                project=Path(project).resolve(),
            )
        except (CRAError, ValueError) as error:
            raise stop(error, 2) from None
        with runtime:
            gate = Gate(runtime, Identity(agent or None, goal, name or None))
            terms = RelayTerms(timeout, elicit, _how_to_approve(approvals))
            headers = _headers(header or [])
            server: Server = ServerProcess(command) if command else HttpServer(url, headers, gate.catalogue)
            code = asyncio.run(serve(server, gate, terms, complain, (0, take_stdout())))
    if code:
        raise typer.Exit(code)


def _how_to_approve(approvals: str) -> str:
    if not approvals:
        return RelayTerms.how_to_approve
    return f"It waits for a person: cra approvals approve ID --store {approvals}. Then repeat the identical call, once."


def _headers(options: list[str]) -> dict[str, str]:
    """Values come from the environment: a command line is there for every user of the machine to read."""
    found = {}
    for option in options:
        name, _, variable = option.partition("=")
        value = os.environ.get(variable)
        if not name or value is None or not (value.isascii() and value.isprintable()):
            raise stop(f"--header {option}: is NAME=VARIABLE, and the variable holds one line of ASCII", 2)
        found[name] = value
    return found


def _stop(reason: str) -> None:
    raise stop(reason, 2)
