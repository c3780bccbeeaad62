"""A call that was let run and not answered yet is the answer to its own request, and to no other."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cra_middleware.server.book import BookError
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest
from tests.server.serving import Caller, Serve, Served, code


def fails_to_answer(served: Served, bot: Caller, body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is let run, and nobody is told."""

    def fails(*asked: object, **more: object) -> None:
        raise BookError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(served.service.host.book, "answer", fails)
        assert code(bot.post("/v1/execute", body)) == (500, "STORAGE_LOCKED")


@pytest.mark.parametrize(
    "other",
    [
        {"parameters": {"n": 2}},
        {"agent_name": "helper"},
        {"tool_name": "tools.other"},
        {"distrust": "the tool is another one"},
    ],
)
def test_another_call_under_the_same_id_is_decided_by_itself(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    """The id is the framework's: what it says twice was not asked twice. A call with other arguments, too."""
    served = serve(manifest())
    bot = served.by("bot")
    name = bot.session()
    body = bot.execution(name, tool_call_id="call-1")
    fails_to_answer(served, bot, body, monkeypatch)
    bot.execute(name, tool_call_id="call-1", **other)
    assert bot.kinds(name).count("action.requested") == 2
    again = bot.post("/v1/execute", body)
    assert again.status_code == 200
    assert bot.kinds(name).count("action.requested") == 2
    assert bot.report(name, again.json()["execution_id"]).status_code == 200


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ({}, {"parameters": {"n": 2}}),
        ({}, {"tool_name": "tools.other"}),
        ({}, {"distrust": "the tool is another one"}),
        ({"redact": ["ticket.get#/n"]}, {}),
    ],
)
def test_a_key_whose_call_cannot_be_told_apart_is_used_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any], body: dict[str, Any]
) -> None:
    """It came again with another call, or the trace hides what it was about: nothing runs, and nothing counts twice."""
    served = serve(manifest(**rule))
    bot = served.by("bot")
    name = bot.session()
    first = bot.execution(name, idempotency_key="k")
    fails_to_answer(served, bot, first, monkeypatch)
    again = bot.execute(name, idempotency_key="k", **body)
    assert code(again) == (409, "IDEMPOTENCY_CONFLICT")
    assert not again.json()["error"]["recoverable"]
    assert bot.kinds(name).count("action.requested") == 1
    assert bot.execute(name, idempotency_key="k2").status_code == 200


def test_two_requests_never_run_one_call(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that differ in nothing but their ids, the second asked before the first is answered: the yes of one
    person, or a place in a limit, counts for one of them."""
    served = serve()
    bot = served.by("bot")
    name = bot.session()
    book = served.service.host.book
    keep, is_slow, may_go = book.answer, threading.Event(), threading.Event()

    def waits(*asked: Any, **more: Any) -> None:
        if not is_slow.is_set():
            is_slow.set()
            may_go.wait(10)
        keep(*asked, **more)

    monkeypatch.setattr(book, "answer", waits)
    first = bot.execution(name, tool_call_id="call-1")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(bot.post("/v1/execute", first)))
    thread.start()
    assert is_slow.wait(10)
    second = bot.execute(name, tool_call_id="call-1")
    may_go.set()
    thread.join()
    third = bot.post("/v1/execute", first)
    assert [answer.status_code for answer in (*answers, second, third)] == [200] * 3
    assert answers[0].json() == third.json()
    assert second.json()["execution_id"] != third.json()["execution_id"]
    assert bot.kinds(name).count("action.approved") == 2


def test_nobody_takes_up_or_tells_of_a_call_that_runs_at_the_server(serve: Serve) -> None:
    """The server knows how it comes out; to an agent it is no call of its own."""
    began, may_go, ran = threading.Event(), threading.Event(), list[int]()

    def slow(n: int) -> dict[str, int]:
        ran.append(n)
        if n == 1:
            began.set()
            may_go.wait(10)
        return {"n": n}

    served = serve(executors={"ticket.get": slow})
    bot = served.by("bot")
    name = bot.session()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(bot.execute(name, tool_call_id="call-1")))
    thread.start()
    assert began.wait(10)
    events = bot.get(f"/v1/traces/{name}").json()["events"]
    assert code(bot.report(name, events[-1]["payload"]["execution_id"])) == (404, "EXECUTION_NOT_FOUND")
    for number in (2, 1):
        if number == 1:
            may_go.set()
        assert bot.execute(name, tool_call_id="call-1", parameters={"n": number}).json()["result"] == {"n": number}
    thread.join()
    assert answers[0].json()["result"] == {"n": 1}
    assert ran == [1, 2, 1]
    told = [
        event["payload"]
        for event in bot.get(f"/v1/traces/{name}").json()["events"]
        if "reported_by" in event["payload"]
    ]
    assert [payload["reported_by"] for payload in told] == ["server"] * 3


def test_a_call_for_the_server_that_was_let_run_before_it_stopped_is_run_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did not run: its answer is kept before it does."""
    ran: list[int] = []
    served = serve(executors={"ticket.get": lambda n: ran.append(n)})
    bot = served.by("bot")
    name = bot.session()
    body = bot.execution(name)
    fails_to_answer(served, bot, body, monkeypatch)
    assert ran == []
    for _ in range(2):
        assert bot.post("/v1/execute", body).json()["status"] == "success"
    assert ran == [1]
    assert bot.kinds(name).count("action.requested") == 1


def test_a_key_whose_call_nobody_was_told_of_in_time_is_used_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is closed, and the same request is not decided, or counted, once more."""
    clock = FrozenClock(NOON)
    served = serve(manifest(), clock=clock)
    bot = served.by("bot")
    name = bot.session()
    fails_to_answer(served, bot, bot.execution(name, idempotency_key="k"), monkeypatch)
    told = bot.execute(name, idempotency_key="told").json()
    clock.advance(901)
    served.service.reports.sweep()
    served.service.reports.sweep()
    for _ in range(2):
        again = bot.execute(name, idempotency_key="k")
        assert code(again) == (409, "IDEMPOTENCY_CONFLICT")
        assert "nobody was told of" in again.text
        assert not again.json()["error"]["recoverable"]
    assert bot.execute(name, idempotency_key="told").json() == told
    kinds = bot.kinds(name)
    assert (kinds.count("action.approved"), kinds.count("action.failed")) == (2, 2)
    assert bot.execute(name, idempotency_key="k2").status_code == 200


def test_a_call_is_not_closed_while_its_request_is_answered(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late that is: the answer is the call, which is closed when nobody tells of it."""
    clock = FrozenClock(NOON)
    served = serve(manifest(), clock=clock)
    bot = served.by("bot")
    name = bot.session()
    book, reports = served.service.host.book, served.service.reports
    keep = book.answer

    def late(*asked: Any, **more: Any) -> None:
        clock.advance(901)
        reports.sweep()
        keep(*asked, **more)

    with monkeypatch.context() as patched:
        patched.setattr(book, "answer", late)
        call = bot.execute(name, idempotency_key="k")
    assert call.status_code == 200
    assert bot.kinds(name).count("action.failed") == 0
    reports.sweep()
    assert bot.kinds(name).count("action.failed") == 1
    assert bot.execute(name, idempotency_key="k").json() == call.json()
