"""Persons' answers: whether a call has to wait for one, who may see a question, and who may answer it."""

from __future__ import annotations

from collections.abc import Sequence

from cra_middleware._clock import timestamp_text
from cra_middleware.approvals.approval import Approval, Pending, State
from cra_middleware.carp.tags import read_tags
from cra_middleware.server.access import Caller
from cra_middleware.server.faults import Fault
from cra_middleware.server.host import Host
from cra_middleware.server.wire import Reply, WouldWait

WHO_ASKED = "who asked"
"""Who is recorded to have said no when a question was taken back; an agent's own name never answers."""


class Answering:
    """The approvals of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def listed(self, caller: Caller, state: State | None, session_id: str | None) -> list[Approval]:
        """Questions that the caller may see, oldest first: an agent's key sees those of the sessions it opened.

        Raises:
            Fault: when ``session_id`` is none that it may look at.
        """
        if caller.is_any("approver", "auditor"):
            return self._host.runtime.approvals.list(state, session_id)
        if session_id is not None:
            self._host.readable(caller, session_id)
        found = self._host.runtime.approvals.list(state, session_id)
        mine: dict[str, bool] = {}
        for approval in found:
            name = approval.pending.session_id
            if name not in mine:
                row = self._host.session_row(name)
                mine[name] = row is not None and row.creator == caller.identity
        return [approval for approval in found if mine[approval.pending.session_id]]

    def get(self, caller: Caller, approval_id: str) -> Approval:
        """One question.

        Raises:
            Fault: when there is none that the caller may see.
        """
        approval = self._host.runtime.approvals.get(approval_id)
        if approval is None:
            raise _no_approval(approval_id)
        if not caller.is_any("approver", "auditor"):
            try:
                self._host.readable(caller, approval.pending.session_id)
            except Fault:
                raise _no_approval(approval_id) from None
        return approval

    def would_wait(self, caller: Caller, body: WouldWait) -> bool:
        """Whether a call of the caller's would be left for a person now; nothing is recorded or used up.

        Raises:
            Fault: when there is no such session of the caller's, or the call cannot be read.
        """
        with self._host.owned(caller, body.session_id) as session:
            call = session.freeze(body.action_id, body.tool_name or body.action_id, body.parameters)
            call = read_tags(call) if body.tagged else call
            return session.would_wait(
                call._replace(tool_call_id=body.tool_call_id, agent_name=body.agent_name, distrust=body.distrust)
            )

    def answer(self, caller: Caller, approval_id: str, approved: bool, reply: Reply) -> Approval:
        """Say yes or no in the caller's name; who asked may take a question back, which is a no.

        Raises:
            ApprovalError: when it is answered or expired, or another's yes is wanted.
            Fault: when the caller may not answer it.
        """
        pending = self.get(caller, approval_id).pending
        if not approved and not caller.is_local and self._asked(caller, pending):
            return self._host.runtime.approvals.reject(approval_id, by=WHO_ASKED, reason=reply.reason)
        self.check(caller, pending, reply.groups)
        groups = reply.groups or caller.groups
        act = self._host.runtime.approvals.approve if approved else self._host.runtime.approvals.reject
        return act(approval_id, by=caller.name, reason=reply.reason, groups=groups)

    def check(self, caller: Caller, pending: Pending, groups: Sequence[str] = ()) -> None:
        """Whether the caller may answer this question, in the name of ``groups``.

        Raises:
            Fault: when it may not.
        """
        if not caller.is_any("approver"):
            raise Fault("FORBIDDEN", "this key may not answer questions")
        if not caller.is_local:
            row = self._host.session_row(pending.session_id)
            is_creator = row is None or row.creator == caller.identity  # nobody answers what nobody knows the asker of
            is_agent = "agent" in caller.roles and caller.may_be(pending.agent_id)
            if is_creator or is_agent or caller.name.casefold() == pending.agent_id.casefold():
                raise Fault("FORBIDDEN", "who asked may not answer itself")
            if not set(groups) <= set(caller.groups):
                raise Fault("FORBIDDEN", "this key does not speak for those groups")

    def _asked(self, caller: Caller, pending: Pending) -> bool:
        row = self._host.session_row(pending.session_id)
        return row is not None and row.creator == caller.identity and caller.is_any("agent")


def as_json(approval: Approval) -> dict[str, object]:
    """A question on the wire."""
    pending = approval.pending
    told: dict[str, object] = {
        "approval_id": pending.approval_id,
        "state": approval.state,
        "session_id": pending.session_id,
        "agent_id": pending.agent_id,
        "action_id": pending.action_id,
        "tool_name": pending.tool_name,
        "arguments": dict(pending.arguments),
        "policy_id": pending.policy_id,
        "reason": pending.reason,
        "approvers": list(pending.approvers),
        "requested_at": timestamp_text(pending.requested_us),
        "expires_at": timestamp_text(pending.expires_us),
    }
    if pending.tool_call_id is not None:
        told["tool_call_id"] = pending.tool_call_id
    if pending.also_needed:
        told["also_needed"] = [list(names) for names in pending.also_needed]
    if approval.decided_us is not None:
        told |= {"decided_at": timestamp_text(approval.decided_us), "by": approval.by}
    if approval.reason is not None:
        told["answer_reason"] = approval.reason
    return told


def all_json(approvals: Sequence[Approval]) -> dict[str, object]:
    """Questions on the wire."""
    return {"items": [as_json(approval) for approval in approvals], "total": len(approvals)}


def _no_approval(approval_id: str) -> Fault:
    return Fault("APPROVAL_NOT_FOUND", f"there is no approval {approval_id[:64]}")
