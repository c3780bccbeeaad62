"""Calls that a trace lets run and of which it tells no outcome: they run elsewhere, or the process died with them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from cra_middleware._clock import parse_us
from cra_middleware.trace.event import Event

_Name = tuple[str, str, str | None, str | None, str]


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
    approved_us: int


class Told(NamedTuple):
    """How such a call came out."""

    by: str
    """Who says so."""
    error: tuple[str, str] | None = None
    """A code and a sentence, where it failed."""
    duration_ms: int | None = None
    result_hash: str | None = None


class Untold:
    """Takes the events of one session in their order; keeps the calls whose outcome is not among them."""

    def __init__(self) -> None:
        self._requested: dict[str, Event] = {}
        self._approved: dict[str, LetRun] = {}
        self._named: dict[_Name, dict[str, LetRun]] = {}  # the same, by what was asked
        self._lock = threading.Lock()  # around both

    def put(self, call: LetRun) -> None:
        """Know of one whose events do not come by here."""
        with self._lock:
            self._approved[call.execution_id] = call
            self._named.setdefault(_name(call), {})[call.execution_id] = call

    def take(self, execution_id: str) -> bool:
        """Know of one no more; whether it was there."""
        with self._lock:
            call = self._approved.pop(execution_id, None)
            if call is None:
                return False
            name = _name(call)
            same = self._named[name]
            del same[execution_id]
            if not same:
                del self._named[name]
            return True

    def add(self, event: Event) -> None:
        """Take one event."""
        kind, name = event.event_type, event.payload.get("execution_id")
        if not isinstance(name, str):
            return
        if kind == "action.requested":
            self._requested[name] = event
        elif kind == "action.approved":
            asked = self._requested.get(name)
            if asked is not None:
                self.put(_let_run(asked, event))
        elif kind in ("action.denied", "action.executed", "action.failed"):
            self._requested.pop(name, None)
            self.take(name)

    def find(self, execution_id: str) -> LetRun | None:
        """The one with this id."""
        return self._approved.get(execution_id)

    def called(
        self, action_id: str, tool_name: str, tool_call_id: str | None, agent_name: str | None, parameters_hash: str
    ) -> Sequence[LetRun]:
        """Those that are the same in all that was asked, the oldest first."""
        with self._lock:
            same = self._named.get((action_id, tool_name, tool_call_id, agent_name, parameters_hash), {})
            return tuple(same.values())

    @property
    def calls(self) -> tuple[LetRun, ...]:
        """Those left, the oldest first."""
        return tuple(self._approved.values())


def _name(call: LetRun) -> _Name:
    return call.action_id, call.tool_name, call.tool_call_id, call.agent_name, call.parameters_hash


def _let_run(asked: Event, approved: Event) -> LetRun:
    tool_call_id, agent_name = asked.payload.get("tool_call_id"), asked.payload.get("agent_name")
    return LetRun(
        approved.span_id,
        approved.parent_span_id,
        str(approved.payload["execution_id"]),
        str(approved.payload["action_id"]),
        str(approved.payload["resolution_id"]),
        str(asked.payload.get("tool_name", "")),
        tool_call_id if isinstance(tool_call_id, str) else None,
        agent_name if isinstance(agent_name, str) else None,
        str(asked.payload.get("parameters_hash", "")),
        parse_us(approved.timestamp),
    )
