"""Open questions in memory: they are gone with the process."""

from __future__ import annotations

import threading
from dataclasses import replace

from cra_middleware._fork import tell_child
from cra_middleware.approvals.approval import Answer, Approval, Pending, State, answered

MAX_CLOSED = 10_000
"""Questions that are remembered although no call meets them any more."""
_CLOSED: tuple[State, ...] = ("consumed", "expired")
_OPEN: tuple[State, ...] = ("pending", "approved")
_Call = tuple[str, str, str]


class MemoryApprovals:
    """Safe under threads and tasks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._all: dict[str, Approval] = {}
        self._live: dict[str, Approval] = {}  # those that a call may still meet, so that the others cost nothing
        self._asked: dict[_Call, dict[str, None]] = {}  # and by the call that meets them, the newest last
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.RLock()

    def find(self, session_id: str, action_id: str, arguments_digest: str) -> Approval | None:
        with self._lock:
            newest = next(reversed(self._asked.get((session_id, action_id, arguments_digest), {})), None)
            return None if newest is None else self._live[newest]

    def add(self, pending: Pending, most: int) -> bool:
        with self._lock:
            if len(self.listed("pending", pending.session_id)) >= most:
                return False
            self._put(Approval(pending=pending))
            if len(self._all) > 2 * MAX_CLOSED:
                self._forget()
            return True

    def get(self, approval_id: str) -> Approval | None:
        return self._all.get(approval_id)

    def answer(self, approval_id: str, answer: Answer, now_us: int) -> Approval:
        with self._lock:
            approval = answered(self._all.get(approval_id), approval_id, answer, now_us)
            self._put(approval)
            return approval

    def consume(self, approval_id: str, now_us: int) -> bool:
        with self._lock:
            approval = self._all.get(approval_id)
            if approval is None or approval.state != "approved" or now_us >= approval.pending.expires_us:
                return False
            self._put(replace(approval, state="consumed"))
            return True

    def give_back(self, approval_id: str) -> None:
        with self._lock:
            approval = self._all.get(approval_id)
            if approval is not None and approval.state == "consumed":
                self._put(replace(approval, state="approved"))

    def expire(self, approval_id: str, reason: str) -> None:
        with self._lock:
            approval = self._all.get(approval_id)
            if approval is not None and approval.state != "consumed":
                self._put(replace(approval, state="expired", reason=reason))

    def listed(self, state: State | None = None, session_id: str | None = None) -> list[Approval]:
        with self._lock:
            return [
                approval
                for approval in (self._live if state in _OPEN else self._all).values()
                if state in (None, approval.state) and session_id in (None, approval.pending.session_id)
            ]

    def waiting(self, now_us: int) -> int:
        """How many are pending and have not expired."""
        with self._lock:
            return sum(item.state == "pending" and now_us < item.pending.expires_us for item in self._live.values())

    def session_ended(self, session_id: str) -> None:
        with self._lock:
            for approval in [item for item in self._live.values() if item.pending.session_id == session_id]:
                self._let_go(approval.pending)

    def _put(self, approval: Approval) -> None:
        name = approval.pending.approval_id
        self._all[name] = approval
        if approval.state in _CLOSED:
            self._let_go(approval.pending)
        else:
            self._live[name] = approval
            self._asked.setdefault(_call(approval.pending), {})[name] = None

    def _let_go(self, pending: Pending) -> None:
        if self._live.pop(pending.approval_id, None) is None:
            return
        same = self._asked[_call(pending)]
        del same[pending.approval_id]
        if not same:
            del self._asked[_call(pending)]

    def _forget(self) -> None:
        closed = [name for name in self._all if name not in self._live]
        for name in closed[: max(0, len(closed) - MAX_CLOSED)]:
            del self._all[name]


def _call(pending: Pending) -> _Call:
    return pending.session_id, pending.action_id, pending.arguments_digest
