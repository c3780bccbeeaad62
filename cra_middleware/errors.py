"""Every error of this package, as one tree: ``except CRAError`` catches each of them.

    CRAError
    ├── CallRefused              the tool was not run
    │   ├── ActionDenied         a policy or the default said no
    │   │   ├── UnknownAction    no Atlas declares the action
    │   │   ├── InvalidParameters
    │   │   ├── RateLimitExceeded
    │   │   └── BudgetExceeded
    │   ├── ApprovalRequired     a person has to say yes first
    │   ├── ApprovalRejected     a person said no
    │   ├── NoActiveSession
    │   ├── SessionEnded
    │   ├── AuditUnavailable     the decision could not be recorded
    │   └── RuntimeUnreachable   the server that decides does not answer
    │       └── ServerAway       client.connection: nobody is there, and what was allowed before may run
    ├── AtlasError               an Atlas that must not be loaded; carries every finding
    ├── TraceError
    │   ├── ChainBroken          a trace does not verify
    │   ├── SinkError            a sink did not keep an event
    │   │   ├── MovedError           trace.sink: another writer's events stand there
    │   │   ├── EndedElsewhereError  trace.shared: another writer sealed the session
    │   │   ├── LostError            trace.ledger.place: somebody else owns the ledger, or may
    │   │   ├── PrunedError          trace.pruned: the session's time was over
    │   │   └── SidecarError         sidecar: personal values cannot be kept or read
    │   │       └── WithheldError    sidecar: a value was erased, or is not what was committed to
    │   ├── NoteError            trace.note: a signed head cannot be read or is not signed by the key given
    │   ├── ProofError           trace.proof: a proof is malformed or does not prove what it says
    │   └── WitnessError         trace.witness: a copy cannot be read
    ├── ApprovalError            approvals: an answer does not count, or questions cannot be kept
    ├── CountersError            carp.quota: limits cannot be counted
    ├── SigningKeyError          keys: a key cannot be made or used
    ├── OvertakenError           calls.held_request: another process decides the same request
    ├── AtServerError            client.remote_runtime: only the server can do that
    ├── StoreError               server.faults: something of the server's own cannot be read or written now
    │   ├── ApiKeyError          server.access
    │   ├── BookError            server.book
    │   ├── LoginError           server.logins
    │   └── ShelfError           server.shelf
    ├── Fault                    server.faults: a request that is not done
    ├── InUseError               server.one_process: another server runs at this place
    └── NoPlaceError             server.places: nobody said where the server keeps its own files

Those with the name of a module are defined there, beside what raises them. Not of this package are Python's own: an
argument that is not usable is a ``ValueError`` or a ``TypeError``, an extra that is not installed at times a
``RuntimeError``.
Names end in ``Error`` except below ``CallRefused``, where the name is the answer an agent gets, and ``Fault``, which is
one to a client.
An adapter that catches ``CallRefused`` misses no refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class CRAError(Exception):
    """Base of every error of this package."""

    code = "internal_error"
    http_status = 500
    recoverable = False


class CallRefused(CRAError):
    """The tool was not run; the message is a sentence the agent can act on."""

    code = "policy_denied"
    http_status = 403

    def __init__(
        self,
        reason: str,
        *,
        action_id: str | None = None,
        policy_id: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        approval_id: str | None = None,
    ) -> None:
        self.reason = reason
        self.action_id = action_id
        self.policy_id = policy_id
        self.retry_after_seconds = retry_after_seconds
        self.approval_id = approval_id
        if code is not None:
            self.code = code
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """What a model is told: what did not happen, why, by which policy, and what may help."""
        what = f"{self.action_id} was not run" if self.action_id else "The call was not run"
        tags = [self.code]
        if self.policy_id:
            tags.append(f"policy {self.policy_id}")
        text = f"{what}: {self.reason.rstrip('.')}. [{', '.join(tags)}]"
        if self.retry_after_seconds is not None:
            text += f" Try again in {self.retry_after_seconds:g} s."
        elif not self.recoverable:
            text += " Do not repeat this call; choose another way or tell the user."
        return text


class ActionDenied(CallRefused):
    """A policy, or the default, denies this call."""


class UnknownAction(ActionDenied):
    """No loaded Atlas declares the action."""

    code = "unknown_action"
    http_status = 404


class InvalidParameters(ActionDenied):
    """The arguments do not fit the action's schema, or cannot be written down."""

    code = "invalid_parameters"
    http_status = 400
    recoverable = True


class RateLimitExceeded(ActionDenied):
    """The limit is used up; ``retry_after_seconds`` says for how long."""

    code = "rate_limit_exceeded"
    http_status = 429
    recoverable = True


class BudgetExceeded(ActionDenied):
    """The budget has no room for what this call costs, or the cost cannot be read."""

    code = "budget_exceeded"
    http_status = 429


class ApprovalRequired(CallRefused):
    """A person must approve, and no approver was there to ask."""

    code = "approval_required"
    http_status = 423
    recoverable = True


class ApprovalRejected(CallRefused):
    """A person, or an approver that failed, did not approve."""

    code = "approval_rejected"


class NoActiveSession(CallRefused):
    """A governed tool was called outside ``with runtime.session(...)``."""

    code = "no_session"
    http_status = 404


class SessionEnded(CallRefused):
    """The session was ended or detached; nothing may follow in its trace."""

    code = "session_ended"
    http_status = 409


class AuditUnavailable(CallRefused):
    """The decision could not be recorded, so the tool did not run."""

    code = "audit_unavailable"
    http_status = 500
    recoverable = True


class RuntimeUnreachable(CallRefused):
    """The server that decides gave no answer, so the tool did not run."""

    code = "runtime_unreachable"
    http_status = 503
    recoverable = True


class _Finding(Protocol):
    @property
    def severity(self) -> str: ...


class AtlasError(CRAError):
    """An Atlas has errors and must not be loaded; ``findings`` holds all of them, warnings included."""

    code = "invalid_atlas_manifest"
    http_status = 400

    def __init__(self, findings: Sequence[_Finding], source: str = "") -> None:
        """``source`` says which Atlas it is, where there are several."""
        self.findings = tuple(findings)
        errors = [finding for finding in self.findings if finding.severity == "error"]
        super().__init__("\n".join(f"{source}: {finding}" if source else str(finding) for finding in errors))


class TraceError(CRAError):
    """A trace cannot be written or read."""

    code = "trace_error"


class ChainBroken(TraceError):
    """A trace does not verify; nothing was changed in it."""

    code = "trace_chain_integrity_error"
    http_status = 422


class SinkError(TraceError):
    """A sink did not keep an event; nothing of it is in the log.

    ``is_transient`` says that the same write may go through a moment later (a full disk, a full queue), ``is_unsure``
    that it may have gone through all the same: nobody heard what became of it.
    """

    code = "io_error"
    http_status = 502

    def __init__(self, message: str, *, is_transient: bool = False, is_unsure: bool = False) -> None:
        self.is_transient = is_transient
        self.is_unsure = is_unsure
        super().__init__(message)
