"""What a server's side knows of the request that is being served: whose it is, and whether its user can be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias
from uuid import uuid4

import anyio
from mcp.server.context import ServerRequestContext
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic_core import to_jsonable_python

from cra_adapters.mcp.listed import Caller
from cra_middleware import Answer, Pending
from cra_middleware.enforcement import EnforcementPoint

MAX_READ = 20_000
"""Letters of one question that a person can be expected to read in a form."""
ASK_SECONDS = 300.0
"""How long the client's user has for an answer."""
_KEY = "cra_run"
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "approve": {"type": "boolean", "title": "Approve this call", "default": False},
        "reason": {"type": "string", "title": "Reason", "description": "The agent is told."},
    },
    "required": ["approve"],
}

Request: TypeAlias = ServerRequestContext[Any, Any]


class NotAnsweredError(RuntimeError):
    """The client's user gave no answer; the question stays open."""


class Attempt:
    """One call on its way to a tool's body."""

    def __init__(self) -> None:
        self.is_decided = False


class Serving:
    """The requests of one server."""

    def __init__(self, point: EnforcementPoint, *, agent_id: str | None, elicit: bool) -> None:
        """``agent_id``: the operator's name for every caller; else each client's own word counts."""
        self._point = point
        self._agent_id = agent_id
        self._elicit = elicit
        self._request: ContextVar[Request | None] = ContextVar("cra_mcp_request", default=None)
        self._attempt: ContextVar[Attempt | None] = ContextVar("cra_mcp_attempt", default=None)

    @contextmanager
    def request(self, ctx: Request) -> Iterator[None]:
        """Serve ``ctx``."""
        token = self._request.set(ctx)
        try:
            yield
        finally:
            self._request.reset(token)

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """A call may end before a body is reached; who records that has to know."""
        attempt = Attempt()
        token = self._attempt.set(attempt)
        try:
            yield attempt
        finally:
            self._attempt.reset(token)

    def reached(self) -> None:
        """A body was reached: what happens now is decided there."""
        attempt = self._attempt.get()
        if attempt is not None:
            attempt.is_decided = True

    def caller(self) -> Caller:
        """Who asks in the request that is served; nobody, where the server's own program calls."""
        ctx = self._request.get()
        if ctx is None:
            return Caller()
        params = ctx.session.client_params
        client = None if params is None else params.client_info.name.strip()[:200] or None
        agent = None if self._agent_id is not None else client
        run = self._run(ctx)
        approver = _ClientsUser(ctx, client or "an unnamed client") if self._elicit and _can_ask(ctx) else None
        # ids of requests begin anew on each connection: alone they would name the call of another client
        return Caller(agent, run or f"client {client}", f"{ctx.request_id}@{run or uuid4().hex}", approver)

    def _run(self, ctx: Request) -> str | None:
        """The connection; None by the protocol of 2026, which has none."""
        connection = getattr(ctx.session, "_connection", None)
        if connection is None or ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return None
        if _KEY not in connection.state:
            connection.state[_KEY] = uuid4().hex
            connection.exit_stack.callback(self._point.end, connection.state[_KEY], can_wait=False)
        return str(connection.state[_KEY])


class _ClientsUser:
    """Asks by ``elicitation/create``. Whether a person answers, only the client's program knows."""

    def __init__(self, ctx: Request, client: str) -> None:
        self._ctx = ctx
        self._client = client

    async def __call__(self, pending: Pending) -> Answer:
        question = _question(pending)
        if len(question) > MAX_READ:
            raise NotAnsweredError("the call is too long to be read in a form")
        with anyio.fail_after(ASK_SECONDS):
            given = await self._ctx.session.elicit_form(question, _FORM, self._ctx.request_id)
        content = given.content or {}
        by = f"user of {self._client}"
        if given.action == "accept":
            reason = content.get("reason")
            return Answer(content.get("approve") is True, by, reason if isinstance(reason, str) and reason else None)
        if given.action == "decline":
            return Answer(False, by, "declined")
        raise NotAnsweredError("the client's user gave no answer")


def _question(pending: Pending) -> str:
    """The whole call, one argument a line: nobody can say yes to what was not shown, or was made to look otherwise."""
    lines = [
        f"{json.dumps(pending.agent_id)} wants to call {pending.action_id} ({json.dumps(pending.tool_name)})",
        f"{pending.reason}  [policy {pending.policy_id}]",
        *(f"{json.dumps(name)}: {_as_text(value)}" for name, value in pending.arguments.items()),
        *(f"to be answered by {' or '.join(names)}" for names in (pending.approvers, *pending.also_needed) if names),
    ]
    return "\n".join(lines)


def _as_text(value: object) -> str:
    try:
        return json.dumps(to_jsonable_python(value))
    except ValueError:
        raise NotAnsweredError(f"an argument of type {type(value).__name__} cannot be shown") from None


def _can_ask(ctx: Request) -> bool:
    able = ctx.session.client_capabilities
    forms = None if able is None else able.elicitation
    return ctx.session.can_send_request and forms is not None and (forms.form is not None or forms.url is None)
