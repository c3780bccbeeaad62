"""How often each rule fired and each action was called: counted from the traces of the latest sessions.

What was counted of a session is remembered, and only what came since is read.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from cra_middleware.errors import SinkError
from cra_middleware.server.book import SessionRow
from cra_middleware.server.host import Host
from cra_middleware.trace.sink import Query

SESSIONS = 500
"""The latest, which are looked at."""
SECONDS = 2.0
"""How long is read at a time; what is left over is read the next time."""
_REMEMBERED = 4 * SESSIONS
_PAGE = 100
_OF_EVENTS = {"action.approved": "let run", "action.denied": "refused"}
_OF_EFFECTS = {"require_approval": "asked", "shadow_deny": "would refuse"}


class Tally(NamedTuple):
    """What was counted."""

    fired: Counter[tuple[str, str]]
    """By policy id and by what it did: let run, refused, asked, would refuse."""
    called: Counter[str]
    """By action id."""
    sessions: int
    since_us: int | None
    """When the first of these sessions began."""
    are_latest: bool
    """Whether there are older sessions, which are not looked at."""
    is_whole: bool
    """Whether every one of the latest sessions was read."""

    def words(self, policy_id: str) -> str:
        """How often it did what."""
        known = (*_OF_EVENTS.values(), *_OF_EFFECTS.values())
        return ", ".join(f"{self.fired[policy_id, did]} {did}" for did in known if self.fired[policy_id, did])


@dataclass(slots=True)
class _Counted:
    """Of one session."""

    fired: Counter[tuple[str, str]] = field(default_factory=Counter)
    called: Counter[str] = field(default_factory=Counter)
    sequence: int = 0
    """The first that was not read."""
    resolving: str = ""
    """The span of the latest resolution: what is evaluated in it is no call."""
    is_over: bool = False


class Tallies:
    """Of one host. Safe under threads."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Counted] = OrderedDict()

    def count(self) -> Tally:
        """Count up to now."""
        rows = self._latest()
        rows, are_latest = rows[:SESSIONS], len(rows) > SESSIONS
        until = time.monotonic() + SECONDS
        fired, called, since_us, sessions = Counter[tuple[str, str]](), Counter[str](), None, 0
        with self._lock:
            for row in rows:
                counted = self._known.get(row.session_id)
                if counted is None and time.monotonic() >= until:
                    continue
                counted = self._read(row, counted or _Counted(), time.monotonic() < until)
                fired += counted.fired
                called += counted.called
                sessions += 1
                since_us = row.created_us
        return Tally(fired, called, sessions, since_us, are_latest, sessions == len(rows))

    def _latest(self) -> Sequence[SessionRow]:
        found: list[SessionRow] = []
        while len(found) <= SESSIONS:
            rows, _ = self._host.book.sessions("all", None, _PAGE, len(found))
            found += rows
            if len(rows) < _PAGE:
                break
        return found

    def _read(self, row: SessionRow, counted: _Counted, may_read: bool) -> _Counted:
        if may_read and not counted.is_over:
            try:
                for line in self._host.store.find(row.session_id, Query(since_sequence=counted.sequence)):
                    _add(counted, line)
            except (SinkError, ValueError, KeyError, TypeError):
                counted.is_over = row.ended_us is not None  # the session's own page tells what is wrong with it
        self._known[row.session_id] = counted
        self._known.move_to_end(row.session_id)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return counted


def _add(counted: _Counted, line: bytes) -> None:
    event = orjson.loads(line)
    kind, payload = event["event_type"], event["payload"]
    policy_id = payload.get("policy_id")
    if kind == "carp.request.received":
        counted.resolving = event["span_id"]
    elif kind == "action.requested":
        counted.called[str(payload["action_id"])] += 1
    elif kind == "session.ended":
        counted.is_over = True
    elif isinstance(policy_id, str):
        did = _OF_EVENTS.get(kind)
        if kind == "policy.evaluated" and event["span_id"] != counted.resolving:
            did = _OF_EFFECTS.get(str(payload.get("effect")))
        if did is not None:
            counted.fired[policy_id, did] += 1
    counted.sequence = event["sequence"] + 1
