"""Calls that a trace lets run and of which it tells no outcome: they run elsewhere, or the process died with them."""

from __future__ import annotations

import threading
from typing import NamedTuple

from cra_middleware._clock import parse_us
from cra_middleware.trace.event import Event

MAX_UNDECIDED = 4096
"""Requests that are remembered for their decision, which is kept with them or once a person has answered; more than one
session can have under way."""


class LetRun(NamedTuple):
    """One call that was approved, and what its outcome needs to join it."""

    span_id: str
    parent_span_id: str | None
    execution_id: str
    action_id: str
    resolution_id: str
    tool_name: str
    tool_call_id: str | None
    agent_name: str | None
    parameters_hash: str
    request_key: str | None
    approved_us: int


class Told(NamedTuple):
    """How such a call came out."""

    by: str
    """Who says so."""
    error: tuple[str, str] | None = None
    """A code and a sentence, where it failed."""
    duration_ms: int | None = None
    result_hash: str | None = None


class _Asked(NamedTuple):
    """What of a request its decision does not repeat."""

    tool_name: str
    tool_call_id: str | None
    agent_name: str | None
    parameters_hash: str
    request_key: str | None


class Untold:
    """Takes the events of one session in their order; keeps the calls whose outcome is not among them."""

    def __init__(self) -> None:
        self._requested: dict[str, _Asked] = {}
        self._approved: dict[str, LetRun] = {}
        self._asked: dict[str, dict[str, LetRun]] = {}  # the same, by the request for them
        self._lock = threading.Lock()  # around both

    def put(self, call: LetRun) -> None:
        """Know of one whose events do not come by here."""
        with self._lock:
            self._approved[call.execution_id] = call
            if call.request_key is not None:
                self._asked.setdefault(call.request_key, {})[call.execution_id] = call

    def take(self, execution_id: str) -> bool:
        """Know of one no more; whether it was there."""
        with self._lock:
            call = self._approved.pop(execution_id, None)
            if call is None:
                return False
            if call.request_key is not None:
                same = self._asked[call.request_key]
                del same[execution_id]
                if not same:
                    del self._asked[call.request_key]
            return True

    def add(self, event: Event) -> None:
        """Take one event."""
        kind, name = event.event_type, event.payload.get("execution_id")
        if not isinstance(name, str):
            return
        if kind == "action.requested":
            self._requested[name] = _asked(event)
            if len(self._requested) > MAX_UNDECIDED:  # a question that nobody answered has no decision
                del self._requested[next(iter(self._requested))]
        elif kind == "action.approved":
            asked = self._requested.pop(name, None)
            if asked is not None:
                self.put(_let_run(asked, event))
        elif kind in ("action.denied", "action.executed", "action.failed"):
            self._requested.pop(name, None)
            self.take(name)

    def find(self, execution_id: str) -> LetRun | None:
        """The one with this id."""
        return self._approved.get(execution_id)

    def asked_by(self, request_key: str) -> tuple[LetRun, ...]:
        """Those that were let run for this request, the oldest first."""
        with self._lock:
            return tuple(self._asked.get(request_key, {}).values())

    @property
    def calls(self) -> tuple[LetRun, ...]:
        """Those left, the oldest first."""
        return tuple(self._approved.values())


def _asked(event: Event) -> _Asked:
    def said(key: str) -> str | None:
        value = event.payload.get(key)
        return value if isinstance(value, str) else None

    hashed = said("parameters_hash") or ""
    return _Asked(said("tool_name") or "", said("tool_call_id"), said("agent_name"), hashed, said("request_key"))


def _let_run(asked: _Asked, approved: Event) -> LetRun:
    return LetRun(
        approved.span_id,
        approved.parent_span_id,
        str(approved.payload["execution_id"]),
        str(approved.payload["action_id"]),
        str(approved.payload["resolution_id"]),
        *asked,
        parse_us(approved.timestamp),
    )
