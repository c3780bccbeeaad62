"""Calls in two phases: decided once, told of once, however often they are sent."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from cra_middleware.server.access import Caller as Who
from cra_middleware.server.book import BookError
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest, policies
from tests.server.serving import ASKED, Serve, Served, code

LIMIT = {
    "policy_id": "twice",
    "type": "rate_limit",
    "actions": ["ticket.get"],
    "parameters": {"max_calls": 2, "window_seconds": 60},
}


def test_a_call_is_authorised_and_told_of(served: Served) -> None:
    """The answer names the execution and until when it may be told of; the trace has one whole call."""
    bot = served.by("bot")
    name = bot.session()
    answer = bot.execute(name, tool_name="tools.get", tool_call_id="call-1", agent_name="helper")
    assert answer.status_code == 200
    told = answer.json()
    assert told["status"] == "success"
    assert told["result"] == {"authorized": True, "report_until": "2026-01-05T12:15:00.000001+00:00"}
    reported = bot.report(name, told["execution_id"], result_hash="a" * 64)
    assert (reported.status_code, reported.json()) == (200, {"execution_id": told["execution_id"], "recorded": True})
    asked, approved, executed = bot.get(f"/v1/traces/{name}").json()["events"][-3:]
    assert asked["payload"]["tool_call_id"] == "call-1"
    assert asked["payload"]["agent_name"] == "helper"
    assert approved["event_type"] == "action.approved"
    assert executed["payload"] | {"resolution_id": ""} == {
        "action_id": "ticket.get",
        "execution_id": told["execution_id"],
        "duration_ms": 5,
        "result_hash": "a" * 64,
        "reported_by": "client",
        "resolution_id": "",
    }
    assert bot.post(f"/v1/traces/{name}/verify").json()["valid"]


def test_the_same_request_again_is_answered_the_same(serve: Serve) -> None:
    """A retried request neither counts nor records twice, allowed or refused; its key is its own."""
    served = serve(manifest(policies=policies(LIMIT)), clock=FrozenClock(NOON))
    bot = served.by("bot")
    name = bot.session()
    body = bot.execution(name)
    first = bot.post("/v1/execute", body)
    for _ in range(5):
        assert bot.post("/v1/execute", body).json() == first.json()
    assert bot.execute(name).status_code == 200  # the second of two places: five repetitions took none
    refused = bot.execution(name, idempotency_key="k")
    answers = [bot.post("/v1/execute", refused) for _ in range(3)]
    assert {code(answer) for answer in answers} == {(429, "RATE_LIMIT_EXCEEDED")}
    assert {answer.headers["retry-after"] for answer in answers} == {"60"}
    assert bot.kinds(name).count("action.requested") == 3
    assert bot.kinds(name).count("action.denied") == 1
    other = bot.execution(name, request_id=body["request_id"], parameters={"n": 2})
    assert code(bot.post("/v1/execute", other)) == (409, "IDEMPOTENCY_CONFLICT")


def test_a_key_counts_for_another_request_id(served: Served) -> None:
    """A client that retries under a new request id, with the same idempotency key, is given the first answer."""
    bot = served.by("bot")
    name = bot.session()
    first = bot.execute(name, idempotency_key="once").json()
    assert bot.execute(name, idempotency_key="once").json() == first


@pytest.mark.parametrize(
    ("action_id", "expected"),
    [
        ("ticket.delete", (403, "ACTION_DENIED")),
        ("ticket.unheard", (404, "ACTION_NOT_FOUND")),
        ("refund.create", (423, "ACTION_REQUIRES_APPROVAL")),
    ],
)
def test_refusals_have_their_codes(served: Served, action_id: str, expected: tuple[int, str]) -> None:
    """And the sentence for a model, with the reason's code in the details."""
    bot = served.by("bot")
    answer = bot.execute(bot.session(), action_id)
    assert code(answer) == expected
    error = answer.json()["error"]
    assert error["message"].startswith(f"{action_id} was not run: ")
    assert error["details"]["reason_code"]
    assert error["request_id"]


def test_bad_arguments_are_told(serve: Serve) -> None:
    """A call that does not fit the action's schema is refused as such."""
    atlas = manifest()
    atlas["actions"][0]["parameters_schema"] = {"type": "object", "properties": {"n": {"type": "string"}}}
    bot = serve(atlas).by("bot")
    assert code(bot.execute(bot.session())) == (400, "INVALID_PARAMETERS")


def test_a_tool_that_is_distrusted_does_not_run(served: Served) -> None:
    """What a client says against a tool is heard."""
    bot = served.by("bot")
    answer = bot.execute(bot.session(), distrust="the tool has changed")
    assert answer.status_code == 404
    assert "has changed" in answer.json()["error"]["message"]


def test_reports_are_taken_once(served: Served) -> None:
    """The same again is fine, another one is a conflict, and of a call that nobody let run there is none."""
    bot = served.by("bot")
    name = bot.session()
    call = bot.execute(name).json()["execution_id"]
    assert bot.report(name, call).status_code == 200
    assert bot.report(name, call).status_code == 200
    assert code(bot.report(name, call, status="error", error={"code": "E"})) == (409, "IDEMPOTENCY_CONFLICT")
    assert code(bot.report(name, str(uuid4()))) == (404, "EXECUTION_NOT_FOUND")
    assert bot.kinds(name).count("action.executed") == 1


def test_nobody_else_reports(served: Served) -> None:
    """Neither another key, nor an admin, nor the same key in another session."""
    bot = served.by("bot")
    name = bot.session()
    call = bot.execute(name).json()["execution_id"]
    assert served.by("other").report(name, call).status_code == 404
    assert served.by("boss", "admin").report(name, call).status_code == 404
    assert code(bot.report(bot.session(), call)) == (404, "EXECUTION_NOT_FOUND")
    assert "action.executed" not in bot.kinds(name)
    assert bot.report(name, call).status_code == 200
    assert code(served.by("other").report(name, call)) == (404, "EXECUTION_NOT_FOUND")  # nor hears that it is told of


def test_a_failure_is_told_in_our_words(served: Served) -> None:
    """Without ``record="full"`` a tool's own words stay out of the trace."""
    bot = served.by("bot")
    name = bot.session()
    call = bot.execute(name).json()["execution_id"]
    bot.report(name, call, status="error", error={"code": "ValueError", "message": "secret 4711"})
    failed = bot.get(f"/v1/traces/{name}?event_type=action.failed").json()["events"][0]["payload"]
    assert failed["error_code"] == "ValueError"
    assert "4711" not in failed["error_message"]


def test_what_nobody_tells_of_is_closed(serve: Serve) -> None:
    """After the action's own time, or the default, as failed with an unknown outcome; its place stays taken."""
    atlas = manifest(policies=policies(LIMIT))
    atlas["actions"][1]["timeout_seconds"] = 20
    clock = FrozenClock(NOON)
    served = serve(atlas, clock=clock)
    bot = served.by("bot")
    name = bot.session()
    quick = bot.execute(name, "ticket.list").json()
    slow = bot.execute(name, "ticket.get").json()
    assert quick["result"]["report_until"] == "2026-01-05T12:00:20.000001+00:00"
    clock.advance(21)
    served.service.reports.sweep()
    assert bot.kinds(name).count("action.failed") == 1
    clock.advance(900)
    served.service.reports.sweep()
    events = bot.get(f"/v1/traces/{name}?event_type=action.failed").json()["events"]
    assert [event["payload"]["error_code"] for event in events] == ["outcome_unknown"] * 2
    assert [event["payload"]["execution_id"] for event in events] == [quick["execution_id"], slow["execution_id"]]
    assert code(bot.report(name, slow["execution_id"])) == (409, "IDEMPOTENCY_CONFLICT")


def test_calls_of_sessions_that_are_not_open_are_closed_too(serve: Serve) -> None:
    """Also by a server that has never heard of them: the book knows."""
    clock = FrozenClock(NOON)
    served = serve(clock=clock)
    bot = served.by("bot")
    name = bot.session()
    bot.execute(name)
    served.stop()
    clock.advance(1000)
    served.start()
    served.service.reports.sweep()
    assert bot.kinds(name)[-1] == "action.failed"


def test_a_call_is_told_of_after_a_restart(serve: Serve) -> None:
    """And a request that was answered before it is answered the same."""
    served = serve(clock=FrozenClock(NOON))
    bot = served.by("bot")
    name = bot.session(context={"region": "eu"})
    body = bot.execution(name)
    call = bot.post("/v1/execute", body).json()
    served.stop()
    served.start()
    assert bot.post("/v1/execute", body).json() == call
    assert bot.report(name, call["execution_id"]).status_code == 200
    assert bot.report(name, call["execution_id"]).status_code == 200
    assert bot.kinds(name).count("action.requested") == 1
    assert bot.kinds(name).count("carp.resolution.completed") == 1  # the resolution counts on


def test_a_call_that_was_not_answered_is_found_again(serve: Serve) -> None:
    """A process that dies between the trace and its answer: the same request is given that very call."""
    served = serve(clock=FrozenClock(NOON))
    bot = served.by("bot")
    name = bot.session()
    body = bot.execution(name)
    call = bot.post("/v1/execute", body).json()
    served.stop()
    forget(served, "answers", "executions")
    served.start()
    other = bot.execute(name).json()  # the same call under another id is another call
    assert other["execution_id"] != call["execution_id"]
    assert bot.post("/v1/execute", body).json()["execution_id"] == call["execution_id"]
    assert bot.kinds(name).count("action.requested") == 2
    assert bot.report(name, call["execution_id"]).status_code == 200


def test_a_report_that_was_not_noted_is_known_from_the_trace(serve: Serve) -> None:
    """The same report again is fine, another one a conflict."""
    served = serve(clock=FrozenClock(NOON))
    bot = served.by("bot")
    name = bot.session()
    calls = [bot.execute(name).json()["execution_id"] for _ in range(2)]
    bot.report(name, calls[0], result_hash="b" * 64)
    bot.report(name, calls[1], status="error", error={"code": "Boom"})
    served.stop()
    forget(served, "executions")
    served.start()
    assert bot.report(name, calls[0], result_hash="b" * 64).status_code == 200
    assert bot.report(name, calls[0]).status_code == 409
    assert bot.report(name, calls[1], status="error", error={"code": "Boom"}).status_code == 200
    assert bot.report(name, calls[1]).status_code == 409


def forget(served: Served, *tables: str) -> None:
    """Make the book lose what it was told."""
    import sqlite3

    with sqlite3.connect(served.folder / "traces" / "server" / "book.db") as connection:
        for table in tables:
            connection.execute(f"DELETE FROM {table}")
    connection.close()


def test_an_executor_runs_the_action_here(serve: Serve) -> None:
    """Its value is the answer; its failure is an answer, too; a retried request does not run it again."""
    ran: list[Any] = []

    def get(n: int) -> dict[str, object]:
        ran.append(n)
        return {"ticket": n}

    def broken() -> None:
        raise RuntimeError("secret 4711")

    served = serve(executors={"ticket.get": get, "ticket.list": broken, "ticket.update": lambda: {1, 2}})
    bot = served.by("bot")
    name = bot.session()
    body = bot.execution(name)
    for _ in range(3):
        answer = bot.post("/v1/execute", body).json()
        assert (answer["status"], answer["result"]) == ("success", {"ticket": 1})
    assert ran == [1]
    failed = bot.execute(name, "ticket.list", parameters={})
    assert (failed.status_code, failed.json()["status"]) == (200, "error")
    assert "4711" not in failed.text
    assert bot.execute(name, "ticket.update", parameters={}).json()["error"]["code"] == "EXECUTION_ERROR"
    assert bot.kinds(name).count("action.executed") == 1
    assert bot.kinds(name).count("action.failed") == 2
    assert bot.execute(name, "ticket.delete").status_code == 403


def test_a_framework_s_refusal_is_recorded(served: Served) -> None:
    """As the agent tells of it."""
    bot = served.by("bot")
    name = bot.session()
    body = {"session_id": name, "action_id": "ticket.get", "tool_name": "get", "reason": "n is no number"}
    answer = bot.post("/v1/executions/reject", body)
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == "INVALID_PARAMETERS"
    assert bot.kinds(name)[-1] == "action.denied"


def test_resolutions_are_checked(serve: Serve) -> None:
    """A call may name one that the session had and that has not expired; another is refused."""
    clock = FrozenClock(NOON)
    served = serve(clock=clock)
    bot = served.by("bot")
    made = bot.post("/v1/sessions", {"agent_id": "bot", "goal": "Help"}).json()
    name, first = made["session_id"], made["resolution"]["resolution_id"]
    assert bot.execute(name, resolution_id=first).status_code == 200
    assert code(bot.execute(name, resolution_id=str(uuid4()))) == (404, "RESOLUTION_NOT_FOUND")
    clock.advance(3601)
    assert code(bot.execute(name, resolution_id=first)) == (410, "RESOLUTION_EXPIRED")
    assert bot.execute(name).status_code == 200


def test_a_retry_waits_for_the_first(serve: Serve) -> None:
    """Two of the same at once: one runs, both are given its answer."""
    import threading

    entered, go = threading.Event(), threading.Event()
    ran: list[int] = []

    def slow(n: int) -> dict[str, int]:
        ran.append(n)
        entered.set()
        go.wait(10)
        return {"n": n}

    served = serve(executors={"ticket.get": slow})
    bot = served.by("bot")
    name = bot.session()
    body = bot.execution(name)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(bot.post("/v1/execute", body))) for _ in range(2)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert ran == [1]
    assert answers[0].json() == answers[1].json()


def test_a_person_is_asked_and_answers(served: Served) -> None:
    """The call waits, a person says yes, the identical call runs, once."""
    bot, ann = served.by("bot"), served.by("ann", "approver")
    name = bot.session()
    body = bot.execution(name, "refund.create")
    waits = bot.post("/v1/execute", body)
    assert code(waits) == (423, "ACTION_REQUIRES_APPROVAL")
    question = waits.json()["error"]["details"]["approval_id"]
    assert bot.post("/v1/execute", body).json() == waits.json()  # nobody has answered
    assert bot.kinds(name).count("action.requested") == 1
    listed = ann.get("/v1/approvals").json()
    assert [item["approval_id"] for item in listed["items"]] == [question]
    assert listed["items"][0]["arguments"] == {"n": 1}
    answer = ann.post(f"/v1/approvals/{question}/approve", {"reason": "fine"})
    assert (answer.status_code, answer.json()["state"], answer.json()["by"]) == (200, "approved", "ann")
    assert bot.post("/v1/execute", body).status_code == 200  # the very same request goes on
    assert bot.execute(name, "refund.create").status_code == 423
    assert code(ann.post(f"/v1/approvals/{question}/approve")) == (409, "APPROVAL_CONFLICT")
    approved = bot.get(f"/v1/traces/{name}?event_type=action.approved").json()["events"][0]["payload"]
    assert approved["approver"] == "ann"


def test_a_no_is_told(served: Served) -> None:
    """With the person's reason."""
    bot, ann = served.by("bot"), served.by("ann", "approver")
    name = bot.session()
    question = bot.execute(name, "refund.create").json()["error"]["details"]["approval_id"]
    ann.post(f"/v1/approvals/{question}/reject", {"reason": "too much"})
    answer = bot.execute(name, "refund.create")
    assert code(answer) == (403, "ACTION_DENIED")
    assert "too much" in answer.json()["error"]["message"]


def test_who_asked_does_not_answer(served: Served) -> None:
    """Not the key that opened the session, nor one that may be its agent, nor one of the agent's name."""
    asker = served.by("worker", "agent", "approver", agents=("bot",))
    name = asker.session()
    question = asker.execute(name, "refund.create").json()["error"]["details"]["approval_id"]
    twin = served.by("twin", "agent", "approver", agents=("b*",))
    namesake = served.by("BOT", "approver")
    for caller in (asker, twin, namesake):
        assert code(caller.post(f"/v1/approvals/{question}/approve")) == (403, "FORBIDDEN")
    assert served.by("plain").post(f"/v1/approvals/{question}/approve").status_code == 403
    assert asker.get(f"/v1/approvals/{question}").json()["state"] == "pending"
    chief = served.by("chief", "admin")
    own = chief.execute(chief.session(), "refund.create").json()["error"]["details"]["approval_id"]
    assert code(chief.post(f"/v1/approvals/{own}/approve")) == (403, "FORBIDDEN")
    assert served.by("boss", "admin").post(f"/v1/approvals/{question}/approve").status_code == 200


def test_groups_come_from_the_key(serve: Serve) -> None:
    """Nobody makes oneself a team lead."""
    asked = {**ASKED, "parameters": {"approvers": ["team-leads"]}}
    served = serve(manifest(policies=policies(asked)))
    bot = served.by("bot")
    name = bot.session()
    question = bot.execute(name, "refund.create").json()["error"]["details"]["approval_id"]
    ann, lead = served.by("ann", "approver"), served.by("lead", "approver", groups=("team-leads",))
    assert code(ann.post(f"/v1/approvals/{question}/approve", {"groups": ["team-leads"]})) == (403, "FORBIDDEN")
    assert code(ann.post(f"/v1/approvals/{question}/approve")) == (409, "APPROVAL_CONFLICT")
    assert lead.post(f"/v1/approvals/{question}/approve").status_code == 200


def test_an_unknown_caller_is_nobody() -> None:
    """The empty identity owns nothing."""
    assert not Who("anyone", "", frozenset()).is_any("agent")


def test_an_executor_is_never_run_twice(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its answer could not be kept, or the process died, the same request is told that nobody knows."""
    ran: list[int] = []
    served = serve(executors={"ticket.get": lambda n: ran.append(n)})
    bot = served.by("bot")
    name = bot.session()
    body = bot.execution(name)
    book = served.service.host.book
    keep = book.answer

    def fails_at_last(*asked: Any, is_final: bool = True) -> None:
        if is_final:
            raise BookError("gone")
        keep(*asked, is_final=False)

    monkeypatch.setattr(book, "answer", fails_at_last)
    assert code(bot.post("/v1/execute", body)) == (500, "STORAGE_LOCKED")
    monkeypatch.undo()
    for _ in range(2):
        assert bot.post("/v1/execute", body).json()["error"]["code"] == "OUTCOME_UNKNOWN"
    assert ran == [1]
