"""Where one framework meets the runtime: what its tools are, and which session governs a call of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.carp.call import Target
from cra_middleware.enforcement.governed_call import running_call
from cra_middleware.enforcement.governed_tool import GovernedTool
from cra_middleware.errors import AuditUnavailable, CallRefused, NoActiveSession, SinkError
from cra_middleware.run_sessions import RunSessions
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.session import Session, current_session
from cra_middleware.signatures import describe, signature_of

_logger = logging.getLogger("cra_middleware")


class EnforcementPoint:
    """Where the tools of one framework meet the runtime: which session governs a call, and what a tool stands for."""

    def __init__(
        self,
        runtime: Runtime | None,
        framework: str,
        *,
        actions: Mapping[str, str] | None = None,
        agent_id: str | None = None,
        goal: str | None = None,
    ) -> None:
        """Govern with ``runtime``.

        Args:
            runtime: None leaves it to the session that is current at a call; a call outside any is refused.
            framework: the section of ``adapters`` in an Atlas that maps this framework's tools.
            actions: tool names to action ids, before what the Atlas maps.
            agent_id: how policies and traces name an agent that the framework has no name for.
            goal: the operator's sentence for sessions that are opened here. Never a user's message.
        """
        self.framework = framework
        self._runtime = runtime
        self._actions = dict(actions or {})
        agent_id = agent_id or f"{framework.replace('_', '-')}-agent"
        self._sessions = RunSessions(runtime, agent_id, goal or f"Calls of governed tools ({framework})")

    def tool(
        self,
        name: str,
        *,
        body: Callable[..., object] | None = None,
        declared: str | None = None,
        description: str = "",
        schema: Mapping[str, Any] | None = None,
        origin: str | None = None,
        source: str | None = None,
        without: Collection[str] = (),
        server: str | None = None,
        names_itself: bool = False,
    ) -> GovernedTool:
        """One of the framework's tools.

        Args:
            name: as the model knows it.
            body: the Python function that it runs, if there is one; a ``@governed`` one is decided once.
            declared: the action that an in-process tool names itself; what ``@governed`` says is found in ``body``.
            description: what a model is told about it. ``atlas.lock`` holds a tool to it and to ``schema``.
            schema: of its arguments, as a model is shown it.
            origin: the server or the class it comes from, for the trace, where it has no function.
            source: whose tools an ``atlas.lock`` lists it under; the framework, if nothing is said.
            without: parameters of ``body`` that the framework fills itself, which are no arguments of a call.
            server: that it is on; begins keys ``server/tool``, unless that name is its own word (``names_itself``).
        """
        title = f"{origin or self.framework}.{name}" if body is None else describe(body)
        if server is not None:
            title, source = f"{self.framework}.{server}/{name}", source or f"{self.framework}:{server}"
        elif not title.endswith(f".{name}"):
            title = f"{title}/{name}"
        named = declared or getattr(body, "cra_action", None)
        declared = named if isinstance(named, str) else None
        defaults = {} if body is None else _defaults(body, without)
        source, hidden = source or self.framework, frozenset(without)
        server = None if names_itself else server
        return GovernedTool(self, name, source, title, declared, body, description, schema, defaults, hidden, server)

    def session(
        self,
        *,
        run: str | None = None,
        agent: str | None = None,
        resumed: Collection[str] = (),
        kept: str | None = None,
        keep: bool = False,
        call_id: str | None = None,
    ) -> Session:
        """The session that governs a call of ``agent`` in ``run``.

        The current session, where there is one; else one for each run, and one for all calls that belong to none. An
        agent other than the one that a run began with, and one inside another's tool, gets its own below that. A run
        that is gone on with finds its session by its calls that were stopped, ``resumed``, or by the id that a
        framework stored with it, ``kept``; one of the same id by the call made now. ``keep``: outlives the runtime.

        Raises:
            CallRefused: when there is none, or none can be opened.
        """
        inside = running_call()
        caller = None if inside is None else (inside.session, inside.agent)
        try:
            return self._sessions.find(run, agent, resumed, caller, kept, keep, call_id)
        except CallRefused:
            raise
        except SinkError as error:
            raise AuditUnavailable(f"no session could be opened ({error}), so the tool did not run") from error
        except Exception as error:  # an adapter relies on the one type, whatever a store or a name brings up
            _logger.exception("no session could be opened; the call is refused")
            raise NoActiveSession(f"no session could be opened ({type(error).__name__}: {error})") from error

    def end(self, run: str | None, *, can_wait: bool = True) -> None:
        """The framework says that ``run`` is over: its session ends, unless a person is still being asked in it.

        ``can_wait=False`` says that nobody could go on with it.
        """
        self._sessions.end(run, can_wait)

    def withdraw(self, session: Session, call_id: str, *, by: str, reason: str | None = None) -> None:
        """The framework was told no about a call of ``session``, and does not make it again: its question is closed.

        Nothing happens where no question about a call of this id is open in it. Another run may have a call of the
        same id: some providers number those of every run anew.
        """
        if self._runtime is None:
            return
        approvals = self._runtime.approvals
        for waiting in approvals.list("pending", session.id):
            if waiting.pending.tool_call_id == call_id:
                try:
                    approvals.reject(waiting.pending.approval_id, by=by, reason=reason)
                except ApprovalError as error:  # answered or expired meanwhile: it counts as it stands
                    _logger.warning("an answer does not count: %s", error)

    def target(self, name: str, declared: str | None = None, server: str | None = None) -> Target:
        """What a tool stands for now.

        Raises:
            NoActiveSession: when no runtime was given, and no session is current.
        """
        owner = self._runtime or current_session()
        if owner is None:
            raise NoActiveSession("no session is active; open one: with runtime.session(...):, or pass a runtime")
        return owner.target_for(name, self.framework, actions=self._actions, declared=declared, server=server)

    def caught(self, error: BaseException) -> CallRefused:
        """A refusal for a failure of ours, which is logged: nothing but a refusal may leave a hook."""
        if isinstance(error, CallRefused):
            return error
        _logger.error("a call could not be decided and is refused", exc_info=error)
        return CallRefused(f"the call could not be decided ({type(error).__name__})", code="internal_error")


def _defaults(body: Callable[..., object], without: Collection[str]) -> dict[str, object]:
    try:
        parameters = signature_of(body).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return {}
    return {
        item.name: item.default for item in parameters if item.default is not item.empty and item.name not in without
    }
