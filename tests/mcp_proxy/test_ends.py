"""The command between a raw client and a raw server: what goes wrong on either side, and how it ends."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable

import pytest

from tests.mcp_proxy.conftest import INITIALIZE, SECONDS, Client, Proxied

pytestmark = pytest.mark.slow  # each starts processes

Start = Callable[..., Client]


def test_a_server_that_dies(proxied: Proxied, started: Start) -> None:
    """What waits for it gets an error, the call is recorded as failed, and the proxy ends with 1."""
    client = started()
    hanging = client.request("tools/call", {"name": "hang", "arguments": {}})
    dying = client.request("tools/call", {"name": "die", "arguments": {}})
    answers = [client.next(), client.next()]
    assert {answer["id"] for answer in answers} == {hanging, dying}
    for answer in answers:
        assert answer["error"]["message"] == "the MCP server ended with exit code 7; the tool may have run"
    assert client.close() == 1
    assert "cra: the MCP server ended with exit code 7" in client.stderr()
    assert [told["error_code"] for told in proxied.told("action.failed")] == ["ServerGoneError"] * 2
    ended = proxied.told("session.ended")[0]
    assert (ended["reason"], ended["error"]) == ("error", "ServerGone")


def test_a_server_that_does_not_start(proxied: Proxied) -> None:
    client = proxied.start(mode="exit")
    client.request("initialize", {})
    assert client.next()["error"]["message"] == "the MCP server ended with exit code 3"
    assert client.close() == 1
    assert "cannot find the database" in client.stderr()  # the server's own words
    missing = proxied.start(server=["/no/such/server"])
    assert missing.close() == 2
    assert "cra: the MCP server '/no/such/server' cannot be started" in missing.stderr()


def test_what_a_server_makes_up_is_dropped(proxied: Proxied, started: Start) -> None:
    """Noise, answers to nothing, second answers; a batch is taken apart."""
    client = started()
    assert client.call("noise")["result"]["content"][0]["text"] == "after the noise"
    assert client.call("twice")["result"]["content"][0]["text"] == "first"
    client.request("tools/call", {"name": "batch", "arguments": {}})
    assert client.next()["method"] == "notifications/message"
    assert client.next()["result"]["content"][0]["text"] == "in a batch"
    assert client.nothing()
    client.close()
    assert "is not JSON and is dropped" in client.stderr()
    assert "to no open request is dropped (id 'nobody')" in client.stderr()


def test_an_answer_before_the_question_is_dropped(proxied: Proxied) -> None:
    client = proxied.start(mode="made-up")
    until = time.monotonic() + SECONDS
    while "to no open request is dropped" not in client.stderr() and time.monotonic() < until:
        time.sleep(0.02)
    assert client.ask("initialize", {})["result"]["serverInfo"]["name"] == "raw"


def test_large_lines_pass_and_huge_ones_do_not(proxied: Proxied, started: Start) -> None:
    client = started()
    words = "ä" * 4_000_000
    assert client.call("echo", words=words)["result"]["structuredContent"] == {"words": words}
    client.send(b'{"jsonrpc":"2.0","id":"huge","method":"ping","params":"' + b"x" * (64 * 1024 * 1024) + b'"}')
    assert "longer than" in client.next()["error"]["message"]
    assert client.call("echo", a=1)["result"]["structuredContent"] == {"a": 1}
    assert "too long" in client.call("huge", bytes=64 * 1024 * 1024 + 1)["error"]["message"]
    assert client.close() == 1


def test_the_end_of_the_client_ends_the_server(proxied: Proxied, started: Start) -> None:
    """Also of one that hangs, and a call that was under way is recorded as lost."""
    hanging = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    stuck = proxied.start("--trace", str(proxied.folder / "other"), server=[sys.executable, "-c", hanging])
    client = started()
    client.request("tools/call", {"name": "hang", "arguments": {}})
    begun = time.monotonic()
    assert client.close() == 0
    assert stuck.close() == 0
    assert time.monotonic() - begun < SECONDS
    assert [told["error_code"] for told in proxied.told("action.failed")] == ["ClientGoneError"]


def test_sigterm_ends_it_in_order(proxied: Proxied, started: Start) -> None:
    client = started()
    client.request("tools/call", {"name": "hang", "arguments": {}})
    while not proxied.calls():
        time.sleep(0.01)
    client.process.send_signal(signal.SIGTERM)
    assert client.process.wait(SECONDS) == 0
    assert proxied.told("session.ended")[0]["reason"] == "cancelled"


def test_everything_may_come_from_a_file(proxied: Proxied) -> None:
    """And the last line needs no end."""
    lines = [{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}]
    lines += [{"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "echo"}}]
    given = proxied.folder / "requests"
    given.write_text("\n".join(map(json.dumps, lines)))
    client = proxied.start()
    assert client.process.stdin is not None
    client.process.stdin.write(given.read_bytes())
    assert client.close() == 0
    answers = {}
    for _ in lines:
        answer = client.next()
        answers[answer["id"]] = answer["result"]
    assert answers[2]["structuredContent"] == {}


def test_a_client_that_stops_reading(proxied: Proxied) -> None:
    """A broken pipe ends nothing before its time: the session is sealed."""
    client = proxied.start(broken_output=True)
    client.request("initialize", INITIALIZE)
    for number in range(50):
        client.request("tools/call", {"name": "echo", "arguments": {"number": number}})
        time.sleep(0.01)
    assert client.close() == 0
    assert len(proxied.told("action.executed")) == 50


def test_a_server_that_stops_reading(proxied: Proxied) -> None:
    client = proxied.start(server=[sys.executable, "-c", "import os, time; os.close(0); time.sleep(2)"])
    for _ in range(20):
        client.request("tools/call", {"name": "echo", "arguments": {}})
        time.sleep(0.02)
    client.next()
    assert client.close() == 1
    assert len(proxied.told("action.failed")) == 20
