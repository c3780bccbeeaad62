"""Approvals through a runtime: bound to exactly one call, used once, and kept over a restart."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import ActionDenied, Answer, Atlas, Pending, Runtime, Session, SessionEnded
from cra_middleware._canonical import canonical, digest
from cra_middleware.approvals.approval import Approval, ApprovalError
from cra_middleware.approvals.approvers import ApprovalQueue, NoTerminalError, describe_pending
from cra_middleware.approvals.store import MemoryApprovals
from cra_middleware.calls import calls_under_way
from cra_middleware.calls.desk import MAX_PENDING
from cra_middleware.errors import ApprovalRejected, ApprovalRequired, AuditUnavailable, CallRefused, RateLimitExceeded
from cra_middleware.policies import begin_epoch
from cra_middleware.testing import FailingSink, FrozenClock
from tests.conftest import NOON, manifest, policies

ASK: dict[str, Any] = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]}
RAN: list[object] = []


def pay(amount: object, note: object = None) -> str:
    RAN.append(amount)
    return "paid"


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(NOON)


@pytest.fixture
def runtime(clock: FrozenClock) -> Iterator[Runtime]:
    never = {"policy_id": "no", "type": "deny", "actions": ["*.delete"]}
    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK, never))), clock=clock) as made:
        yield made


@pytest.fixture
def session(runtime: Runtime) -> Session:
    return runtime.session("bot")


def ask(session: Session, *args: Any) -> str:
    """Make a call that waits; its approval."""
    with pytest.raises(ApprovalRequired) as asked:
        session.call("refund.create", pay, *args)
    assert asked.value.approval_id is not None
    return asked.value.approval_id


def test_the_identical_call_runs_once(runtime: Runtime, session: Session) -> None:
    """Approved, it runs; the second time it is another question. Who approved is in the chain, which verifies."""
    name = ask(session, 250)
    assert ask(session, 250) == name  # still the same question
    runtime.approvals.approve(name, by="ann", reason="ok")
    assert session.call("refund.create", pay, 250) == "paid"
    assert ask(session, 250) != name
    assert RAN == [250]
    (approved,) = [event.payload for event in session.events if event.event_type == "action.approved"]
    assert (approved["approval_id"], approved["approver"]) == (name, "ann")
    assert session.verify().intact


@pytest.mark.parametrize("args", [(251,), (250.5,), ("250",), (250, "x")])
def test_other_arguments_are_another_question(runtime: Runtime, session: Session, args: tuple[Any, ...]) -> None:
    """The yes counts for exactly these arguments."""
    name = ask(session, 250)
    runtime.approvals.approve(name, by="ann")
    assert ask(session, *args) != name
    assert RAN == []


def test_another_session_and_agent(runtime: Runtime, session: Session) -> None:
    """The yes counts for the session that asked."""
    runtime.approvals.approve(ask(session, 250), by="ann")
    ask(runtime.session("bot"), 250)
    assert RAN == []


def test_changed_policies_void_it(runtime: Runtime, session: Session) -> None:
    """Pending or approved: under other policies it counts no more, and nobody can approve it."""
    first, second = ask(session, 250), ask(session, 300)
    runtime.approvals.approve(first, by="ann")
    runtime.reload(Atlas.from_dict(manifest(policies=policies(ASK), version="2.0.0")))
    assert {item.pending.approval_id: item.state for item in runtime.approvals.list(None)} == {
        first: "expired",
        second: "expired",
    }
    with pytest.raises(ApprovalError, match="is expired already"):
        runtime.approvals.approve(second, by="ann")
    assert ask(session, 250) not in (first, second)
    assert RAN == []


def test_policies_that_change_while_a_person_thinks(clock: FrozenClock) -> None:
    """The yes was to other policies: the call is refused, and the question closed."""
    made: list[Runtime] = []

    def thinks(pending: Pending) -> bool:
        made[0].reload(Atlas.from_dict(manifest(policies=policies(ASK), version="2.0.0")))
        return True

    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK))), approver=thinks, clock=clock) as runtime:
        made.append(runtime)
        with pytest.raises(ApprovalRejected):
            runtime.session("bot").call("refund.create", pay, 1)
    assert RAN == []


def test_policies_that_change_after_the_yes(clock: FrozenClock) -> None:
    """Between the answer and its use, in another store's eyes still approved: it does not count."""
    made: list[Runtime] = []

    class Slow(MemoryApprovals):
        def answer(self, approval_id: str, answer: Answer, now_us: int) -> Approval:
            found = super().answer(approval_id, answer, now_us)
            made[0]._policies.epoch = begin_epoch([Atlas.from_dict(manifest(version="2.0.0"))], made[0]._terms)
            return found

    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    with Runtime(atlas, approver=lambda pending: True, approvals=Slow(), clock=clock) as runtime:
        made.append(runtime)
        with pytest.raises(ApprovalRejected, match="policies changed") as refused:
            runtime.session("bot").call("refund.create", pay, 1)
    assert (refused.value.code, RAN) == ("approval_expired", [])


def test_a_restart_with_other_policies(tmp_path: Path) -> None:
    """What was approved before the restart was approved under other rules."""
    places: dict[str, Any] = {"trace": tmp_path / "t", "approvals": tmp_path / "a.db"}
    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK))), **places) as first:
        session = first.session("bot")
        name = ask(session, 1)
        first.approvals.approve(name, by="ann")
        session.detach()
    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK), version="2.0.0")), **places) as second:
        assert ask(second.resume(session.id), 1) != name
    assert RAN == []


def test_an_agent_in_a_loop_is_not_heard_for_ever(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many refusals the session takes no more calls, and its chain says why."""
    monkeypatch.setattr(calls_under_way, "MAX_REFUSALS", 3)
    for _ in range(3):
        with pytest.raises(ActionDenied):
            session.call("ticket.delete", lambda: None)
    before = len(session.events)
    with pytest.raises(SessionEnded, match="had 3 calls refused"):
        session.call("ticket.get", lambda: None)
    assert len(session.events) == before
    assert session.events[-1].payload["error_code"] == "too_many_refusals"


def test_it_expires(clock: FrozenClock) -> None:
    """A question stands for as long as the policy says, to the microsecond."""
    asks = {**ASK, "parameters": {"expires_seconds": 60}}
    with (
        Runtime(Atlas.from_dict(manifest(policies=policies(asks))), clock=clock) as runtime,
        runtime.session() as session,
    ):
        first = ask(session, 1)
        runtime.approvals.approve(first, by="ann")
        clock.advance(60)
        second = ask(session, 1)
        assert second != first
        clock.advance(59.9)
        runtime.approvals.approve(second, by="ann")
        assert session.call("refund.create", pay, 1) == "paid"


def test_a_no_is_told_and_kept(runtime: Runtime, session: Session) -> None:
    """The agent is told why, as often as it tries."""
    runtime.approvals.reject(ask(session, 250), by="ann", reason="Too much.")
    for _ in range(2):
        with pytest.raises(ApprovalRejected, match="Too much") as refused:
            session.call("refund.create", pay, 250)
        assert refused.value.code == "approval_rejected"
    assert RAN == []


def test_an_approval_that_meets_a_limit_stands(clock: FrozenClock) -> None:
    """It is used up together with the place in the limit, or not at all."""
    limit = {"policy_id": "l", "type": "rate_limit", "parameters": {"max_calls": 1, "window_seconds": 60}}
    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK, limit))), clock=clock) as runtime:
        session = runtime.session("bot")
        names = [ask(session, amount) for amount in (1, 2)]
        for name in names:
            runtime.approvals.approve(name, by="ann")
        assert session.call("refund.create", pay, 1) == "paid"
        with pytest.raises(RateLimitExceeded):
            session.call("refund.create", pay, 2)
        clock.advance(60)
        assert session.call("refund.create", pay, 2) == "paid"


def test_an_audit_failure_gives_it_back(clock: FrozenClock) -> None:
    """The tool did not run, so the yes is not used."""
    sink = FailingSink()
    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK))), clock=clock, trace=sink) as runtime:
        session = runtime.session("bot")
        name = ask(session, 1)
        runtime.approvals.approve(name, by="ann")
        sink.failing = True
        with pytest.raises(AuditUnavailable):
            session.call("refund.create", pay, 1)
        sink.failing = False
        assert session.call("refund.create", pay, 1) == "paid"
        assert RAN == [1]


def test_parallel_calls_use_it_once(runtime: Runtime, session: Session) -> None:
    """Sixteen threads with the same call: one runs."""
    runtime.approvals.approve(ask(session, 250), by="ann")
    refused: list[CallRefused] = []

    def call() -> None:
        try:
            session.call("refund.create", pay, 250)
        except CallRefused as error:
            refused.append(error)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (RAN, len(refused)) == ([250], 15)
    assert session.verify().intact


def test_open_questions_are_capped(session: Session) -> None:
    """An agent cannot bury people in questions."""
    for amount in range(MAX_PENDING):
        ask(session, amount)
    with pytest.raises(ApprovalRejected, match="wait for a person already"):
        session.call("refund.create", pay, 1000)


def test_objects_are_refused_at_once(runtime: Runtime, session: Session) -> None:
    """Nobody can approve what cannot be written down, so nobody is asked."""
    with pytest.raises(ApprovalRejected, match="cannot be written down"):
        session.call("refund.create", pay, object())
    assert runtime.approvals.list(None) == []


@pytest.mark.parametrize("durable", [True, False])
def test_a_question_ends_with_its_session(tmp_path: Path, durable: bool) -> None:
    """Nobody is left to answer for a session that is sealed; one that is only detached goes on."""
    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    with Runtime(atlas, trace=tmp_path / "t", approvals=tmp_path / "a.db" if durable else None) as runtime:
        sessions = [runtime.session("bot"), runtime.session("bot")]
        names = []
        for session in sessions:
            for amount in (1, 2):
                with pytest.raises(ApprovalRequired) as asked:
                    session.call("refund.create", pay, amount)
                names.append(asked.value.approval_id or "")
        runtime.approvals.approve(names[0], by="ann")
        sessions[0].end()
        sessions[1].detach()
        states = [(item.state, item.reason) for item in runtime.approvals.list(None)]
        assert states == [("expired", "the session ended")] * 2 + [("pending", None)] * 2
        with pytest.raises(ApprovalError, match="is expired already: the session ended"):
            runtime.approvals.approve(names[1], by="ann")


def test_a_no_is_let_go_of_with_its_session() -> None:
    """It is listed, and no call is held up by it."""
    store = MemoryApprovals()
    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    with Runtime(atlas, approvals=store, approver=lambda pending: Answer(False, "ann", "No.")) as runtime:
        with runtime.session("bot") as session, pytest.raises(ApprovalRejected):
            session.call("refund.create", pay, 1)
        (refused,) = runtime.approvals.list("rejected", session.id)
        assert store.find(session.id, "refund.create", refused.pending.arguments_digest) is None
        assert (refused.by, refused.reason) == ("ann", "No.")


def test_redacted_arguments_are_not_kept(tmp_path: Path) -> None:
    """The approver sees them; neither the store's file nor the trace does, nor a hash that could be tried out."""
    seen: list[Any] = []

    def approver(pending: Pending) -> bool:
        seen.append(pending.arguments["note"])
        return True

    schema = {"properties": {"amount": {"type": "number"}, "note": {"type": "string"}}}
    action = {"action_id": "refund.create", "name": "r", "description": "r", "parameters_schema": schema}
    atlas = Atlas.from_dict(manifest(actions=[action], policies=policies(ASK), redact=["refund.*.note"]))
    with Runtime(atlas, trace=tmp_path / "t", approvals=tmp_path / "a.db", approver=approver, record="full") as runtime:
        with runtime.session("bot") as session:
            session.call("refund.create", pay, 5, "4111-1111")
            (requested,) = [event for event in session.events if event.event_type == "action.requested"]
    assert requested.payload["parameters_hash"] != digest(canonical({"amount": 5, "note": "4111-1111"}))
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert (seen, b"4111-1111" in kept, b"cra:redacted:" in kept) == (["4111-1111"], False, True)
    assert digest(canonical({"amount": 5, "note": "4111-1111"})).encode() not in kept
    with Runtime(atlas, trace=tmp_path / "t", approvals=tmp_path / "a.db") as runtime:
        session = runtime.session("bot")
        with pytest.raises(ApprovalRequired) as asked:
            session.call("refund.create", pay, 7, "1234")
        session.detach()
    with Runtime(atlas, trace=tmp_path / "t", approvals=tmp_path / "a.db") as runtime:  # found again after a restart
        runtime.approvals.approve(asked.value.approval_id or "", by="ann")
        session = runtime.resume(session.id)
        with pytest.raises(ApprovalRequired):
            session.call("refund.create", pay, 7, "1235")
        assert session.call("refund.create", pay, 7, "1234") == "paid"


def test_a_failing_approver_leaves_it_open(runtime: Runtime) -> None:
    """The call is refused; a person may still answer elsewhere."""

    def fails(pending: Pending) -> bool:
        raise ConnectionError

    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK))), approver=fails) as made:
        session = made.session("bot")
        with pytest.raises(ApprovalRejected, match="failed with ConnectionError"):
            session.call("refund.create", pay, 1)
        (waiting,) = made.approvals.list()
        made.approvals.approve(waiting.pending.approval_id, by="ann")
        assert session.call("refund.create", pay, 1) == "paid"


def test_an_approver_that_may_not(clock: FrozenClock) -> None:
    """The answer of one who may not answer does not count, nor does one that comes too late."""
    asks = {**ASK, "parameters": {"approvers": ["leads"], "expires_seconds": 60}}
    answers: list[Any] = [Answer(True, "bob"), Answer(True, "bot", None, ("leads",)), "late"]

    def approver(pending: Pending) -> Answer:
        answer = answers.pop(0)
        if answer == "late":
            clock.advance(60)
            return Answer(True, "ann", None, ("leads",))
        assert isinstance(answer, Answer)
        return answer

    atlas = Atlas.from_dict(manifest(policies=policies(asks)))
    with Runtime(atlas, approver=approver, clock=clock) as runtime:
        session = runtime.session("bot")
        for code in ("approval_rejected", "approval_rejected", "approval_expired"):
            with pytest.raises(ApprovalRejected) as refused:
                session.call("refund.create", pay, 1)
            assert refused.value.code == code
    assert RAN == []


def test_every_policy_that_asks_is_satisfied(clock: FrozenClock, tmp_path: Path) -> None:
    """Two policies ask, each for its own people: the yes of one group is not the yes of the other."""
    leads = {**ASK, "policy_id": "leads", "parameters": {"approvers": ["leads"], "expires_seconds": 600}}
    money = {**ASK, "policy_id": "money", "parameters": {"approvers": ["finance", "ann"], "expires_seconds": 60}}
    atlas = Atlas.from_dict(manifest(policies=policies(leads, ASK, money)))
    for store in (None, tmp_path / "a.db"):
        with Runtime(atlas, clock=clock, approvals=store) as runtime:
            session = runtime.session("bot")
            name = ask(session, 1)
            for groups in (["leads"], ["finance"]):
                with pytest.raises(ApprovalError, match="wants the yes of"):
                    runtime.approvals.approve(name, by="bob", groups=groups)
            (waiting,) = runtime.approvals.list()
            assert (waiting.pending.policy_id, waiting.pending.also_needed) == ("leads", (("finance", "ann"),))
            assert waiting.pending.expires_us - waiting.pending.requested_us == 60_000_000
            runtime.approvals.approve(name, by="ann", groups=["leads"])
            assert session.call("refund.create", pay, 1) == "paid"


@pytest.mark.parametrize("waits", ["before the call is repeated", "while a person thinks"])
def test_who_is_asked_may_change_with_the_hour(clock: FrozenClock, waits: str) -> None:
    """From six o'clock on finance is asked too: a yes from before, without them, does not count any more."""
    evening = {"time_window": {"start": "18:00"}}
    late = {**ASK, "policy_id": "late", "conditions": evening, "parameters": {"approvers": ["finance"]}}
    atlas = Atlas.from_dict(manifest(policies=policies(ASK, late)))
    if waits == "while a person thinks":

        def slow(pending: Pending) -> bool:
            clock.advance(6 * 3600)
            return True

        with Runtime(atlas, clock=clock, approver=slow) as runtime:
            with pytest.raises(ApprovalRejected, match="other people are asked by now") as refused:
                runtime.session("bot").call("refund.create", pay, 1)
            assert refused.value.code == "approval_expired"
    else:
        with Runtime(atlas, clock=clock) as runtime:
            session = runtime.session("bot")
            first = ask(session, 1)
            runtime.approvals.approve(first, by="ann")
            clock.advance(6 * 3600)
            second = ask(session, 1)
            assert second != first
            runtime.approvals.approve(second, by="bob", groups=["finance"])
            assert session.call("refund.create", pay, 1) == "paid"
    assert RAN == ([] if waits == "while a person thinks" else [1])


def test_whoever_answers_first(clock: FrozenClock) -> None:
    """While the approver thinks, somebody else says yes: that counts."""
    store = MemoryApprovals()

    def slow(pending: Pending) -> bool:
        store.answer(pending.approval_id, Answer(True, "ann"), clock.wall_us())
        return False

    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    with Runtime(atlas, approver=slow, approvals=store, clock=clock) as runtime:
        assert runtime.session("bot").call("refund.create", pay, 1) == "paid"


def test_notifications(caplog: pytest.LogCaptureFixture) -> None:
    """Each question is told once, sync or async; a message that fails changes nothing."""
    heard: list[str] = []

    async def notify(pending: Pending) -> None:
        heard.append(pending.approval_id)
        raise ConnectionError

    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK))), notify=notify) as runtime:
        session = runtime.session("bot")
        names = [ask(session, 1), ask(session, 1), ask(session, 2)]
        for thread in threading.enumerate():
            if thread.name == "cra-notify":
                thread.join(10)
    assert sorted(heard) == sorted({*names})
    assert "nobody was told" in caplog.text


def test_a_queue() -> None:
    """Another thread answers; a question that nobody answers in time stays open."""
    waiting = ApprovalQueue(timeout_seconds=30)

    def person() -> None:
        pending = waiting.next(30)
        assert pending is not None
        assert waiting.waiting() == (pending.approval_id,)
        assert waiting.answer(pending.approval_id, Answer(True, "ann"))

    thread = threading.Thread(target=person)
    thread.start()
    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    with Runtime(atlas, approver=waiting) as runtime:
        assert runtime.session("bot").call("refund.create", pay, 1) == "paid"
    thread.join()
    assert not waiting.answer("nobody", True)
    assert waiting.next(0) is None
    with Runtime(atlas, approver=ApprovalQueue(timeout_seconds=0.01)) as runtime:
        with pytest.raises(ApprovalRejected, match="failed with TimeoutError"):
            runtime.session("bot").call("refund.create", pay, 1)
        assert len(runtime.approvals.list()) == 1


def test_a_question_in_words() -> None:
    """Nothing that an agent writes is taken for ours, and a person sees all of it."""
    pending = Pending(
        approval_id="a",
        session_id="s",
        agent_id="bot",
        action_id="a.b",
        tool_name="t",
        arguments={"text": "x" * 1000 + "\u202eend", "more": {"b": 1}, "to be answered by": object()},
        policy_id="p",
        reason="Why.",
        approvers=("leads",),
    )
    lines = describe_pending(pending)
    assert lines[0] == "bot wants to call a.b (t)"
    text = "".join(line.removeprefix("  ").removeprefix("  | ") for line in lines[2:-3])
    assert text == 'text: "' + "x" * 1000 + '\\u202eend"'
    assert lines[-3:-1] == ['  more: {"b": 1}', '  "to be answered by": "cra:opaque:builtins.object"']
    assert all(line.startswith("    | ") for line in lines[3:-3])
    assert lines[-1] == "  to be answered by leads"
    assert all(len(line) < 120 for line in lines)


def test_no_terminal() -> None:
    """Asking on a terminal that is not there is no answer."""
    program = (
        "from cra_middleware.approvals.approvers import ask_on_terminal, NoTerminalError\n"
        "try:\n    ask_on_terminal(None)\nexcept NoTerminalError:\n    print('none')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "none\n", done.stderr
    assert issubclass(NoTerminalError, Exception)


def test_a_store_that_breaks_refuses(tmp_path: Path) -> None:
    """No question can be kept: nothing runs, and the agent is told so."""
    path = tmp_path / "a.db"
    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    with Runtime(atlas, approvals=path) as runtime:
        session = runtime.session("bot")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("DROP TABLE approvals")
        with pytest.raises(CallRefused, match="approvals cannot be kept") as refused:
            session.call("refund.create", pay, 1)
        other.close()
    assert (refused.value.code, RAN) == ("policy_error", [])


def test_whether_a_call_would_wait(runtime: Runtime, session: Session) -> None:
    """It is told before the call, and telling it records nothing, asks nobody and uses nothing up."""
    call = session.freeze("refund.create", "pay", {"amount": 5, "note": None})
    before = len(session.events)
    assert session.would_wait(call)
    assert not session.would_wait(session.freeze("ticket.get", "lookup", {}))
    assert not session.would_wait(session.freeze("ticket.delete", "remove", {}))
    assert (len(session.events), runtime.approvals.list()) == (before, [])
    name = ask(session, 5)
    assert session.would_wait(call)
    runtime.approvals.approve(name, by="ann")
    assert not session.would_wait(call)
    assert not session.would_wait(call)
    assert session.call("refund.create", pay, 5) == "paid"
    assert session.would_wait(call)


@pytest.mark.parametrize("answer", ["approve", "reject"])
@pytest.mark.parametrize("why", ["expired", "others are asked", "other policies"])
def test_a_call_waits_where_an_answer_counts_no_more(why: str, answer: str, clock: FrozenClock, tmp_path: Path) -> None:
    """As the call itself would; the old question stays as it is until then."""
    asks = {**ASK, "parameters": {"expires_seconds": 60 if why == "expired" else 86_400}}
    evening = {**ASK, "policy_id": "late", "conditions": {"time_window": {"start": "18:00"}}}
    evening["parameters"] = {"approvers": ["finance"]}
    never = {"policy_id": "no", "type": "deny", "actions": ["*.delete"]}
    stores: dict[str, Any] = {"trace": tmp_path / "t", "approvals": tmp_path / "a.db", "clock": clock}
    with Runtime(Atlas.from_dict(manifest(policies=policies(asks, evening))), **stores) as runtime:
        session = runtime.session("bot", keep=True)
        name = ask(session, 5)
        getattr(runtime.approvals, answer)(name, by="ann")
        assert not session.would_wait(session.freeze("refund.create", "pay", {"amount": 5, "note": None}))
    clock.advance({"expired": 60, "others are asked": 6 * 3600}.get(why, 0))
    added = [never] if why == "other policies" else []
    with Runtime(Atlas.from_dict(manifest(policies=policies(asks, evening, *added))), **stores) as runtime:
        session = runtime.resume(session.id)
        assert session.would_wait(session.freeze("refund.create", "pay", {"amount": 5, "note": None}))
        (left,) = runtime.approvals.list(None)
        assert left.state == {"approve": "approved", "reject": "rejected"}[answer]
        assert ask(session, 5) != name


def test_a_call_does_not_wait_where_somebody_is_asked() -> None:
    """An approver is asked when the call is made."""
    with Runtime(Atlas.from_dict(manifest(policies=policies(ASK))), approver=lambda pending: True) as runtime:
        session = runtime.session("bot")
        assert not session.would_wait(session.freeze("refund.create", "pay", {"amount": 5, "note": None}))


PROGRAM = """
import os, sys, signal
from cra_middleware import ApprovalRequired, Atlas, Runtime
runtime = Runtime(sys.argv[1], trace=sys.argv[2], approvals=sys.argv[3])
session = runtime.session("bot")
try:
    session.call("refund.create", lambda amount, note=None: print("RAN"), 250)
except ApprovalRequired as asked:
    print(session.id, asked.approval_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_it_waits(tmp_path: Path) -> None:
    """The process is killed; a new one goes on with session and question, and the call runs exactly once."""
    (tmp_path / "atlas.json").write_text(json.dumps(manifest(policies=policies(ASK))))
    places = (str(tmp_path / "atlas.json"), str(tmp_path / "traces"), str(tmp_path / "a.db"))
    done = subprocess.run([sys.executable, "-c", PROGRAM, *places], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    session_id, name = done.stdout.split()
    with Runtime(places[0], trace=places[1], approvals=places[2]) as runtime:
        session = runtime.resume(session_id)
        assert ask(session, 250) == name
        runtime.approvals.approve(name, by="ann")
        assert session.call("refund.create", pay, 250) == "paid"
        ask(session, 250)
        assert (RAN, session.verify().intact) == ([250], True)
