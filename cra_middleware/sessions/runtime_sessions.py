"""The sessions of one runtime: below whom each is opened, how an earlier one goes on, and when all are let go of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.sessions.admission import Admitted, Opening, admitted
from cra_middleware.sessions.open_sessions import OpenSessions
from cra_middleware.sessions.session import Session

S = TypeVar("S", bound=Session, covariant=True)


class RuntimeSessions(ABC, Generic[S]):
    """Those that are open, and the way to more of them. Safe under threads."""

    def __init__(self, *, knows_parents: bool) -> None:
        """``knows_parents``: a session that a request is below is one of these, and not just somewhere at a server."""
        self._open = OpenSessions[S]()
        self._knows_parents = knows_parents

    def find(self, session_id: str) -> S | None:
        """The open session with this id."""
        return self._open.find(session_id)

    def ids(self) -> set[str]:
        """Those known."""
        return self._open.ids()

    def begin(self, opening: Opening, keep: bool) -> S:
        """A new session, below the one it names or the current one of this runtime.

        Raises:
            CallRefused: when a server does not answer, or does not let this key in.
            SessionEnded: when the parent ends meanwhile.
            SinkError: when its trace cannot be begun, or the runtime is closed.
            ValueError: when an argument is not usable, changes a fact of the parent, or is not what ``request`` says.
        """
        self._open.check_open()
        whole = opening.whole
        above = self._open.above(whole.parent_id)
        must_be_known = whole.parent_id if self._knows_parents else opening.parent_id
        if must_be_known is not None and above is None:
            raise ValueError("the parent is no open session of this runtime")
        session = self._begun(admitted(whole, above), opening, None if above is None else above.id)
        self._open.begun(session, above, keep)
        self._looked_after(session, keep)
        return session

    def answer(self, asked: Request) -> Resolution:
        """Answer a request in the session it names; one that is not known yet is started.

        Raises:
            CallRefused: when a server does not answer.
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

    @abstractmethod
    def resume(self, session_id: str, context: Mapping[str, object] | None, keep: bool, renew: bool) -> S:
        """Go on with a detached session, as ``Runtime.resume`` says.

        Raises:
            CallRefused: when a server does not answer.
            ChainBroken: when it was ended, or its trace was changed.
            SinkError: when there is no such session, or another writer has it.
        """

    def close(self, end: bool, *, can_wait: bool) -> bool:
        """End them, and open no more; unless ``end``, those kept are detached, and if they ``can_wait``, those that
        wait for a person. Whether nothing of them runs any longer: what does is sealed when that is done."""
        return self._open.end(all_of_them=end, can_wait=can_wait)

    def detach(self) -> bool:
        """Let go of all of them, unsealed, and open no more; whether nothing of them runs any longer."""
        return self._open.detach()

    @abstractmethod
    def _begun(self, who: Admitted, opening: Opening, parent_id: str | None) -> S:
        """A session that nobody knows yet."""

    @abstractmethod
    def _looked_after(self, session: Session, keep: bool) -> None:
        """A session is known now, and stays."""
