"""A runtime whose Atlases, approvals and traces are at a server: what ``Runtime.connect`` gives.

It overrides everything public of ``Runtime``, and uses none of its parts: what only the server can answer is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from cra_middleware._clock import SystemClock
from cra_middleware._fork import tell_child
from cra_middleware._ids import is_id, new_id
from cra_middleware.admission import check_text, facts_of
from cra_middleware.answering import Approvals
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
from cra_middleware.client.wire import json_of, resolve_body
from cra_middleware.errors import ChainBroken, CRAError, SinkError
from cra_middleware.leaving import forget, leave_at_exit
from cra_middleware.policies import AtlasSource
from cra_middleware.runtime import Runtime
from cra_middleware.session import Session, current_session
from cra_middleware.telemetry import Telemetry

if TYPE_CHECKING:
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
        self._tools = ToolBook(connection, self._renew_later)
        self._spool = None if spool is None else Spool(spool, connection)
        self._link = Link(
            connection, self._tools, self._worker, Telemetry(tracer_provider, lambda action_id: None), self._spool
        )
        self._approvals = Approvals(Questions(connection), SystemClock())
        self._lock = threading.Lock()
        self._remote: dict[str, RemoteSession] = {}
        self._kept: set[str] = set()
        self._crowded = 64
        self._is_closed = False
        if self._spool is not None:
            self._spool.seal_left_behind()
            self._worker.begin()
            self._worker.soon(self._spool.upload)
        tell_child(self)
        leave_at_exit(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held a lock."""
        self._lock = threading.Lock()
        self._tools.forked()

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
        self._check_open()
        wanted = parent or current_session()
        above = self._remote.get(wanted.id) if wanted is not None and wanted.is_open else None
        if parent is not None and above is None:
            raise ValueError("the parent is no open session of this runtime")
        session_id = session_id or (request.requester.session_id if request is not None else new_id())
        if not is_id(session_id):
            raise ValueError("a session id is a lower-case UUID")
        facts = facts_of(session_id, agent_id, risk_tier, context or {}, atlas_ids, above.facts if above else None)
        if not 0 < len(goal) <= 10_000:
            raise ValueError("goal must have 1 to 10,000 characters")
        check_text("goal", goal)
        subject = subject or (above.behalf if above else None)
        body: dict[str, object | None] = {
            "session_id": session_id,
            "agent_id": agent_id,
            "goal": goal,
            "risk_tier": risk_tier,
            "context": json_of(context or {}, "context"),
            "metadata": json_of(metadata or {}, "metadata"),
            "atlas_ids": None if atlas_ids is None else list(atlas_ids),
            "external_id": external_id,
            "subject": subject,
            "parent_session_id": None if above is None else above.id,
            "request": None if request is None else request.model_dump(mode="json", exclude_none=True),
        }
        reply = self._connection.ask(
            "POST", "/v1/sessions", {key: told for key, told in body.items() if told is not None}
        )
        if reply.problem is not None:
            raise session_error(reply.problem)
        told = reply.json()
        session = RemoteSession(self._link, session_id, facts, goal, subject, resolution_in(told.get("resolution")))
        self._tools.seen(told.get("tools_etag"))
        self._remember(session, keep)
        if above is not None:
            above.adopt(session)
        return session

    def resolve(self, request: Request | Mapping[str, object]) -> Resolution:
        """Answer a whole CARP request, in the session it names; one that is not open yet is started.

        Raises:
            CallRefused: when the server does not answer.
            SinkError: when it cannot be recorded.
            ValueError: when the request is malformed (``pydantic.ValidationError``), or the server does not take it.
        """
        asked = request if isinstance(request, Request) else Request.model_validate(request)
        who, task = asked.requester, asked.task
        known = self._remote.get(who.session_id)
        if known is None:
            return self.session(who.agent_id, task.goal, task.risk_tier, asked.context, request=asked).resolution
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
        known = self._remote.get(session_id)
        if known is not None and known.is_open:
            return known
        self._check_open()
        if not is_id(session_id):
            raise SinkError("a session id is a lower-case UUID")
        reply = self._connection.ask("GET", f"/v1/sessions/{session_id}")
        if reply.problem is not None:
            raise resume_error(reply.problem)
        told = reply.json()
        if told.get("status") != "active":
            raise ChainBroken(f"session {session_id} was ended; nothing may follow")
        agent_id, goal, above = told.get("agent_id"), str(told.get("goal")), told.get("parent_session_id")
        named = told.get("atlas_ids")
        names = [str(name) for name in named] if isinstance(named, list) else None
        facts = facts_of(session_id, str(agent_id), "low", context or {}, names, None)
        if isinstance(above, str):
            facts = facts._replace(root_session_id=above)
        body = resolve_body(session_id, facts, goal).model_dump(mode="json", exclude_none=True)
        reply = self._connection.ask("POST", "/v1/resolve", body)
        if reply.problem is not None:
            raise resume_error(reply.problem)
        session = RemoteSession(self._link, session_id, facts, goal, None, resolution_in(reply.json()), resumed=True)
        self._remember(session, keep)
        return session

    def find(self, session_id: str) -> Session | None:
        """The open session with this id, of this process's."""
        session = self._remote.get(session_id)
        return session if session is not None and session.is_open else None

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

        Raises:
            CallRefused: when nothing was ever heard of them.
        """
        return self._tools.now.target_for(tool_name, framework, declared, actions, server)

    def argument_policies(self) -> tuple[str, ...]:
        """The policies that only a call's arguments can decide; what a tool is shown must be what they are shown.

        Raises:
            CallRefused: when nothing was ever heard of the server's Atlases.
        """
        return self._tools.now.argument_policies

    def close(self, *, end: bool = False) -> None:
        """End the sessions this runtime opened, detach the kept ones (``end=True`` ends those too), and let go.

        A session in which a person is being asked is kept, too: the questions are at the server.
        """
        for session in reversed(self._opened()):
            if not end and (session.id in self._kept or (session.is_open and session.is_waiting)):
                session.detach()
            else:
                session.end()
        self._let_go()

    def detach(self) -> None:
        """Let go of every session without sealing it; done by itself when the interpreter exits."""
        for session in reversed(self._opened()):
            session.detach()
        self._let_go()

    def _opened(self) -> list[RemoteSession]:
        with self._lock:
            return list(self._remote.values())

    def _remember(self, session: RemoteSession, keep: bool) -> None:
        with self._lock:
            self._remote[session.id] = session
            if len(self._remote) > self._crowded:  # not each time: looking through all of them would cost more and more
                self._remote = {key: known for key, known in self._remote.items() if known.is_open or known.is_busy}
                self._kept &= self._remote.keys()
                self._crowded = 2 * len(self._remote) + 64
            if keep:
                self._kept.add(session.id)
        self._worker.begin()

    def _renew_later(self, work: Callable[[], None]) -> None:
        self._worker.begin()
        self._worker.soon(partial(_done, work))

    def _check_open(self) -> None:
        if self._is_closed:
            raise SinkError("the runtime is closed")

    def _let_go(self) -> None:
        self._is_closed = True
        forget(self)
        if any(session.is_busy for session in self._opened()):
            return  # a tool of another thread still runs: its outcome has to be told, and that its session has ended
        self._worker.close()
        self._connection.close()


def _at_server(instead: str) -> NoReturn:
    raise AtServerError(f"this runtime is at a server; {instead}")


def _done(work: Callable[[], None]) -> bool:
    work()
    return True
