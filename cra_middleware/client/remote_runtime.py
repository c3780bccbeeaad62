"""A runtime whose Atlases, approvals and traces are at a server: what ``Runtime.connect`` gives.

It overrides everything public of ``Runtime``, and uses none of its parts: what only the server can answer is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from cra_middleware._clock import SystemClock
from cra_middleware._ids import is_id
from cra_middleware.approvals.answering import Approvals
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import RiskTier
from cra_middleware.carp.call import Target
from cra_middleware.carp.explain import Explanation
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.resolver import Resolver
from cra_middleware.client.connection import Connection
from cra_middleware.client.offline import Spool
from cra_middleware.client.outcomes import Worker
from cra_middleware.client.questions import Questions
from cra_middleware.client.refusals import resume_error, session_error
from cra_middleware.client.remote_session import Link, RemoteSession, resolution_in
from cra_middleware.client.toolbook import ToolBook
from cra_middleware.client.wire import resolve_body, session_body
from cra_middleware.errors import ChainBroken, CRAError, SinkError
from cra_middleware.leaving import forget, leave_at_exit
from cra_middleware.policies import AtlasSource
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.admission import Admitted, Opening, admitted, facts_of
from cra_middleware.sessions.open_sessions import OpenSessions
from cra_middleware.sessions.session import Session
from cra_middleware.telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


class AtServerError(CRAError):
    """Only the server can do that."""

    code = "at_server"


class RemoteRuntime(Runtime):
    """Runs tools here that a server decides about. Safe under threads and tasks."""

    def __init__(
        self,
        connection: Connection,
        *,
        on_unreachable: Literal["deny", "cached"] = "deny",
        spool: str | Path | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        """Nothing is asked of the server yet.

        Raises:
            SinkError: when the spool cannot be used.
            ValueError: when an option is not usable.
        """
        if on_unreachable not in ("deny", "cached"):
            raise ValueError(f"on_unreachable must be 'deny' or 'cached', not {on_unreachable!r}")
        if (on_unreachable == "cached") != (spool is not None):
            raise ValueError("on_unreachable='cached' needs a spool=FOLDER for what is recorded meanwhile, and only it")
        self._connection = connection
        self._worker = Worker()
        self._tools = ToolBook(connection, self._renew_later, may_be_old=on_unreachable == "cached")
        begin = partial(Runtime, tracer_provider=tracer_provider, meter_provider=meter_provider)
        self._spool = None if spool is None else Spool(spool, connection, begin)
        telemetry = Telemetry(tracer_provider, meter_provider, lambda action_id: None, decides=False)
        self._link = Link(connection, self._tools, self._worker, telemetry, self._spool)
        self._approvals = Approvals(Questions(connection), SystemClock())
        self._open = OpenSessions[RemoteSession]()
        if self._spool is not None:
            self._spool.seal_left_behind()
            self._worker.begin()
            self._worker.soon(self._spool.upload)
        leave_at_exit(self)

    @property
    def atlases(self) -> tuple[Atlas, ...]:
        """They are at the server.

        Raises:
            AtServerError: always.
        """
        _at_server("its Atlases are read with GET /v1/atlases")

    @property
    def resolver(self) -> Resolver:
        """It is at the server.

        Raises:
            AtServerError: always.
        """
        _at_server("decisions are made there")

    @property
    def policy_digest(self) -> str:
        """It is in the first event of each session.

        Raises:
            AtServerError: always.
        """
        _at_server("the digest is in the first event of each session")

    @property
    def approvals(self) -> Approvals:
        """The questions that wait for a person at the server; answered in the name of the key, whatever ``by`` says."""
        return self._approvals

    def reload(self, atlas: AtlasSource | Sequence[AtlasSource]) -> None:
        """Policies are put in force at the server.

        Raises:
            AtServerError: always.
        """
        _at_server("put the Atlas into its folder, or POST /v1/atlases")

    def explain(
        self,
        action: str,
        arguments: Mapping[str, object] | None = None,
        *,
        agent_id: str = "agent",
        risk_tier: RiskTier = "low",
        context: Mapping[str, object] | None = None,
    ) -> Explanation:
        """Decisions are explained where the Atlases are.

        Raises:
            AtServerError: always.
        """
        _at_server("decisions are explained where the Atlases are: cra check")

    def session(
        self,
        agent_id: str = "agent",
        goal: str = "(no goal given)",
        risk_tier: RiskTier = "low",
        context: Mapping[str, object] | None = None,
        *,
        atlas_ids: Sequence[str] | None = None,
        external_id: str | None = None,
        subject: str | None = None,
        parent: Session | None = None,
        keep: bool = False,
        session_id: str | None = None,
        metadata: Mapping[str, object] | None = None,
        request: Request | None = None,
    ) -> Session:
        """Open a session at the server, as ``Runtime.session``; waits for its answer.

        Raises:
            CallRefused: when the server does not answer, or does not let this key in.
            SinkError: when the server cannot begin the trace.
            ValueError: when an argument is not usable, or changes a fact of the parent.
        """
        self._open.check_open()
        told = (external_id, subject, None if parent is None else parent.id, session_id, metadata or {}, request)
        opening = Opening(agent_id, goal, risk_tier, context or {}, atlas_ids, *told)
        whole = opening.whole
        above = self._open.above(whole.parent_id)
        if parent is not None and above is None:
            raise ValueError("the parent is no open session of this runtime")
        who = admitted(whole, above)
        body = session_body(opening, who, None if above is None else above.id)
        asked = time.monotonic()
        reply = self._connection.ask("POST", "/v1/sessions", body)
        if reply.problem is not None:
            raise session_error(reply.problem)
        answer = reply.json()
        session = RemoteSession(self._link, who, resolution_in(answer.get("resolution")), asked)
        self._tools.seen(answer.get("tools_etag"))
        self._open.begun(session, above, keep)
        self._worker.begin()
        return session

    def resolve(self, request: Request | Mapping[str, object]) -> Resolution:
        """Answer a whole CARP request, in the session it names; one that is not open yet is started.

        Raises:
            CallRefused: when the server does not answer.
            SinkError: when it cannot be recorded.
            ValueError: when the request is malformed (``pydantic.ValidationError``), or the server does not take it.
        """
        asked = request if isinstance(request, Request) else Request.model_validate(request)
        who = asked.requester
        known = self._open.get(who.session_id)
        if known is None:
            return self.session(who.agent_id, asked.task.goal, request=asked).resolution
        if known.facts.agent_id != who.agent_id:
            raise ValueError(f"session {known.id} belongs to another agent than {who.agent_id!r}")
        return known.resolve(asked)

    def resume(
        self, session_id: str, *, context: Mapping[str, object] | None = None, keep: bool = False, renew: bool = True
    ) -> Session:
        """Go on with a session that was detached, here or on another machine; its facts are at the server.

        Raises:
            CallRefused: when the server does not answer.
            ChainBroken: when the session was ended, or its trace was changed.
            SinkError: when there is no such session of this key's.
        """
        known = self._open.find(session_id)
        if known is not None:
            return known
        self._open.check_open()
        if not is_id(session_id):
            raise SinkError("a session id is a lower-case UUID")
        reply = self._connection.ask("GET", f"/v1/sessions/{session_id}")
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
        reply = self._connection.ask("POST", "/v1/resolve", body)
        if reply.problem is not None:
            raise resume_error(reply.problem)
        who = Admitted(session_id, goal, facts, None)
        session = RemoteSession(self._link, who, resolution_in(reply.json()), asked, resumed=True)
        self._open.resumed(session, keep)
        self._worker.begin()
        return session

    def find(self, session_id: str) -> Session | None:
        """The open session with this id, of this process's."""
        return self._open.find(session_id)

    def target_for(
        self,
        tool_name: str,
        framework: str,
        *,
        actions: Mapping[str, str] | None = None,
        declared: str | None = None,
        server: str | None = None,
    ) -> Target:
        """What a tool stands for, as ``Runtime.target_for``, by the server's Atlases of at most a minute ago.

        With ``on_unreachable="cached"`` by those that were last heard of, while the server is not to be reached.

        Raises:
            CallRefused: when nothing was heard of them for so long.
        """
        return self._tools.now.target_for(tool_name, framework, declared, actions, server)

    def argument_policies(self) -> tuple[str, ...]:
        """The policies that only a call's arguments can decide; what a tool is shown must be what they are shown.

        Raises:
            CallRefused: as ``target_for``.
        """
        return self._tools.now.argument_policies

    def close(self, *, end: bool = False) -> None:
        """End the sessions this runtime opened, detach the kept ones (``end=True`` ends those too), and let go.

        A session in which a person is being asked is kept, too: the questions are at the server.
        """
        self._leave(self._open.end(all_of_them=end, can_wait=True))

    def detach(self) -> None:
        """Let go of every session without sealing it; done by itself when the interpreter exits."""
        self._leave(self._open.detach())

    def _renew_later(self, work: Callable[[], None]) -> None:
        self._worker.begin()
        self._worker.soon(partial(_done, work))

    def _leave(self, nothing_runs: bool) -> None:
        forget(self)
        if nothing_runs:  # else the outcome of a tool of another thread has to be told, and that its session has ended
            self._worker.close()
            self._connection.close()


def _at_server(instead: str) -> NoReturn:
    raise AtServerError(f"this runtime is at a server; {instead}")


def _done(work: Callable[[], None]) -> bool:
    work()
    return True
