"""What a trace itself says of its session, for when the book beside it is a new one."""

from __future__ import annotations

from typing import NamedTuple

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
EXPIRED = "nobody called it for too long"
"""What the last event of a session that expired says."""


class Seal(NamedTuple):
    """How a session ended."""

    ended_us: int
    is_expired: bool


def recalled(store: TraceStore, session_id: str) -> SessionRow | None:
    """The session, as its first and last events have it; None when there is none."""
    first = _event(store, session_id, Query(event_type="session.started"))
    if first is None:
        return None
    payload = first.payload
    metadata, named = payload.get("metadata"), payload.get("atlas_ids")
    known = metadata if isinstance(metadata, dict) else {}
    parent = known.get("parent_session_id")
    seal = sealed(store, session_id)
    return SessionRow(
        session_id,
        str(payload["agent_id"]),
        str(known.get(CREATOR) or ""),
        str(payload["goal"]),
        parse_us(first.timestamp),
        None if seal is None else seal.ended_us,
        tuple(str(name) for name in named) if isinstance(named, list) else (),
        parent if isinstance(parent, str) else None,
        orjson.dumps(known.get(GIVEN) or {}).decode(),
        is_expired=seal is not None and seal.is_expired,
    )


def sealed(store: TraceStore, session_id: str) -> Seal | None:
    """How it was sealed; None when it is not."""
    last = last_event(store, session_id)
    if last is None or last.event_type != "session.ended":
        return None
    why = (last.payload.get("reason"), last.payload.get("error"))
    return Seal(parse_us(last.timestamp), why == ("timeout", EXPIRED))


def last_event(store: TraceStore, session_id: str) -> Event | None:
    """The last thing that was recorded; None when it cannot be read."""
    return _event(store, session_id, Query(last=1))


def _event(store: TraceStore, session_id: str, query: Query) -> Event | None:
    try:
        line = next(iter(store.find(session_id, query)), None)
        return None if line is None else read(line.rstrip(b"\n"), "cra").event
    except (SinkError, MalformedError):
        return None
