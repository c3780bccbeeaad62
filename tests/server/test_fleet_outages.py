"""The database, and Redis, are killed or fall silent, and come back: nothing runs that should not, nothing is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.carp.redis_server import OwnServer
from tests.server.fleet import LIMITED, Agent, Fleet, limited, together
from tests.server.own_postgres import own_postgres

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow

SERVERS, AGENTS, MOST = 3, 10, 160
KEPT = ("--appendonly", "yes", "--appendfsync", "always")  # as docs/shared-stores.md says


class Load:
    """Agents that go on until they are told to stop, each in a session of its own."""

    def __init__(self, fleet: Fleet, key: str) -> None:
        self.fleet = fleet
        self.agents = [Agent(fleet, key, seed) for seed in range(AGENTS)]
        self.names = [agent.session() for agent in self.agents]
        self.is_over = threading.Event()
        self.done = 0
        self.refused: Counter[tuple[int, str]] = Counter()

    def work(self, agent: Agent, session_id: str) -> None:
        number = 0
        while not self.is_over.is_set():
            number += 1
            answer = agent.execute(session_id, ("ticket.get", LIMITED)[number % 2], n=number)
            if answer.status_code == 200:
                agent.report(session_id, answer.json()["execution_id"])
                with self.fleet.lock:
                    self.done += 1
            else:
                with self.fleet.lock:
                    self.refused[answer.status_code, answer.json()["error"]["code"]] += 1

    def used(self) -> int:
        return sum(action == LIMITED for _, _, action in list(self.fleet.acknowledged))

    def wait(self, calls: int) -> None:
        """Until so many more have run."""
        wanted, until = self.done + calls, time.monotonic() + 60
        while self.done < wanted:
            assert time.monotonic() < until, f"the agents do not get on: {self.refused}, {self.fleet.codes}"
            time.sleep(0.02)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.work, args=pair) for pair in zip(self.agents, self.names, strict=True)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.is_over.set()
            for thread in threads:
                thread.join(90)
        assert not any(thread.is_alive() for thread in threads)


def told(answer: httpx.Response) -> tuple[int, str]:
    """Status, and the code of an error."""
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def asked_of_all(fleet: Fleet, agent: Agent, session_id: str, action_id: str) -> set[tuple[int, str]]:
    """What each server says to a call."""
    numbers = range(SERVERS)
    return {told(agent.at(n, "POST", "/v1/execute", agent.body(session_id, action_id))) for n in numbers}


def health(fleet: Fleet, agent: Agent) -> set[tuple[int, str]]:
    """What each server says of itself, to anybody and to who has a key."""
    answers = [httpx.get(url + "/v1/health", timeout=20) for url in fleet.urls]
    answers += [agent.at(number, "GET", "/v1/health") for number in range(SERVERS)]
    return {(answer.status_code, answer.json().get("status", answer.text)) for answer in answers}


def back(fleet: Fleet, agent: Agent, session_id: str, action_id: str) -> None:
    """Wait until each server lets calls run again."""
    until = time.monotonic() + 60
    wanted = ({(200, "")}, {(200, "healthy")})
    while (asked_of_all(fleet, agent, session_id, action_id), health(fleet, agent)) != wanted:
        assert time.monotonic() < until, "a server does not go on"
        time.sleep(0.1)


def test_stores_are_killed_and_come_back(tmp_path: Path) -> None:
    """Redis first: what has no limit goes on, what has one is refused. Then the database: nothing runs. Each time the
    servers say so themselves, and go on by themselves."""
    redis = OwnServer(tmp_path, *KEPT)
    with own_postgres() as database:
        fleet = Fleet(tmp_path, database.url, redis.url, "cra-test", limited(MOST))
        try:
            key = fleet.key("bot", "--role", "agent", "--agent", "*")
            auditor = Agent(fleet, fleet.key("eve", "--role", "auditor"), 99)
            fleet.start_all(SERVERS)
            load = Load(fleet, key)
            prober = Agent(fleet, key, 98)
            probed = prober.session()
            assert asked_of_all(fleet, prober, probed, "ticket.get") == {(200, "")}
            with load.running():
                load.wait(60)
                redis.stop()
                for _ in range(3):
                    assert asked_of_all(fleet, prober, probed, LIMITED) == {(422, "POLICY_EVALUATION_ERROR")}
                    assert asked_of_all(fleet, prober, probed, "ticket.get") == {(200, "")}
                    assert health(fleet, prober) == {(503, "unhealthy")}
                redis.start()
                back(fleet, prober, probed, LIMITED)
                load.wait(40)
                assert load.used() < MOST
                database.kill()
                for _ in range(3):
                    for action_id in ("ticket.get", LIMITED):
                        assert asked_of_all(fleet, prober, probed, action_id) == {(500, "STORAGE_LOCKED")}
                    assert health(fleet, prober) == {(503, "unhealthy")}
                    time.sleep(0.7)  # longer than a key is remembered
                database.start()
                back(fleet, prober, probed, "ticket.get")
                while not load.refused[429, "RATE_LIMIT_EXCEEDED"]:
                    load.wait(10)
            names = [*load.names, probed]
            approved = {name: auditor.events(name, "action.approved") for name in names}
            recorded = {(n, event["payload"]["execution_id"]) for n, events in approved.items() for event in events}
            assert {(name, execution_id) for name, execution_id, _ in fleet.acknowledged} <= recorded
            executed = {
                (name, event["payload"]["execution_id"])
                for name in names
                for event in auditor.events(name, "action.executed")
            }
            assert set(fleet.reported) == executed
            counts = Counter(event["payload"]["action_id"] for events in approved.values() for event in events)
            assert load.used() <= counts[LIMITED] <= MOST
            together([lambda n=n: prober.ask("DELETE", f"/v1/sessions/{n}") for n in names])
            for name in names:
                assert auditor.ask("POST", f"/v1/traces/{name}/verify").json()["verdict"] == "INTACT, SEALED"
            assert fleet.stop() == [0] * SERVERS
            print(load.done, "calls;", dict(load.refused), dict(fleet.codes))
        finally:
            fleet.stop()
            redis.stop()


def unheard(agent: Agent, session_id: str, number: int) -> None:
    """Ask a server that may end."""
    with suppress(httpx.TransportError):
        agent.at(number, "POST", "/v1/execute", agent.body(session_id, "ticket.get"))


def test_a_database_falls_silent(tmp_path: Path) -> None:
    """It keeps its connections: whoever asks is told, the servers go on when it does, and end while it does not."""
    redis = OwnServer(tmp_path, *KEPT)
    with own_postgres() as database:
        fleet = Fleet(tmp_path, database.url, redis.url, "cra-test", limited(MOST))
        try:
            agent = Agent(fleet, fleet.key("bot", "--role", "agent", "--agent", "*"), 1)
            agent.http.timeout = httpx.Timeout(120)
            auditor = Agent(fleet, fleet.key("eve", "--role", "auditor"), 99)
            fleet.start_all(SERVERS)
            name = agent.session()
            assert asked_of_all(fleet, agent, name, "ticket.get") == {(200, "")}
            database.pause()
            assert asked_of_all(fleet, agent, name, "ticket.get") == {(500, "STORAGE_LOCKED")}
            assert health(fleet, agent) == {(503, "unhealthy")}
            database.go_on()
            back(fleet, agent, name, "ticket.get")
            database.pause()
            asking = [threading.Thread(target=unheard, args=(agent, name, number)) for number in range(SERVERS)]
            for thread in asking:
                thread.start()
            for process in fleet.processes:
                process.send_signal(signal.SIGTERM)
            assert [process.wait(120) for process in fleet.processes] == [0] * SERVERS
            assert "says nothing just now" in fleet.said.read_text()
            database.go_on()
            for thread in asking:
                thread.join(120)
            for number in range(SERVERS):
                fleet.start(number)
            for number in range(SERVERS):
                fleet.wait(number)
            back(fleet, agent, name, "ticket.get")
            agent.ask("DELETE", f"/v1/sessions/{name}")
            assert auditor.ask("POST", f"/v1/traces/{name}/verify").json()["verdict"] == "INTACT, SEALED"
        finally:
            database.go_on()
            fleet.stop()
            redis.stop()
