"""Asking a person: what is asked, what is answered, and who may be the one to ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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


class Answer(NamedTuple):
    """Yes or no, by whom, and why."""

    approved: bool
    by: str = "approver"
    reason: str | None = None


Reply = bool | Answer
Approver = Callable[[Pending], Reply | Awaitable[Reply]]
"""A callable, sync or async, that asks a person."""


def as_answer(reply: object) -> Answer:
    """What an approver's reply means; only ``True`` and an approving ``Answer`` are a yes."""
    if isinstance(reply, Answer):
        by, reason = str(reply.by)[:MAX_WORDS], None if reply.reason is None else str(reply.reason)[:MAX_WORDS]
        approved: object = reply.approved  # an approver is foreign code: types are wishes there
        if not isinstance(approved, bool):
            return Answer(False, by, "the answer was neither yes nor no")
        return Answer(approved, by, reason)
    if isinstance(reply, bool):
        return Answer(reply)
    return Answer(False, reason=f"the approver answered with a {type(reply).__name__}, neither yes nor no")
