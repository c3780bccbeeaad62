"""What a trace itself says of its session, for when the book beside it is a new one."""

from __future__ import annotations

import orjson

from cra_middleware._clock import parse_us
from cra_middleware.errors import SinkError
from cra_middleware.server.book import SessionRow
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import MalformedError, read
from cra_middleware.trace.sink import Query, TraceStore

CREATOR = "creator"
"""The key of ``session.started``'s metadata that names who opened it."""
GIVEN = "given"
"""And what that one said beside it."""


def recalled(store: TraceStore, session_id: str) -> SessionRow | None:
    """The session, as its first and last events have it; None when there is none."""
    first = _event(store, session_id, Query(event_type="session.started"))
    if first is None:
        return None
    payload = first.payload
    metadata, named = payload.get("metadata"), payload.get("atlas_ids")
    known = metadata if isinstance(metadata, dict) else {}
    parent = known.get("parent_session_id")
    return SessionRow(
        session_id,
        str(payload["agent_id"]),
        str(known.get(CREATOR) or ""),
        str(payload["goal"]),
        parse_us(first.timestamp),
        sealed_us(store, session_id),
        tuple(str(name) for name in named) if isinstance(named, list) else (),
        parent if isinstance(parent, str) else None,
        orjson.dumps(known.get(GIVEN) or {}).decode(),
    )


def sealed_us(store: TraceStore, session_id: str) -> int | None:
    """When it was sealed; None when it is not."""
    last = _event(store, session_id, Query(last=1))
    return parse_us(last.timestamp) if last is not None and last.event_type == "session.ended" else None


def _event(store: TraceStore, session_id: str, query: Query) -> Event | None:
    try:
        line = next(iter(store.find(session_id, query)), None)
        return None if line is None else read(line.rstrip(b"\n"), "cra").event
    except (SinkError, MalformedError):
        return None
