"""However a client writes a message: no reader behind the proxy finds a call in it that was not decided."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware._canonical import canonical, digest
from cra_middleware.mcp_proxy.gate import Gate, Identity
from cra_middleware.mcp_proxy.relay import Relay, RelayTerms
from tests.mcp_proxy.conftest import atlas

pytestmark = pytest.mark.slow  # each starts processes

RUNTIME = Runtime(Atlas.from_dict(atlas()))
EVIL = '{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"write_file","arguments":{}}}'
NAMES = ("method", "params", "name", "Method", "PARAMS", "Name", "\u0130d", "pa\u0280ams", "x")
LEAVES = ('"echo"', '"write_file"', '"tools/call"', "1", "null", EVIL)
PAIRS = ('"name":"write_file"', '"Name":"write_file"', '"method":"tools/call"', '"Method":"tools/call"')
BLANK = st.sampled_from(["", " ", "\r", "\t"])


class Bytes:
    """Keeps what it is sent, as it is."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.sent.append(line)

    async def drain(self) -> None: ...


def passed(gate: Gate, *lines: bytes) -> list[bytes]:
    """What reaches the server."""
    server = Bytes()

    async def run() -> None:
        relay = Relay(gate, Bytes(), server, RelayTerms(timeout_seconds=0.001), lambda words: None)
        for line in lines:
            await relay.from_client(line)
        await relay.settled()

    asyncio.run(run())
    return [line for line in server.sent if b'"notifications/cancelled"' not in line]


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    """An object's text, with any keys in any order, also twice."""
    pairs = draw(st.lists(st.tuples(st.sampled_from(NAMES), inner), max_size=4))
    return render(draw, [f"{json.dumps(key, ensure_ascii=False)}:{value}" for key, value in pairs], "{}")


def render(draw: st.DrawFn, items: list[str], ends: str) -> str:
    blank = draw(BLANK)
    return ends[0] + blank + f",{blank}".join(items) + draw(BLANK) + ends[1]


VALUES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: objects(inner) | st.lists(inner, max_size=2).map(lambda items: "[\r" + "\r,\r".join(items) + "\r]"),
    max_leaves=5,
)
NOTICES = VALUES.map(lambda value: f'{{"jsonrpc":"2.0","method":"x","params":{value}}}')
ANSWERS = VALUES.map(lambda value: f'{{"jsonrpc":"2.0","id":1,"result":{value}}}')


@st.composite
def calls(draw: st.DrawFn) -> str:
    """A request, with one more part beside its own."""
    more = st.lists(st.sampled_from(PAIRS), max_size=1)
    method = draw(st.sampled_from(["tools/call", "ping"]))
    name = draw(st.sampled_from(["echo", "write_file"]))
    params = draw(st.permutations([f'"name":"{name}"', '"arguments":{}', *draw(more)]))
    parts = ['"jsonrpc":"2.0"', '"id":5', f'"method":"{method}"', f'"params":{render(draw, params, "{}")}', *draw(more)]
    whole = render(draw, draw(st.permutations(parts)), "{}")
    return draw(st.sampled_from([whole, f"[{whole}]", f"[{whole},{EVIL}]"]))


def readings(line: bytes) -> Iterator[Any]:
    """What servers could find in a line: ended at a carriage return or not, by strict and by lenient parsers."""
    for piece in {line, *re.split(rb"[\r\n]", line)}:
        for fold in (str, str.casefold):
            for order in (1, -1):

                def take(
                    pairs: list[tuple[str, Any]], fold: Any = fold, order: int = order
                ) -> dict[str, Any]:  # the first of a key, or the last
                    return {fold(key): value for key, value in pairs[::order]}

                try:
                    found = json.loads(piece, object_pairs_hook=take)
                except ValueError:
                    continue
                yield from found if isinstance(found, list) else [found]


@settings(max_examples=1000)
@given(st.one_of(calls(), calls(), NOTICES, ANSWERS))
def test_no_reader_finds_another_call(text: str) -> None:
    gate = Gate(RUNTIME, Identity())
    for line in passed(gate, *text.encode().split(b"\n")):
        for message in readings(line):
            if isinstance(message, dict) and str(message.get("method")).casefold() == "tools/call":
                assert message["params"]["name"] == "echo", line


KEYS = st.text("abkK\u212as\u017f\u00e9", min_size=1, max_size=3)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2))


@settings(max_examples=40)
@given(st.dictionaries(KEYS, JSON, max_size=3))
def test_what_reaches_the_server_is_what_was_decided(arguments: dict[str, Any]) -> None:
    """Value for value; and its canonical text has the digest in the trace."""
    gate = Gate(RUNTIME, Identity())
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": arguments}}
    for line in passed(gate, json.dumps(call).encode()):
        sent = json.loads(line)["params"]["arguments"]
        assert repr(sent) == repr(arguments)
        (requested,) = (event for event in gate.session.events if event.event_type == "action.requested")
        assert requested.payload["parameters_hash"] == digest(canonical(sent))
