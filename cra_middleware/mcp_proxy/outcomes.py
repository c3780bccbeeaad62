"""How a forwarded call can come out, as the trace names it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from cra_middleware.mcp_proxy.messages import as_object


class OutcomeError(Exception):
    """A call that was forwarded and did not succeed. Its name and message are recorded."""


class ToolReportedError(OutcomeError):
    """The tool ran, and says that it failed."""


class ServerReportedError(OutcomeError):
    """The server answered with a JSON-RPC error."""


class ServerGoneError(OutcomeError):
    """The server ended; the tool may have run."""


class NoAnswerInTimeError(OutcomeError):
    """The server did not answer in time; the tool may have run."""


class CallCancelledError(OutcomeError):
    """The client cancelled the call; the tool may have run."""


class ClientGoneError(OutcomeError):
    """The client left before the answer; the tool may have run."""


class Response(NamedTuple):
    """What the server answered."""

    value: dict[str, object]
    raw: bytes


def outcome_of(response: dict[str, object]) -> object:
    """What a response says of the call.

    Raises:
        OutcomeError: when the tool, or the server, says that it failed.
    """
    if "result" not in response:
        code = as_object(response.get("error")).get("code")
        raise ServerReportedError(f"the server answered with error {code}")
    result = response["result"]
    if as_object(result).get("isError") is True:
        content = as_object(result).get("content")
        first = content[0] if isinstance(content, list) and content else None
        text = as_object(first).get("text")
        raise ToolReportedError(text if isinstance(text, str) else "the tool says that it failed")
    return result


def fail(answer: asyncio.Future[Response], error: OutcomeError) -> None:
    """Say how a call came out that nobody will answer any more."""
    if not answer.done():
        answer.set_exception(error)
