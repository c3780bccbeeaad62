"""The sessions that a runtime has open, and which of them are kept when it closes."""

from __future__ import annotations

import threading

from cra_middleware._fork import tell_child
from cra_middleware.local_session import LocalSession

MAX_OPEN_KEPT = 256
"""Sessions kept per thread that may be open at once; beyond it the one unused longest is detached."""


class OpenSessions:
    """By id. Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, LocalSession] = {}
        self._kept: dict[str, LocalSession] = {}
        self._crowded = 64
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    def get(self, session_id: str) -> LocalSession | None:
        """The session with this id, while it is known."""
        return self._open.get(session_id)

    def ids(self) -> set[str]:
        """Those known."""
        with self._lock:
            return set(self._open)

    def remember(self, session: LocalSession, keep: bool) -> None:
        """Know a session; ``keep`` lets it outlive the runtime."""
        with self._lock:
            self._open[session.id] = session
            if len(self._open) > self._crowded:  # not each time: looking through all of them would cost more and more
                self._open = {key: known for key, known in self._open.items() if known.is_open}
                self._crowded = 2 * len(self._open) + 64
            if not keep:
                return
            self._kept = {key: known for key, known in self._kept.items() if known.is_open}
            self._kept[session.id] = session
            idle = [known for known in self._kept.values() if not known.is_busy and known is not session]
            surplus = idle[: max(0, len(self._kept) - MAX_OPEN_KEPT)]
        for known in surplus:
            known.detach()

    def detach(self) -> None:
        """Let go of all of them, unsealed."""
        with self._lock:
            sessions = list(self._open.values())
        for session in reversed(sessions):
            session.detach()

    def close(self, end: bool, *, can_wait: bool = False) -> None:
        """End the sessions; unless ``end``, those kept are detached, and if they ``can_wait``, those that do."""
        with self._lock:
            sessions = list(self._open.values())
        waiting = {session.id for session in sessions if can_wait and session.is_waiting}  # before any is let go of
        for session in reversed(sessions):
            if not end and (session.id in self._kept or session.id in waiting):
                session.detach()
            else:
                session.end()
        self._open.clear()
        self._kept.clear()
