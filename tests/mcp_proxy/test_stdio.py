"""The command between a raw client and a raw server: what passes, what is decided, what is recorded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

from tests.mcp_proxy.conftest import Client, Proxied, atlas

Start = Callable[..., Client]


def test_permitted_calls_run_and_denied_ones_do_not_reach_the_server(proxied: Proxied, started: Start) -> None:
    client = started()
    assert client.call("read_file", path="/x")["result"]["structuredContent"] == {"path": "/x"}
    assert "file.write was not run: Never. [policy_denied, policy no-write]" in client.refusal("write_file", path="/x")
    assert "file.delete was not run" in client.refusal("delete_file")
    assert "no loaded Atlas declares the action 'never_listed'" in client.refusal("never_listed")
    assert client.close() == 0
    assert [call["params"]["name"] for call in proxied.calls()] == ["read_file"]
    assert [told["tool_name"] for told in proxied.told("action.requested")] == [
        "mcp.raw/read_file",
        "mcp.raw/write_file",
        "mcp.raw/delete_file",
        "mcp.raw/never_listed",
    ]
    assert len(proxied.told("action.executed")) == 1
    assert [told["code"] for told in proxied.told("action.denied")] == [
        "policy_denied",
        "no_allow_policy",
        "unknown_action",
    ]
    assert proxied.told("session.started")[0]["agent_id"] == "raw-client"
    assert proxied.told("session.ended")[0]["reason"] == "completed"


@pytest.mark.slow
def test_lists_hold_permitted_tools_only(proxied: Proxied, started: Start) -> None:
    """Page by page; the rest of a result stays, and a page of permitted tools only is passed byte by byte."""
    client = started()
    first = client.ask("tools/list")["result"]
    assert [tool["name"] for tool in first["tools"]] == ["read_file", "slow", "fail"]
    assert first["_meta"] == {"kept": True}
    second = client.ask("tools/list", {"cursor": first["nextCursor"]})["result"]
    assert [tool["name"] for tool in second["tools"]] == ["die", "ask", "echo"]  # the one that wants a person is shown
    assert "nextCursor" not in second
    proxied.write_atlas(atlas(policies=[{"policy_id": "all", "type": "allow"}]))
    direct = Client([sys.executable, os.path.join(os.path.dirname(__file__), "raw_server.py"), os.devnull])
    other = started()
    for one in (direct, other):
        one.send({"jsonrpc": "2.0", "id": "list", "method": "tools/list"})
    assert direct.line() == other.line()
    direct.close()


@pytest.mark.slow
def test_other_messages_pass_byte_by_byte(proxied: Proxied, started: Start) -> None:
    """In both directions, whatever their method and version, spelling and blanks included."""
    client = started()
    sent = [
        b'{"jsonrpc":"2.0",  "id":"a\\u00e9",\t"method":"resources/read","params":{"n":12345678901234567890,"x":1.50}}',
        b'{"jsonrpc":"2.0","id":7,"method":"vendor/unknown","params":{"deep":[[{"a":null}]],"t":"\xe2\x80\xa8"}}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":0.10}}',
        b'{"jsonrpc":"2.0","id":"from-the-server","result":{"roots":[]}}',
        b'{"jsonrpc":"2.0","id":"s2","error":{"code":-1,"message":"no"}}',
    ]
    for line in sent:
        client.send(line)
    for _ in range(2):
        assert client.next()["result"]["method"] in ("resources/read", "vendor/unknown")
    client.close()
    assert proxied.log.read_bytes().splitlines()[2:] == sent


@pytest.mark.slow
def test_calls_run_side_by_side(proxied: Proxied, started: Start) -> None:
    """A slow call blocks no other, and answers keep their ids, whatever type these have."""
    client = started()
    for request_id, seconds in ((1, 1.0), ("1", 0.2), ("b", 0)):
        params = {"name": "slow", "arguments": {"seconds": seconds}}
        client.send({"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params})
    answers = [client.next() for _ in range(3)]
    assert [answer["id"] for answer in answers] == ["b", "1", 1]
    assert [answer["result"]["structuredContent"]["seconds"] for answer in answers] == [0, 0.2, 1.0]


@pytest.mark.slow
def test_many_calls_at_once(proxied: Proxied, started: Start) -> None:
    """Each gets its own answer, and the order in which they are sent is that in which they reach the server."""
    client = started()
    sent = [client.request("tools/call", {"name": "echo", "arguments": {"n": n}}) for n in range(300)]
    answers = [client.next() for _ in sent]
    assert {one["id"]: one["result"]["structuredContent"]["n"] for one in answers} == {
        request_id: n for n, request_id in enumerate(sent)
    }
    client.close()
    assert [call["params"]["arguments"]["n"] for call in proxied.calls()] == list(range(300))
    assert len(proxied.told("action.executed")) == 300


@pytest.mark.slow
def test_a_failing_tool_is_recorded_as_failed(proxied: Proxied, started: Start) -> None:
    """The client gets the server's own answer."""
    client = started()
    assert client.refusal("fail") == "no such file"
    assert client.call("rpc_error")["error"] == {"code": -32602, "message": "no"}
    client.close()
    assert [told["error_code"] for told in proxied.told("action.failed")] == [
        "ToolReportedError",
        "ServerReportedError",
    ]


@pytest.mark.slow
def test_a_cancelled_call_is_told_to_the_server_and_recorded(proxied: Proxied, started: Start) -> None:
    client = started()
    request_id = client.request("tools/call", {"name": "hang", "arguments": {}})
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}
    client.send(cancel)
    assert client.call("echo", a=1)["result"]["structuredContent"] == {"a": 1}
    client.close()
    assert cancel in proxied.reached()
    assert [told["error_code"] for told in proxied.told("action.failed")] == ["CallCancelledError"]


@pytest.mark.slow
def test_a_call_that_takes_too_long(proxied: Proxied, started: Start) -> None:
    """Is recorded as failed; the server is told, and its late answer is dropped."""
    client = started("--timeout", "0.3")
    answer = client.call("slow", seconds=0.6)
    assert answer["error"] == {
        "code": -32001,
        "message": "the server did not answer within 0.3 s; the tool may have run",
    }
    assert client.nothing(0.6)
    client.close()
    assert [told["error_code"] for told in proxied.told("action.failed")] == ["NoAnswerInTimeError"]
    assert [message["method"] for message in proxied.reached()][-1] == "notifications/cancelled"


@pytest.mark.slow
def test_observing_refuses_nothing(proxied: Proxied, started: Start) -> None:
    client = started("--observe")
    names = [tool["name"] for tool in client.ask("tools/list")["result"]["tools"]]
    assert names == ["read_file", "write_file", "slow", "fail"]
    assert client.call("write_file", path="/x")["result"]["structuredContent"] == {"path": "/x"}
    client.close()
    assert "shadow_deny" in [told.get("effect") for told in proxied.told("policy.evaluated")]


def test_names_that_the_operator_gives(proxied: Proxied, started: Start) -> None:
    """``server/tool`` wins over ``tool``; a tool with a slash in its name gets at no other server's key."""
    tools = {"echo": "text.echo", "files/echo": "file.write", "github/echo": "text.echo"}
    proxied.write_atlas(atlas(adapters={"mcp": {"tools": tools}}))
    client = started("--name", "files", "--agent", "bot")
    assert "file.write was not run" in client.refusal("echo")
    assert "no loaded Atlas declares the action 'files/github/echo'" in client.refusal("github/echo")
    client.close()
    assert [told["tool_name"] for told in proxied.told("action.requested")] == [
        "mcp.files/echo",
        "mcp.files/github/echo",
    ]
    assert proxied.told("session.started")[0]["agent_id"] == "bot"


def test_two_tools_of_one_name_are_refused(proxied: Proxied, started: Start) -> None:
    client = started(mode="alike")
    client.ask("tools/list")
    assert "the server listed two different tools of this name" in client.refusal("echo")
    assert proxied.calls() == []
