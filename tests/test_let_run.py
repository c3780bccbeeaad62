"""Calls that are decided in one process and run in another, and whose outcome is told in a third."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import ActionDenied, Atlas, Runtime, SessionEnded, verify
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.event import Event
from cra_middleware.trace.let_run import Told, Untold
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import NOON, manifest, policies


def open_runtime(folder: Path, clock: FrozenClock, **more: Any) -> Runtime:
    return Runtime(Atlas.from_dict(manifest(**more)), trace=folder, clock=clock, counters=folder / "counters.db")


def kinds(folder: Path, session_id: str) -> list[str]:
    return [event.event_type for event in _events(folder, session_id)]


def _events(folder: Path, session_id: str) -> list[Any]:
    from cra_middleware.trace.profiles import read

    sink = JsonlSink(folder)
    events = [read(line.rstrip(b"\n"), "cra").event for line in sink.lines(session_id)]
    sink.close()
    return events


def test_one_call_in_three_processes(tmp_path: Path, clock: FrozenClock) -> None:
    """Decided by one runtime, told of by the next, in the same span; the chain verifies and is sealed by a third."""
    with open_runtime(tmp_path, clock) as first:
        session = first.session(keep=True)
        name = session.id
        let = session.let_run(session.freeze("ticket.get", "tool", {"a": 1}))
        assert session.untold == (let,)
    clock.advance(2)
    with open_runtime(tmp_path, clock) as second:
        session = second.resume(name, keep=True)
        (found,) = session.untold
        assert found == let
        session.tell(found, Told("agent-x"))
        assert session.untold == ()
        with pytest.raises(ValueError, match="waits for its outcome"):
            session.tell(found, Told("agent-x"))
    with open_runtime(tmp_path, clock) as third:
        session = third.resume(name)
        assert session.untold == ()
        session.end()
        with pytest.raises(SessionEnded):
            session.tell(let, Told("agent-x"))
    asked, approved, executed = [e for e in _events(tmp_path, name) if e.event_type.startswith("action.")]
    assert {asked.span_id, approved.span_id, executed.span_id} == {let.span_id}
    assert executed.payload["reported_by"] == "agent-x"
    assert executed.payload["duration_ms"] == 2000
    assert verify(tmp_path / f"{name}.trace.jsonl").sealed
    assert _events(tmp_path, name)[-1].payload["action_count"] == 1


def test_a_failure_is_told(tmp_path: Path, clock: FrozenClock) -> None:
    """With a code and a sentence."""
    with open_runtime(tmp_path, clock) as runtime:
        session = runtime.session(keep=True)
        session.tell(
            session.let_run(session.freeze("ticket.get", "tool", {})), Told("x", ("ToolFailed", "it failed"), 7)
        )
        failed = session.events[-1]
    assert failed.event_type == "action.failed"
    assert (failed.payload["error_code"], failed.payload["duration_ms"]) == ("ToolFailed", 7)


def test_what_is_denied_is_not_let_run(tmp_path: Path, clock: FrozenClock) -> None:
    """A refusal is raised and recorded; nothing waits for an outcome."""
    with open_runtime(tmp_path, clock) as runtime:
        session = runtime.session()
        with pytest.raises(ActionDenied, match="Never"):
            session.let_run(session.freeze("ticket.delete", "tool", {}))
        assert session.untold == ()


def test_places_in_a_limit_are_taken(tmp_path: Path, clock: FrozenClock) -> None:
    """A call that runs elsewhere uses its place up, whatever becomes of it."""
    limit = {
        "policy_id": "twice",
        "type": "rate_limit",
        "actions": ["ticket.get"],
        "parameters": {"max_calls": 2, "window_seconds": 60},
    }
    name = None
    for number in range(3):
        with open_runtime(tmp_path, clock, policies=policies(limit)) as runtime:
            session = runtime.session(keep=True) if name is None else runtime.resume(name, keep=True)
            name = session.id
            call = session.freeze("ticket.get", "tool", {"n": number})
            if number < 2:
                session.let_run(call)
            else:
                with pytest.raises(ActionDenied):
                    session.let_run(call)


def test_a_resolution_counts_on(tmp_path: Path) -> None:
    """Without renew nothing is resolved again, until it has expired or the policies are others."""
    clock = FrozenClock(NOON)
    with open_runtime(tmp_path, clock) as runtime:
        session = runtime.session(keep=True)
        name, resolution_id = session.id, session.resolution.resolution_id
    with open_runtime(tmp_path, clock) as runtime:
        session = runtime.resume(name, keep=True, renew=False)
        assert session.resolution.resolution_id == resolution_id
        assert session.let_run(session.freeze("ticket.get", "tool", {})).resolution_id == resolution_id
    assert kinds(tmp_path, name).count("carp.resolution.completed") == 1
    clock.advance(3600)
    with open_runtime(tmp_path, clock) as runtime:
        session = runtime.resume(name, keep=True, renew=False)
        assert session.let_run(session.freeze("ticket.get", "tool", {})).resolution_id != resolution_id
    assert kinds(tmp_path, name).count("carp.resolution.completed") == 2
    for count in (3, 4):  # once the policies have changed, each process resolves anew
        with open_runtime(tmp_path, clock, policies=policies()) as runtime:
            runtime.resume(name, keep=True, renew=False)
        assert kinds(tmp_path, name).count("carp.resolution.completed") == count


def test_questions_that_nobody_answers_take_no_memory() -> None:
    """Of what another process asks for again and again, what it would be needed for is kept, and no more."""
    untold = Untold()
    large = "x" * 10_000

    def event(kind: str, name: str, **payload: object) -> Event:
        said = {"execution_id": name, "action_id": "refund.create", "resolution_id": "r", **payload}
        return Event("e", "t", "s", None, "n", 0, NOON, kind, said, "", "")

    tracemalloc.start()
    try:
        for number in range(20_000):
            untold.add(event("action.requested", f"c{number}", request_key=f"k{number}", parameters={"n": large + "y"}))
        untold.add(event("action.approved", "c19999"))
        assert tracemalloc.get_traced_memory()[0] < 8_000_000
    finally:
        tracemalloc.stop()
    assert [call.execution_id for call in untold.asked_by("k19999")] == ["c19999"]
