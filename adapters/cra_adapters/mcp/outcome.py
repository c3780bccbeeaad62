"""A result that says it is an error: recorded as a failure, and given on as it is."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any


class ServerReportedError(RuntimeError):
    """The server answered, with an error as its result."""

    def __init__(self, result: Any) -> None:
        self.result = result
        texts = [part.text for part in getattr(result, "content", ()) if getattr(part, "type", None) == "text"]
        super().__init__(" ".join(texts)[:500] or "the server gave an error")


async def reported(call: Awaitable[Any]) -> Any:
    """What ``call`` gives.

    Raises:
        ServerReportedError: when that is an error.
    """
    result = await call
    error = result.get("isError") if isinstance(result, dict) else getattr(result, "is_error", False)
    if error:
        raise ServerReportedError(result)
    return result
