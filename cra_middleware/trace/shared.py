"""Reading on in a log that others write, too: what they appended is verified before anything is linked to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cra_middleware._clock import parse_us
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.event import GENESIS, Event
from cra_middleware.trace.profiles import MalformedError, read
from cra_middleware.trace.sink import SessionLog, SharedLog

Follow = Callable[[Event], None]
"""Hears of each event that another writer appended, in their order."""


class EndedElsewhereError(SinkError):
    """Another writer, or thread, sealed the session: nothing may follow."""


class Position(NamedTuple):
    """The end of a chain: where the next event goes."""

    sequence: int = 0
    offset: int = 0
    head_hash: str = GENESIS
    timestamp_us: int = 0


def read_on(log: SessionLog, session_id: str, position: Position, take: Follow) -> Position:
    """The end of ``log``; ``take`` hears of every event before it.

    Raises:
        ChainBroken: when what stands there does not continue the chain.
        SinkError: when it cannot be read, or the log is not one that several write.
    """
    if not isinstance(log, SharedLog):
        raise SinkError(f"session {session_id} has one writer, and another one wrote to it")
    for line in log.lines_from(position.offset):
        event = _next_event(line, session_id, position)
        position = Position(
            position.sequence + 1, position.offset + len(line), event.event_hash, parse_us(event.timestamp)
        )
        take(event)
    return position


def _next_event(line: bytes, session_id: str, position: Position) -> Event:
    try:
        item = read(line.rstrip(b"\n"), "cra")
    except MalformedError as error:
        raise ChainBroken(f"session {session_id} was changed at event {position.sequence}: {error}") from error
    event = item.event
    wanted = (session_id, position.sequence, position.head_hash, item.computed_hash)
    if wanted != (event.session_id, event.sequence, event.previous_event_hash, event.event_hash):
        raise ChainBroken(f"session {session_id} was changed at event {position.sequence}: it does not follow")
    return event
