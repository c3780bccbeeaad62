"""CRA Middleware: decide, run once, record. See README.md."""

from cra_middleware.approvals.approval import Answer, ApprovalError, Pending
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.call import Target, ToolCall
from cra_middleware.decorators import governed
from cra_middleware.errors import (
    ActionDenied,
    ApprovalRejected,
    ApprovalRequired,
    AtlasError,
    AuditUnavailable,
    CallRefused,
    ChainBroken,
    CRAError,
    NoActiveSession,
    SessionEnded,
    SinkError,
)
from cra_middleware.policies import AtlasWarning
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.session import Session, current_session
from cra_middleware.telemetry import configure_otel
from cra_middleware.verification import FileReport, verify

__version__ = "0.1.0"

__all__ = [
    "ActionDenied",
    "Answer",
    "ApprovalError",
    "ApprovalRejected",
    "ApprovalRequired",
    "Atlas",
    "AtlasError",
    "AtlasWarning",
    "AuditUnavailable",
    "CRAError",
    "CallRefused",
    "ChainBroken",
    "FileReport",
    "NoActiveSession",
    "Pending",
    "Runtime",
    "Session",
    "SessionEnded",
    "SinkError",
    "Target",
    "ToolCall",
    "configure_otel",
    "current_session",
    "governed",
    "verify",
]
