"""The proxy between the MCP SDK's own client and server: both eras of the protocol, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mcp_proxy.conftest import Client as RawClient
from tests.mcp_proxy.conftest import Proxied, atlas

pytest.importorskip("mcp.server.mcpserver", reason="needs the MCP SDK: pip install mcp")

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitResult

pytestmark = pytest.mark.slow  # each starts processes

SERVER = Path(__file__).with_name("sdk_server.py")
STDIO = ["--", sys.executable, str(SERVER)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server over streamable HTTP."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(SERVER), str(port)], **quiet) as server:  # type: ignore[call-overload]
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
        server.terminate()


def talk(
    proxied: Proxied, behind: list[str], mode: str, work: Callable[[Client], Awaitable[Any]], *options: str
) -> Any:
    """What ``work`` gives, with the SDK's client before the proxy."""
    given = ["--atlas", str(proxied.folder / "atlas.json"), "--trace", str(proxied.traces), *options, *behind]
    command = ["-m", "cra_middleware", "mcp-proxy", *given]
    proxy = StdioServerParameters(command=sys.executable, args=command, env={"PYTHONPATH": os.pathsep.join(sys.path)})

    async def answer(context: Any, params: Any) -> ElicitResult:
        fields = params.requested_schema["properties"]
        return ElicitResult(action="accept", content={"approve": True} if "approve" in fields else {"name": "Ann"})

    async def run() -> Any:
        async with Client(proxy, mode=mode, elicitation_callback=answer) as client:
            return await work(client)

    return asyncio.run(run())


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_the_sdk_sees_a_server_with_fewer_tools(proxied: Proxied, url: str, mode: str, transport: str) -> None:
    """Denied: the disk stays as it is. Allowed: the same bytes. The rest works as without us."""
    secret = proxied.folder / "there.bin"
    secret.write_bytes(bytes(range(1, 256)) * 100)
    never = proxied.folder / "never.txt"

    async def work(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["read_file", "echo", "slow", "fail"]
        assert tools[0].input_schema["properties"]["path"]["type"] == "string"
        read = await client.call_tool("read_file", {"path": str(secret)})
        assert read.content[0].text.encode("latin-1") == secret.read_bytes()
        denied = await client.call_tool("write_file", {"path": str(never), "text": "x"})
        assert denied.is_error
        assert "file.write was not run: Never." in denied.content[0].text
        steps: list[float] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        said = await client.call_tool("echo", {"words": "hä\u2028"}, progress_callback=note)
        assert said.content[0].text == "hä\u2028"
        assert steps == [0, 1, 2]
        assert (await client.read_resource("words://one")).contents[0].text == "eins"
        assert (await client.get_prompt("greet", {"name": "Ann"})).messages[0].content.text == "Hello Ann"
        asks = "slow" if mode == "legacy" else "fail"
        assert "Ann" in (await client.call_tool(asks, {})).content[0].text
        with pytest.raises(MCPError):
            await client.read_resource("words://none")

    talk(proxied, STDIO if transport == "stdio" else ["--url", url], mode, work)
    assert not never.exists()
    names = [told["tool_name"] for told in proxied.told("action.requested")]
    assert names[:3] == ["mcp.sdk/read_file", "mcp.sdk/write_file", "mcp.sdk/echo"]
    assert proxied.told("session.started")[0]["agent_id"] == "mcp"


def test_an_http_server_that_is_not_there(proxied: Proxied) -> None:
    client = RawClient(
        [
            sys.executable,
            "-m",
            "cra_middleware",
            "mcp-proxy",
            "--observe",
            "--url",
            "http://ann:secret@127.0.0.1:1/mcp?key=secret",
        ]
    )
    client.request("initialize", {})
    assert "http://127.0.0.1:1/mcp cannot be reached" in client.next()["error"]["message"]
    assert client.close() == 1
    assert "secret" not in client.stderr()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_client_is_asked_in_both_eras(proxied: Proxied, mode: str) -> None:
    """The yes counts once, and the server sees nothing of it."""
    person = {"policy_id": "person", "type": "require_approval", "actions": ["text.echo"]}
    proxied.write_atlas(atlas(policies=[{"policy_id": "all", "type": "allow"}, person]))

    async def work(client: Client) -> None:
        assert (await client.call_tool("echo", {"words": "one"})).content[0].text == "one"
        assert (await client.call_tool("echo", {"words": "one"})).content[0].text == "one"

    talk(proxied, STDIO, mode, work, "--elicit")
    approved = proxied.told("action.approved")
    assert [told["approver"] for told in approved] == ["user of mcp"] * 2
    assert len({told["approval_id"] for told in approved}) == 2
