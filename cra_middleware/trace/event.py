"""One TRACE event: its fields, its line, and its hash.

    event_hash = sha256(utf8(trace_version + event_id + trace_id + span_id + (parent_span_id or "")
                             + session_id + str(sequence) + timestamp + event_type
                             + canonical(payload) + previous_event_hash))

There are no separators between the fields, so a reader must check the strict grammar of ``profiles``
before it believes a hash: sequence 12 + "2026…" and 122 + "026…" would be the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Literal, NamedTuple, get_args

TRACE_VERSION = "1.0"
GENESIS = "0" * 64
"""The ``previous_event_hash`` of a session's first event."""

EventType = Literal[
    "session.started",
    "session.ended",
    "carp.request.received",
    "carp.resolution.completed",
    "carp.resolution.cached",
    "action.requested",
    "action.approved",
    "action.denied",
    "action.executed",
    "action.failed",
    "policy.evaluated",
    "policy.violated",
    "context.injected",
    "context.redacted",
    "error.occurred",
]
EVENT_TYPES: frozenset[str] = frozenset(get_args(EventType))


class Event(NamedTuple):
    """One event as read from a log."""

    event_id: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    session_id: str
    sequence: int
    timestamp: str
    event_type: str
    payload: Mapping[str, object]
    event_hash: str
    previous_event_hash: str
    trace_version: str = TRACE_VERSION


class Sealed(NamedTuple):
    """One event as it was written: what a telemetry copy needs to witness it."""

    event_type: EventType
    event_id: str
    sequence: int
    event_hash: str
    previous_event_hash: str
    payload: str
    """Canonical JSON."""
    timestamp_us: int


def seal(
    event_id: str,
    trace_id: str,
    span_id: str,
    parent_span_id: str | None,
    session_id: str,
    sequence: int,
    timestamp: str,
    event_type: str,
    payload: str,
    previous: str,
) -> tuple[str, str]:
    """The line of one event and its hash; ``payload`` is canonical JSON and is written verbatim."""
    parent = parent_span_id or ""
    text = f"1.0{event_id}{trace_id}{span_id}{parent}{session_id}{sequence}{timestamp}{event_type}{payload}{previous}"
    event_hash = sha256(text.encode()).hexdigest()
    parent = f'"{parent_span_id}"' if parent_span_id else "null"
    line = (
        f'{{"trace_version":"1.0","event_id":"{event_id}","trace_id":"{trace_id}","span_id":"{span_id}",'
        f'"parent_span_id":{parent},"session_id":"{session_id}","sequence":{sequence},'
        f'"timestamp":"{timestamp}","event_type":"{event_type}","payload":{payload},'
        f'"event_hash":"{event_hash}","previous_event_hash":"{previous}"}}\n'
    )
    return line, event_hash
