"""Four servers on one PostgreSQL database and one Redis: they behave as one, also when one of them is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from cra_middleware.server.places import open_shared_keys
from tests.carp.redis_server import redis_prefix
from tests.conftest import manifest
from tests.server.serving import ASKED, free_port, utc_now
from tests.server.test_program import cra
from tests.trace.postgres_server import database

pytest.importorskip("uvicorn")
psycopg: Any = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")

SERVERS, AGENTS, SHARING, CALLS, MOST = 4, 16, 8, 24, 40


class Fleet:
    """The servers, and what they were told."""

    def __init__(self, folder: Path, store: str, counters: str) -> None:
        self.place = ("--store", store, "--counters", counters)
        self.store = store
        limit = {
            "policy_id": "limit",
            "type": "rate_limit",
            "actions": ["ticket.update"],
            "parameters": {"max_calls": MOST, "window_seconds": 300, "scope": "global"},
        }
        name = f"com.example.t{uuid4().hex}"  # places in Redis are named after it: nobody else's
        atlas = manifest(atlas_id=name, policies=[*manifest()["policies"], ASKED, limit])
        self.said = folder / "said.txt"
        self.atlas = folder / "tests.json"
        self.atlas.write_text(json.dumps(atlas))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.urls: list[str] = []
        self.clients = ExitStack()
        self.lock = threading.Lock()
        self.acknowledged: list[tuple[str, str, str]] = []
        self.statuses: Counter[tuple[str, int]] = Counter()

    def start(self) -> None:
        port = free_port()
        command = [sys.executable, "-m", "cra_middleware", "serve", "--atlas", str(self.atlas), "--port", str(port)]
        env = {name: value for name, value in os.environ.items() if name not in ("CRA_TRACE", "CRA_STATE")}
        with self.said.open("ab") as said:
            self.processes.append(subprocess.Popen([*command, *self.place], stderr=said, env=env))
        self.urls.append(f"http://127.0.0.1:{port}")

    def wait(self, number: int) -> None:
        for _ in range(600):
            try:
                if httpx.get(self.urls[number] + "/v1/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                assert self.processes[number].poll() is None, self.said.read_text()
            time.sleep(0.05)
        raise AssertionError("a server did not answer")

    def stop(self) -> None:
        self.clients.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def key(self, name: str, *words: str) -> str:
        made = cra("apikeys", "create", name, *words, "--store", self.store)
        assert made.returncode == 0, made.stderr
        return made.stdout.split()[0]


class Agent:
    """Asks any of the servers; when one does not answer, it asks the same of another."""

    def __init__(self, fleet: Fleet, key: str, seed: int) -> None:
        self.fleet = fleet
        self.random = random.Random(seed)
        self.http = fleet.clients.enter_context(httpx.Client(timeout=20, headers={"x-api-key": key}))

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        for _ in range(80):
            try:
                answer = self.http.request(method, self.random.choice(self.fleet.urls) + path, json=body)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            error = answer.json().get("error", {}) if answer.status_code >= 400 else {}
            if answer.status_code < 500 and error.get("code") != "IDEMPOTENCY_CONFLICT":
                return answer
            time.sleep(0.1)
        raise AssertionError(f"{path} was never answered")

    def session(self) -> str:
        answer = self.ask("POST", "/v1/sessions", {"agent_id": "bot", "goal": "Help", "session_id": str(uuid4())})
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["session_id"])

    def execute(self, session_id: str, action_id: str, times: int = 1, **parameters: object) -> httpx.Response:
        """Ask for a call; ``times`` at once, of whatever servers, who must all say the same."""
        key = str(uuid4())
        body = {
            "carp_version": "1.0",
            "request_id": key,
            "timestamp": utc_now(),
            "operation": "execute",
            "requester": {"agent_id": "bot", "session_id": session_id},
            "execution": {"action_id": action_id, "parameters": parameters},
        }
        answers: list[httpx.Response] = []
        together([lambda: answers.append(self.ask("POST", "/v1/execute", body))] * times)
        answer = answers[0]
        assert len({given.text for given in answers}) == 1
        with self.fleet.lock:
            self.fleet.statuses[action_id, answer.status_code] += 1
            if answer.status_code == 200:
                self.fleet.acknowledged.append((session_id, answer.json()["execution_id"], action_id))
        return answer

    def work(self, session_id: str) -> None:
        for number in range(CALLS):
            times = 3 if number % 6 == 0 else 1
            answer = self.execute(session_id, ("ticket.get", "ticket.update")[number % 2], times, n=number)
            if answer.status_code == 200 and number % 4 < 2:
                report = {"session_id": session_id, "status": "success", "duration_ms": 1}
                told = self.ask("POST", f"/v1/executions/{answer.json()['execution_id']}/report", report)
                assert told.status_code == 200, told.text

    def events(self, session_id: str, event_type: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        since = 0
        while True:
            path = f"/v1/traces/{session_id}?event_type={event_type}&limit=1000&since_sequence={since}"
            events = self.ask("GET", path).json()["events"]
            found += events
            if len(events) < 1000:
                return found
            since = events[-1]["sequence"] + 1


@contextmanager
def fleet_in(folder: Path) -> Iterator[Fleet]:
    with database() as where, redis_prefix() as (counters, _):
        parts = psycopg.conninfo.conninfo_to_dict(where)
        options = quote(str(parts["options"]))
        url = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}?options={options}"
        fleet = Fleet(folder, url, counters)
        try:
            yield fleet
        finally:
            fleet.stop()


def together(works: list[Any]) -> None:
    """Do them at once; what one raises is raised."""
    failures: list[BaseException] = []

    def run(work: Any) -> None:
        try:
            work()
        except BaseException as error:  # raised below, in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if failures:
        raise failures[0]


@pytest.mark.slow
def test_four_servers_and_one_is_killed(tmp_path: Path) -> None:
    """Sixteen agents, eight of them in one session over all servers: no request counts twice, no limit is exceeded, a
    yes is used once, everything acknowledged is in the trace, and every chain verifies."""
    with fleet_in(tmp_path) as fleet:
        key = fleet.key("bot", "--role", "agent", "--agent", "*")
        ann = fleet.key("ann", "--role", "approver", "--role", "auditor")
        for _ in range(SERVERS):
            fleet.start()
        for number in range(SERVERS):
            fleet.wait(number)
        agents = [Agent(fleet, key, seed) for seed in range(AGENTS)]
        shared = agents[0].session()
        names = [shared] * SHARING + [agent.session() for agent in agents[SHARING:]]

        def kill() -> None:
            until = time.monotonic() + 60
            while len(fleet.acknowledged) < 60 and time.monotonic() < until:
                time.sleep(0.01)
            fleet.processes[0].send_signal(signal.SIGKILL)
            fleet.start()

        began = time.monotonic()
        together([kill, *(lambda a=a, n=n: a.work(n) for a, n in zip(agents, names, strict=True))])
        seconds = time.monotonic() - began
        assert fleet.processes[0].wait(5) == -signal.SIGKILL
        fleet.wait(SERVERS)

        asked = agents[0].execute(shared, "refund.create", amount=5)
        assert asked.status_code == 423, asked.text
        approval_id = asked.json()["error"]["details"]["approval_id"]
        approver = Agent(fleet, ann, 99)
        assert approver.ask("POST", f"/v1/approvals/{approval_id}/approve", {}).status_code == 200
        refunds: list[httpx.Response] = []
        together([lambda a=a: refunds.append(a.execute(shared, "refund.create", amount=5)) for a in agents])
        refused = [answer.json()["error"]["details"]["reason_code"] for answer in refunds if answer.status_code != 200]
        assert len(refused) == AGENTS - 1
        assert set(refused) <= {"approval_required", "approval_expired"}  # the second: used while this one was decided

        total = AGENTS * CALLS
        approved = {name: approver.events(name, "action.approved") for name in set(names)}
        payloads = [event["payload"] for events in approved.values() for event in events]
        recorded = {(name, event["payload"]["execution_id"]) for name, events in approved.items() for event in events}
        assert {(name, execution_id) for name, execution_id, _ in fleet.acknowledged} <= recorded
        assert Counter(payload["action_id"] for payload in payloads)["ticket.update"] <= MOST
        assert fleet.statuses["ticket.get", 200] == total // 2
        assert fleet.statuses["ticket.update", 200] + fleet.statuses["ticket.update", 429] == total // 2
        assert len(recorded) == len(payloads) == len(fleet.acknowledged)
        for name in set(names):
            assert agents[0].ask("DELETE", f"/v1/sessions/{name}").status_code == 204
            told = approver.ask("POST", f"/v1/traces/{name}/verify").json()
            assert (told["valid"], told["verdict"]) == (True, "INTACT, SEALED")
        with closing(open_shared_keys(fleet.store)) as keys:
            assert [known.name for known in keys.listed()] == ["ann", "bot"]
        print(f"{total} calls in {seconds:.1f} s:", dict(fleet.statuses))
