"""A question as a row of a database: what is looked up has columns, the rest is one JSON text."""

from __future__ import annotations

import json
from typing import NamedTuple, cast

from cra_middleware._canonical import UnrepresentableError, canonical
from cra_middleware.approvals.approval import Approval, ApprovalError, Pending, State

_QUESTION = ("agent_id", "tool_name", "policy_id", "reason", "policy_digest", "requested_us", "expires_us")


class Row(NamedTuple):
    """What a store has of a question, beside its answer."""

    approval_id: str
    session_id: str
    action_id: str
    arguments_digest: str
    state: str
    question: str


def question_of(pending: Pending) -> str:
    """What of a question has no column.

    Raises:
        ApprovalError: when the arguments cannot be written down.
    """
    question = {name: getattr(pending, name) for name in _QUESTION}
    try:
        question |= {"arguments": json.loads(canonical(pending.arguments)), "approvers": list(pending.approvers)}
    except UnrepresentableError as error:
        raise ApprovalError(f"the arguments cannot be kept: {error}") from error
    question["also_needed"] = [list(names) for names in pending.also_needed]
    question["tool_call_id"] = pending.tool_call_id
    return json.dumps(question)


def approval_of(row: Row, by: str | None, reason: str | None, decided_us: int | None) -> Approval:
    """The question and its answer.

    Raises:
        ApprovalError: when the row was damaged.
    """
    try:
        asked = json.loads(row.question)
        pending = Pending(
            approval_id=row.approval_id,
            session_id=row.session_id,
            action_id=row.action_id,
            arguments_digest=row.arguments_digest,
            arguments=dict(asked["arguments"]),
            approvers=tuple(asked["approvers"]),
            also_needed=tuple(tuple(names) for names in asked["also_needed"]),
            tool_call_id=asked.get("tool_call_id"),
            **{name: asked[name] for name in _QUESTION},
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ApprovalError(f"approval {row.approval_id} is damaged; move the approvals' store away") from error
    return Approval(pending=pending, state=cast("State", row.state), by=by, reason=reason, decided_us=decided_us)
