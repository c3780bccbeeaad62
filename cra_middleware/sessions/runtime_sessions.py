"""The sessions of one runtime: below whom each is opened, how an earlier one goes on, and when all are let go of."""

from __future__ import annotations

from collections.abc import Mapping

from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.errors import ChainBroken
from cra_middleware.sessions.admission import Opening, admitted
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.sessions.open_sessions import OpenSessions
from cra_middleware.sessions.opening import Opener

MAX_OPEN_KEPT = 256
"""Sessions kept per thread that may be open at once; beyond it the one unused longest is detached."""


class RuntimeSessions:
    """Those that are open, and the way to more of them. Safe under threads."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._open = OpenSessions[LocalSession]()

    def find(self, session_id: str) -> LocalSession | None:
        """The open session with this id."""
        return self._open.find(session_id)

    def ids(self) -> set[str]:
        """Those known."""
        return self._open.ids()

    def begin(self, opening: Opening, keep: bool) -> LocalSession:
        """A new session, below the one it names or the current one of this runtime.

        Raises:
            SessionEnded: when the parent ends meanwhile.
            SinkError: when its trace cannot be begun, or the runtime is closed.
            ValueError: when an argument is not usable, changes a fact of the parent, or is not what ``request`` says.
        """
        self._open.check_open()
        whole = opening.whole
        above = self._open.above(whole.parent_id)
        if whole.parent_id is not None and above is None:
            raise ValueError("the parent is no open session of this runtime")
        who = admitted(whole, above)
        session = self._opener.start(who, opening, None if above is None else above.id)
        self._open.begun(session, above, keep)
        if keep:
            self._make_room(session)
        return session

    def answer(self, asked: Request) -> Resolution:
        """Answer a request in the session it names; one that is not known yet is started.

        Raises:
            SinkError: when it cannot be recorded.
            ValueError: when it speaks for another agent than the session's, or below one that is not open, or what it
                says is not usable.
        """
        requester = asked.requester
        session = self._open.get(requester.session_id)
        if session is None:
            return self.begin(Opening(requester.agent_id, asked.task.goal, request=asked), keep=False).resolution
        if session.facts.agent_id != requester.agent_id:
            raise ValueError(f"session {session.id} belongs to another agent than {requester.agent_id!r}")
        return session.resolve(asked)

    def resume(self, session_id: str, context: Mapping[str, object] | None, keep: bool, renew: bool) -> LocalSession:
        """Go on with a detached session, as ``Runtime.resume`` says.

        Raises:
            ChainBroken: when it was ended, or its trace was changed.
            SinkError: when there is no such session, or another writer has it.
        """
        known = self._open.get(session_id)
        if known is not None:
            if known.is_open:
                return known
            if not known.is_closed:
                raise ChainBroken(f"session {session_id} is being closed: a tool of it still runs")
        self._open.check_open()
        session = self._opener.resume(session_id, context, renew)
        self._open.resumed(session, keep)
        if keep:
            self._make_room(session)
        return session

    def close(self, end: bool, *, can_wait: bool) -> None:
        """End them, and open no more; unless ``end``, those kept are detached, and if they ``can_wait``, those that
        wait for a person."""
        self._open.end(all_of_them=end, can_wait=can_wait)

    def detach(self) -> None:
        """Let go of all of them, unsealed, and open no more."""
        self._open.detach()

    def _make_room(self, newest: LocalSession) -> None:
        kept = self._open.kept()
        idle = [known for known in kept if not known.is_busy and known is not newest]
        for known in sorted(idle, key=lambda known: known.used_us)[: max(0, len(kept) - MAX_OPEN_KEPT)]:
            known.detach()
