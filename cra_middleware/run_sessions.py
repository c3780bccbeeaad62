"""Which session governs a call that a framework makes: by the run it belongs to, and by the agent that makes it."""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping

from cra_middleware._fork import tell_child
from cra_middleware.approvals.approval import State
from cra_middleware.errors import ChainBroken, NoActiveSession, SinkError
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.session import Session, current_session

MAX_RUNS = 4096
"""Runs that are remembered; beyond it the one unused longest is ended."""


def _room() -> int:
    """How many sessions, of two files each, may be open: half of what this process may open, and some at least."""
    if sys.platform == "win32":
        return 256
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_RUNS if most == resource.RLIM_INFINITY else min(MAX_RUNS, max(64, most // 4))


MAX_OPEN = _room()
"""Sessions that hold their files open; beyond it the one unused longest is let go of, until its run calls again. Not
every framework tells of the end of a run that was cancelled."""

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
        self._kept: set[str] = set()
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
        kept: str | None = None,
        keep: bool = False,
        call_id: str | None = None,
    ) -> Session:
        """The session for a call of ``agent`` in ``run``; ``caller`` is whose tool it is made inside of.

        A run that goes on in another process finds its session by ``kept``, the id that a framework has stored, or by
        one of ``call_ids``: the call that waits for a person. ``call_id`` alone is no proof, as some providers number
        the calls of every run anew: it finds a session of the same ``run`` only. ``keep`` lets a new one outlive the
        runtime.

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
                root = current or self._root(run, agent, call_ids, kept, keep, call_id)
                is_below = (root.id, agent) in self._others  # it was stopped there, and its call is the first to come
                first = None if is_below else agent
                lead = self._leads.setdefault((root.id, run), first or root.facts.agent_id)
                while len(self._leads) > MAX_RUNS:
                    self._leads.popitem(last=False)
            return root if agent is None or agent in (lead, root.facts.agent_id) else self._below(root, agent)

    def end(self, run: str | None, can_wait: bool = True) -> None:
        """``run`` is over: end its session, unless a person is still being asked in it and it ``can_wait``."""
        with self._lock:
            session = self._runs.get(run)
            if session is None or (can_wait and session.is_waiting):
                return
            del self._runs[run]
            self._kept.discard(session.id)
        session.end()

    def _current(self) -> Session | None:
        """The current session: one of another runtime's is none of ours, one that is over refuses."""
        current = current_session()
        if current is None or self._runtime is None or not current.is_open:
            return current
        return current if self._runtime.find(current.id) is current else None

    def _root(
        self,
        run: str | None,
        agent: str | None,
        call_ids: Collection[str],
        kept: str | None,
        keep: bool,
        call_id: str | None,
    ) -> Session:
        if self._runtime is None:
            raise NoActiveSession("no session is active; open one: with runtime.session(...):, or pass a runtime")
        known = self._runs.get(run)
        if known is None or not known.is_open or kept not in (None, known.id):
            stored = kept or (known.id if known is not None else None)
            known = None if stored is None else self._resumed(self._runtime, stored)
            known = known or self._waiting(self._runtime, call_ids)
            if known is None and run is not None and call_id is not None:
                known = self._waiting(self._runtime, (call_id,), run)
            known = known or self._runtime.session(agent or self._agent_id, self._goal, external_id=run, keep=keep)
            self._let_go()
        self._runs[run] = known
        self._runs.move_to_end(run)
        if keep:
            self._kept.add(known.id)
        while len(self._runs) > MAX_RUNS:
            _, oldest = self._runs.popitem(last=False)
            if oldest.id not in self._kept and not oldest.is_busy:  # the runtime detaches those kept by itself
                oldest.end()
            self._kept.discard(oldest.id)
        return known

    def _let_go(self) -> None:
        """Have room for one more session that is open."""
        having_others = {root_id for (root_id, _), item in self._others.items() if item.is_open}
        still = [item for item in self._runs.values() if item.is_open]
        for session in still[: max(0, len(still) + 1 - MAX_OPEN)]:
            if not session.is_busy and session.id not in having_others:
                session.detach()

    def _waiting(self, runtime: Runtime, call_ids: Collection[str], run: str | None = None) -> Session | None:
        """The session in which one of these calls was stopped until a person says yes or no; of ``run``, if given.

        Where it was stopped in one below a run's, the run's is what goes on, and the one below is known again.
        """
        if not call_ids:
            return None
        live = [item for state in _LIVE for item in runtime.approvals.list(state)]
        asked = {item.pending.session_id for item in live if item.pending.tool_call_id in call_ids}
        if run is None:
            return self._gone_on_with(runtime, asked.pop()) if len(asked) == 1 else None
        for session_id in asked:
            was_open = runtime.find(session_id) is not None
            found = self._gone_on_with(runtime, session_id)
            if found is not None and _metadata(found, "external_id") == run:
                return found
            if found is not None and not was_open:
                found.detach()
        return None

    def _gone_on_with(self, runtime: Runtime, session_id: str) -> Session | None:
        stopped = self._resumed(runtime, session_id)
        parent_id = None if stopped is None else _metadata(stopped, "parent_session_id")
        if stopped is None or parent_id is None:
            return stopped
        root = self._resumed(runtime, parent_id)
        if root is None:  # the one below is no session for its caller's calls
            return None
        if not root.adopt(stopped):
            stopped.detach()
            return None
        self._others[root.id, stopped.facts.agent_id] = stopped
        return root

    def _resumed(self, runtime: Runtime, session_id: str) -> Session | None:
        try:
            return runtime.resume(session_id, keep=True)
        except (ChainBroken, SinkError) as error:
            _logger.warning("session %s cannot go on, a new one is begun: %s", session_id, error)
            return None

    def _below(self, root: Session, agent: str) -> Session:
        known = self._others.get((root.id, agent))
        if known is None or not known.is_open:
            if self._runtime is None:
                return root
            known = self._runtime.session(agent, self._goal, parent=root)
            self._others = {key: item for key, item in self._others.items() if item.is_open}
            self._others[root.id, agent] = known
        return known


def _metadata(session: Session, name: str) -> str | None:
    """What was recorded when a session began."""
    metadata = session.events[0].payload.get("metadata")
    found = metadata.get(name) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) else None
