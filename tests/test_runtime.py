"""The runtime and its sessions: options, nesting, approvals, limits, TTL, ends, and what happens when the log fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import (
    Answer,
    ApprovalRejected,
    ApprovalRequired,
    Atlas,
    AtlasError,
    AtlasWarning,
    AuditUnavailable,
    ChainBroken,
    Pending,
    Runtime,
    SessionEnded,
    SinkError,
    current_session,
    verify,
)
from cra_middleware._ids import new_id
from cra_middleware.errors import BudgetExceeded, CallRefused, RateLimitExceeded
from cra_middleware.sessions import local_sessions
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.sessions.open_sessions import OpenSessions
from cra_middleware.sessions.opening import Opener
from cra_middleware.testing import FailingSink, FrozenClock
from tests.conftest import manifest, policies

ASK = policies({"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]})
RAN: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def tool(**arguments: Any) -> str:
    RAN.append(arguments)
    return "ran"


def types(session: Any) -> list[str]:
    return [event.event_type for event in session.events]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"record": "everything"}, ValueError),
        ({"trace_level": "loud"}, ValueError),
        ({"default_decision": "maybe"}, ValueError),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """A misspelt option never means the laxer thing."""
    with pytest.raises(error):
        Runtime(Atlas.from_dict(manifest()), **options)


def test_bad_atlases(tmp_path: Path) -> None:
    """Missing and malformed Atlases, and Atlases that collide, stop the runtime from starting."""
    with pytest.raises(AtlasError, match="E001"):
        Runtime(tmp_path / "nowhere")
    (tmp_path / "atlas.json").write_text('{"atlas_version": "1.0", "policies": [{"policy_id": "p", "type": "deni"}]}')
    with pytest.raises(AtlasError) as error:
        Runtime(tmp_path)
    assert len(error.value.findings) > 3
    atlas = Atlas.from_dict(manifest())
    with pytest.raises(ValueError, match="same atlas_id"):
        Runtime([atlas, atlas])
    with pytest.raises(ValueError, match=r"both declare ticket\.get"):
        Runtime([atlas, Atlas.from_dict(manifest(atlas_id="com.example.other"))])


def test_suspicious_atlases_warn() -> None:
    """A glob that matches nothing is perhaps a misspelt restriction: Python warns."""
    parts = policies({"policy_id": "typo", "type": "deny", "actions": ["tikket.*"]})
    with pytest.warns(AtlasWarning, match=r"tikket"):
        Runtime(Atlas.from_dict(manifest(policies=parts)))


@pytest.mark.parametrize(
    "facts",
    [
        {"agent_id": ""},
        {"agent_id": "x" * 256},
        {"agent_id": "\ud800"},
        {"goal": ""},
        {"goal": "x" * 10_001},
        {"goal": "\udfff"},
        {"risk_tier": "extreme"},
    ],
)
def test_unusable_facts_leave_no_file(facts: dict[str, Any], tmp_path: Path) -> None:
    """A session that cannot be begun leaves nothing behind."""
    with (
        Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as runtime,
        pytest.raises(ValueError, match=r"agent_id|goal|risk_tier"),
    ):
        runtime.session(**facts)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path: Path) -> None:
    """A trace folder that cannot be made is a clear error, before anything runs."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be made"):
        Runtime(Atlas.from_dict(manifest()), trace=tmp_path / "file" / "traces")


def test_record_hash_and_full(tmp_path: Path) -> None:
    """With ``hash`` no value reaches the trace; with ``full`` arguments, results and messages do."""

    def fails(word: str) -> None:
        raise OSError(f"no {word}")

    for record, expected in (("hash", 0), ("full", 3)):
        with Runtime(Atlas.from_dict(manifest()), record=record, trace=tmp_path / record) as runtime:  # type: ignore[arg-type]
            with runtime.session(context={"place": "s3cret"}) as session:
                session.call("ticket.get", lambda word: word, "s3cret")
                with pytest.raises(OSError, match="s3cret"):
                    session.call("ticket.get", fails, "s3cret")
        (file,) = (tmp_path / record).glob("*.jsonl")
        holding = [line for line in file.read_bytes().splitlines() if b"s3cret" in line]
        assert bool(holding) is bool(expected)
        assert verify(file).sealed


def test_huge_values_keep_only_their_hash(tmp_path: Path) -> None:
    """``full`` leaves out what would make a line unreadable, and the call still runs."""
    with Runtime(Atlas.from_dict(manifest()), record="full") as runtime, runtime.session() as session:
        assert len(session.call("ticket.get", lambda text: text, "x" * 3_000_000)) == 3_000_000
        requested = session.events[-3].payload
        assert "parameters" not in requested
        assert "result" not in session.events[-1].payload


@pytest.mark.parametrize(
    ("reply", "runs"),
    [
        (True, True),
        (Answer(True, "ann"), True),
        (False, False),
        (Answer(False, "ann", "no"), False),
        (None, False),
        ("yes", False),
        (1, False),
        (Answer("yes", "ann"), False),  # type: ignore[arg-type]
        (OSError("pager"), False),
        (Answer(True, by=5), True),  # type: ignore[arg-type]
        (Answer(False, "ann", object()), False),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("approver_is_async", [False, True])
@pytest.mark.parametrize("call_is_async", [False, True])
def test_only_a_yes_is_a_yes(reply: Any, runs: bool, approver_is_async: bool, call_is_async: bool) -> None:
    """True or an approving Answer lets the tool run once; anything else, and any failure, does not."""
    asked: list[Pending] = []

    def approver(pending: Pending) -> Any:
        asked.append(pending)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def aapprover(pending: Pending) -> Any:
        await asyncio.sleep(0)
        return approver(pending)

    async def atool(**arguments: Any) -> str:
        return tool(**arguments)

    with Runtime(
        Atlas.from_dict(manifest(policies=ASK)), approver=aapprover if approver_is_async else approver
    ) as runtime:
        with runtime.session(agent_id="bot") as session:

            def call() -> str:
                if call_is_async:
                    return asyncio.run(session.acall("refund.create", atool, amount=5))
                return session.call("refund.create", tool, amount=5)

            if runs:
                assert call() == "ran"
                approved = next(event for event in session.events if event.event_type == "action.approved")
                assert approved.payload["approver"] in ("ann", "approver", "5")
            else:
                with pytest.raises(ApprovalRejected) as refusal:
                    call()
                assert (refusal.value.code, refusal.value.policy_id) == ("approval_rejected", "ask")
                assert types(session)[-1] == "action.denied"
    assert RAN == ([{"amount": 5}] if runs else [])
    (pending,) = asked
    assert (pending.action_id, dict(pending.arguments), pending.agent_id, pending.policy_id) == (
        "refund.create",
        {"amount": 5},
        "bot",
        "ask",
    )
    assert session.verify().intact


def test_without_an_approver() -> None:
    """The call ends as pending: ApprovalRequired, recorded, and nothing ran."""
    with Runtime(Atlas.from_dict(manifest(policies=ASK))) as runtime, runtime.session() as session:
        with pytest.raises(ApprovalRequired) as refusal:
            session.call("refund.create", tool)
        assert refusal.value.approval_id
        last = session.events[-1]
        assert (last.event_type, last.payload["effect"]) == ("policy.evaluated", "require_approval")
    assert RAN == []
    assert session.verify().sealed


def test_arguments_changed_while_a_person_thinks() -> None:
    """What was approved is what runs, or nothing does."""
    amounts = {"items": [5]}

    def approver(pending: Pending) -> bool:
        amounts["items"].append(9999)
        assert pending.arguments == {"order": {"items": [5]}}
        return True

    with Runtime(Atlas.from_dict(manifest(policies=ASK)), approver=approver) as runtime, runtime.session() as session:
        with pytest.raises(CallRefused) as refusal:
            session.call("refund.create", lambda order: tool(order=order), amounts)
    assert (refusal.value.code, RAN) == ("arguments_changed", [])


def test_an_approver_looks_at_a_copy() -> None:
    """What an approver does to the arguments it is shown changes nothing about the decision that follows its yes."""

    def approver(pending: Pending) -> bool:
        pending.arguments["order"]["amount"] = 1  # type: ignore[index]
        return True

    budget = {
        "policy_id": "much",
        "type": "budget",
        "actions": ["refund.*"],
        "parameters": {"max_cost": 1000, "cost_function": "amount", "window_seconds": 60},
    }
    costs = {"amount": lambda arguments: arguments["order"]["amount"]}
    made = Atlas.from_dict(manifest(policies=[*ASK, budget]))
    with Runtime(made, approver=approver, costs=costs) as runtime, runtime.session() as session:
        session.call("refund.create", lambda order: tool(order=order), {"amount": 700})
        with pytest.raises(BudgetExceeded):
            session.call("refund.create", lambda order: tool(order=order), {"amount": 700})
    assert len(RAN) == 1


def test_an_opaque_argument_is_never_approved() -> None:
    """Nobody can approve what cannot be written down."""
    with Runtime(Atlas.from_dict(manifest(policies=ASK)), approver=lambda pending: True) as runtime:
        with runtime.session() as session, pytest.raises(ApprovalRejected, match="cannot be written down"):
            session.call("refund.create", lambda thing: tool(thing=thing), object())
    assert RAN == []


def test_an_interrupted_question(clock: FrozenClock) -> None:
    """Ctrl-C at the question runs nothing, is recorded, and stays Ctrl-C."""

    def approver(pending: Pending) -> bool:
        raise KeyboardInterrupt

    with Runtime(Atlas.from_dict(manifest(policies=ASK)), approver=approver) as runtime:
        session = runtime.session()
        with pytest.raises(KeyboardInterrupt):
            session.call("refund.create", tool)
        assert types(session)[-1] == "action.denied"
    assert RAN == []


LIMIT = policies(
    {
        "policy_id": "r",
        "type": "rate_limit",
        "actions": ["ticket.get"],
        "parameters": {"max_calls": 5, "window_seconds": 60},
    }
)


def test_a_limit_under_threads(clock: FrozenClock) -> None:
    """However many threads race, the limit is never passed, and refusals say when to come back."""
    refusals: list[RateLimitExceeded] = []
    with Runtime(Atlas.from_dict(manifest(policies=LIMIT)), clock=clock) as runtime, runtime.session() as session:

        def work() -> None:
            for _ in range(5):
                try:
                    session.call("ticket.get", tool)
                except RateLimitExceeded as refusal:
                    refusals.append(refusal)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(RAN) == 5
        assert len(refusals) == 35
        clock.advance(20)
        with pytest.raises(RateLimitExceeded) as late:
            session.call("ticket.get", tool)
        assert late.value.retry_after_seconds == pytest.approx(40, abs=0.01)
        assert "policy.violated" in types(session)
        clock.advance(40)
        assert session.call("ticket.get", tool) == "ran"


def test_a_call_that_could_not_be_recorded_uses_nothing_up(clock: FrozenClock) -> None:
    """A tool that did not run has not used up its place in a limit."""
    sink = FailingSink()
    with (
        Runtime(Atlas.from_dict(manifest(policies=LIMIT)), clock=clock, trace=sink) as runtime,
        runtime.session() as session,
    ):
        sink.failing = True
        for _ in range(9):
            with pytest.raises(AuditUnavailable):
                session.call("ticket.get", tool)
        sink.failing = False
        for _ in range(5):
            session.call("ticket.get", tool)
        with pytest.raises(RateLimitExceeded):
            session.call("ticket.get", tool)


def test_a_resolution_renews_itself(clock: FrozenClock) -> None:
    """After its TTL a session resolves again, and later calls name the new resolution."""
    with Runtime(Atlas.from_dict(manifest()), clock=clock) as runtime, runtime.session() as session:
        first = session.resolution.resolution_id
        clock.advance(3599)
        session.call("ticket.get", tool)
        assert session.resolution.resolution_id == first
        clock.advance(1)
        session.call("ticket.get", tool)
        requested = [
            event.payload["resolution_id"] for event in session.events if event.event_type == "action.requested"
        ]
        assert requested[0] == first != requested[1]
        assert types(session).count("carp.resolution.completed") == 2


def test_a_clock_that_goes_back(clock: FrozenClock) -> None:
    """The trace repeats the last time instead of going back."""
    with Runtime(Atlas.from_dict(manifest()), clock=clock) as runtime, runtime.session() as session:
        clock.advance(-3600)
        session.call("ticket.get", tool)
        stamps = [event.timestamp for event in session.events]
        assert stamps == sorted(stamps)
        assert session.verify().intact


def test_nested_sessions() -> None:
    """A child names its parent, takes the higher tier, adds facts, and ends before its parent."""
    with Runtime(Atlas.from_dict(manifest())) as runtime:
        with runtime.session(agent_id="boss", risk_tier="high", context={"env": "prod"}) as parent:
            child = runtime.session(agent_id="helper", risk_tier="low", context={"team": "a"})
            assert (child.facts.risk_tier, child.facts.context) == ("high", {"env": "prod", "team": "a"})
            assert child.events[0].payload["metadata"]["parent_session_id"] == parent.id  # type: ignore[index]
            with pytest.raises(ValueError, match="env"):
                runtime.session(context={"env": "test"})
        assert (child.is_open, parent.is_open) == (False, False)
        assert child.events[-1].event_type == "session.ended"
        assert runtime.session().events[0].payload["metadata"].get("parent_session_id") is None  # type: ignore[attr-defined]


def in_another_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def started_during(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[Any]:
    """Another thread does ``work`` when the next session has written its first events; the sessions that began."""
    begun: list[Any] = []
    start = Opener.start

    def slow(*arguments: Any) -> Any:
        begun.append(start(*arguments))
        in_another_thread(work)
        return begun[-1]

    monkeypatch.setattr(Opener, "start", slow)
    return begun


@pytest.mark.parametrize("how", ["end", "detach"])
def test_a_session_that_begins_while_the_one_above_it_closes(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended with it, and whoever wanted it is told; nothing is governed by one that nobody ends."""
    with Runtime(Atlas.from_dict(manifest())) as runtime:
        parent = runtime.session()
        begun = started_during(monkeypatch, getattr(parent, how))
        with pytest.raises(SessionEnded, match="nothing begins below it"):
            runtime.session(parent=parent)
        monkeypatch.undo()
        (late,) = begun
        assert late.verify().sealed
        assert late.events[-1].payload["reason"] == "cancelled"
        with pytest.raises(SessionEnded):
            late.call("ticket.get", tool)
        assert RAN == []


@pytest.mark.parametrize("how", ["end", "detach"])
def test_a_session_that_begins_while_others_below_close(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(Atlas.from_dict(manifest())) as runtime:
        parent = runtime.session()
        first = runtime.session(parent=parent)
        close, begun = getattr(first, how), []

        def slow(*arguments: Any) -> None:
            begun.append(runtime.session(parent=parent))
            close(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(first, how, slow)
            in_another_thread(getattr(parent, how))
        assert [session.is_open for session in (parent, first, *begun)] == [False] * 3


@pytest.mark.parametrize("how", ["close", "detach"])
@pytest.mark.parametrize("by", ["session", "resolve"])
def test_a_session_that_begins_while_the_runtime_closes(
    how: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays open behind a runtime that is closed; one that is resumed then goes on elsewhere."""
    runtime = Runtime(Atlas.from_dict(manifest()), trace=tmp_path)
    begun = started_during(monkeypatch, getattr(runtime, how))
    asked = {
        "request_id": new_id(),
        "requester": {"agent_id": "bot", "session_id": new_id()},
        "task": {"goal": "Help"},
    }
    with pytest.raises(SinkError, match="closed"):
        runtime.session() if by == "session" else runtime.resolve(asked)
    assert (begun[0].is_open, runtime.find(begun[0].id)) == (False, None)


def test_a_session_that_goes_on_while_the_runtime_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is let go of, and goes on elsewhere."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as first:
        kept = first.session(keep=True).id
    runtime = Runtime(Atlas.from_dict(manifest()), trace=tmp_path)
    resume = Opener.resume

    def slow(*arguments: Any) -> Any:
        session = resume(*arguments)
        in_another_thread(runtime.close)
        return session

    with monkeypatch.context() as patch:
        patch.setattr(Opener, "resume", slow)
        with pytest.raises(SinkError, match="closed"):
            runtime.resume(kept)
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as other:
        assert other.resume(kept).is_open


def test_how_a_session_ends() -> None:
    """completed, error with the class only, cancelled; and the current session is put back."""
    with Runtime(Atlas.from_dict(manifest())) as runtime:
        with runtime.session() as good:
            assert current_session() is good
        with pytest.raises(OSError, match="secret"), runtime.session() as bad:
            raise OSError("secret")
        with pytest.raises(KeyboardInterrupt), runtime.session() as stopped:
            raise KeyboardInterrupt

        async def main() -> Any:
            async with runtime.session() as session:
                return session

        asyncio_session = asyncio.run(main())
    assert current_session() is None
    ends = [dict(session.events[-1].payload) for session in (good, bad, stopped, asyncio_session)]
    assert [end["reason"] for end in ends] == ["completed", "error", "cancelled", "completed"]
    assert ends[1]["error"] == "OSError"
    assert "secret" not in str(bad.events)
    assert ends[0]["event_count"] == len(good.events)


def test_close_ends_and_keeps(tmp_path: Path) -> None:
    """close() seals the runtime's own sessions and detaches kept ones; close(end=True) seals all."""
    atlas = Atlas.from_dict(manifest())
    with Runtime(atlas, trace=tmp_path) as runtime:
        own, kept = runtime.session(), runtime.session(keep=True)
    assert verify(tmp_path / f"{own.id}.trace.jsonl").sealed
    assert not verify(tmp_path / f"{kept.id}.trace.jsonl").sealed
    with Runtime(atlas, trace=tmp_path) as runtime:
        with runtime.resume(kept.id) as session:
            assert session.call("ticket.get", tool) == "ran"
            assert current_session() is session
    assert verify(tmp_path / f"{kept.id}.trace.jsonl").sealed
    with Runtime(atlas, trace=tmp_path) as runtime, pytest.raises(ChainBroken, match="was ended"):
        runtime.resume(kept.id)


@pytest.mark.parametrize("wrong", [{"goal": ""}, {"goal": "x" * 10_001}, {"session_id": "x"}, {"risk_tier": "none"}])
def test_arguments_that_no_session_can_have(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """They are refused before anything is kept."""
    with (
        Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as runtime,
        pytest.raises(ValueError, match=r"goal|id|risk"),
    ):
        runtime.session(**wrong)
    assert not list(tmp_path.glob("*.jsonl"))


def test_many_kept_sessions_do_not_stay_open(tmp_path: Path) -> None:
    """Kept sessions beyond the bound are detached, and go on when they are asked for."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as runtime:
        sessions = [runtime.session(keep=True) for _ in range(300)]
        assert sum(session.is_open for session in sessions) <= 257
        first = runtime.resume(sessions[0].id, keep=True)
        assert first.call("ticket.get", tool) == "ran"


def test_the_kept_session_unused_longest_is_detached(clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that was opened first: that may be the one in use."""
    monkeypatch.setattr(local_sessions, "MAX_OPEN_KEPT", 3)
    with Runtime(Atlas.from_dict(manifest()), clock=clock) as runtime:
        first, second, third = (runtime.session(keep=True) for _ in range(3))
        clock.advance(1)
        first.call("ticket.get", tool)
        clock.advance(1)
        second.resolve()
        runtime.session(keep=True)
        assert [session.is_open for session in (first, second, third)] == [True, True, False]
        runtime.session(keep=True)
        assert [session.is_open for session in (first, second)] == [False, True]


def test_resolve_in_an_open_session(tmp_path: Path) -> None:
    """A request joins the session it names, and may not speak for another agent or an unknown Atlas."""
    with Runtime(Atlas.from_dict(manifest())) as runtime, runtime.session(agent_id="bot") as session:
        body: dict[str, Any] = {
            "request_id": "00000000-0000-0000-0000-000000000001",
            "requester": {"agent_id": "bot", "session_id": session.id},
            "task": {"goal": "more"},
        }
        assert runtime.resolve(body).request_id == body["request_id"]
        assert types(session).count("carp.request.received") == 2
        with pytest.raises(ValueError, match="another agent"):
            runtime.resolve({**body, "requester": {"agent_id": "eve", "session_id": session.id}})
        with pytest.raises(ValueError, match="not loaded"):
            runtime.resolve({**body, "atlas_ids": ["com.example.other"]})
        with pytest.raises(ValueError, match="session_id"):
            runtime.resolve({**body, "requester": {"agent_id": "bot", "session_id": "../../etc/passwd"}})


def test_sessions_of_some_atlases() -> None:
    """A session opened for one Atlas cannot call another's actions."""
    other = manifest(
        atlas_id="com.example.other", actions=[{"action_id": "door.open", "name": "d", "description": "d"}]
    )
    other["policies"] = policies()
    with Runtime([Atlas.from_dict(manifest()), Atlas.from_dict(other)]) as runtime:
        with runtime.session() as both:
            assert both.call("door.open", tool) == "ran"
        with runtime.session(atlas_ids=["com.example.tests"]) as one:
            with pytest.raises(CallRefused) as refusal:
                one.call("door.open", tool)
            assert refusal.value.code == "unknown_action"
            assert one.events[0].payload["atlas_ids"] == ["com.example.tests"]


def test_no_decision_without_a_record() -> None:
    """While the sink fails no tool runs, allowed or not; afterwards the chain goes on without a gap."""
    sink = FailingSink()
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime, runtime.session() as session:
        session.call("ticket.get", tool)
        sink.failing = True
        for action in ("ticket.get", "ticket.delete", "nothing.here"):
            with pytest.raises(AuditUnavailable):
                session.call(action, tool)
        assert len(RAN) == 1
        sink.failing = False
        session.call("ticket.get", tool)
        assert session.verify().intact
        assert len([kind for kind in types(session) if kind == "action.requested"]) == 2


def test_an_outcome_is_never_lost(caplog: pytest.LogCaptureFixture) -> None:
    """A tool that ran gives its value although its outcome cannot be kept; later that is written first."""
    sink = FailingSink()

    def breaks(**arguments: Any) -> str:
        sink.failing = True
        return tool(**arguments)

    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime, runtime.session() as session:
        assert session.call("ticket.get", breaks) == "ran"
        assert "waits to be recorded" in caplog.text
        with pytest.raises(AuditUnavailable):
            session.call("ticket.get", tool)
        sink.failing = False
        session.call("ticket.list", tool)
        order = [(e.event_type, e.payload["action_id"]) for e in session.events if e.event_type.startswith("action.")]
        assert order[:4] == [
            ("action.requested", "ticket.get"),
            ("action.approved", "ticket.get"),
            ("action.executed", "ticket.get"),
            ("action.requested", "ticket.list"),
        ]
    assert session.verify().sealed


def test_a_counter_store_that_breaks_denies(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever breaks inside a decision is a denial."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionError("no counters")

    broken: Any = Broken()
    atlas = Atlas.from_dict(manifest(policies=LIMIT))
    with pytest.raises(ConnectionError), Runtime(atlas, counters=broken) as runtime:
        runtime.session()  # resolving looks at the limits: a session that cannot be resolved is not opened
    calls = 0

    class Later:
        def peek(self, *args: Any) -> None:
            return None

        def reserve(self, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            raise ConnectionError("no counters")

    later: Any = Later()
    with Runtime(atlas, counters=later) as runtime, runtime.session() as session:
        with pytest.raises(CallRefused) as refusal:
            session.call("ticket.get", tool)
        assert (refusal.value.code, calls, RAN) == ("policy_error", 1, [])


def test_a_full_disk(tmp_path: Path) -> None:
    """With no space left the tool does not run, no partial line stays, and with space again the chain goes on."""
    program = """
import json, resource, signal, sys
from cra_middleware import Atlas, Runtime, AuditUnavailable, verify
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ran = []
with Runtime(Atlas.from_dict(json.loads(sys.argv[1])), trace=sys.argv[2], audit_deadline_seconds=0.02) as runtime:
    session = runtime.session()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    refused = 0
    for number in range(20):
        try:
            session.call("ticket.get", lambda n: ran.append(n), number)
        except AuditUnavailable as error:
            refused += 1
            message = str(error)
    before = len(ran)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    session.call("ticket.get", lambda n: ran.append(n), 99)
    session.end()
    events = session.events
executed = sum(event.event_type == "action.executed" for event in events)
print(json.dumps([refused, before, len(ran), executed, session.verify().sealed, message]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(manifest()), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    refused, before, after, executed, sealed, message = json.loads(done.stdout)
    assert refused > 10
    assert (after, executed, sealed) == (before + 1, before + 1, True)
    assert "could not be recorded" in message


def test_fork(tmp_path: Path) -> None:
    """A forked child cannot write its parent's session; the parent goes on, and ids do not repeat."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as runtime:
        session = runtime.session()
        session.call("ticket.get", tool)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                session.call("ticket.get", tool)
                answer = "ran"
            except AuditUnavailable:
                own = runtime.session()
                own.call("ticket.get", lambda: None)
                own.end()
                answer = f"refused {own.verify().sealed}"
            os.write(writer, answer.encode())
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(reader, 100) == b"refused True"
        os.close(reader)
        os.close(writer)
        session.call("ticket.get", tool)
        session.end()
        assert session.verify().sealed


def test_a_dropped_call_is_recorded_and_counted(clock: FrozenClock) -> None:
    """When nobody says how a tool came out, it counts as run, and the trace says that its outcome is lost."""
    from cra_middleware.carp.call import ToolCall

    with Runtime(Atlas.from_dict(manifest(policies=LIMIT)), clock=clock) as runtime, runtime.session() as session:
        for _ in range(5):
            session.begin(ToolCall.freeze("ticket.get", "t", {}))  # and dropped at once
        with pytest.raises(RateLimitExceeded):
            session.call("ticket.get", tool)
        lost = [event.payload.get("error_code") for event in session.events if event.event_type == "action.failed"]
        assert lost == ["LostOutcomeError"] * 5
        clock.advance(61)
        assert session.call("ticket.get", tool) == "ran"
    assert session.verify().sealed


def test_an_approval_counts_when_it_is_given(clock: FrozenClock) -> None:
    """A call that waited an hour for its yes uses up the limit of now, not that of an hour ago."""
    waits = [3600, 0]

    def approver(pending: Pending) -> bool:
        clock.advance(waits.pop(0))
        return True

    rules = policies(
        {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]},
        {
            "policy_id": "r",
            "type": "rate_limit",
            "actions": ["refund.*"],
            "parameters": {"max_calls": 1, "window_seconds": 60},
        },
    )
    with Runtime(Atlas.from_dict(manifest(policies=rules)), clock=clock, approver=approver) as runtime:
        with runtime.session() as session:
            session.call("refund.create", tool)
            with pytest.raises(RateLimitExceeded):
                session.call("refund.create", tool)
    assert len(RAN) == 1


def test_an_end_that_cannot_be_written_lets_go(tmp_path: Path) -> None:
    """A session whose seal cannot be kept, or is interrupted, lets go of its file, so that it can be resumed."""
    atlas = Atlas.from_dict(manifest())
    with Runtime(atlas, trace=tmp_path) as runtime:
        for failure in (SinkError("no space"), KeyboardInterrupt()):
            session = runtime.session()
            append = session._log.append

            def fails(offset: int, data: bytes, events: int, /, failure: BaseException = failure) -> None:
                raise failure

            session._log.append = fails  # type: ignore[method-assign]
            if isinstance(failure, KeyboardInterrupt):
                with pytest.raises(KeyboardInterrupt):
                    session.end()
            else:
                session.end()
            session._log.append = append  # type: ignore[method-assign]
            assert not session.is_open
            again = runtime.resume(session.id)
            assert again.call("ticket.get", tool) == "ran"
            again.end()
            assert again.verify().sealed


@pytest.mark.parametrize("where", ["_calls", "_log"])
@pytest.mark.parametrize("by", ["end", "detach", "runtime"])
def test_an_end_that_is_interrupted_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, by: str
) -> None:
    """By whoever closes it again, whatever they would do themselves."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as runtime:
        session = runtime.session()
        parent = runtime.session()
        child = runtime.session(parent=parent)
        for one in (session, child):
            with monkeypatch.context() as patched:
                patched.setattr(getattr(one, where), "close", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    (session if one is session else parent).end()
        {"end": session.end, "detach": session.detach, "runtime": runtime.close}[by]()
        parent.end()
        child.end()
    assert all(one.verify().sealed and one.is_closed for one in (session, parent, child))
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as other:
        for one in (session, parent, child):
            with pytest.raises(ChainBroken, match="was ended"):
                other.resume(one.id)


def test_an_interrupt_before_a_session_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could end it: one that is new has ended, and another is let go of."""

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as runtime:
        parent, earlier = runtime.session(), runtime.session()
        earlier.detach()
        name = new_id()
        with monkeypatch.context() as patched:
            patched.setattr(LocalSession, "adopt", interrupted)
            with pytest.raises(KeyboardInterrupt):
                runtime.session(parent=parent, session_id=name)
        assert str(verify(tmp_path / f"{name}.trace.jsonl").sessions[0]) == "INTACT, SEALED"
        with monkeypatch.context() as patched:
            patched.setattr(OpenSessions, "_know", interrupted)
            with pytest.raises(KeyboardInterrupt):
                runtime.resume(earlier.id)
        assert runtime.resume(earlier.id).call("ticket.get", tool) == "ran"


def test_a_closed_runtime_opens_no_more_sessions(tmp_path: Path) -> None:
    """Nothing is governed by what was let go of; what it kept is gone on with by another."""
    runtime = Runtime(Atlas.from_dict(manifest()), trace=tmp_path)
    kept = runtime.session("desk", keep=True).id
    runtime.close()
    with pytest.raises(SinkError, match="closed"):
        runtime.session("desk")
    with pytest.raises(SinkError, match="closed"):
        runtime.resume(kept)
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as other:
        assert other.resume(kept).is_open
