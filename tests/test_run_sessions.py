"""Sessions for runs of a framework: what ends with a run, and what a run that was stopped finds again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime, run_sessions, verify
from cra_middleware.enforcement import EnforcementPoint, GovernedCall
from cra_middleware.errors import ApprovalRequired
from tests.conftest import manifest, policies

ASK = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]}


def started(folder: Path) -> Runtime:
    return Runtime(Atlas.from_dict(manifest(policies=policies(ASK))), trace=folder / "t", approvals=folder / "a.db")


def call(point: EnforcementPoint, action: str, agent: str, run: str | None, call_id: str) -> GovernedCall:
    return point.tool(action).call({"n": 1}, call_id=call_id, agent=agent, run=run)


@pytest.mark.parametrize("restarted", [False, True])
def test_stopped_below(tmp_path: Path, restarted: bool) -> None:
    """A question of an agent below keeps the run's session open, too; a run that goes on finds both, each its own."""
    runtime = started(tmp_path)
    point = EnforcementPoint(runtime, "any")
    outer = call(point, "ticket.get", "worker", "first", "c1")
    outer.run(lambda: None)
    with pytest.raises(ApprovalRequired):
        call(point, "refund.create", "helper", "first", "c2").run(lambda: None)
    point.end("first")
    assert outer.session.is_open
    if restarted:
        runtime.close()
        runtime = started(tmp_path)
        point = EnforcementPoint(runtime, "any")
    (waiting,) = runtime.approvals.list()
    runtime.approvals.approve(waiting.pending.approval_id, by="ann")
    assert point.session(run="second", agent="worker", resumed=("c2",)).id == outer.session.id
    again = call(point, "refund.create", "helper", "second", "c2")
    assert (again.session.id, again.session.facts.agent_id) == (waiting.pending.session_id, "helper")
    assert again.run(lambda: "paid") == "paid"
    assert call(point, "ticket.get", "worker", "second", "c3").session.id == outer.session.id
    point.end("second")
    assert not again.session.is_open
    runtime.close()


def test_stopped_below_and_called_again_first(tmp_path: Path) -> None:
    """Of a run that goes on in another process, the stopped call of the agent below may be the first that comes."""
    with started(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "any")
        outer = call(point, "ticket.get", "worker", "run", "c1")
        outer.run(lambda: None)
        with pytest.raises(ApprovalRequired):
            call(point, "refund.create", "helper", "run", "c2").run(lambda: None)
    with started(tmp_path) as runtime:
        (waiting,) = runtime.approvals.list()
        runtime.approvals.approve(waiting.pending.approval_id, by="ann")
        point = EnforcementPoint(runtime, "any")
        again = call(point, "refund.create", "helper", "run", "c2")
        assert again.session.id == waiting.pending.session_id
        assert again.run(lambda: "paid") == "paid"
        assert call(point, "ticket.get", "worker", "run", "c3").session.id == outer.session.id


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("run", ["ann's", None])
def test_calls_that_are_numbered_alike(tmp_path: Path, restarted: bool, run: str | None) -> None:
    """Some providers number the calls of every run anew: whose id is that of another run's open question stays out."""
    runtime = started(tmp_path)
    with pytest.raises(ApprovalRequired):
        call(EnforcementPoint(runtime, "any"), "refund.create", "worker", run, "functions.pay:0").run(lambda: None)
    (waiting,) = runtime.approvals.list()
    if restarted:
        runtime.close()
        runtime = started(tmp_path)
    runtime.approvals.approve(waiting.pending.approval_id, by="ann")
    other = call(EnforcementPoint(runtime, "any"), "refund.create", "worker", "bob's", "functions.pay:0")
    assert other.session.id != waiting.pending.session_id
    with pytest.raises(ApprovalRequired):
        other.run(lambda: None)
    nobodys = call(EnforcementPoint(runtime, "any"), "refund.create", "worker", None, "functions.pay:0")
    assert nobodys.session.id != waiting.pending.session_id
    if run is not None:
        own = call(EnforcementPoint(runtime, "any"), "refund.create", "worker", run, "functions.pay:0")
        assert own.session.id == waiting.pending.session_id
        assert own.run(lambda: "paid") == "paid"
    runtime.close()


def test_runs_whose_end_is_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not hold their files open for ever, and one that calls again goes on in its session."""
    monkeypatch.setattr(run_sessions, "MAX_OPEN", 3)
    with started(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "any")
        sessions = []
        for number in range(8):
            made = call(point, "ticket.get", "worker", f"run {number}", "c1")
            made.run(lambda: None)
            sessions.append(made.session)
        assert [item.is_open for item in sessions] == [False] * 5 + [True] * 3
        again = call(point, "ticket.get", "worker", "run 0", "c2")
        again.run(lambda: None)
        assert again.session.id == sessions[0].id
        assert not sessions[5].is_open
    for file in (tmp_path / "t").glob("*.trace.jsonl"):
        assert verify(file).intact


def test_a_session_that_was_ended_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its run gets a new one."""
    with started(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "any")
        first = call(point, "ticket.get", "worker", "run", "c1").session
        first.end()
        assert call(point, "ticket.get", "worker", "run", "c2").session.id != first.id


def test_hole_a_run_that_goes_on_where_calls_are_numbered_alike(tmp_path: Path) -> None:
    """Where a framework says only which calls a run was stopped at, another run's call of that id is taken for it."""
    with started(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "any")
        for run in ("ann's", "bob's"):
            with pytest.raises(ApprovalRequired):
                call(point, "refund.create", "worker", run, "functions.pay:0").run(lambda: None)
        first, second = runtime.approvals.list()
        assert point.session(run="either", resumed=("functions.pay:0",)).id not in (
            first.pending.session_id,
            second.pending.session_id,
        )
        runtime.approvals.approve(first.pending.approval_id, by="ann")
        call(point, "refund.create", "worker", "ann's", "functions.pay:0").run(lambda: None)
        assert point.session(run="ann's again", resumed=("functions.pay:0",)).id == second.pending.session_id
