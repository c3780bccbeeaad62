"""Comparing traces: what counts, and how much."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from cra_middleware import Atlas, CallRefused, Runtime
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.diff import diff
from cra_middleware.trace.event import Event
from cra_middleware.trace.report import Report
from tests.conftest import NOON, manifest, policies


def run(wait: float = 0, **parts: Any) -> list[Event]:
    """One session with two calls and a document."""
    blocks = [{"context_id": "tone", "content": "Be kind.", "inject_mode": "always"}]
    clock = FrozenClock(NOON)
    with Runtime(Atlas.from_dict(manifest(context_blocks=blocks, **parts)), clock=clock, record="full") as runtime:
        with runtime.session("bot") as session:
            session.call("ticket.get", lambda id: clock.advance(wait), "T-1")
            session.call("ticket.get", lambda id: {"title": "x"}, "T-2")
        return list(session.events)


A = run()


def changed(place: int, **payload: Any) -> list[Event]:
    """A, with one event's payload changed; None takes a key away."""
    gone = {key for key, value in payload.items() if value is None}
    new = {key: value for key, value in {**A[place].payload, **payload}.items() if key not in gone}
    return [event._replace(payload=new) if number == place else event for number, event in enumerate(A)]


def place(kind: str) -> int:
    return next(number for number, event in enumerate(A) if event.event_type == kind)


def test_nothing_and_only_ids() -> None:
    """The same file is identical; another run of the same is equivalent."""
    assert diff(A, A).likeness == "identical"
    again = diff(A, run())
    assert again.likeness == "semantically_equivalent"
    assert {change.significance for change in again.changes} == {"ignored"}
    slower = diff(A, run(wait=5))
    assert slower.likeness == "semantically_equivalent"
    assert {change.pointer.rsplit("/", 1)[1] for change in slower.changes if change.significance == "minor"} == {
        "duration_ms"
    }


@pytest.mark.parametrize(
    ("kind", "payload", "significance", "what"),
    [
        ("session.started", {"goal": "Another"}, "major", "changed"),
        ("session.started", {"agent_id": "other"}, "major", "changed"),
        ("session.started", {"note": "new"}, "minor", "added"),
        ("session.started", {"metadata": None}, "major", "removed"),
        ("context.injected", {"token_count": 99}, "minor", "changed"),
        ("carp.resolution.completed", {"allowed_count": 1}, "breaking", "changed"),
        ("carp.resolution.completed", {"decision_type": "deny"}, "breaking", "changed"),
        ("action.requested", {"parameters": {"id": "T-9"}}, "major", "changed"),
        ("action.requested", {"parameters_hash": "0" * 64}, "major", "changed"),
        ("action.requested", {"tool_call_id": "c9"}, "ignored", "added"),
        ("action.approved", {"policy_id": "other"}, "breaking", "changed"),
        ("action.approved", {"policy_id": None}, "breaking", "removed"),
        ("action.executed", {"duration_ms": 99}, "minor", "changed"),
        ("action.executed", {"result": "x"}, "major", "changed"),
        ("session.ended", {"reason": "error"}, "major", "changed"),
    ],
)
def test_one_change(kind: str, payload: dict[str, Any], significance: str, what: str) -> None:
    """Each is told once, at its place, with its weight."""
    number = place(kind)
    (found,) = diff(A, changed(number, **payload)).changes
    assert (found.significance, found.what) == (significance, what)
    assert found.pointer.startswith(f"/{number}/payload/")


def test_events_are_aligned() -> None:
    """One event more, or fewer, is one difference; so is another action in its place."""
    number = place("action.executed")
    fewer = [event for event in A if event is not A[number]]
    removed = [change for change in diff(A, fewer).changes if change.significance == "breaking"]
    assert [(change.what, change.pointer) for change in removed] == [("removed", f"/{number}")]
    added = [change for change in diff(fewer, A).changes if change.significance == "breaking"]
    assert [(change.what, change.after) for change in added] == [("added", "action.executed ticket.get")]
    other = diff(A, changed(number, action_id="ticket.list"))
    assert other.likeness == "incompatible"


def test_which_events_belong_together() -> None:
    """An execution that suddenly belongs to another call is breaking, though every id is ignored."""
    first, second = (number for number, event in enumerate(A) if event.event_type == "action.executed")
    swapped = [
        event._replace(payload={**event.payload, "execution_id": A[first].payload["execution_id"]})
        if number == second
        else event
        for number, event in enumerate(A)
    ]
    assert diff(A, swapped).likeness == "incompatible"


def test_documents_are_a_set() -> None:
    """A document more or fewer is major; their order does not count."""
    number = place("context.injected")
    without = [event for event in A if event is not A[number]]
    assert diff(A, without).likeness == "different"
    assert diff(without, A).likeness == "different"
    moved = [*without[: number + 1], A[number], *without[number + 1 :]]
    assert diff(A, moved).likeness == "identical"


def test_report() -> None:
    """What was decided, counted by action, policy and verdict."""
    ask = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]}
    no = {"policy_id": "no", "type": "deny", "actions": ["ticket.delete"]}
    shy = {"policy_id": "shy", "type": "deny", "actions": ["ticket.list"], "parameters": {"enforcement": "shadow"}}
    counted = Report()
    atlas = Atlas.from_dict(manifest(policies=policies(ask, no, shy)))
    with Runtime(atlas, approver=lambda pending: pending.arguments["amount"] == 1) as runtime:
        with runtime.session("bot") as session:
            for action, arguments in (
                ("ticket.get", {}),
                ("ticket.list", {}),
                ("ticket.delete", {}),
                ("refund.create", {"amount": 1}),
                ("refund.create", {"amount": 2}),
            ):
                with suppress(CallRefused, ZeroDivisionError):
                    session.call(action, lambda fails=action == "ticket.get", **given: 1 / (not fails), **arguments)
        counted.add(session.events)
    assert (counted.sessions, counted.sealed, counted.agents) == (1, 1, {"bot"})
    found = counted.as_json()["actions"]
    assert isinstance(found, dict)
    assert found["ticket.get"]["failed"] == 1
    assert found["ticket.list"]["shadow"] == {"shy": 1}
    assert found["ticket.delete"]["codes"] == {"policy_denied": 1}
    refunds = found["refund.create"]
    assert [refunds[key] for key in ("calls", "asked", "allowed", "approved_by_person", "denied", "executed")] == [
        2,
        2,
        1,
        1,
        1,
        1,
    ]
    assert counted.policies["no", "deny"] == counted.policies["shy", "shadow"] == 1
    assert counted.policies["ask", "ask"] == 2
