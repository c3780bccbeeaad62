"""Asking through the client: ``elicitation/create``, as an approver.

The answer comes from the client's program. Whether a person gave it, only that program knows: so it is asked for with
``--elicit`` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

from cra_middleware.approvals import Answer, Pending
from cra_middleware.approvers import MAX_READ, describe_pending
from cra_middleware.mcp_proxy.messages import as_object, cancelled_line, write

_SCHEMA = {
    "type": "object",
    "properties": {
        "approve": {"type": "boolean", "title": "Approve this call", "default": False},
        "reason": {"type": "string", "title": "Reason", "description": "The agent is told."},
    },
    "required": ["approve"],
}


class NotAnsweredError(RuntimeError):
    """The client's user gave no answer; the question stays open."""


class Elicitation:
    """The questions to the client's user."""

    def __init__(self, send: Callable[[bytes], None], client: Callable[[], str], timeout_seconds: float) -> None:
        """Ask with ``send``; ``client`` tells the name of the program that answers."""
        self._send = send
        self._client = client
        self._timeout = timeout_seconds
        self._asked: dict[str, asyncio.Future[dict[str, object]]] = {}

    async def __call__(self, pending: Pending) -> Answer:
        """Ask, and wait.

        Raises:
            NotAnsweredError: when the user dismisses the question, or it is too long to be read.
            TimeoutError: when no answer comes in time.
        """
        lines = describe_pending(pending)
        if sum(map(len, lines)) > MAX_READ:
            raise NotAnsweredError("the call is too long to be read in a form")
        request_id = f"cra-{uuid4()}"  # nobody else can know it, so nobody can answer in the client's place
        params = {"mode": "form", "message": "\n".join(lines), "requestedSchema": _SCHEMA}
        answer: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = answer
        try:
            self._send(write({"jsonrpc": "2.0", "id": request_id, "method": "elicitation/create", "params": params}))
            async with asyncio.timeout(self._timeout):
                return self._understood(await answer)
        except (TimeoutError, asyncio.CancelledError):
            self._send(cancelled_line(request_id, "the question is not open any more"))
            raise

    def take(self, response: dict[str, object]) -> bool:
        """Whether a response of the client answers one of these questions, perhaps one that is not open any more."""
        request_id = response.get("id")
        answer = self._asked.get(request_id) if isinstance(request_id, str) else None
        if answer is None:
            return False
        if not answer.done():
            answer.set_result(response)
        return True

    def _understood(self, response: dict[str, object]) -> Answer:
        result = as_object(response.get("result"))
        content = as_object(result.get("content"))
        by = f"user of {self._client()}"
        if result.get("action") == "accept":
            reason = content.get("reason")
            return Answer(content.get("approve") is True, by, reason if isinstance(reason, str) and reason else None)
        if result.get("action") == "decline":
            return Answer(False, by, "declined")
        raise NotAnsweredError("the client's user gave no answer")
