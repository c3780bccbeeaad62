"""What a server answered about a call, before anything is done because of it."""

from __future__ import annotations

from typing import NamedTuple

from cra_middleware.carp.call import ToolCall
from cra_middleware.client.connection import Reply
from cra_middleware.client.refusals import refusal_of
from cra_middleware.errors import CallRefused


class Authorised(NamedTuple):
    """The server did not refuse."""

    execution_id: str
    """Its name for the call."""
    ran: dict[str, object] | None
    """None: the tool may run here, once; else what the server's own executor gave."""


def understood(call: ToolCall, request_id: str, reply: Reply) -> Authorised:
    """What was answered to the request ``request_id`` about ``call``.

    Raises:
        CallRefused: when the tool must not run, or it is not clear that it may.
    """
    if reply.problem is not None:
        raise refusal_of(reply.problem, call.action_id)
    told = reply.json()
    result, execution_id = told.get("result"), told.get("execution_id")
    if isinstance(execution_id, str) and told.get("request_id") == request_id:
        if told.get("status") == "success" and isinstance(result, dict):
            is_let = result.get("authorized") is True and isinstance(result.get("report_until"), str)
            return Authorised(execution_id, None if is_let else told)
        if told.get("status") == "error":
            return Authorised(execution_id, told)
    # The server did answer: it may have run the action itself, so nothing runs here in its stead.
    raise CallRefused("the server's answer cannot be read", action_id=call.action_id, code="server_error")
