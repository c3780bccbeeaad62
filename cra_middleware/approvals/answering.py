"""Answering from outside the call: ``runtime.approvals``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cra_middleware._clock import Clock
from cra_middleware.approvals.approval import Answer, Approval, ApprovalStore, CountsWaiting, State


class Approvals:
    """The questions that wait for a person, and their answers."""

    def __init__(self, store: ApprovalStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def list(self, state: State | None = "pending", session_id: str | None = None) -> list[Approval]:
        """Those in one state (None: in any), oldest first."""
        return self._store.listed(state, session_id)

    def waiting(self) -> int:
        """How many wait for a person now; those that have expired do not.

        Raises:
            ApprovalError: when the store cannot be read.
        """
        now_us = self._clock.wall_us()
        if isinstance(self._store, CountsWaiting):
            return self._store.waiting(now_us)
        return sum(now_us < approval.pending.expires_us for approval in self._store.listed("pending"))

    def get(self, approval_id: str) -> Approval | None:
        """One of them."""
        return self._store.get(approval_id)

    def approve(self, approval_id: str, *, by: str, reason: str | None = None, groups: Sequence[str] = ()) -> Approval:
        """Let the identical call through, once.

        Args:
            by: who says so; never the agent itself.
            groups: whom that person speaks for, where the policy names groups.

        Raises:
            ApprovalError: when there is no such question, it is answered or expired, or ``by`` may not answer it.
        """
        return self._store.answer(approval_id, Answer(True, by, reason, tuple(groups)), self._clock.wall_us())

    def reject(self, approval_id: str, *, by: str, reason: str | None = None, groups: Sequence[str] = ()) -> Approval:
        """Say no; the agent is told ``reason``.

        Raises:
            ApprovalError: as ``approve``.
        """
        return self._store.answer(approval_id, Answer(False, by, reason, tuple(groups)), self._clock.wall_us())

    def void(self, session_ids: Collection[str], policy_digest: str) -> None:
        """Close what was asked in these sessions under other policies.

        Raises:
            ApprovalError: when the store cannot be written.
        """
        for session_id in session_ids:
            for approval in self._store.listed(None, session_id):
                if approval.state in ("pending", "approved") and approval.pending.policy_digest != policy_digest:
                    self._store.expire(approval.pending.approval_id, "the policies changed")
