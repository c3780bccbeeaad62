"""The sessions of a runtime whose Atlases and traces are at a server."""

from __future__ import annotations

import time
from collections.abc import Mapping

from cra_middleware._ids import is_id
from cra_middleware.client.connection import Reply
from cra_middleware.client.refusals import resume_error, session_error
from cra_middleware.client.remote_session import Link, RemoteSession, resolution_in
from cra_middleware.client.wire import resolve_body, session_body
from cra_middleware.errors import ChainBroken, RuntimeUnreachable, SinkError
from cra_middleware.sessions.admission import Admitted, Opening, facts_of
from cra_middleware.sessions.runtime_sessions import RuntimeSessions
from cra_middleware.sessions.session import Session


class RemoteSessions(RuntimeSessions[RemoteSession]):
    """Each with its log at the server, which knows more of them than are open here."""

    def __init__(self, link: Link) -> None:
        super().__init__(knows_parents=False)
        self._link = link

    def resume(self, session_id: str, context: Mapping[str, object] | None, keep: bool, renew: bool) -> RemoteSession:
        known = self._open.find(session_id)
        if known is not None:
            return known
        self._open.check_open()
        if not is_id(session_id):
            raise SinkError("a session id is a lower-case UUID")
        reply = self._asked("GET", f"/v1/sessions/{session_id}")
        if reply.problem is not None:
            raise resume_error(reply.problem)
        told = reply.json()
        if told.get("status") != "active":
            how = "has expired" if told.get("expired") is True else "was ended"
            raise ChainBroken(f"session {session_id} {how}; nothing may follow")
        agent_id, goal, above = told.get("agent_id"), str(told.get("goal")), told.get("parent_session_id")
        named = told.get("atlas_ids")
        names = [str(name) for name in named] if isinstance(named, list) else None
        facts = facts_of(session_id, str(agent_id), "low", context or {}, names, None)
        if isinstance(above, str):
            facts = facts._replace(root_session_id=above)
        body = resolve_body(session_id, facts, goal).model_dump(mode="json", exclude_none=True)
        asked = time.monotonic()
        reply = self._asked("POST", "/v1/resolve", body)
        if reply.problem is not None:
            raise resume_error(reply.problem)
        who = Admitted(session_id, goal, facts, None)
        session = RemoteSession(self._link, who, resolution_in(reply.json()), asked, resumed=True)
        self._open.resumed(session, keep)
        self._looked_after(session, keep)
        return session

    def _begun(self, who: Admitted, opening: Opening, parent_id: str | None) -> RemoteSession:
        body = session_body(opening, who, parent_id)
        asked = time.monotonic()
        reply = self._asked("POST", "/v1/sessions", body)
        if reply.problem is not None:
            raise session_error(reply.problem, is_below=parent_id is not None)
        answer = reply.json()
        session = RemoteSession(self._link, who, resolution_in(answer.get("resolution")), asked)
        self._link.tools.seen(answer.get("tools_etag"))
        return session

    def _looked_after(self, session: Session, keep: bool) -> None:
        self._link.worker.begin()

    def _asked(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Reply:
        """What a session begins with, or goes on; a wrong address is named, as a program reads it and no model does."""
        url = self._link.connection.url
        try:
            reply = self._link.connection.ask(method, path, body)
        except RuntimeUnreachable as error:
            raise type(error)(f"{error.reason}; it was looked for at {url}") from error
        if reply.problem is not None and reply.problem.code == "NOT_FOUND":  # a session has a code of its own
            message = f"there is nothing at {url}{path}: is the url where the server begins, without /v1?"
            return reply._replace(problem=reply.problem._replace(message=message))
        return reply
