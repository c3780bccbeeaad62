"""Looking for events in lines, for the stores that have no index of their own."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cra_middleware.trace.sink import Query

_HEAD = re.compile(rb'.{0,400}?"sequence":(\d{1,16}),"timestamp":"[^"]{1,64}","event_type":"([a-z.]{1,64})"')


class Place(NamedTuple):
    """What a store indexes of a line."""

    sequence: int
    event_type: str


def place_of(line: bytes) -> Place | None:
    """Where a line of profile ``cra`` belongs, read from its fixed beginning; None when it is not one."""
    match = _HEAD.match(line)
    return None if match is None else Place(int(match[1]), match[2].decode())


def select(lines: Iterable[bytes], query: Query) -> Iterator[bytes]:
    """The lines that ``query`` asks for; a line that is no event is never among them."""
    found = (line for line in lines if _fits(place_of(line), query))
    if query.last is None:
        yield from found
    else:
        yield from deque(found, maxlen=max(0, min(query.last, sys.maxsize)))


def _fits(place: Place | None, query: Query) -> bool:
    if place is None or place.sequence < query.since_sequence:
        return False
    return query.event_type is None or place.event_type == query.event_type


def is_end(data: bytes) -> bool:
    """Whether the last of some whole lines ends a session."""
    place = place_of(data[data.rfind(b"\n", 0, -1) + 1 :])
    return place is not None and place.event_type == "session.ended"
