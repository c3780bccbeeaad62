"""The decisions: one session for one connection, what each tool stands for, which tools are shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from cra_middleware.approvals.approval import Answer, Approver, Pending
from cra_middleware.carp.call import Target, ToolCall
from cra_middleware.errors import CallRefused
from cra_middleware.mcp_proxy.catalogue import Catalogue
from cra_middleware.mcp_proxy.messages import META_SERVER, Id, as_object, result_line, write
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.session import Session

T = TypeVar("T")

FRAMEWORK = "mcp"
UNKNOWN_CLIENT = "mcp-client"
UNKNOWN_SERVER = "server"
_MAX_NAME = 200


@dataclass(frozen=True)
class Identity:
    """Who acts, as the operator says; what is left out, the client and the server tell of themselves."""

    agent_id: str | None = None
    goal: str = "Use the tools of an MCP server"
    server: str | None = None
    """Also the first part of a key ``server/tool`` in the Atlas's ``adapters.mcp.tools``."""


class Gate:
    """Decides and records the tool calls of one connection."""

    def __init__(self, runtime: Runtime, identity: Identity) -> None:
        """Govern with ``runtime``."""
        self._runtime = runtime
        self._identity = identity
        self._catalogue = Catalogue()
        self._client: str | None = None
        self._server: str | None = None
        self._session: Session | None = None

    @property
    def catalogue(self) -> Catalogue:
        """The tools that the server has listed."""
        return self._catalogue

    @property
    def client(self) -> str:
        """What the client calls itself."""
        return self._client or UNKNOWN_CLIENT

    def client_is(self, info: object) -> None:
        """Hear the client's own description; the first one counts."""
        self._client = self._client or _name_in(info)

    def server_is(self, info: object) -> None:
        """Hear the server's own description; the first one counts."""
        self._server = self._server or _name_in(info)

    @property
    def session(self) -> Session:
        """The session of this connection, begun when it is first needed.

        Raises:
            SinkError: when the trace cannot be begun.
            ValueError: when the agent's name is not usable.
        """
        if self._session is None:
            self._session = self._runtime.session(self._identity.agent_id or self.client, self._identity.goal)
        return self._session

    def end(self, reason: Literal["completed", "error", "cancelled"], error: str | None = None) -> None:
        """End the session, if one was begun."""
        if self._session is not None:
            self._session.end(reason, error)

    def heard(self, response: Mapping[str, object]) -> None:
        """Take from any response what it says about the server."""
        result = as_object(response.get("result"))
        info = result.get("serverInfo") or as_object(result.get("_meta")).get(META_SERVER)
        if info is not None:
            self.server_is(info)

    def shown(self, response: Mapping[str, object], raw: bytes, request_id: Id) -> bytes:
        """A tools/list response with the permitted tools only; ``raw`` itself when nothing is hidden.

        Raises:
            SinkError: when the session cannot be begun.
            ValueError: as ``session``, or when the response cannot be written.
        """
        result = as_object(response.get("result"))
        tools = result.get("tools")
        if not isinstance(tools, list):
            return raw
        named = self._catalogue.see(tools)
        kept = [tool for name, tool in named if self._is_shown(name)]
        if len(kept) == len(tools):
            return raw
        return result_line(request_id, {**result, "tools": kept})

    def call(self, name: str, arguments: Mapping[str, object], request_id: Id | None) -> ToolCall:
        """The frozen call of a tool.

        Raises:
            TypeError: when two arguments would have one name.
        """
        call_id = None if request_id is None else str(request_id)
        frozen = self._target(name).call(f"{FRAMEWORK}.{self._server_name}/{name}", arguments, call_id)
        return frozen._replace(distrust=self._distrust(name))

    async def run(self, name: str, call: ToolCall, forward: Callable[[], Awaitable[T]], approver: Approver | None) -> T:
        """Forward the call, if it may run; what the server made of it.

        Raises:
            CallRefused: when it was not forwarded.
        """
        objection = self._catalogue.objection(name)
        if objection is not None:
            raise self.reject(call, objection)
        return await self.session.arun(call, forward, approver=approver)

    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call that is not even decided; the refusal to tell.

        Raises:
            CallRefused: when it cannot be recorded.
        """
        return self.session.reject(call, reason)

    def question(self, approval_id: str) -> Pending | None:
        """An open question of this connection; None when there is none with this id.

        Raises:
            ApprovalError: when approvals cannot be read.
        """
        found = self._runtime.approvals.get(approval_id)
        return found.pending if found is not None and found.state == "pending" else None

    def answer(self, approval_id: str, answer: Answer) -> None:
        """Answer an open question.

        Raises:
            ApprovalError: when the answer does not count.
        """
        say = self._runtime.approvals.approve if answer.approved else self._runtime.approvals.reject
        say(approval_id, by=answer.by, reason=answer.reason)

    @property
    def _server_name(self) -> str:
        return self._identity.server or self._server or UNKNOWN_SERVER

    def _is_shown(self, name: str) -> bool:
        """Whether some call could be allowed; a tool that changed since it was looked at tells a model nothing."""
        session = self.session
        if self._distrust(name) is not None and not session.is_observing:
            return False
        return session.can_reach(self._target(name).action_id)

    def _distrust(self, name: str) -> str | None:
        definition = self._catalogue.get(name)
        source = f"{FRAMEWORK}:{self._server_name}"
        distrust = self.session.distrust(source, name, lambda: "" if definition is None else definition.digest)
        if distrust is not None and definition is None:
            return f"the tool {name[:200]!r} of {source} has not been listed yet; list the tools first"
        return distrust

    def _target(self, name: str) -> Target:
        """What a tool stands for; what a server says of itself never counts here."""
        return self._runtime.target_for(name, FRAMEWORK, server=self._identity.server)


def _name_in(info: object) -> str | None:
    name = as_object(info).get("name")
    if not isinstance(name, str):
        return None
    try:
        write(name)
    except ValueError:
        return None
    return name.strip()[:_MAX_NAME] or None
