"""Sessions that a framework stores the id of: found again, let go of and not ended, or ended with their run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime, run_sessions, verify
from cra_middleware.enforcement import EnforcementPoint
from tests.conftest import manifest

ASK = {"policy_id": "ask", "type": "require_approval", "actions": ["ticket.get"]}
ATLAS = manifest(policies=[{"policy_id": "allow-all", "type": "allow"}, ASK])


def made(folder: Path) -> tuple[Runtime, EnforcementPoint]:
    runtime = Runtime(Atlas.from_dict(ATLAS), trace=folder, approvals=folder / "approvals.db")
    return runtime, EnforcementPoint(runtime, "any")


def test_found_by_its_stored_id(tmp_path: Path) -> None:
    """After a restart the stored id leads to the same session, whatever the run is called now."""
    runtime, point = made(tmp_path)
    first = point.session(run="thread", agent="worker", keep=True).id
    assert point.session(run="thread", agent="worker", kept=first, keep=True).id == first
    runtime.close()
    runtime, point = made(tmp_path)
    with runtime:
        assert point.session(run="other", agent="worker", kept=first, keep=True).id == first


def test_one_that_was_let_go_of_is_taken_up_again(tmp_path: Path) -> None:
    """The same process remembers a kept run's session by itself; one that was ended is followed by a new one."""
    runtime, point = made(tmp_path)
    with runtime:
        first = point.session(run="thread", keep=True)
        first.detach()
        second = point.session(run="thread", keep=True)
        assert (second.id, second.is_open) == (first.id, True)
        second.end()
        assert point.session(run="thread", keep=True).id != first.id


def test_too_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept session that is forgotten is not ended by that."""
    monkeypatch.setattr(run_sessions, "MAX_RUNS", 1)
    runtime, point = made(tmp_path)
    kept = point.session(run="a", keep=True)
    other = point.session(run="b")
    point.session(run="c")
    assert (kept.is_open, other.is_open) == (True, False)
    runtime.close()
    assert [verify(file).sealed for file in tmp_path.glob(f"{kept.id}*.jsonl")] == [False]


@pytest.mark.parametrize("can_wait", [True, False])
def test_the_end_of_a_run(tmp_path: Path, can_wait: bool) -> None:
    """A run that a person is asked in stays open, unless nobody could go on with it."""
    runtime, point = made(tmp_path)
    with runtime:
        session = point.session(run="a")
        with pytest.raises(Exception, match="approve"):
            point.tool("ticket.get").call({}, run="a").run(lambda: None)
        point.end("a", can_wait=can_wait)
        assert session.is_open is can_wait


def test_a_call_of_a_session_that_is_known(tmp_path: Path) -> None:
    """An adapter that says which session governs a call is taken at its word."""
    runtime, point = made(tmp_path)
    with runtime:
        session = runtime.session("another")
        assert point.tool("ticket.list").call({}, run="a", session=session).session is session
