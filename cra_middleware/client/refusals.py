"""What a server's "no" is raised as: the same errors, with the same sentence, as where decisions are made here."""

from __future__ import annotations

from cra_middleware.calls.refusals import REFUSALS
from cra_middleware.client.connection import Problem
from cra_middleware.errors import (
    ActionDenied,
    ApprovalRequired,
    AuditUnavailable,
    CallRefused,
    ChainBroken,
    CRAError,
    InvalidParameters,
    NoActiveSession,
    RuntimeUnreachable,
    SessionEnded,
    SinkError,
)

_BY_REASON: dict[str, type[CallRefused]] = {
    **REFUSALS,
    "approval_required": ApprovalRequired,
    "audit_unavailable": AuditUnavailable,
    "no_session": NoActiveSession,
}
_BY_CODE: dict[str, type[CallRefused]] = {
    "SESSION_ALREADY_ENDED": SessionEnded,
    "SESSION_EXPIRED": SessionEnded,
    "SESSION_NOT_FOUND": NoActiveSession,
    "ACTION_DENIED": ActionDenied,
    "INVALID_PARAMETERS": InvalidParameters,
    "INVALID_CARP_REQUEST": InvalidParameters,
    "PAYLOAD_TOO_LARGE": InvalidParameters,
    "STORAGE_LOCKED": AuditUnavailable,
    "IO_ERROR": AuditUnavailable,
    "UNAVAILABLE": RuntimeUnreachable,
}
_OVER = frozenset(("SESSION_ALREADY_ENDED", "SESSION_EXPIRED"))
_UNKEPT = frozenset(("STORAGE_LOCKED", "IO_ERROR", "INTERNAL_ERROR", *_OVER))
"""Nothing can be recorded: what a trace in this process says by a ``SinkError``."""
_CODES = {"UNAUTHORIZED": "unauthorized", "FORBIDDEN": "forbidden"}


def refusal_of(problem: Problem, action_id: str | None) -> CallRefused:
    """Why a call was not let run."""
    details = problem.details
    code = details.get("reason_code")
    if isinstance(code, str):
        retry = details.get("retry_after_seconds")
        return _BY_REASON.get(code, ActionDenied)(
            _text(details.get("reason")) or problem.message,
            action_id=_text(details.get("action_id")) or action_id,
            policy_id=_text(details.get("policy_id")),
            code=code,
            retry_after_seconds=retry if isinstance(retry, (int, float)) else None,
            approval_id=_text(details.get("approval_id")),
        )
    kind = _BY_CODE.get(problem.code)
    if kind is not None:
        return kind(problem.message, action_id=action_id)
    code = _CODES.get(problem.code, "server_error")
    return CallRefused(f"the server says {problem.message or problem.code}", action_id=action_id, code=code)


def session_error(problem: Problem, *, is_below: bool) -> CRAError | ValueError:
    """Why a session was not begun; ``is_below``: another one, which may be over."""
    if is_below and problem.code in _OVER:
        return ValueError(problem.message)
    if problem.code in ("UNAUTHORIZED", "FORBIDDEN", "UNAVAILABLE", "RATE_LIMIT_EXCEEDED"):
        return refusal_of(problem, None)
    if problem.code in _UNKEPT or problem.code == "SESSION_ALREADY_EXISTS":
        return SinkError(problem.message, is_transient=problem.recoverable)
    return ValueError(problem.message)


def resolve_error(problem: Problem) -> CRAError:
    """Why a request that the server could read was not answered."""
    if problem.code in _UNKEPT:
        return SinkError(problem.message, is_transient=problem.recoverable)
    return refusal_of(problem, None)


def resume_error(problem: Problem) -> CRAError:
    """Why a session cannot be gone on with."""
    if problem.code in ("SESSION_ALREADY_ENDED", "SESSION_EXPIRED", "TRACE_CHAIN_INTEGRITY_ERROR"):
        return ChainBroken(problem.message)
    if problem.code in ("UNAUTHORIZED", "FORBIDDEN", "UNAVAILABLE", "RATE_LIMIT_EXCEEDED"):
        return refusal_of(problem, None)
    return SinkError(problem.message, is_transient=problem.recoverable)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
