"""The parts of the proxy in this process: cutting lines, seeing tools, and what happens when the gate itself fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware.mcp_proxy.catalogue import Catalogue, Definition
from cra_middleware.mcp_proxy.gate import Gate, Identity
from cra_middleware.mcp_proxy.messages import LineSplitter
from cra_middleware.mcp_proxy.relay import Relay, Terms
from cra_middleware.testing import FailingSink
from tests.mcp_proxy.conftest import atlas

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {}}}


class Lines:
    """One end that only keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def write(self, line: bytes) -> None:
        self.sent.append(json.loads(line))

    async def drain(self) -> None: ...


def relayed(gate: Gate, *messages: Any, then: Callable[[Relay], Any] | None = None) -> tuple[list[Any], list[Any]]:
    """What client and server get when the client sends ``messages``."""
    client, server = Lines(), Lines()

    async def run() -> None:
        relay = Relay(gate, client, server, Terms(timeout_seconds=0.05), lambda words: None)
        for message in messages:
            await relay.from_client(json.dumps(message).encode())
        if then is not None:
            await then(relay)
        await relay.settled()

    asyncio.run(run())
    return client.sent, server.sent


def refusal(answer: Any) -> str:
    assert answer["result"]["isError"] is True
    return str(answer["result"]["content"][0]["text"])


def test_a_trace_that_cannot_be_kept_stops_calls() -> None:
    """Before the session begins, and in the middle of it."""
    sink = FailingSink()
    with Runtime(Atlas.from_dict(atlas()), trace=sink, audit_deadline_seconds=0.05) as runtime:
        sink.failing = True
        client, server = relayed(Gate(runtime, Identity()), CALL)
        assert "before the tool was reached, so it was not run (SinkError)" in refusal(client[0])
        assert server == []
        sink.failing = False
        gate = Gate(runtime, Identity())
        assert gate.session.is_open
        sink.failing = True
        client, server = relayed(gate, CALL)
        assert "audit_unavailable" in refusal(client[0])
        assert server == []
        sink.failing = False


def test_a_list_that_cannot_be_looked_at_is_withheld() -> None:
    sink = FailingSink()
    with Runtime(Atlas.from_dict(atlas()), trace=sink) as runtime:
        sink.failing = True

        async def answer(relay: Relay) -> None:
            await relay.from_server(b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"echo"}]}}')

        client, _ = relayed(Gate(runtime, Identity()), {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, then=answer)
        assert client[0]["error"]["code"] == -32603
        sink.failing = False


def test_an_objection_to_a_tool_stops_its_calls() -> None:
    """It is asked with what the server last said of the tool, and one that fails objects."""
    asked: list[tuple[str, Definition | None]] = []

    def changed(name: str, definition: Definition | None) -> str | None:
        asked.append((name, definition))
        if definition is None:
            raise LookupError("never listed")
        return "its schema is another than the one that was pinned"

    with Runtime(Atlas.from_dict(atlas())) as runtime:
        gate = Gate(runtime, Identity(), changed)
        client, server = relayed(gate, CALL)
        assert "not run (LookupError)" in refusal(client[0])
        tool = {"name": "echo", "inputSchema": {"type": "object"}, "description": "d", "_meta": {"x": 1}}
        gate.catalogue.see([tool, "no tool", {"name": 7}])
        client, server = relayed(gate, CALL)
        assert "its schema is another" in refusal(client[0])
        assert server == []
    assert asked == [
        ("echo", None),
        ("echo", Definition("echo", {"name": "echo", "description": "d", "inputSchema": {"type": "object"}})),
    ]


def test_a_policy_that_breaks_stops_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(Atlas.from_dict(atlas())) as runtime:
        gate = Gate(runtime, Identity())
        assert gate.session.is_open

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(type(runtime.resolver), "decide", broken)
        client, server = relayed(gate, CALL)
        assert "policy_error" in refusal(client[0])
        monkeypatch.setattr(type(runtime.resolver), "mapped", broken)
        client, server = relayed(gate, CALL)
        assert "not run (RuntimeError)" in refusal(client[0])
        assert server == []


def test_a_call_after_the_server_ended() -> None:
    """Gets an error at once; one that waits for a person, too."""
    with Runtime(Atlas.from_dict(atlas())) as runtime:

        async def gone(relay: Relay) -> None:
            relay.server_gone("it ended")
            await relay.from_client(json.dumps({**CALL, "id": 2}).encode())

        client, server = relayed(Gate(runtime, Identity()), CALL, then=gone)
        assert [(one["id"], one["error"]["message"]) for one in client] == [
            (2, "it ended"),
            (1, "it ended; the tool may have run"),
        ]
        assert [one["id"] for one in server] == [1]


def test_a_difference_within_one_list_is_remembered_until_the_next() -> None:
    catalogue = Catalogue()
    one, other = {"name": "a", "description": "x"}, {"name": "a", "description": "y"}
    catalogue.see([one, other, one])
    assert catalogue.objection("a") is not None
    catalogue.see([{"name": "b"}])
    assert catalogue.objection("a") is not None
    catalogue.see([one, one])
    assert catalogue.objection("a") is None


@given(st.lists(st.binary(max_size=12)), st.integers(1, 20))
def test_lines_are_cut_wherever_the_pieces_end(pieces: list[bytes], limit: int) -> None:
    data = b"".join(piece.replace(b"a", b"\n") for piece in pieces)
    splitter = LineSplitter(limit)
    found = [line for piece in pieces for line in splitter.feed(piece.replace(b"a", b"\n"))]
    *lines, rest = data.split(b"\n")
    whole = [line if len(line) <= limit else None for line in lines]
    if len(rest) > limit:
        whole.append(None)
        rest = b""
    assert found == whole
    assert splitter.rest() == rest
