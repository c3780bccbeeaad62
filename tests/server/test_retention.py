"""What is pruned is gone for those who ask a server, too: from its lists, pages and stores; nothing else is."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware._clock import SystemClock
from cra_middleware.approvals.postgres_store import PostgresApprovals
from cra_middleware.cli import prune as command
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.server.postgres_book import PostgresBook
from cra_middleware.sinks import JsonlSink
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.sinks.sqlite import SqliteSink
from tests.conftest import NOON, manifest
from tests.server.fleet import Agent, fleet_in, together
from tests.server.people import Person
from tests.server.serving import ASKED, Caller, Serve, Served, code
from tests.server.test_handed_in import offline, put
from tests.server.test_program import cra

pytest.importorskip("uvicorn")
DAY = 86_400
HOSTILE = "'); DROP TABLE cra_lines; -- \x1b[31m ü"
ATLAS = manifest(policies=[*manifest()["policies"], ASKED])


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command looks a month later."""
    wall_us = SystemClock.wall_us

    class Later(SystemClock):
        def wall_us(self) -> int:
            return wall_us(self) + 31 * DAY * 1_000_000

    monkeypatch.setattr(command, "SystemClock", Later)


class Place:
    """A server of one process, and how its traces are pruned."""

    def __init__(self, kind: str, serve: Serve, folder: Path) -> None:
        generate_key(folder / "bot.key", "example.com/bot")
        self.clock = FrozenClock(NOON)
        self.name = str(folder / "s" / "traces") if kind == "folder" else f"sqlite:{folder}/traces.db"
        signer = load_signer(folder / "bot.key")
        self.sink: Any = (
            JsonlSink(self.name, signer=signer) if kind == "folder" else SqliteSink(self.name.removeprefix("sqlite:"))
        )
        self.how = ("--key", f"{folder}/bot.key.pub") if kind == "folder" else ("--unsigned",)
        self.own = folder / "s" / "traces" / "server"
        self.terms = {"clock": self.clock, "expires_seconds": 0, "state": self.own}
        self.served: Served = serve(ATLAS, folder=folder / "s", **self.terms, trace=self.sink)

    def prune(self, *more: str) -> Any:
        end = time.monotonic() + 20
        while True:  # heads follow
            done = cra("trace", "prune", self.name, "--older-than", "30d", "--state", str(self.own), *self.how, *more)
            if "no signed head" not in done.stderr or time.monotonic() > end:
                return done
            time.sleep(0.05)

    def rows(self, store: str, table: str) -> list[Any]:
        with closing(sqlite3.connect(self.own / f"{store}.db")) as connection:
            return [name for (name,) in connection.execute(f"SELECT DISTINCT session_id FROM {table}")]


@pytest.fixture(params=["folder", "sqlite"])
def place(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    made = Place(request.param, serve, tmp_path)
    monkeypatch.setattr(command, "SystemClock", lambda: made.clock)
    yield made
    made.sink.close()


def busy(bot: Caller) -> str:
    """A session with an answer, an open question, and a call that nobody told of, ended."""
    name = bot.session(metadata={"mail": "ann@example.com"}, goal=f"0171 {HOSTILE}")
    assert bot.execute(name).status_code == 200
    assert bot.execute(name, "refund.create", parameters={"amount": 5, "iban": "DE02"}).status_code == 423
    assert bot.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
    return name


@pytest.mark.slow
def test_a_server_forgets_what_was_pruned(place: Place) -> None:
    """No list, page or address knows the session; its rows are gone, and whoever uses its id again is refused."""
    bot, ann = place.served.by("bot"), Person(place.served)
    old = busy(bot)
    left = bot.session()
    place.clock.advance(40 * DAY)
    young = busy(bot)
    ann.login(place.served.key("ann", "approver", "auditor"))
    told = place.prune("--rehearse")
    assert (told.returncode, "would be removed" in told.stdout) == (1, True), told.stderr
    assert bot.get(f"/v1/sessions/{old}").status_code == 200
    done = place.prune()
    assert done.returncode == 1
    assert f"session {left} is kept: it was not ended" in done.stderr
    assert old in done.stdout

    listed = bot.get("/v1/sessions?status=all").json()
    assert {row["session_id"] for row in listed["items"]} == {left, young}
    assert listed["total"] == 2
    assert old not in ann.get("/sessions").text
    for path in (f"/v1/sessions/{old}", f"/v1/traces/{old}", f"/v1/traces/{old}/verify"):
        assert code(bot.get(path)) == (404, "SESSION_NOT_FOUND")
    assert ann.get(f"/sessions/{old}").status_code == 404
    assert code(bot.execute(old)) == (404, "SESSION_NOT_FOUND")
    again = {"agent_id": "bot", "goal": "Help", "session_id": old}
    assert code(bot.post("/v1/sessions", again)) == (409, "SESSION_ALREADY_EXISTS")
    assert bot.get(f"/v1/sessions/{old}").status_code == 404
    for store, table in (("book", "sessions"), ("book", "answers"), ("book", "executions"), ("approvals", "approvals")):
        assert old not in place.rows(store, table), table
        assert young in place.rows(store, table), table
    assert bot.get(f"/v1/traces/{young}/verify").json()["valid"]
    assert bot.execute(left).status_code == 200
    assert place.prune().returncode == 0  # what was open was called meanwhile
    assert cra("trace", "verify", place.name).returncode == 0


def test_an_upload_of_what_was_pruned(place: Place) -> None:
    """It is refused, and does not stand in the lists."""
    bot = place.served.by("bot")
    old, data = offline(place.served.folder / "spool", clock=place.clock)
    assert put(bot, data, old).status_code == 201
    place.clock.advance(40 * DAY)
    place.prune()
    sent = put(bot, data, old)
    assert code(sent) == (409, "SESSION_ALREADY_EXISTS")
    assert bot.get("/v1/sessions?status=all").json()["total"] == 0


def test_what_a_killed_prune_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a session whose trace is gone already are forgotten by the next prune, also of one that was never closed
    in the book."""
    bot = place.served.by("bot")
    old = busy(bot)
    place.clock.advance(40 * DAY)
    with monkeypatch.context() as patch:
        for method in ("flush", "sweep", "finish"):
            patch.setattr(f"cra_middleware.server.remains.Remains.{method}", lambda *terms: None)
        assert place.prune().returncode == 0
    assert bot.get(f"/v1/sessions/{old}").status_code == 200  # as it was before a prune asked the book
    assert code(bot.get(f"/v1/traces/{old}")) == (404, "SESSION_NOT_FOUND")
    with closing(sqlite3.connect(place.own / "book.db")) as connection, connection:
        connection.execute("UPDATE sessions SET ended_us = NULL")
    assert place.prune().returncode == 0
    assert bot.get(f"/v1/sessions/{old}").status_code == 404
    assert place.rows("approvals", "approvals") == []


def test_a_session_of_many_days(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of one whose first days were pruned still verifies at the server, and stays in its lists."""
    generate_key(tmp_path / "bot.key", "example.com/bot")
    own = tmp_path / "s" / "traces" / "server"
    signer, clock = load_signer(tmp_path / "bot.key"), FrozenClock(NOON)
    monkeypatch.setattr(command, "SystemClock", lambda: clock)
    with closing(JsonlSink(tmp_path / "s" / "traces", signer=signer, segment_bytes=2000)) as sink:
        served = serve(ATLAS, folder=tmp_path / "s", clock=clock, expires_seconds=0, trace=sink, state=own)
        bot = served.by("bot")
        name = bot.session()
        for _ in range(3):
            assert bot.execute(name).status_code == 200
            clock.advance(20 * DAY)
        assert bot.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
        words = ("prune", f"{tmp_path}/s/traces", "--older-than", "30d", "--key", f"{tmp_path}/bot.key.pub")
        end = time.monotonic() + 20
        while "no signed head" in (done := cra("trace", *words)).stderr and time.monotonic() < end:
            time.sleep(0.05)
        assert (done.returncode, name in done.stdout) == (0, True), done.stderr
        assert bot.get("/v1/sessions?status=all").json()["total"] == 1
        assert bot.get(f"/v1/traces/{name}/verify").json()["valid"]


@pytest.mark.slow
def test_a_fleet_goes_on(tmp_path: Path, later: None) -> None:
    """Two servers work while what they ended is pruned, and the pruner is killed in the middle: only ended sessions go,
    every other chain is whole, and both servers say the same of what went."""
    key = tmp_path / "bot.key"
    generate_key(key, "example.com/bot")
    with fleet_in(tmp_path, ATLAS) as fleet, ExitStack() as stack:
        fleet.place = (*fleet.place, "--signing-key", str(key))
        agent_key = fleet.key("bot", "--role", "agent", "--agent", "*")
        for number in range(2):
            fleet.start()
            fleet.wait(number)
        agent = Agent(fleet, agent_key, 1)
        over = [agent.session() for _ in range(30)]
        for name in over:
            assert agent.execute(name, "ticket.get", text=HOSTILE).status_code == 200
        assert agent.execute(over[0], "refund.create", amount=5, iban="DE02").status_code == 423
        for name in over:
            assert agent.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
        left = agent.session()
        verify = ("trace", "verify", fleet.store, "--key", f"{key}.pub")
        end = time.monotonic() + 30
        while cra(*verify, "--require", "signed").returncode != 0:
            assert time.monotonic() < end, fleet.said.read_text()
            time.sleep(0.1)
        held = tmp_path / "held.head"
        held.write_text(cra("trace", "head", fleet.store).stdout)

        working, names = [True], [agent.session() for _ in range(2)]
        agents = [Agent(fleet, agent_key, number) for number in range(2)]

        def work(number: int) -> None:
            while working[0]:
                assert agents[number].execute(names[number], "ticket.get", n=1).status_code == 200

        pruner = [sys.executable, "-c", KILLED, "trace", "prune", fleet.store, "--older-than", "30d"]

        def prune() -> None:
            try:
                first = subprocess.Popen(
                    [*pruner, "--key", f"{key}.pub"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                assert first.stdout is not None
                with first.stdout:
                    for _ in range(4):
                        assert first.stdout.readline()
                    first.send_signal(signal.SIGKILL)
                    first.wait(10)
                assert cra(*verify, "--head", str(held)).returncode == 0
                for _ in range(20):
                    done = cra("trace", "prune", fleet.store, "--older-than", "30d", "--key", f"{key}.pub")
                    if "another process" not in done.stderr:
                        break
                assert done.returncode == 1
                assert f"session {left} is kept: it was not ended" in done.stderr
            finally:
                working[0] = False

        together([lambda: work(0), lambda: work(1), prune])
        for name in names:
            assert agent.execute(name, "ticket.get", n=2).status_code == 200
        for name in over[:3]:
            for url in fleet.urls:
                assert agent.http.get(f"{url}/v1/sessions/{name}").status_code == 404
                assert agent.http.get(f"{url}/v1/traces/{name}").status_code == 404
                body = {"agent_id": "bot", "goal": "Help", "session_id": name}
                assert agent.http.post(f"{url}/v1/sessions", json=body).status_code == 409
        assert agent.ask("GET", "/v1/sessions?status=all").json()["total"] == 3
        book = stack.enter_context(closing(PostgresBook(fleet.store, connections=1)))
        questions = stack.enter_context(closing(PostgresApprovals(fleet.store)))
        assert set(book.session_ids("", 100)) == {left, *names}
        assert questions.session_ids() == []
        for name in (left, *names):
            assert agent.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
        end = time.monotonic() + 30
        while cra(*verify, "--require", "sealed", "--require", "signed", "--head", str(held)).returncode != 0:
            assert time.monotonic() < end, cra(*verify).stdout + fleet.said.read_text()
            time.sleep(0.1)
        assert "not signed" not in fleet.said.read_text()


KILLED = """
import sys
from cra_middleware.cli import app, prune
class Later(prune.SystemClock):
    def wall_us(self):
        return super().wall_us() + 31 * 86_400 * 1_000_000
prune.SystemClock = Later
sys.stdout.reconfigure(line_buffering=True)
app(sys.argv[1:])
"""
