"""Which session governs a call that a framework makes: by the run it belongs to, and by the agent that makes it."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping

from cra_middleware._fork import tell_child
from cra_middleware.approvals import State
from cra_middleware.errors import ChainBroken, NoActiveSession, SinkError
from cra_middleware.runtime import Runtime
from cra_middleware.session import Session, current_session

MAX_RUNS = 4096
"""Runs that are remembered; beyond it the one unused longest is ended."""

_LIVE: tuple[State, ...] = ("pending", "approved", "rejected")

_logger = logging.getLogger("cra_middleware")


class RunSessions:
    """The current session, where there is one; else one for each run. Safe under threads and tasks.

    An agent other than the one that a run began with gets a session of its own below the run's, and so does an agent
    that runs inside a tool of another one.
    """

    def __init__(self, runtime: Runtime | None, agent_id: str, goal: str) -> None:
        """``agent_id`` names an agent that the framework has no name for; ``goal`` is recorded for each session."""
        self._runtime = runtime
        self._agent_id = agent_id
        self._goal = goal
        self._lock = threading.RLock()
        self._runs: OrderedDict[str | None, Session] = OrderedDict()
        self._leads: OrderedDict[tuple[str, str | None], str] = OrderedDict()
        self._others: dict[tuple[str, str], Session] = {}
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.RLock()

    def find(
        self,
        run: str | None,
        agent: str | None,
        call_ids: Collection[str],
        caller: tuple[Session, str | None] | None,
    ) -> Session:
        """The session for a call of ``agent`` in ``run``; ``caller`` is whose tool it is made inside of.

        A run that goes on in another process finds its session by one of ``call_ids``: the call that waits
        for a person.

        Raises:
            NoActiveSession: when there is none, and no runtime to open one.
            SinkError: when one cannot be opened.
            ValueError: when the agent has a name that no agent can have.
        """
        current = self._current()
        with self._lock:
            if current is not None and caller is not None and caller[0] is current:
                lead = caller[1] or current.facts.agent_id
                root = current
            else:
                root = current or self._root(run, agent, call_ids)
                lead = self._leads.setdefault((root.id, run), agent or root.facts.agent_id)
                while len(self._leads) > MAX_RUNS:
                    self._leads.popitem(last=False)
            return root if agent is None or agent in (lead, root.facts.agent_id) else self._below(root, agent)

    def end(self, run: str | None) -> None:
        """``run`` is over: end its session, unless a person is still being asked in it."""
        with self._lock:
            session = self._runs.get(run)
            if session is None or session.is_waiting:
                return
            del self._runs[run]
        session.end()

    def _current(self) -> Session | None:
        """The current session: one of another runtime's is none of ours, one that is over refuses."""
        current = current_session()
        if current is None or self._runtime is None or not current.is_open:
            return current
        return current if self._runtime.find(current.id) is current else None

    def _root(self, run: str | None, agent: str | None, call_ids: Collection[str]) -> Session:
        if self._runtime is None:
            raise NoActiveSession("no session is active; open one: with runtime.session(...):, or pass a runtime")
        known = self._runs.get(run)
        if known is None or not known.is_open:
            known = self._waiting(self._runtime, call_ids)
            known = known or self._runtime.session(agent or self._agent_id, self._goal, external_id=run)
        self._runs[run] = known
        self._runs.move_to_end(run)
        while len(self._runs) > MAX_RUNS:
            _, oldest = self._runs.popitem(last=False)
            if not oldest.is_busy:
                oldest.end()
        return known

    def _waiting(self, runtime: Runtime, call_ids: Collection[str]) -> Session | None:
        """The session in which one of these calls was stopped until a person says yes or no.

        Where it was stopped in one below a run's, the run's is what goes on, and the one below is known again.
        """
        if not call_ids:
            return None
        live = [item for state in _LIVE for item in runtime.approvals.list(state)]
        asked = {item.pending.session_id for item in live if item.pending.tool_call_id in call_ids}
        if len(asked) != 1:
            return None
        session_id = asked.pop()
        try:
            stopped = runtime.resume(session_id, keep=True)
            parent_id = _parent_of(stopped)
            if parent_id is None:
                return stopped
            root = runtime.resume(parent_id, keep=True)
        except (ChainBroken, SinkError) as error:
            _logger.warning("session %s cannot go on, a new one is begun: %s", session_id, error)
            return None
        root.adopt(stopped)
        self._others[root.id, stopped.facts.agent_id] = stopped
        return root

    def _below(self, root: Session, agent: str) -> Session:
        known = self._others.get((root.id, agent))
        if known is None or not known.is_open:
            if self._runtime is None:
                return root
            known = self._runtime.session(agent, self._goal, parent=root)
            self._others = {key: item for key, item in self._others.items() if item.is_open}
            self._others[root.id, agent] = known
        return known


def _parent_of(session: Session) -> str | None:
    metadata = session.events[0].payload.get("metadata")
    found = metadata.get("parent_session_id") if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) else None
