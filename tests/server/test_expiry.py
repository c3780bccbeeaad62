"""Sessions that nobody calls any more: sealed after a time, once, and said to have expired."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cra_middleware._clock import parse_us
from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.cli import app
from cra_middleware.server import expiry, sqlite_book
from cra_middleware.server.app import Service
from cra_middleware.server.book import SessionRow
from cra_middleware.server.expiry import Expiry
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest
from tests.server.serving import ASKED, Caller, Process, Serve, Served, code
from tests.server.test_access import request_of

DAY = 86_400


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(NOON)


@pytest.fixture
def served(serve: Serve, clock: FrozenClock) -> Served:
    """One whose own thread lets nothing expire: the tests do."""
    return serve(manifest(policies=[*manifest()["policies"], ASKED]), clock=clock, expires_seconds=0)


def sweep(served: Served, seconds: float = DAY) -> None:
    service: Service = served.service
    Expiry(service.host, service.reports, seconds).sweep()


def ended(bot: Caller, name: str) -> list[dict[str, Any]]:
    return [event["payload"] for event in bot.get(f"/v1/traces/{name}?event_type=session.ended").json()["events"]]


def status(bot: Caller, name: str) -> tuple[str, bool]:
    told = bot.get(f"/v1/sessions/{name}").json()
    return told["status"], told.get("expired", False)


def test_a_session_that_nobody_calls_expires(served: Served, clock: FrozenClock) -> None:
    """It is sealed as timed out, and every later call is told so; one that was ended is said to be."""
    bot = served.by("bot")
    left, over, used = bot.session(context={"a": "b"}), bot.session(), bot.session()
    bot.ask("DELETE", f"/v1/sessions/{over}")
    clock.advance(DAY - 1)
    sweep(served)
    assert status(bot, left) == ("active", False)
    assert bot.execute(used, "ticket.delete").status_code == 403  # a call that is refused is one, too
    clock.advance(2)
    sweep(served)
    assert status(bot, left) == ("ended", True)
    assert status(bot, used) == ("active", False)
    assert status(bot, over) == ("ended", False)
    (end,) = ended(bot, left)
    assert (end["reason"], end["error"]) == ("timeout", "nobody called it for too long")
    assert bot.post(f"/v1/traces/{left}/verify").json()["verdict"] == "INTACT, SEALED"
    assert served.service.host.book.session(left).context == "{}"
    for name, expected in ((left, (410, "SESSION_EXPIRED")), (over, (409, "SESSION_ALREADY_ENDED"))):
        answers = [
            bot.execute(name),
            bot.post("/v1/resolve", request_of(served, name, "bot")),
            bot.post(f"/v1/traces/{name}/note", {"error_code": "x", "message": "y"}),
            bot.post("/v1/sessions", {"agent_id": "bot", "goal": "g", "parent_session_id": name}),
            bot.post("/v1/sessions", {"agent_id": "bot", "goal": "Help", "session_id": name}),
            bot.report(name, name),
        ]
        assert [code(answer) for answer in answers] == [expected] * len(answers)
    assert "start a new one" in bot.execute(left).json()["error"]["message"]
    assert bot.ask("DELETE", f"/v1/sessions/{left}").status_code == 204
    assert len(ended(bot, left)) == 1


def test_it_is_known_after_a_restart(served: Served, clock: FrozenClock) -> None:
    """Of the one that expired, also without the index; and of one whose time is over when the server is back."""
    bot = served.by("bot")
    left = bot.session()
    clock.advance(DAY + 1)
    later = bot.session()
    sweep(served)
    served.stop()
    served.start()
    assert code(bot.execute(left)) == (410, "SESSION_EXPIRED")
    served.stop()
    for file in (served.folder / "traces" / "server").glob("book.db*"):
        file.unlink()
    served.start()
    assert code(bot.execute(left)) == (410, "SESSION_EXPIRED")
    assert status(bot, later) == ("active", False)
    clock.advance(DAY + 1)
    sweep(served)
    assert code(bot.execute(later)) == (410, "SESSION_EXPIRED")


def test_calls_that_are_out(served: Served, clock: FrozenClock) -> None:
    """One that may still be told of keeps its session open; one that is overdue is closed before the seal."""
    bot = served.by("bot")
    name = bot.session()
    call = bot.execute(name).json()["execution_id"]
    clock.advance(61)
    sweep(served, 60)
    assert status(bot, name) == ("active", False)
    assert bot.report(name, call).status_code == 200
    bot.execute(name)
    served.service.reports.sweep = lambda: None  # the server was away when it became overdue
    served.stop()
    clock.advance(901)
    served.start()
    sweep(served, 60)
    assert bot.kinds(name)[-2:] == ["action.failed", "session.ended"]
    failed = bot.get(f"/v1/traces/{name}?event_type=action.failed").json()["events"][-1]["payload"]
    assert failed["error_code"] == "outcome_unknown"
    assert ended(bot, name)[0]["action_count"] == 2


def test_questions(served: Served, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is open, or answered with a yes that was not used, keeps its session; not for longer than it counts."""
    bot, ann = served.by("bot"), served.by("ann", "approver")
    waits, allowed = bot.session(), bot.session()
    bot.execute(waits, "refund.create")
    clock.advance(60)
    question = bot.execute(allowed, "refund.create").json()["error"]["details"]["approval_id"]
    assert ann.post(f"/v1/approvals/{question}/approve").status_code == 200
    clock.advance(3601)
    sweep(served, 3600)
    assert status(bot, waits) == status(bot, allowed) == ("active", False)
    clock.advance(DAY - 3660)
    with monkeypatch.context() as patch:

        def gone(*asked: object) -> None:
            raise ApprovalError("gone")

        patch.setattr(served.service.host.runtime._stores.approvals, "listed", gone)
        sweep(served, 3600)
        assert status(bot, waits) == ("active", False)
    sweep(served, 3600)
    assert status(bot, waits) == ("ended", True)
    assert status(bot, allowed) == ("active", False)
    clock.advance(60)
    sweep(served, 3600)
    assert status(bot, allowed) == ("ended", True)
    assert {item["state"] for item in ann.get("/v1/approvals?state=all").json()["items"]} == {"expired"}


def test_children(served: Served, clock: FrozenClock) -> None:
    """A parent with a living child stays; so it does when the child has just ended, but not when it expired, too."""
    bot = served.by("bot")
    parent, other = bot.session(), bot.session()
    child, left = bot.session(parent_session_id=parent), bot.session(parent_session_id=other)
    clock.advance(DAY - 10)
    bot.execute(child, "ticket.delete")
    clock.advance(20)
    sweep(served)
    assert status(bot, parent) == status(bot, child) == ("active", False)
    assert status(bot, left) == ("ended", True)
    sweep(served)
    assert status(bot, other) == ("ended", True)
    bot.ask("DELETE", f"/v1/sessions/{child}")
    sweep(served)
    assert status(bot, parent) == ("active", False)
    clock.advance(DAY + 1)
    sweep(served)
    assert status(bot, parent) == ("ended", True)


def test_a_call_at_the_last_moment(served: Served, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes first is right: what was begun goes on and nothing is sealed, or the call is told so."""
    bot = served.by("bot")

    def met_by(act: Callable[[str], Any], step: str) -> tuple[str, Any]:
        """A session that ``act`` is done in when it was found to be left, and right before ``step``."""
        name, said = bot.session(), []
        clock.advance(DAY + 1)
        session = served.service.host.table.peek(name)
        inner = getattr(session, step)

        def first(*terms: Any) -> Any:
            thread = threading.Thread(target=lambda: said.append(act(name)))
            thread.start()
            thread.join(0.5)  # one that finds the session closing waits for what comes of it
            return inner(*terms)

        with monkeypatch.context() as patch:
            patch.setattr(session, step, first)
            sweep(served)
        until(lambda: said)
        return name, said[0]

    name, answer = met_by(bot.execute, "end_behind")
    assert answer.status_code == 200
    assert status(bot, name) == ("active", False)
    assert bot.report(name, answer.json()["execution_id"]).status_code == 200
    name, child = met_by(lambda name: bot.session(parent_session_id=name), "end_behind")
    assert status(bot, name) == ("active", False)
    bot.ask("DELETE", f"/v1/sessions/{child}")
    name, answer = met_by(bot.execute, "_seal")
    assert code(answer) == (410, "SESSION_EXPIRED")
    assert bot.kinds(name)[-1] == "session.ended"


def test_a_call_that_meets_a_seal_which_is_not_set(
    served: Served, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to ask again, and then runs."""
    bot = served.by("bot")
    name = bot.session()
    clock.advance(DAY + 1)
    session = served.service.host.table.peek(name)
    inner, said = session._seal, []

    def late(*terms: Any) -> None:
        thread = threading.Thread(target=lambda: said.append(bot.execute(name)))
        thread.start()
        thread.join(0.5)
        session.note("other", "something else was recorded first")
        inner(*terms)

    monkeypatch.setattr(session, "_seal", late)
    sweep(served)
    until(lambda: said)
    assert code(said[0]) == (503, "UNAVAILABLE")
    assert said[0].headers["retry-after"] == "1"
    assert bot.execute(name).status_code == 200


def until(holds: Callable[[], object]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_sessions_are_looked_at_a_part_at_a_time(served: Served, clock: FrozenClock, monkeypatch: Any) -> None:
    """A trace is read when its session may have expired, and not again before then; what is over is forgotten."""
    monkeypatch.setattr("cra_middleware.server.expiry.MAX_LOOKED", 2)
    read: list[str] = []
    last_event = expiry.last_event

    def counted(store: Any, session_id: str) -> Any:
        read.append(session_id)
        return last_event(store, session_id)

    monkeypatch.setattr(expiry, "last_event", counted)
    bot = served.by("bot")
    names = [bot.session() for _ in range(5)]
    looking = Expiry(served.service.host, served.service.reports, DAY)
    clock.advance(DAY - 100)
    for name in names[:3]:
        bot.execute(name, "ticket.delete")
    clock.advance(200)
    for _ in range(3):
        looking.sweep()
    assert sorted(read) == sorted(names)
    assert [status(bot, name)[0] for name in names] == ["active"] * 3 + ["ended"] * 2
    for _ in range(3):
        clock.advance(61)
        looking.sweep()
        looking.sweep()
    assert len(read) == 5
    assert set(looking._not_before) == set(names[:3])
    clock.advance(DAY)
    for _ in range(2):
        looking.sweep()
    assert [status(bot, name)[0] for name in names] == ["ended"] * 5
    clock.advance(61)
    looking.sweep()
    assert not looking._not_before


def test_one_that_cannot_be_sealed_does_not_stand_in_the_way(served: Served, clock: FrozenClock) -> None:
    """A trace that was changed, or is gone, is left as it is; the others expire."""
    bot = served.by("bot")
    changed, gone, left = bot.session(), bot.session(), bot.session()
    for name in (changed, gone):
        served.service.host.table.let_go(name)
    path = served.folder / "traces" / f"{changed}.trace.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Help", b"Hell"))
    (served.folder / "traces" / f"{gone}.trace.jsonl").unlink()
    clock.advance(DAY + 1)
    sweep(served)
    assert [status(bot, name)[0] for name in (changed, gone, left)] == ["active", "active", "ended"]


def test_an_index_of_the_first_layout_is_taken_over(tmp_path: Path) -> None:
    """With everything that is in it."""
    place = tmp_path / "book.db"
    first = sqlite_book._SCHEMA.replace(", is_expired INTEGER NOT NULL DEFAULT 0", "")
    with sqlite3.connect(place) as made:
        made.executescript(first)
        made.execute("INSERT INTO sessions VALUES ('s1','bot','key:bot','Help',10,NULL,'[\"a\"]',NULL,'{}','{}')")
        made.execute("PRAGMA user_version=1")
    made.close()
    book = SqliteBook(place)
    try:
        row = SessionRow("s1", "bot", "key:bot", "Help", 10, None, ("a",))
        assert book.session("s1") == row
        book.end_session("s1", 20, is_expired=True)
        assert book.session("s1") == row._replace(ended_us=20, is_expired=True)
        assert book.add_session(row._replace(session_id="s2"))
    finally:
        book.close()


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_spans_that_are_none(value: str, tmp_path: Path) -> None:
    """The program says which option it is."""
    done = CliRunner().invoke(app, ["serve", "--observe", "--trace", str(tmp_path), "--session-expires", value])
    assert done.exit_code == 2
    assert "expires" in done.output


@pytest.mark.slow
def test_as_a_program(process: Callable[..., Process]) -> None:
    """``--session-expires`` counts seconds."""
    httpx = pytest.importorskip("httpx")
    server = process("--session-expires", "1.5")
    made = httpx.post(server.url + "/v1/sessions", json={"agent_id": "bot", "goal": "g"}).json()
    where = f"{server.url}/v1/sessions/{made['session_id']}"
    for _ in range(200):
        told = httpx.get(where).json()
        if told["status"] == "ended":
            break
        time.sleep(0.1)
    assert told["expired"] is True
    assert parse_us(told["ended_at"]) - parse_us(told["created_at"]) >= 1_500_000
    body = {"session_id": made["session_id"], "agent_id": "bot", "goal": "g"}
    answer = httpx.post(server.url + "/v1/sessions", json=body)
    assert (answer.status_code, json.loads(answer.text)["error"]["category"]) == (410, "expired")
