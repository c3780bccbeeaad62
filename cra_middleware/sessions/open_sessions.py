"""The sessions that a runtime has open, below whom a new one is, and which of them are kept when it closes."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from cra_middleware._fork import tell_child
from cra_middleware.errors import SessionEnded, SinkError
from cra_middleware.sessions.session import Session, current_session

S = TypeVar("S", bound=Session)


class OpenSessions(Generic[S]):
    """By id. Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, S] = {}
        self._kept: set[str] = set()
        self._crowded = 64
        self._is_closed = False
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    def get(self, session_id: str) -> S | None:
        """The session with this id, while it is known; it may be over."""
        return self._known.get(session_id)

    def find(self, session_id: str) -> S | None:
        """The open session with this id."""
        session = self._known.get(session_id)
        return session if session is not None and session.is_open else None

    def ids(self) -> set[str]:
        """Those known."""
        with self._lock:
            return set(self._known)

    def kept(self) -> list[S]:
        """The open ones that outlive the runtime."""
        with self._lock:
            return [known for name in self._kept if (known := self._known.get(name)) is not None and known.is_open]

    def above(self, parent_id: str | None) -> S | None:
        """The open session that a new one is below: the one that is named, else the current one, if it is of these."""
        if parent_id is not None:
            return self.find(parent_id)
        current = current_session()
        return self.find(current.id) if current is not None and current.is_open else None

    def check_open(self) -> None:
        """Let nothing begin that could not be known.

        Raises:
            SinkError: when they are closed.
        """
        if self._is_closed:
            raise SinkError("this runtime is closed, and opens no more sessions")

    def begun(self, session: S, above: S | None, keep: bool) -> None:
        """Know a new session, which ends with the one above it and with the runtime; others may end those now.

        Raises:
            SessionEnded: when the one above is over; the new one is then, too.
            SinkError: when the runtime is closed; likewise.
        """
        why = "it was interrupted"
        try:
            if above is not None and not above.adopt(session):
                why = "the session above it is over"
                raise SessionEnded(f"session {above.id} is over; nothing begins below it")
            if not self._know(session, keep):
                why = "the runtime was closed"
                self.check_open()
        except BaseException:  # an interrupt, too, must not leave open what nobody knows
            session.end("cancelled", why)
            raise

    def resumed(self, session: S, keep: bool) -> None:
        """Know a session that goes on.

        Raises:
            SinkError: when the runtime is closed; the session is let go of.
        """
        try:
            if not self._know(session, keep):
                self.check_open()
        except BaseException:  # as above
            session.detach()
            raise

    def detach(self) -> bool:
        """Let go of all of them, unsealed, and know no more; whether nothing of them runs any longer."""
        sessions = self._closed()
        for session in reversed(sessions):
            session.detach()
        return self._forget()

    def end(self, *, all_of_them: bool, can_wait: bool) -> bool:
        """End them, and know no more; unless ``all_of_them``, those kept are detached, and if they ``can_wait``, those
        in which a person is asked. Whether nothing of them runs any longer: what does is sealed when that is done."""
        sessions, stay = self._closed(), set[str]()
        if not all_of_them:  # asked before any is let go of: one waits for those below it
            stay = self._kept | {known.id for known in sessions if can_wait and known.is_open and known.is_waiting}
        for session in reversed(sessions):
            if session.id in stay:
                session.detach()
            else:
                session.end()
        return self._forget()

    def _know(self, session: S, keep: bool) -> bool:
        with self._lock:
            if self._is_closed:
                return False
            self._known[session.id] = session
            if keep:
                self._kept.add(session.id)
            if len(self._known) > self._crowded:  # not each time: looking through all of them would cost more and more
                self._forget()
                self._crowded = 2 * len(self._known) + 64
            return True

    def _closed(self) -> list[S]:
        """Those known, to which no more are added."""
        with self._lock:
            self._is_closed = True
            return list(self._known.values())

    def _forget(self) -> bool:
        """Know only those that are open or in which something runs; whether there are none."""
        self._known = {key: known for key, known in self._known.items() if known.is_open or known.is_busy}
        self._kept &= self._known.keys()
        return not self._known
