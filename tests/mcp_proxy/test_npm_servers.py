"""The proxy before well-known servers from npm, by a raw client.

They are looked for in a cache of the user; with CRA_REQUIRE_SERVICES=1 they are installed there first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mcp_proxy.conftest import INITIALIZE, Client, Proxied, atlas

pytestmark = pytest.mark.slow  # each starts processes

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cra-middleware-tests" / "npm"
VERSION = "2026.8.31"
PACKAGES = ("@modelcontextprotocol/server-filesystem", "@modelcontextprotocol/server-everything")


@pytest.fixture(scope="module")
def bin() -> Path:
    """Where the servers' commands are."""
    found = CACHE / "node_modules" / ".bin"
    if (found / "mcp-server-everything").exists() and (found / "mcp-server-filesystem").exists():
        return found
    npm = shutil.which("npm")
    if os.environ.get("CRA_REQUIRE_SERVICES") != "1":
        pytest.skip(f"the npm servers are not in {CACHE}; set CRA_REQUIRE_SERVICES=1 to install them there")
    assert npm is not None, "npm is needed"
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}@{VERSION}" for name in PACKAGES]
    subprocess.run([npm, "install", "--no-audit", "--no-fund", "--silent", *wanted], cwd=CACHE, check=True, timeout=300)
    return found


def test_a_denied_write_leaves_the_disk_untouched(proxied: Proxied, bin: Path) -> None:
    """And what is read is what is read without us, byte by byte; server-filesystem."""
    data = proxied.folder / "data"
    data.mkdir()
    (data / "there.txt").write_text("zwölf Boxkämpfer\r\n\u2028" * 50_000)
    server = [str(bin / "mcp-server-filesystem"), str(data)]
    tools = {"read_text_file": "file.read", "write_file": "file.write", "move_file": "file.move"}
    proxied.write_atlas(atlas(adapters={"mcp": {"tools": tools}}))
    client, direct = proxied.start(server=server), Client(server)
    proxied.clients.append(direct)
    for one in (client, direct):
        one.initialize()
    assert {tool["name"] for tool in client.ask("tools/list")["result"]["tools"]} == {"read_text_file", "move_file"}
    assert len(direct.ask("tools/list")["result"]["tools"]) > 10
    there = {"path": str(data / "there.txt")}
    lines = []
    for one in (client, direct):
        one.request("tools/call", {"name": "read_text_file", "arguments": there})
        lines.append(one.line())
    assert lines[0] == lines[1]
    assert json.loads(lines[0] or b"")["result"]["content"][0]["text"] == (data / "there.txt").read_bytes().decode()
    before = {path: path.read_bytes() for path in data.iterdir()}
    assert "file.write was not run" in client.refusal("write_file", path=there["path"], content="gone")
    assert "unknown_action" in client.refusal("edit_file", path=there["path"], edits=[])
    assert "approval_required" in client.refusal("move_file", source=there["path"], destination=str(data / "x"))
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    client.close()
    assert proxied.told("action.requested")[0]["tool_name"] == "mcp.secure-filesystem-server/read_text_file"
    assert [told["error_code"] for told in proxied.told("action.failed")] == []


def settle(client: Client, request_id: int, answers: dict[str, Callable[[Any], Any]]) -> tuple[Any, list[Any]]:
    """The answer to a request, and what came before; the server's own requests are answered."""
    heard = []
    while True:
        message = client.next()
        if message.get("id") == request_id and "method" not in message:
            return message, heard
        heard.append(message)
        if "id" in message:
            result = answers[message["method"]](message.get("params"))
            client.send({"jsonrpc": "2.0", "id": message["id"], "result": result})


def test_everything_else_works_through_us(proxied: Proxied, bin: Path) -> None:
    """Progress, sampling, elicitation, roots, resources, prompts, completion, tasks; server-everything."""
    names = ("echo", "get-sum", "trigger-long-running-operation", "trigger-sampling-request", "get-roots-list")
    more = ("trigger-elicitation-request", "simulate-research-query")
    proxied.write_atlas(atlas(adapters={"mcp": {"tools": dict.fromkeys((*names, *more), "text.echo")}}))
    client = proxied.start(server=[str(bin / "mcp-server-everything")])
    capabilities = {"sampling": {}, "elicitation": {}, "roots": {"listChanged": True}}
    given = {**INITIALIZE, "protocolVersion": "2025-11-25", "capabilities": capabilities}
    root = {"uri": f"file://{proxied.folder}", "name": "here"}
    sampled = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "sampled words"}}
    answers: dict[str, Callable[[Any], Any]] = {
        "roots/list": lambda params: {"roots": [root]},
        "sampling/createMessage": lambda params: sampled,
        "elicitation/create": lambda params: {"action": "accept", "content": {"name": "Ann"}},
    }

    def ask(method: str, params: Any = None) -> tuple[Any, list[Any]]:
        answer, heard = settle(client, client.request(method, params), answers)
        assert "error" not in answer, answer
        return answer["result"], heard

    def call(name: str, **arguments: Any) -> str:
        return json.dumps(ask("tools/call", {"name": name, "arguments": arguments})[0])

    ask("initialize", given)
    client.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
    listed = [tool["name"] for tool in ask("tools/list")[0]["tools"]]
    assert "echo" in listed
    assert "get-env" not in listed
    assert "no loaded Atlas declares" in call("get-env")
    assert "hallo" in call("echo", message="hallo")
    assert "42" in call("get-sum", a=40, b=2)
    long = {"name": "trigger-long-running-operation", "arguments": {"duration": 0.4, "steps": 4}}
    _, heard = ask("tools/call", {**long, "_meta": {"progressToken": "t"}})
    steps = [one["params"]["progress"] for one in heard if one["method"] == "notifications/progress"]
    assert steps == [1, 2, 3, 4]
    assert "sampled words" in call("trigger-sampling-request", prompt="x")
    assert "Ann" in call("trigger-elicitation-request")
    assert "here" in call("get-roots-list")
    assert ask("resources/list")[0]["resources"]
    assert ask("prompts/get", {"name": "simple-prompt"})[0]["messages"]
    reference = {"type": "ref/prompt", "name": "completable-prompt"}
    completed, _ = ask("completion/complete", {"ref": reference, "argument": {"name": "department", "value": "E"}})
    assert completed["completion"]["values"]
    query = {"name": "simulate-research-query", "arguments": {"topic": "x"}, "task": {"ttl": 60_000}}
    task = ask("tools/call", query)[0]["task"]
    assert "content" in ask("tasks/result", {"taskId": task["taskId"]})[0]
    denied, _ = ask("tools/call", {"name": "gzip-file-as-resource", "arguments": {}, "task": {"ttl": 60_000}})
    assert denied["isError"] is True
    client.close()
    assert len(proxied.told("action.executed")) == 7
