"""Open questions in memory: they are gone with the process."""

from __future__ import annotations

import threading
from dataclasses import replace

from cra_middleware._fork import tell_child
from cra_middleware.approvals import Answer, Approval, Pending, State, answered

MAX_CLOSED = 10_000
"""Consumed and expired ones that are remembered."""
_CLOSED: tuple[State, ...] = ("consumed", "expired")


class MemoryApprovals:
    """Safe under threads and tasks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._all: dict[str, Approval] = {}
        self._live: dict[str, Approval] = {}  # those that a call may still meet, so that the others cost nothing
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.RLock()

    def find(self, session_id: str, action_id: str, arguments_digest: str) -> Approval | None:
        with self._lock:
            for approval in reversed(self._live.values()):
                pending = approval.pending
                if (pending.session_id, pending.action_id, pending.arguments_digest) == (
                    session_id,
                    action_id,
                    arguments_digest,
                ):
                    return approval
        return None

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
                for approval in (self._all if state in (None, *_CLOSED) else self._live).values()
                if state in (None, approval.state) and session_id in (None, approval.pending.session_id)
            ]

    def _put(self, approval: Approval) -> None:
        name = approval.pending.approval_id
        self._all[name] = approval
        if approval.state in _CLOSED:
            self._live.pop(name, None)
        else:
            self._live[name] = approval

    def _forget(self) -> None:
        closed = [name for name, approval in self._all.items() if approval.state in _CLOSED]
        for name in closed[: max(0, len(closed) - MAX_CLOSED)]:
            del self._all[name]
