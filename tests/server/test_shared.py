"""Two servers on one PostgreSQL database: a session of one is a session of the other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from cra_middleware._clock import Clock, SystemClock
from cra_middleware.approvals.postgres_store import PostgresApprovals
from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.server.assembly import assemble
from cra_middleware.server.book import BookError
from cra_middleware.server.expiry import Expiry
from cra_middleware.server.postgres_book import PostgresBook
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest
from tests.server.serving import ASKED, Caller, Served, code
from tests.server.test_access import request_of
from tests.trace.postgres_server import database

psycopg = pytest.importorskip("psycopg")


class Sharing(Served):
    """One of them."""

    def start(self) -> None:
        url = self.terms["url"]
        self.book, self.approvals = PostgresBook(url, sees_traces=True), PostgresApprovals(url)
        places = {"book": self.book, "approvals": self.approvals, "counters": self.terms["counters"]}
        terms = {"clock": self.clock, "expires_seconds": 0}
        self.app = assemble([self.folder / "atlases"], url, keys=self.keys, **terms, **places)
        self.service = self.app.state.cra
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.wait(self._lifespan.__aenter__())

    def stop(self) -> None:
        super().stop()
        self.approvals.close()


class Held(NamedTuple):
    """A server that was stopped in the middle."""

    is_there: threading.Event
    may_go: threading.Event


class Two(NamedTuple):
    """Two servers, and one agent that talks to either."""

    one: Sharing
    other: Sharing
    here: Caller
    there: Caller


@pytest.fixture
def clock() -> Clock:
    return SystemClock()


@pytest.fixture
def two(tmp_path: Path, clock: Clock) -> Iterator[Two]:
    with two_under(manifest(policies=[*manifest()["policies"], ASKED]), tmp_path, clock) as made:
        yield made


@contextmanager
def two_under(atlas: dict[str, Any], tmp_path: Path, clock: Clock) -> Iterator[Two]:
    """Two servers that decide by this Atlas."""
    with database() as where:
        parts = psycopg.conninfo.conninfo_to_dict(where)
        options = quote(str(parts["options"]))
        url = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}?options={options}"
        counters = SqliteCounters(tmp_path / "counters.db")
        one = Sharing(tmp_path / "one", atlas, url=url, counters=counters, clock=clock)
        other = Sharing(tmp_path / "other", atlas, url=url, counters=counters, clock=clock)
        try:
            here = one.by("bot")
            other.service.routes.guard._keys = one.keys
            yield Two(one, other, here, Caller(other, here.headers))
        finally:
            one.close()
            other.close()
            counters.close()


def test_two_servers_behave_as_one(two: Two) -> None:
    """A request is answered the same by both; a call of one is told of at the other; an end counts for both."""
    _, _, here, there = two
    name = here.session()
    body = here.execution(name)
    call = here.post("/v1/execute", body).json()
    assert there.post("/v1/execute", body).json() == call
    for _ in range(2):
        assert there.report(name, call["execution_id"]).status_code == 200
        assert here.report(name, call["execution_id"]).status_code == 200
    second = there.execute(name).json()["execution_id"]
    assert here.report(name, second).status_code == 200
    third = here.execute(name).json()["execution_id"]
    assert there.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
    assert code(here.execute(name)) == (409, "SESSION_ALREADY_ENDED")
    assert code(here.report(name, third)) == (409, "SESSION_ALREADY_ENDED")
    assert here.kinds(name).count("action.executed") == 2
    assert here.post(f"/v1/traces/{name}/verify").json()["verdict"] == "INTACT, SEALED"


def test_a_call_that_one_let_run_and_could_not_answer(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one answers the same request with that call, and lets nothing run anew."""
    one, _, here, there = two
    name = here.session()
    first = there.execute(name).json()["execution_id"]  # both have the session open
    body = here.execution(name)

    def away(*given: object, **more: object) -> None:
        raise BookError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(one.book, "answer", away)
        assert code(here.post("/v1/execute", body)) == (500, "STORAGE_LOCKED")
    call = there.post("/v1/execute", body).json()
    assert here.post("/v1/execute", body).json() == call
    assert call["execution_id"] != first
    assert here.kinds(name).count("action.approved") == 2
    assert there.report(name, call["execution_id"]).status_code == 200


@pytest.fixture
def held(two: Two, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sharing], Held]:
    """Stops a server between its last look at a session and what it writes there, for longer than its lease."""

    def hold(server: Sharing) -> Held:
        held = Held(threading.Event(), threading.Event())
        calls = server.service.calls
        unanswered = calls._unanswered

        def stopped(*given: Any) -> Any:
            found = unanswered(*given)
            if not held.is_there.is_set():
                held.is_there.set()
                held.may_go.wait(10)
            return found

        monkeypatch.setattr(calls, "_unanswered", stopped)
        server.book._is_closed.set()  # it renews no more
        monkeypatch.setattr(server.book, "_lease", 0.2)
        return held

    return hold


@pytest.mark.parametrize("is_told", [False, True])
def test_a_server_that_was_stopped_lets_nothing_run_behind_another(
    two: Two, held: Callable[[Sharing], Held], is_told: bool
) -> None:
    """The other one has answered its request: what it decided is not written, and whoever asked is told the same."""
    one, _, here, there = two
    name = here.session()
    there.execute(name)  # both have the session open
    body = here.execution(name)
    stop = held(one)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(here.post("/v1/execute", body)))
    thread.start()
    assert stop.is_there.wait(10)
    time.sleep(0.3)
    call = there.post("/v1/execute", body).json()
    assert call["status"] == "success"
    if is_told:
        assert there.report(name, call["execution_id"]).status_code == 200
    stop.may_go.set()
    thread.join()
    assert answers[0].json() == here.post("/v1/execute", body).json() == call
    assert here.kinds(name).count("action.approved") == 2
    assert here.post(f"/v1/traces/{name}/verify").json()["valid"]


def test_what_a_stopped_server_wrote_late_is_the_answer(two: Two, held: Callable[[Sharing], Held]) -> None:
    """The other one was about to decide the same request: it answers with the call that is in the trace by then."""
    one, other, here, there = two
    name = here.session()
    there.execute(name)
    body = here.execution(name)
    first, second = held(one), held(other)
    answers: dict[str, Any] = {}
    late = threading.Thread(target=lambda: answers.update(late=here.post("/v1/execute", body)))
    late.start()
    assert first.is_there.wait(10)
    time.sleep(0.3)
    taken = threading.Thread(target=lambda: answers.update(taken=there.post("/v1/execute", body)))
    taken.start()
    assert second.is_there.wait(10)
    first.may_go.set()
    late.join()
    other.book.renew()
    second.may_go.set()
    taken.join()
    assert code(answers["late"]) == (500, "STORAGE_LOCKED")
    assert answers["taken"].status_code == 200
    assert here.post("/v1/execute", body).json() == answers["taken"].json()
    assert here.kinds(name).count("action.approved") == 2


def test_a_yes_is_used_once_whoever_asks(two: Two) -> None:
    """Asked at one, answered at the other, and the same request again at both: one call, one answer."""
    one, other, here, there = two
    name = here.session()
    body = here.execution(name, "refund.create")
    asked = here.post("/v1/execute", body)
    assert code(asked) == code(there.post("/v1/execute", body)) == (423, "ACTION_REQUIRES_APPROVAL")
    approval_id = asked.json()["error"]["details"]["approval_id"]
    ann = Caller(other, {"x-api-key": one.key("ann", "approver")})
    assert ann.post(f"/v1/approvals/{approval_id}/approve", {}).status_code == 200
    call = here.post("/v1/execute", body).json()
    assert call["status"] == "success"
    assert there.post("/v1/execute", body).json() == call
    assert code(there.execute(name, "refund.create")) == (423, "ACTION_REQUIRES_APPROVAL")
    assert here.kinds(name).count("action.approved") == 1


def test_both_tell_of_the_same_calls_at_once(two: Two) -> None:
    """Whether agents report at both, or both give up what nobody told of: each call has one outcome."""
    one, other, here, there = two
    name = here.session()
    calls = [caller.execute(name).json()["execution_id"] for caller in (here, there) * 6]
    statuses: list[int] = []
    for call in calls[:6]:
        together(
            lambda call=call: statuses.append(here.report(name, call).status_code),
            lambda call=call: statuses.append(there.report(name, call).status_code),
        )
    assert set(statuses) == {200}
    for server in (one, other):
        server.service.reports._now_us = lambda: 10**18
    together(one.service.reports.sweep, other.service.reports.sweep)
    kinds = here.kinds(name)
    assert (kinds.count("action.executed"), kinds.count("action.failed")) == (6, 6)
    assert here.post(f"/v1/traces/{name}/verify").json()["valid"]


@pytest.mark.parametrize("clock", [FrozenClock(NOON)])
def test_a_session_that_nobody_calls_expires_once(two: Two, clock: FrozenClock, caplog: Any) -> None:
    """A call at either server counts; of several that look, one seals; both tell what happened."""
    caplog.set_level(logging.ERROR)
    one, other, here, there = two
    names = [here.session() for _ in range(12)]
    used, parent = here.session(), here.session()
    child = there.session(parent_session_id=parent)
    for name in names:
        there.execute(name)  # both have it open, and its call is out
    for server in (one, other):
        server.service.reports.sweep = lambda: None  # it would close the calls that are out itself
    clock.advance(899)
    for name in (used, child):
        there.execute(name, "ticket.delete")
    clock.advance(2)
    expiries = [Expiry(server.service.host, server.service.reports, 900) for server in (one, other)]
    together(*(expiry.sweep for expiry in expiries))
    for name in names:
        kinds = here.kinds(name)
        assert (kinds[-2:], kinds.count("session.ended")) == (["action.failed", "session.ended"], 1)
        assert here.get(f"/v1/sessions/{name}").json()["expired"]
        for caller in (here, there):
            assert code(caller.execute(name)) == (410, "SESSION_EXPIRED")
            assert code(caller.post("/v1/resolve", request_of(one, name, "bot"))) == (410, "SESSION_EXPIRED")
    for name in (used, parent, child):
        assert here.get(f"/v1/sessions/{name}").json()["status"] == "active"
        assert here.execute(name).status_code == 200
    assert not [record.message for record in caplog.records if "unsealed" in record.message]


@pytest.mark.parametrize("clock", [FrozenClock(NOON)])
def test_a_session_that_expired_at_the_other(two: Two, clock: FrozenClock) -> None:
    """Whatever is asked for first of the one that still has it open, it is told so; nothing is begun below it."""
    one, other, here, there = two
    for ask in (
        lambda name: there.execute(name),
        lambda name: there.post("/v1/resolve", request_of(one, name, "bot")),
        lambda name: there.post("/v1/sessions", {"agent_id": "bot", "goal": "g", "parent_session_id": name}),
        lambda name: there.post(f"/v1/traces/{name}/note", {"error_code": "x", "message": "y"}),
    ):
        name = here.session()
        there.execute(name, "ticket.delete")
        clock.advance(61)
        Expiry(one.service.host, one.service.reports, 60).sweep()
        assert code(ask(name)) == (410, "SESSION_EXPIRED")
        assert other.service.host.table.peek(name) is None


@pytest.mark.parametrize("clock", [FrozenClock(NOON)])
def test_a_call_at_the_other_at_the_last_moment(two: Two, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, and nothing is sealed before its end."""
    one, _, here, there = two
    name = here.session()
    clock.advance(61)
    session = one.service.host.table.peek(name)
    inner, said = session.end_behind, []

    def end_behind(*terms: Any) -> None:
        said.append(there.execute(name))
        inner(*terms)

    monkeypatch.setattr(session, "end_behind", end_behind)
    Expiry(one.service.host, one.service.reports, 60).sweep()
    assert said[0].status_code == 200
    assert there.report(name, said[0].json()["execution_id"]).status_code == 200
    assert here.execute(name).status_code == 200


@pytest.mark.parametrize("clock", [FrozenClock(NOON)])
def test_sealed_by_the_other_at_the_last_moment(two: Two, clock: FrozenClock, monkeypatch: Any, caplog: Any) -> None:
    """That is no failure of the one that comes too late."""
    one, other, here, there = two
    name = here.session()
    there.execute(name, "ticket.delete")
    clock.advance(61)
    session = one.service.host.table.peek(name)
    inner = session.end_behind

    def end_behind(*terms: Any) -> None:
        Expiry(other.service.host, other.service.reports, 60).sweep()
        inner(*terms)

    monkeypatch.setattr(session, "end_behind", end_behind)
    Expiry(one.service.host, one.service.reports, 60).sweep()
    assert here.kinds(name).count("session.ended") == 1
    assert code(here.execute(name)) == code(there.execute(name)) == (410, "SESSION_EXPIRED")
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def together(*works: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
