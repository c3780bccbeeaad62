"""The sessions that this process has open: opened when they are wanted, let go of when they are idle.

A session that is in use is never let go of under its user's hands, and two threads never open the same one twice.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cra_middleware.sessions.local_session import LocalSession


class _Held:
    """One place in the table."""

    __slots__ = ("lock", "session", "used_ns", "users")

    def __init__(self) -> None:
        self.session: LocalSession | None = None
        self.users = 0
        self.used_ns = 0
        self.lock = threading.Lock()


class Table:
    """By id, the one used longest ago first."""

    def __init__(self, resume: Callable[[str], LocalSession], monotonic_ns: Callable[[], int], most: int) -> None:
        """``resume`` opens a session again; beyond ``most``, idle ones are let go of."""
        self._resume = resume
        self._monotonic_ns = monotonic_ns
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, session: LocalSession) -> None:
        """Hold one that was just begun."""
        held = _Held()
        held.session, held.used_ns = session, self._monotonic_ns()
        with self._lock:
            self._held[session.id] = held

    def peek(self, session_id: str) -> LocalSession | None:
        """One that is open now."""
        held = self._held.get(session_id)
        session = None if held is None else held.session
        return session if session is not None and session.is_open else None

    def is_closing(self, session_id: str) -> bool:
        """Whether it is being ended, or let go of, at this moment."""
        held = self._held.get(session_id)
        session = None if held is None else held.session
        return session is not None and not session.is_open and not session.is_closed

    @contextmanager
    def borrow(self, session_id: str) -> Iterator[LocalSession]:
        """A session, open for as long as it is borrowed.

        Raises:
            ChainBroken: when it was ended, or changed.
            SinkError: when it is not there, or another process has it.
        """
        held = self._take(session_id)
        try:
            session = held.session
            if session is None or not session.is_open:
                with held.lock:
                    session = held.session
                    if session is None or not session.is_open:
                        session = held.session = self._resume(session_id)
            yield session
        finally:
            self._give_back(session_id, held)

    def idle(self, seconds: float) -> list[str]:
        """Those that nobody uses, and should be let go of."""
        before = self._monotonic_ns() - int(seconds * 1e9)
        with self._lock:
            surplus = len(self._held) - self._most
            found: list[str] = []
            for name, held in self._held.items():
                if held.users == 0 and (len(found) < surplus or held.used_ns <= before):
                    found.append(name)
        return found

    def let_go(self, session_id: str) -> None:
        """Detach one, unless somebody uses it or a call of it is out."""
        with self._lock:
            held = self._held.get(session_id)
            if held is None or held.users:
                return
            held.users = 1
        try:
            with held.lock:
                session = held.session
                if session is not None and not (session.is_busy or session.untold):
                    session.detach()
                    held.session = None
        finally:
            self._give_back(session_id, held)

    def detach_all(self) -> None:
        """Let go of every session, unsealed."""
        with self._lock:
            sessions = [held.session for held in self._held.values() if held.session is not None]
            self._held.clear()
        for session in sessions:
            session.detach()

    def open_sessions(self) -> list[LocalSession]:
        """Those open now."""
        with self._lock:
            sessions = [held.session for held in self._held.values()]
        return [session for session in sessions if session is not None and session.is_open]

    def _take(self, session_id: str) -> _Held:
        with self._lock:
            held = self._held.get(session_id)
            if held is None:
                held = self._held[session_id] = _Held()
            held.users += 1
            return held

    def _give_back(self, session_id: str, held: _Held) -> None:
        with self._lock:
            held.users -= 1
            held.used_ns = self._monotonic_ns()
            if self._held.get(session_id) is not held:
                return
            if held.users == 0 and (held.session is None or not held.session.is_open):
                del self._held[session_id]
            else:
                self._held.move_to_end(session_id)
