"""Asking a person: what is asked, what is answered, who may answer, and where open questions are kept.

pending -> approved -> consumed
        -> rejected
        -> expired          (approved and rejected ones, too)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from cra_middleware.errors import CRAError

MAX_WORDS = 1000
"""Letters of an approver's name or reason that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A call that waits for a yes."""

    approval_id: str
    session_id: str
    agent_id: str
    action_id: str
    tool_name: str
    arguments: Mapping[str, object]
    policy_id: str
    reason: str
    arguments_digest: str = ""
    """Of the arguments' canonical text (SHA-256; scrypt where some are hidden); the yes counts for these only."""
    policy_digest: str = ""
    """Of the policies that asked; under others the yes is void."""
    requested_us: int = 0
    expires_us: int = 0
    approvers: tuple[str, ...] = ()
    """Persons or groups who may answer; empty means anyone but the agent itself."""
    also_needed: tuple[tuple[str, ...], ...] = ()
    """Other policies that ask about the same call, each with its own: the answer has to satisfy all."""
    tool_call_id: str | None = None
    """The framework's own id of the call, by which a run that is gone on with finds its session."""
    others_pending: int = 0
    """How many other questions of the session are open."""


class Answer(NamedTuple):
    """Yes or no, by whom, and why."""

    approved: bool
    by: str = "approver"
    reason: str | None = None
    groups: tuple[str, ...] = ()
    """Whom that person speaks for."""


Reply = bool | Answer
Approver = Callable[[Pending], Reply | Awaitable[Reply]]
"""A callable, sync or async, that asks a person. One that raises has not answered, and the question stays open."""

State = Literal["pending", "approved", "rejected", "expired", "consumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A question, and what became of it."""

    pending: Pending
    state: State = "pending"
    by: str | None = None
    reason: str | None = None
    decided_us: int | None = None


class ApprovalError(CRAError):
    """An answer that does not count, or a store that cannot be used; the message says why."""

    code = "approval_error"
    http_status = 409


class ApprovalStore(Protocol):
    """Keeps questions and answers. Every method is atomic, and raises ``ApprovalError`` when it cannot be done."""

    def find(self, session_id: str, action_id: str, arguments_digest: str) -> Approval | None:
        """The newest question about this call that is pending, approved or rejected."""
        ...

    def add(self, pending: Pending, most: int) -> bool:
        """Keep a new question; False when the session has ``most`` open ones already."""
        ...

    def get(self, approval_id: str) -> Approval | None:
        """One question."""
        ...

    def answer(self, approval_id: str, answer: Answer, now_us: int) -> Approval:
        """Keep the answer to a pending question.

        Raises:
            ApprovalError: when there is none, it is answered or expired, or this person may not answer it.
        """
        ...

    def consume(self, approval_id: str, now_us: int) -> bool:
        """Use an approved question up; exactly one caller is told True."""
        ...

    def give_back(self, approval_id: str) -> None:
        """Make a consumed one approved again: the tool did not run."""
        ...

    def expire(self, approval_id: str, reason: str) -> None:
        """Make it count no more, unless it was consumed."""
        ...

    def listed(self, state: State | None = None, session_id: str | None = None) -> list[Approval]:
        """Questions, oldest first."""
        ...


@runtime_checkable
class CountsWaiting(Protocol):
    """A store that can count its open questions without reading each; ours can, another one need not."""

    def waiting(self, now_us: int) -> int:
        """How many are pending and have not expired."""
        ...


@runtime_checkable
class HearsOfEnds(Protocol):
    """A store that is told when a session is over, so that it need not look through what was asked in it."""

    def session_ended(self, session_id: str) -> None:
        """No call of this session comes any more: ``find`` need not find what was answered in it."""
        ...


def as_answer(reply: object) -> Answer:
    """What an approver's reply means; only ``True`` and an approving ``Answer`` are a yes."""
    if isinstance(reply, Answer):
        by, reason = str(reply.by)[:MAX_WORDS], None if reply.reason is None else str(reply.reason)[:MAX_WORDS]
        groups = tuple(str(name)[:MAX_WORDS] for name in reply.groups)
        approved: object = reply.approved  # an approver is foreign code: types are wishes there
        if not isinstance(approved, bool):
            return Answer(False, by, "the answer was neither yes nor no", groups)
        return Answer(approved, by, reason, groups)
    if isinstance(reply, bool):
        return Answer(reply)
    return Answer(False, reason=f"the approver answered with a {type(reply).__name__}, neither yes nor no")


def answered(approval: Approval | None, approval_id: str, answer: Answer, now_us: int) -> Approval:
    """The question with its answer. Pure: stores call it inside their own compare-and-set.

    Raises:
        ApprovalError: when the answer does not count.
    """
    if approval is None:
        raise ApprovalError(f"there is no approval {approval_id[:64]!r}; see those that wait: cra approvals list")
    pending = approval.pending
    if approval.state != "pending":
        why = f": {approval.reason}" if approval.state == "expired" and approval.reason else ""
        raise ApprovalError(f"approval {pending.approval_id} is {approval.state} already{why}")
    if now_us >= pending.expires_us:
        raise ApprovalError(f"approval {pending.approval_id} has expired; the agent has to ask again")
    if not answer.by.strip():
        raise ApprovalError("an answer needs the name of the person who gives it")
    if answer.by.strip().casefold() == pending.agent_id.strip().casefold():
        raise ApprovalError(f"{answer.by} asked, and may not answer itself")
    speaks_for = {answer.by, *answer.groups}
    for wanted in (pending.approvers, *pending.also_needed) if answer.approved else ():
        if wanted and speaks_for.isdisjoint(wanted):
            raise ApprovalError(f"{pending.action_id} wants the yes of {' or '.join(wanted)}, not of {answer.by}")
    state: State = "approved" if answer.approved else "rejected"
    return replace(approval, state=state, by=answer.by, reason=answer.reason, decided_us=now_us)
