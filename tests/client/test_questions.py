"""Questions that wait at a server: foreseen, waited for, taken back, and gone on with."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import pytest

from cra_middleware import Answer, ApprovalRequired, CallRefused, Pending, Runtime
from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.carp.call import ToolCall
from cra_middleware.client.questions import Questions
from cra_middleware.client.remote_calls import RemoteCalls
from cra_middleware.enforcement import EnforcementPoint
from cra_middleware.errors import ApprovalRejected, SessionEnded
from tests.client.served import Served


class StoppedError(Exception):
    """The framework's own way to stop a run."""


class Stops:
    suspends = (StoppedError,)

    def __call__(self, pending: Pending) -> NoReturn:
        raise StoppedError


class Says:
    """What a run that is gone on with says: whoever answered it, the framework told us."""

    suspends = (StoppedError,)

    def __init__(self, approved: bool) -> None:
        self.approved = approved

    def __call__(self, pending: Pending) -> Answer:
        return Answer(self.approved, "somebody", "Not before Monday.")


def never(**arguments: object) -> None:
    raise AssertionError("it ran")


def refund(session: Any, amount: int = 5) -> ToolCall:
    call: ToolCall = session.freeze("refund.create", "tools.refund", {"amount": amount})
    return call._replace(tool_call_id="call-1")


def test_a_call_that_would_wait(served: Served, runtime: Runtime) -> None:
    """As long as nobody has answered; nothing is recorded, sync and async."""
    served.key("ann", "approver")
    with runtime.session("bot", "Help") as session:
        before = served.events(session.id)
        assert session.would_wait(refund(session))
        assert asyncio.run(session.awould_wait(refund(session)))
        assert not session.would_wait(session.freeze("ticket.get", "tool", {}))
        assert not session.would_wait(session.freeze("ticket.delete", "tool", {}))
        assert not session.would_wait(session.freeze("refund.create", "tool", {'a"b': 1}))
        assert served.events(session.id) == before
        with pytest.raises(ApprovalRequired) as stopped:
            session.run(refund(session), never)
        assert session.would_wait(refund(session))
        with served.connect("ann") as desk:
            desk.approvals.approve(str(stopped.value.approval_id), by="ann")
        assert not session.would_wait(refund(session))


def test_without_an_answer_nothing_would_wait(serve: Any) -> None:
    """The call itself then finds out, and is refused."""
    served: Served = serve()
    runtime = served.connect()
    session = runtime.session("bot", "Help")
    served.gone()
    assert not session.would_wait(refund(session))
    session.detach()
    runtime.close()


def test_a_no_is_told_to_the_server(served: Served, runtime: Runtime) -> None:
    """The question is closed, the trace has the denial, and nobody can say yes any more."""
    served.key("ann", "approver")
    with runtime.session("bot", "Help") as session:
        with pytest.raises(StoppedError):
            session.run(refund(session), never, approver=Stops())
        (question,) = runtime.approvals.list("pending", session.id)
        with pytest.raises(ApprovalRejected, match=r"Not before Monday\."):
            session.run(refund(session), never, approver=Says(False))
        closed = runtime.approvals.get(question.pending.approval_id)
        assert closed is not None
        assert (closed.state, closed.by, closed.reason) == ("rejected", "who asked", "Not before Monday.")
        assert not session.is_waiting
        with served.connect("ann") as desk, pytest.raises(ApprovalError, match="rejected already"):
            desk.approvals.approve(question.pending.approval_id, by="ann")
    assert served.outcomes(session.id) == [("action.denied", "refund.create")]
    denied = [payload for kind, payload in served.events(session.id) if kind == "action.denied"]
    assert [(one["code"], one["reason"]) for one in denied] == [("approval_rejected", "Not before Monday.")]


def test_a_no_that_comes_too_late_lets_nothing_run(served: Served, runtime: Runtime) -> None:
    """A person said yes between the question and the framework's no: the no counts here."""
    served.key("ann", "approver")

    class Late(Says):
        def __call__(self, pending: Pending) -> Answer:
            with served.connect("ann") as desk:
                desk.approvals.approve(pending.approval_id, by="ann")
            return super().__call__(pending)

    with runtime.session("bot", "Help") as session:
        with pytest.raises(ApprovalRejected):
            session.run(refund(session), never, approver=Late(False))
    assert served.outcomes(session.id) == []


@pytest.mark.parametrize("while_it", ["asks", "tells"])
def test_an_interruption_comes_out(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, while_it: str) -> None:
    """Of who waits for the server, before a question is shown and behind the answer to it."""

    def interrupted(*args: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((Questions, "pending") if while_it == "asks" else (RemoteCalls, "_take_back")), interrupted)
    with runtime.session("bot", "Help") as session, pytest.raises(KeyboardInterrupt):
        session.run(refund(session), never, approver=Says(False))


def test_a_yes_is_none(served: Served, runtime: Runtime) -> None:
    """The question stays open: only the server's answer counts."""
    with runtime.session("bot", "Help") as session:
        with pytest.raises(ApprovalRequired):
            session.run(refund(session), never, approver=Says(True))
        assert len(runtime.approvals.list("pending", session.id)) == 1


def test_a_no_by_the_frameworks_own_means(served: Served, runtime: Runtime) -> None:
    """Where the call does not come again, an adapter says what became of it."""
    point = EnforcementPoint(runtime, "toolbox", actions={"refund": "refund.create"})
    tool = point.tool("refund", body=never)
    with pytest.raises(StoppedError):
        tool.call({"amount": 5}, call_id="call-no", run="thread-no", approver=Stops()).run(never)
    (question,) = [item for item in runtime.approvals.list() if item.pending.tool_call_id == "call-no"]
    session = point.session(run="thread-no")
    point.withdraw(session, "call-no", by="the run", reason="Cancelled.")
    closed = runtime.approvals.get(question.pending.approval_id)
    assert closed is not None
    assert (closed.state, closed.reason) == ("rejected", "Cancelled.")


def test_a_session_waits_with_those_below_it(served: Served, runtime: Runtime) -> None:
    """A run is not over while an agent that it was handed over to is stopped for a person."""
    served.key("ann", "approver")
    point = EnforcementPoint(runtime, "toolbox", actions={"refund": "refund.create", "lookup": "ticket.get"})
    lookup, tool = point.tool("lookup"), point.tool("refund", body=never)
    lookup.call({}, call_id="call-0", agent="first", run="thread-below").run(lambda: None)
    below = tool.call({"amount": 5}, call_id="call-below", agent="second", run="thread-below", approver=Stops())
    with pytest.raises(StoppedError):
        below.run(never)
    root = point.session(run="thread-below", agent="first")
    assert root.is_waiting
    point.end("thread-below")
    assert root.is_open
    assert below.session.is_open
    (question,) = runtime.approvals.list("pending", below.session.id)
    runtime.close()
    assert not any(kind == "session.ended" for kind, _ in served.events(root.id))
    with served.connect("ann") as desk:
        desk.approvals.approve(question.pending.approval_id, by="ann")
    with served.connect() as again:
        point = EnforcementPoint(again, "toolbox", actions={"refund": "refund.create"})
        tool = point.tool("refund", body=never)
        call = tool.call({"amount": 5}, call_id="call-below", agent="second", run="thread-below")
        assert call.session.id == below.session.id
        assert call.run(lambda: "paid") == "paid"
        point.end("thread-below")
        assert not call.session.is_open  # it ended with the one above it
        with pytest.raises(SessionEnded):
            call.run(never)
    for name in (root.id, below.session.id):
        assert [kind for kind, _ in served.events(name)][-1] == "session.ended"


def test_a_refusal_is_a_refusal_for_adapters(runtime: Runtime) -> None:
    """A server that is asked about a call of a session that is over says so by the call itself."""
    with runtime.session("bot", "Help") as session:
        pass
    assert not session.would_wait(refund(session))
    with pytest.raises(CallRefused):
        session.run(refund(session), never)
