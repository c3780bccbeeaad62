"""Two servers on one database, one of them stopped for longer than it holds a request: the other one decides it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cra_middleware._clock import SystemClock
from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import MovedError
from tests.conftest import manifest
from tests.server.serving import ASKED, Caller, code
from tests.server.test_shared import Sharing, Two, two_under
from tests.server.test_taken_up import fails_to_answer

LIMIT = {
    "policy_id": "one",
    "type": "rate_limit",
    "actions": ["ticket.update"],
    "parameters": {"max_calls": 1, "window_seconds": 3600},
}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    atlas = manifest(policies=[*manifest()["policies"], ASKED, LIMIT], redact=["ticket.list#/secret"])
    with two_under(atlas, tmp_path, SystemClock()) as made:
        yield made


class Stopped:
    """A request whose server stands still in the middle of it."""

    def __init__(self) -> None:
        self.is_there, self.may_go = threading.Event(), threading.Event()
        self.answers: list[Any] = []

    def point(self, *given: Any) -> None:
        """Where it stands still, the first time it comes by."""
        if not self.is_there.is_set():
            self.is_there.set()
            assert self.may_go.wait(20)

    @property
    def answer(self) -> Any:
        """What its client is told in the end."""
        return self.answers[0]

    @contextmanager
    def asking(self, caller: Caller, body: Any) -> Iterator[None]:
        """What is done inside is done while the server stands still; it no longer holds the request then."""
        thread = threading.Thread(target=lambda: self.answers.append(caller.post("/v1/execute", body)))
        thread.start()
        try:
            assert self.is_there.wait(20)
            time.sleep(0.3)
            yield
        finally:
            self.may_go.set()
            thread.join()


@pytest.fixture
def stops(two: Two, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stopped]:
    """Makes the first server stand still before, or behind, a step of its own."""

    def make(owner: object, step: str, behind: bool = False) -> Stopped:
        stopped, inner = Stopped(), getattr(owner, step)

        def standing_still(*given: Any, **more: Any) -> Any:
            if behind:
                found = inner(*given, **more)
                stopped.point()
                return found
            stopped.point()
            return inner(*given, **more)

        monkeypatch.setattr(owner, step, standing_still)
        two.one.book._is_closed.set()  # it renews no more
        monkeypatch.setattr(two.one.book, "_lease", 0.2)
        return stopped

    return make


def session_at(server: Sharing, name: str) -> Any:
    return server.service.host.table.peek(name)


@pytest.mark.parametrize("step", ["claim", "unanswered"])
@pytest.mark.parametrize("is_told", [False, True])
def test_another_thread_read_what_the_other_server_wrote(
    two: Two, stops: Callable[..., Stopped], step: str, is_told: bool
) -> None:
    """Then nothing new is there to be read when the stopped request goes on, and it is not let run all the same."""
    one, _, here, there = two
    name = here.session()
    there.execute(name)
    body = here.execution(name)
    owner, where = (one.book, "claim") if step == "claim" else (one.service.calls, "_unanswered")
    stopped = stops(owner, where, behind=True)
    with stopped.asking(here, body):
        call = there.post("/v1/execute", body).json()
        assert there.report(name, call["execution_id"]).status_code == 200 or not is_told
        assert here.execute(name).status_code == 200
    assert stopped.answer.json() == call
    assert here.kinds(name).count("action.approved") == 3


def test_what_the_other_server_refused_is_not_let_run_here(two: Two, stops: Callable[..., Stopped]) -> None:
    """It found the last place taken by the one that stood still: that one gives it back, and says what was said."""
    one, _, here, there = two
    name = here.session()
    there.execute(name, "ticket.list")
    body = here.execution(name, "ticket.update")
    stopped = stops(session_at(one, name)._calls, "_approve")
    with stopped.asking(here, body):
        refused = there.post("/v1/execute", body)
        assert code(refused) == (429, "RATE_LIMIT_EXCEEDED")
    assert stopped.answer.json() == refused.json()
    assert here.kinds(name).count("action.approved") == 1
    assert here.execute(name, "ticket.update").status_code == 200  # the place is free
    assert code(there.execute(name, "ticket.update")) == (429, "RATE_LIMIT_EXCEEDED")


def test_a_question_that_nobody_waits_for_is_not_left_open(two: Two, stops: Callable[..., Stopped]) -> None:
    """The yes was used at the other server meanwhile: the question that was opened anew is closed again."""
    one, other, here, there = two
    name = here.session()
    there.execute(name)
    body = here.execution(name, "refund.create")
    approval_id = there.post("/v1/execute", body).json()["error"]["details"]["approval_id"]
    ann = Caller(other, {"x-api-key": one.key("ann", "approver")})
    assert ann.post(f"/v1/approvals/{approval_id}/approve", {}).status_code == 200
    stopped = stops(session_at(one, name)._calls._deciding, "decide")
    with stopped.asking(here, body):
        call = there.post("/v1/execute", body).json()
        assert call["status"] == "success"
    assert stopped.answer.json() == call
    assert one.approvals.listed("pending", name) == []
    assert here.kinds(name).count("action.approved") == 2


def test_a_yes_that_was_used_here_for_nothing_is_given_back(two: Two, stops: Callable[..., Stopped]) -> None:
    """The other server found it used and asked a person again: what was decided here is not kept."""
    one, other, here, there = two
    name = here.session()
    there.execute(name)
    body = here.execution(name, "refund.create")
    approval_id = there.post("/v1/execute", body).json()["error"]["details"]["approval_id"]
    ann = Caller(other, {"x-api-key": one.key("ann", "approver")})
    assert ann.post(f"/v1/approvals/{approval_id}/approve", {}).status_code == 200
    stopped = stops(session_at(one, name)._calls, "_approve")
    with stopped.asking(here, body):
        asked = there.post("/v1/execute", body)
        assert code(asked) == (423, "ACTION_REQUIRES_APPROVAL")
        assert asked.json()["error"]["details"]["approval_id"] != approval_id
    assert code(stopped.answer) == (423, "ACTION_REQUIRES_APPROVAL")
    assert here.kinds(name).count("action.approved") == 1
    assert [item.state for item in one.approvals.listed(None, name)].count("approved") == 1


def test_a_key_is_not_called_used_up_while_another_server_answers_it(
    two: Two, stops: Callable[..., Stopped], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it let run cannot be told from another call here, as its arguments are hidden: its answer is waited for."""
    one, other, here, there = two
    name = here.session()
    there.execute(name)
    body = here.execution(name, "ticket.list", parameters={"secret": "s"})
    stopped = stops(one.book, "claim", behind=True)
    slow, answer = Stopped(), other.book.answer

    def slowly(*given: Any, **more: Any) -> None:
        slow.point()
        answer(*given, **more)

    monkeypatch.setattr(other.book, "answer", slowly)
    with stopped.asking(here, body), slow.asking(there, body):
        stopped.may_go.set()
        time.sleep(0.5)
    assert stopped.answer.status_code == 200, stopped.answer.text
    assert stopped.answer.json() == slow.answer.json()
    assert here.kinds(name).count("action.approved") == 2


def test_a_question_that_was_asked_at_the_other_server_is_no_other_decision(two: Two) -> None:
    """What it wrote before the request was held here is only read now: the yes counts at once."""
    one, other, here, there = two
    name = here.session()
    there.execute(name)
    body = here.execution(name, "refund.create")
    approval_id = there.post("/v1/execute", body).json()["error"]["details"]["approval_id"]
    ann = Caller(other, {"x-api-key": one.key("ann", "approver")})
    assert ann.post(f"/v1/approvals/{approval_id}/approve", {}).status_code == 200
    assert here.post("/v1/execute", body).json()["status"] == "success"


@pytest.mark.parametrize("closes", ["one", "other"])
def test_a_call_that_was_closed_before_the_request_came_again(
    two: Two, monkeypatch: pytest.MonkeyPatch, closes: str
) -> None:
    """Its server could not answer, and nobody asked again in time: at either the key is used up, and nothing counts."""
    one, _, here, there = two
    name = here.session()
    body = here.execution(name)
    fails_to_answer(one, here, body, monkeypatch)
    there.execute(name)
    reports = getattr(two, closes).service.reports
    monkeypatch.setattr(reports, "_now_us", lambda: SystemClock().wall_us() + 901_000_000)
    reports.sweep()
    for caller in (here, there):
        again = caller.post("/v1/execute", body)
        assert code(again) == (409, "IDEMPOTENCY_CONFLICT")
        assert not again.json()["error"]["recoverable"]
    kinds = here.kinds(name)
    assert (kinds.count("action.approved"), kinds.count("action.failed")) == (2, 2)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_place_is_not_given_back_for_a_call_that_may_be_in_the_trace(
    two: Two, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """The database went away behind the commit, or before it, and nobody heard which: a call that is let run when it
    is back has its place."""
    one, _, here, there = two
    name = here.session()
    there.execute(name)
    body = here.execution(name, "ticket.update")
    log = session_at(one, name)._writer._log
    append = log.append

    def breaks(*given: Any) -> None:
        if is_kept:
            with suppress(MovedError):
                append(*given)
        raise SinkError("the database is away", is_transient=True, is_unsure=True)

    with monkeypatch.context() as patched:
        patched.setattr(log, "append", breaks)
        assert code(here.post("/v1/execute", body)) == (500, "STORAGE_LOCKED")
    again = here.post("/v1/execute", body)
    assert again.status_code == (200 if is_kept else 429), again.text
    assert code(there.execute(name, "ticket.update")) == (429, "RATE_LIMIT_EXCEEDED")
