"""Calls that a trace lets run and of which it tells no outcome: they run elsewhere, or the process died with them."""

from __future__ import annotations

from typing import NamedTuple

from cra_middleware._clock import parse_us
from cra_middleware.trace.event import Event


class LetRun(NamedTuple):
    """One call that was approved, and what its outcome needs to join it."""

    span_id: str
    parent_span_id: str | None
    execution_id: str
    action_id: str
    resolution_id: str
    tool_name: str
    tool_call_id: str | None
    approved_us: int


class Untold:
    """Takes the events of one session in their order; keeps the calls whose outcome is not among them."""

    def __init__(self) -> None:
        self._requested: dict[str, Event] = {}
        self._approved: dict[str, LetRun] = {}

    def put(self, call: LetRun) -> None:
        """Know of one whose events do not come by here."""
        self._approved[call.execution_id] = call

    def take(self, execution_id: str) -> bool:
        """Know of one no more; whether it was there."""
        return self._approved.pop(execution_id, None) is not None

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
                self._approved[name] = _let_run(asked, event)
        elif kind in ("action.denied", "action.executed", "action.failed"):
            self._requested.pop(name, None)
            self._approved.pop(name, None)

    @property
    def calls(self) -> tuple[LetRun, ...]:
        """Those left, the oldest first."""
        return tuple(self._approved.values())


def _let_run(asked: Event, approved: Event) -> LetRun:
    tool_call_id = asked.payload.get("tool_call_id")
    return LetRun(
        approved.span_id,
        approved.parent_span_id,
        str(approved.payload["execution_id"]),
        str(approved.payload["action_id"]),
        str(approved.payload["resolution_id"]),
        str(asked.payload.get("tool_name", "")),
        tool_call_id if isinstance(tool_call_id, str) else None,
        parse_us(approved.timestamp),
    )
