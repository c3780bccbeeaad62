"""What a call that is not run, or that failed, is called towards who asked for it."""

from __future__ import annotations

from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import (
    ApprovalRejected,
    AuditUnavailable,
    BudgetExceeded,
    CallRefused,
    InvalidParameters,
    RateLimitExceeded,
    SessionEnded,
    SinkError,
    UnknownAction,
)
from cra_middleware.trace.shared import EndedElsewhereError

REFUSALS: dict[str, type[CallRefused]] = {
    "unknown_action": UnknownAction,
    "invalid_parameters": InvalidParameters,
    "rate_limit_exceeded": RateLimitExceeded,
    "budget_exceeded": BudgetExceeded,
    "approval_expired": ApprovalRejected,
    "approval_rejected": ApprovalRejected,
    "session_ended": SessionEnded,
}
"""What a denial is raised as, by its code; any other is an ``ActionDenied``."""


def unavailable(call: ToolCall, error: SinkError) -> AuditUnavailable | SessionEnded:
    """The refusal of a call whose decision could not be recorded."""
    if isinstance(error, EndedElsewhereError):
        return SessionEnded(str(error), action_id=call.action_id)
    reason = f"the decision could not be recorded ({error}), so the tool did not run"
    return AuditUnavailable(reason, action_id=call.action_id)


def class_words(error: BaseException) -> tuple[str, str]:
    """The class of what a tool raised, and a sentence of our own about it."""
    try:
        name = str(type(error).__qualname__)
    except BaseException:  # noqa: BLE001  a metaclass may hide its name behind anything
        name = "UnreadableOutcome"
    return name, f"the tool raised {name}"
