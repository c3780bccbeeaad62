"""Asking through the client: ``elicitation/create``, as an approver.

The answer comes from the client's program. Whether a person gave it, only that program knows: so it is asked for with
``--elicit`` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

from cra_middleware.approvals.approval import Answer, Pending
from cra_middleware.approvals.approvers import MAX_READ, describe_pending
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


def form(pending: Pending) -> dict[str, object]:
    """The parameters of ``elicitation/create``: the whole call, and a yes or no.

    Raises:
        NotAnsweredError: when it is too long to be read.
    """
    lines = describe_pending(pending)
    if sum(map(len, lines)) > MAX_READ:
        raise NotAnsweredError("the call is too long to be read in a form")
    return {"mode": "form", "message": "\n".join(lines), "requestedSchema": _SCHEMA}


def understood(result: object, client: str) -> Answer:
    """What the user of ``client`` answered.

    Raises:
        NotAnsweredError: when it is neither yes nor no.
    """
    given = as_object(result)
    content = as_object(given.get("content"))
    by = f"user of {client}"
    if given.get("action") == "accept":
        reason = content.get("reason")
        return Answer(content.get("approve") is True, by, reason if isinstance(reason, str) and reason else None)
    if given.get("action") == "decline":
        return Answer(False, by, "declined")
    raise NotAnsweredError("the client's user gave no answer")


def has_forms(capabilities: object) -> bool:
    """Whether a client that declares these can show a form."""
    capability = as_object(capabilities).get("elicitation")
    return isinstance(capability, dict) and (not capability or "form" in capability)


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
        params = form(pending)
        request_id = f"cra-{uuid4()}"  # nobody else can know it, so nobody can answer in the client's place
        answer: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = answer
        try:
            self._send(write({"jsonrpc": "2.0", "id": request_id, "method": "elicitation/create", "params": params}))
            async with asyncio.timeout(self._timeout):
                return understood((await answer).get("result"), self._client())
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
