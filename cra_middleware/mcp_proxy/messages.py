"""Reading and writing JSON-RPC: what a line says, and whether every parser would read it the same.

A proxy that reads a message otherwise than the server behind it decides about another call than the one that runs.
So a client's message is refused where two parsers could differ: a key twice, a key that a lenient parser takes for
another (``Method``), text that is not UTF-8. In a tool call also numbers that not every parser keeps, and text that
cannot be encoded.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Literal, NamedTuple

import orjson

MAX_LINE = 64 * 1024 * 1024
"""Bytes of one message."""

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
CONNECTION_CLOSED = -32000
REQUEST_TIMEOUT = -32001

META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CLIENT = "io.modelcontextprotocol/clientInfo"
META_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
META_SERVER = "io.modelcontextprotocol/serverInfo"
"""Where the protocol of 2026 says what ``initialize`` said before."""

_MAX_INTEGER = 2**53 - 1
_ENVELOPE = ("jsonrpc", "id", "method", "params", "result", "error")
_PARAMS = ("name", "arguments")
_SURROGATE = re.compile("[\ud800-\udfff]").search

Id = str | int
Kind = Literal["request", "notification", "response"]


class UnreadableError(ValueError):
    """A message that is not JSON-RPC; ``code`` is what its sender is told."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Message(NamedTuple):
    """One JSON-RPC message of the client."""

    value: dict[str, object]
    raw: bytes
    """What is passed on: its own bytes, in one line for every reader."""
    flaw: str | None
    """Why other parsers may read it differently; such a message is never passed on."""

    @property
    def kind(self) -> Kind:
        """What it is, by the keys it has."""
        if "method" not in self.value:
            return "response"
        return "request" if "id" in self.value else "notification"

    @property
    def id(self) -> Id | None:
        """Its id; None when it has none that JSON-RPC and MCP allow."""
        return usable_id(self.value.get("id"))

    @property
    def method(self) -> str | None:
        """Its method; None when that is no string."""
        method = self.value.get("method")
        return method if isinstance(method, str) else None

    @property
    def params(self) -> dict[str, object]:
        """Its parameters; empty when they are no object."""
        return as_object(self.value.get("params"))


def read_client_line(line: bytes) -> Message | list[Message]:
    """What a client's line says: a message, or the messages of a batch.

    Raises:
        UnreadableError: when it is not JSON, or neither an object nor a batch of them.
    """
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeated.append("a JSON object has the same key twice")
        return found

    try:
        value = json.loads(line.decode(), object_pairs_hook=collect, parse_constant=_no_number)
    except RecursionError:
        raise UnreadableError(PARSE_ERROR, "the message is nested too deeply") from None
    except ValueError:  # not UTF-8, not JSON, an integer of thousands of digits
        raise UnreadableError(PARSE_ERROR, "the message is not JSON in UTF-8") from None
    twice = repeated[0] if repeated else None
    if isinstance(value, list):
        return [_batched(item, twice) for item in value]
    if not isinstance(value, dict):
        raise UnreadableError(INVALID_REQUEST, "a message is a JSON object")
    # A carriage return is blank in JSON and may only stand between its tokens, but many readers end a line at it:
    # what we read as one message, they would read as several.
    return Message(value, line.strip().replace(b"\r", b" "), twice or _look_alike(value, _ENVELOPE))


def _batched(item: object, twice: str | None) -> Message:
    if not isinstance(item, dict):
        raise UnreadableError(INVALID_REQUEST, "a batch holds JSON objects")
    flaw = twice or _look_alike(item, _ENVELOPE)
    try:
        return Message(item, write(item), flaw)
    except UnicodeEncodeError:
        return Message(item, b"", flaw or "a text holds a lone surrogate")
    except ValueError:
        return Message(item, b"", flaw or "a number is too large")


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def folded(text: str) -> str:
    """What a reader that forgives much takes a name for: without case, width, blanks, and what has no shape."""
    if text.isascii() and text.isalpha():
        return text.lower()
    return "".join(
        letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum() or letter in "_-"
    )


def _look_alike(value: Mapping[str, object], names: tuple[str, ...]) -> str | None:
    for key in value:
        if key not in names and folded(key) in names:
            return f"the key {key!a} could be taken for {folded(key)!r}"
    return None


def flaw_of_call(message: Message) -> str | None:
    """Why a ``tools/call`` could be read differently by the server, beyond the message's own flaw."""
    params = message.params
    try:
        return message.flaw or _look_alike(params, _PARAMS) or _flaw(message.value.get("id")) or _flaw(params)
    except RecursionError:
        return "the parameters are nested too deeply"


def _flaw(value: object) -> str | None:
    """Why two parsers could disagree about a value."""
    if isinstance(value, str):
        if "\0" in value:
            return "a text holds NUL, at which some readers end it"
        return "a text holds a lone surrogate" if _SURROGATE(value) else None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if -_MAX_INTEGER <= value <= _MAX_INTEGER else "an integer is beyond 2^53 - 1; give it as text"
    if isinstance(value, float):
        return None if abs(value) < float("inf") else "a number is too large"
    if isinstance(value, list):
        return next(filter(None, map(_flaw, value)), None)
    if isinstance(value, dict):
        if len({key.casefold() for key in value}) != len(value):
            return "two keys of one object differ only by the case of their letters"
        return next(filter(None, map(_flaw, value)), None) or next(filter(None, map(_flaw, value.values())), None)
    return None


def read_server_line(line: bytes) -> object:
    """What a server's line says. Lenient: it is only looked at, and passed on as it is.

    Raises:
        UnreadableError: when it is not JSON.
    """
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:
        return json.loads(line.decode())  # NaN and lone surrogates, which some servers write
    except (ValueError, RecursionError):
        raise UnreadableError(PARSE_ERROR, "not JSON in UTF-8") from None


def usable_id(value: object) -> Id | None:
    """``value`` as a request's id; None when it is not usable as one."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INTEGER:
        return value
    return None


def as_object(value: object) -> dict[str, object]:
    """``value`` when it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def write(value: object) -> bytes:
    """One line of JSON.

    Raises:
        ValueError: when it holds NaN, an infinity or a lone surrogate (``UnicodeEncodeError``).
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def result_line(request_id: Id, result: Mapping[str, object]) -> bytes:
    """A response."""
    return write({"jsonrpc": "2.0", "id": request_id, "result": result})


def error_line(request_id: Id | None, code: int, message: str) -> bytes:
    """An error response; ``None`` when it cannot be said to which request."""
    return write({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}})


def refused_line(request_id: Id, text: str, *, modern: bool) -> bytes:
    """A tool call's result that tells a model why the tool was not run."""
    readable = text.encode(errors="replace").decode()
    result: dict[str, object] = {"content": [{"type": "text", "text": readable}], "isError": True}
    if modern:
        result["resultType"] = "complete"
    return result_line(request_id, result)


def cancelled_line(request_id: Id, reason: str) -> bytes:
    """Tells a server that nobody waits any more."""
    params = {"requestId": request_id, "reason": reason}
    return write({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})


class LineSplitter:
    """Cuts a stream of bytes into lines of at most ``limit`` bytes."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._held = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that ``data`` completes, without their ends; None stands for one that was too long."""
        found: list[bytes | None] = []
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            self._hold(data[begin:end], found)
            if not self._skipping:
                found.append(bytes(self._held))
            self._held.clear()
            self._skipping = False
            begin = end + 1
        self._hold(data[begin:], found)
        return found

    def rest(self) -> bytes:
        """What came after the last line end."""
        return bytes(self._held)

    def _hold(self, piece: bytes, found: list[bytes | None]) -> None:
        if self._skipping:
            return
        if len(self._held) + len(piece) > self._limit:
            self._skipping = True
            self._held.clear()
            found.append(None)
        else:
            self._held += piece
