"""Two servers on one PostgreSQL database: a session of one is a session of the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.postgres_approvals import PostgresApprovals
from cra_middleware.server.assembly import assemble
from cra_middleware.server.book import BookError
from cra_middleware.server.postgres_book import PostgresBook
from tests.conftest import manifest
from tests.server.serving import ASKED, Caller, Served, code
from tests.trace.postgres_server import database

psycopg = pytest.importorskip("psycopg")


class Sharing(Served):
    """One of them."""

    def start(self) -> None:
        url = self.terms["url"]
        self.book, self.approvals = PostgresBook(url), PostgresApprovals(url)
        places = {"book": self.book, "approvals": self.approvals, "counters": self.terms["counters"]}
        self.app = assemble([self.folder / "atlases"], url, keys=self.keys, **places)
        self.service = self.app.state.cra
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.wait(self._lifespan.__aenter__())

    def stop(self) -> None:
        super().stop()
        self.approvals.close()


class Two(NamedTuple):
    """Two servers, and one agent that talks to either."""

    one: Sharing
    other: Sharing
    here: Caller
    there: Caller


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    with database() as where:
        parts = psycopg.conninfo.conninfo_to_dict(where)
        options = quote(str(parts["options"]))
        url = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}?options={options}"
        counters = SqliteCounters(tmp_path / "counters.db")
        atlas = manifest(policies=[*manifest()["policies"], ASKED])
        one = Sharing(tmp_path / "one", atlas, url=url, counters=counters)
        other = Sharing(tmp_path / "other", atlas, url=url, counters=counters)
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
        server.service.calls._now_us = lambda: 10**18
    together(one.service.calls.sweep, other.service.calls.sweep)
    kinds = here.kinds(name)
    assert (kinds.count("action.executed"), kinds.count("action.failed")) == (6, 6)
    assert here.post(f"/v1/traces/{name}/verify").json()["valid"]


def together(*works: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
