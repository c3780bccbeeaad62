"""What a client is told when something is not done: a code, a sentence, a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.carp.quota import CountersError
from cra_middleware.errors import AtlasError, CallRefused, ChainBroken, CRAError, SinkError
from cra_middleware.trace.pruned import PrunedError

STATUSES = {
    "INVALID_ATLAS_MANIFEST": 400,
    "ATLAS_VERSION_MISMATCH": 400,
    "INVALID_CARP_REQUEST": 400,
    "INVALID_TRACE_EVENT": 400,
    "SCHEMA_VALIDATION_ERROR": 400,
    "INVALID_PARAMETERS": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "ACTION_DENIED": 403,
    "NOT_FOUND": 404,
    "ATLAS_NOT_FOUND": 404,
    "SESSION_NOT_FOUND": 404,
    "ACTION_NOT_FOUND": 404,
    "RESOLUTION_NOT_FOUND": 404,
    "EXECUTION_NOT_FOUND": 404,
    "APPROVAL_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "ATLAS_ALREADY_LOADED": 409,
    "SESSION_ALREADY_EXISTS": 409,
    "SESSION_ALREADY_ENDED": 409,
    "IDEMPOTENCY_CONFLICT": 409,
    "APPROVAL_CONFLICT": 409,
    "SESSION_EXPIRED": 410,
    "RESOLUTION_EXPIRED": 410,
    "PAYLOAD_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "TRACE_CHAIN_INTEGRITY_ERROR": 422,
    "POLICY_EVALUATION_ERROR": 422,
    "ACTION_REQUIRES_APPROVAL": 423,
    "RATE_LIMIT_EXCEEDED": 429,
    "BUDGET_EXCEEDED": 429,
    "STORAGE_LOCKED": 500,
    "INTERNAL_ERROR": 500,
    "IO_ERROR": 502,
    "UNAVAILABLE": 503,
}
"""The HTTP status of each code."""

MOST_FINDINGS = 50
"""With more mistakes than these they are counted, not told: to spell out tens of thousands stops every other call."""
_FINDING_LETTERS = 1000

OVER = ("SESSION_ALREADY_ENDED", "SESSION_EXPIRED")
"""What is said of a session that takes no more calls."""

_CATEGORIES = {
    400: "validation",
    401: "access",
    403: "access",
    404: "not_found",
    405: "validation",
    408: "validation",
    409: "conflict",
    410: "expired",
    413: "validation",
    415: "validation",
    422: "integrity",
    423: "policy",
    429: "policy",
    500: "storage",
    502: "storage",
    503: "storage",
}

_OF_REFUSALS = {
    "unknown_action": "ACTION_NOT_FOUND",
    "invalid_parameters": "INVALID_PARAMETERS",
    "rate_limit_exceeded": "RATE_LIMIT_EXCEEDED",
    "budget_exceeded": "BUDGET_EXCEEDED",
    "approval_required": "ACTION_REQUIRES_APPROVAL",
    "session_ended": "SESSION_ALREADY_ENDED",
    "no_session": "SESSION_NOT_FOUND",
    "audit_unavailable": "STORAGE_LOCKED",
    "policy_error": "POLICY_EVALUATION_ERROR",
}


class StoreError(CRAError):
    """Something of the server's own cannot be read or written now."""

    code = "storage_locked"


class Fault(CRAError):
    """A request that is not done; ``code`` and the message are for the client."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Mapping[str, object] | None = None,
        recoverable: bool = False,
        retry_after_seconds: float | None = None,
        category: str | None = None,
    ) -> None:
        self.code = code
        self.http_status = STATUSES[code]
        self.details = dict(details or {})
        self.recoverable = recoverable
        self.retry_after_seconds = retry_after_seconds
        self.category = category or _CATEGORIES[self.http_status]
        super().__init__(message)

    def body(self, request_id: str | None) -> dict[str, object]:
        """The published shape, with ``category`` and ``recoverable`` beside it."""
        error: dict[str, object] = {
            "code": self.code,
            "message": str(self),
            "category": self.category,
            "recoverable": self.recoverable,
        }
        if self.details:
            error["details"] = self.details
        if request_id is not None:
            error["request_id"] = request_id
        return {"error": error}


def not_found(session_id: str) -> Fault:
    """A session that is not there, or is not the caller's: nobody can tell which."""
    return Fault("SESSION_NOT_FOUND", f"there is no session {session_id[:64]}")


def over(session_id: str, is_expired: bool) -> Fault:
    """A session that takes no more calls."""
    if is_expired:
        return Fault("SESSION_EXPIRED", f"session {session_id} has expired: nobody called it for long; start a new one")
    return Fault("SESSION_ALREADY_ENDED", f"session {session_id} has ended; start a new one")


def fault_of(error: Exception) -> Fault:
    """What a client is told of an error of the core's; anything unknown says nothing about itself."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, CallRefused):
        return _refused(error)
    if isinstance(error, AtlasError):
        findings = sorted(error.findings, key=lambda finding: finding.severity != "error")
        return Fault("INVALID_ATLAS_MANIFEST", "the Atlas has errors", details={"findings": _told(findings)})
    if isinstance(error, ChainBroken):
        return Fault("TRACE_CHAIN_INTEGRITY_ERROR", str(error))
    if isinstance(error, ApprovalError):
        return Fault("APPROVAL_CONFLICT", str(error))
    if isinstance(error, CountersError):
        return Fault("IO_ERROR", "the counters cannot be used now", recoverable=True)
    if isinstance(error, StoreError):
        message = "the server's own files cannot be used now"
        return Fault("STORAGE_LOCKED", message, recoverable=True, retry_after_seconds=1)
    if isinstance(error, PrunedError):
        return Fault("SESSION_NOT_FOUND", str(error))
    if isinstance(error, SinkError):
        if error.is_transient:
            return Fault("STORAGE_LOCKED", "the trace cannot be written now", recoverable=True, retry_after_seconds=1)
        return Fault("IO_ERROR", "the trace cannot be written or read", recoverable=True)
    return Fault("INTERNAL_ERROR", "the server failed; its log says why", category="internal")


def why_unfit(error: AtlasError | ValueError) -> str:
    """What is wrong with Atlases that are each right; of many mistakes the first ones."""
    if not isinstance(error, AtlasError):
        return str(error)
    return "\n".join(_told([finding for finding in error.findings if finding.severity == "error"]))


def _told(findings: Sequence[object]) -> list[str]:
    """The first of some findings, and how many more there are."""
    told = [str(finding)[:_FINDING_LETTERS] for finding in findings[:MOST_FINDINGS]]
    more = len(findings) - len(told)
    return [*told, f"and {more} more"] if more else told


def _refused(error: CallRefused) -> Fault:
    details: dict[str, object] = {
        "reason_code": error.code,
        "action_id": error.action_id,
        "policy_id": error.policy_id,
        "reason": error.reason,
        "retry_after_seconds": error.retry_after_seconds,
        "approval_id": error.approval_id,
    }
    return Fault(
        _OF_REFUSALS.get(error.code, "ACTION_DENIED"),
        str(error),
        details={key: value for key, value in details.items() if value is not None},
        recoverable=error.recoverable,
        retry_after_seconds=error.retry_after_seconds,
        category=None if error.code in ("audit_unavailable", "session_ended") else "policy",
    )
