"""A client, or a model behind it, that tries to have another call run than the one that is decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.mcp_proxy.conftest import Client, Proxied

Start = Callable[..., Client]

CALL = '"jsonrpc":"2.0","id":9'
ECHO = '"params":{"name":"echo","arguments":{}}'
EVIL = '{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"write_file","arguments":{"path":"/x"}}}'


@pytest.fixture
def client(started: Start) -> Client:
    return started()


@pytest.mark.slow
def test_readings_that_could_differ_are_refused(proxied: Proxied, client: Client) -> None:
    """Keys twice, keys that a lenient parser folds, numbers and text that not every parser keeps."""
    params = {
        "the same key twice": '"name":"echo","arguments":{"path":"/ok","path":"/etc"}',
        "the same key twice ": '"name":"echo"},"method":"ping","method":"tools/call","params":{"name":"echo"',
        "the same key twice  ": '"name":"echo","name":"write_file","arguments":{}',
        "the key 'Name' could be taken for 'name'": '"name":"echo","Name":"write_file","arguments":{}',
        "the key 'argument\\u017f' could be taken for 'arguments'": '"name":"echo","arguments":{},"argumentſ":{"a":1}',
        "differ only by the case": '"name":"echo","arguments":{"path":"/ok","Path":"/etc"}',
        "differ only by the case ": '"name":"echo","arguments":{"deep":[{"k":1,"\u212a":2}]}',
        "beyond 2^53 - 1": '"name":"echo","arguments":{"n":9007199254740993}',
        "beyond 2^53 - 1 ": '"name":"echo","arguments":{"n":[{"m":-9007199254740992}]}',
        "a number is too large": '"name":"echo","arguments":{"n":1e400}',
        "a lone surrogate": '"name":"echo","arguments":{"n":"\\ud800"}',
        "a lone surrogate ": '"name":"echo","arguments":{"\\udfff":1}',
        "holds NUL": '"name":"echo","arguments":{"path":"/etc\\u0000/ok"}',
        "holds NUL ": '"name":"echo","arguments":{"path":"/ok","path\\u0000":"/etc"}',
        "holds NUL  ": '"name":"write_file\\u0000","arguments":{}',
        "could be taken for 'name'": '"name":"echo","name\\u0000":"write_file","arguments":{}',
        "could be taken for 'name' ": '"name":"echo"," name":"write_file","arguments":{}',
        "could be taken for 'arguments'": '"name":"echo","arguments":{},"\\ufeffarguments":{"a":1}',
        "a lone surrogate  ": '"name":"ec\\ud800ho","arguments":{}',
    }
    for reason, text in params.items():
        client.send(f'{{{CALL},"method":"tools/call","params":{{{text}}}}}'.encode())
        answer = client.next()
        assert answer["id"] == 9, answer
        assert answer["result"]["isError"] is True, answer
        assert reason.rstrip() in answer["result"]["content"][0]["text"], answer
    client.close()
    assert proxied.calls() == []
    assert len(proxied.told("action.denied")) == len(params)


@pytest.mark.slow
def test_envelopes_that_could_be_read_as_another_message_are_refused(proxied: Proxied, client: Client) -> None:
    invalid = [
        f'{{{CALL},"method":"tools/call","method":"ping",{ECHO}}}',
        f'{{{CALL},"method":"ping","Method":"tools/call",{ECHO}}}',
        f'{{{CALL},"method":"TOOLS/call",{ECHO}}}',
        f'{{{CALL},"method":" tools/call",{ECHO}}}',
        f'{{{CALL},"method":7,{ECHO}}}',
        f'{{"jsonrpc":"2.0","id":null,"method":"tools/call",{ECHO}}}',
        f'{{"jsonrpc":"2.0","id":1.0,"method":"tools/call",{ECHO}}}',
        f'{{"jsonrpc":"2.0","id":true,"method":"tools/call",{ECHO}}}',
        f'{{"jsonrpc":"2.0","id":9007199254740993,"method":"tools/call",{ECHO}}}',
        f'{{"jsonrpc":"2.0","id":"\\ud800","method":"tools/call",{ECHO}}}',
        "[]",
        "7",
        "[7]",
    ]
    for text in invalid:
        client.send(text.encode())
        assert client.next()["error"]["code"] == -32600, text
    unreadable = [
        b"no json",
        b'{"jsonrpc":"2.0","id":9,"method":"ping","params":NaN}',
        b"\xef\xbb\xbf" + EVIL.encode(),
        EVIL.encode("utf-16"),
        EVIL.replace("/x", "\udcff").encode(errors="surrogateescape"),
        b'{"n":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ]
    for line in unreadable:
        for piece in line.split(b"\n"):
            client.send(piece)
            assert client.next()["error"]["code"] == -32700, piece[:50]
    client.close()
    assert proxied.calls() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        *("Tools/Call", " tools/call", "tools/call\\u0000", "\\ufefftools/call", "tools/call\\u200b", "tools//call"),
        *("tools/call/", "tools.call", "tools/ca\\u217cl", "\\uff54ools/call"),
    ],
)
def test_methods_that_could_be_taken_for_a_call_are_refused(proxied: Proxied, client: Client, method: str) -> None:
    """By a reader that ends a text at NUL, takes blanks away, or forgives case, width and slashes."""
    for text in (
        f'{{"jsonrpc":"2.0","id":9,"method":"{method}",{ECHO}}}',
        f'{{"jsonrpc":"2.0","id":9,"method":"ping","method\\u0000":"{method}",{ECHO}}}',
    ):
        client.send(text.encode())
        assert client.next()["error"]["code"] == -32600, text
    client.send(f'{{"jsonrpc":"2.0","method":"{method}",{ECHO}}}'.encode())
    client.send(f'{{"jsonrpc":"2.0","id":9,"result":{{}},"method ":"{method}",{ECHO}}}'.encode())
    client.close()
    assert "call" not in str(proxied.reached())


@pytest.mark.slow
def test_arguments_and_names_of_another_type(proxied: Proxied, client: Client) -> None:
    for params in (None, [], 7, {}, {"name": 7}, {"name": ["echo"]}, {"name": "echo", "arguments": [1]}):
        answer = client.ask("tools/call", params)
        assert answer["error"]["code"] == -32602, params
    assert client.ask("tools/call", {"name": "echo", "arguments": None})["result"]["structuredContent"] == {}
    client.close()
    assert [call["params"] for call in proxied.calls()] == [{"name": "echo", "arguments": {}}]


@pytest.mark.slow
def test_a_carriage_return_ends_no_line(proxied: Proxied, client: Client) -> None:
    """It is blank in JSON, but a reader of lines that ends one at it would read a message inside a message."""
    client.send(b'{"jsonrpc":"2.0","method":"notifications/x","params":{"a":\r' + EVIL.encode() + b"\r}}\r")
    client.send(b'{"jsonrpc":"2.0","id":1,"result":[\r' + EVIL.encode() + b"\r]}")
    client.send(b'[{"jsonrpc":"2.0","method":"notifications/y","params":[\r' + EVIL.encode() + b"\r]}]")
    assert client.call("echo", a="\r" + EVIL)["result"]["structuredContent"] == {"a": "\r" + EVIL}
    client.close()
    assert b"\r" not in proxied.log.read_bytes()
    assert [call["params"]["name"] for call in proxied.calls()] == ["echo"]


@pytest.mark.slow
def test_calls_without_an_id_are_not_forwarded(proxied: Proxied, client: Client) -> None:
    client.send(f'{{"jsonrpc":"2.0","method":"tools/call",{ECHO}}}'.encode())
    client.send(f'{{"jsonrpc":"2.0","method":"Tools/Call",{ECHO}}}'.encode())
    client.send(f'{{"jsonrpc":"2.0","method":"x","METHOD":"tools/call",{ECHO}}}'.encode())
    client.send(f'{{"jsonrpc":"2.0","id":3,"result":{{}},"Method":"tools/call",{ECHO}}}'.encode())
    assert client.call("echo")["result"]["structuredContent"] == {}
    client.close()
    assert len(proxied.reached()) == 3
    assert [told["reason"] for told in proxied.told("action.denied")] == ["a tools/call without an id"] * 2


@pytest.mark.slow
def test_calls_in_a_batch_are_decided(proxied: Proxied, client: Client) -> None:
    """Their answers come back as one batch, as before June 2025."""
    batch: list[Any] = [
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "write_file", "arguments": {}}},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "slow", "arguments": {"seconds": 0.2}}},
        {"jsonrpc": "2.0", "method": "notifications/x"},
        {"jsonrpc": "2.0", "id": 3, "method": "resources/list"},
        {"jsonrpc": "2.0", "id": 3, "method": "resources/list"},
    ]
    client.send(batch)
    answers = client.next()
    assert len(answers) == 4
    told = {answer["id"]: answer for answer in answers}
    assert told[1]["result"]["isError"] is True
    assert told[2]["result"]["structuredContent"] == {"seconds": 0.2}
    assert told[3]["result"]["method"] == "resources/list"
    assert told[None]["error"]["message"] == "the id 3 waits for an answer already"
    client.send([batch[2]])
    assert client.nothing()
    client.close()
    assert [call["params"]["name"] for call in proxied.calls()] == ["slow"]


@pytest.mark.slow
def test_the_server_gets_what_was_decided(proxied: Proxied, client: Client) -> None:
    """Written anew from the decided value, and everything beside the arguments as it came."""
    line = (
        '{"params":{"_meta":{"progressToken":1,"x":1.5},"task":{"ttl":5},"arguments":{"t":"\\u00e9\\ud83d\\ude00\u2028",'
        '"f":0.1,"e":1e2,"z":-0.0,"i":9007199254740991,"n":null,"o":{"b":[true]}},"name":"echo"},'
        '"method":"tools\\/call","extra":1,"id":"x","jsonrpc":"2.0"}'
    )
    client.send(line.encode())
    assert client.next()["id"] == "x"
    client.close()
    (call,) = proxied.calls()
    assert call == {"jsonrpc": "2.0", "id": "x", "method": "tools/call", "params": json.loads(line)["params"]}
    assert repr(call["params"]["arguments"]["z"]) == "-0.0"


@pytest.mark.slow
def test_a_second_request_with_an_open_id(proxied: Proxied, client: Client) -> None:
    first = client.request("tools/call", {"name": "slow", "arguments": {"seconds": 0.4}})
    client.send({"jsonrpc": "2.0", "id": first, "method": "tools/call", "params": {"name": "echo", "arguments": {}}})
    assert client.next() == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": -32600, "message": f"the id {first} waits for an answer already"},
    }
    assert client.next()["result"]["structuredContent"] == {"seconds": 0.4}
