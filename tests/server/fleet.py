"""Servers as programs on one PostgreSQL database and one Redis, and agents that ask whichever they like."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from tests.carp.redis_server import redis_prefix
from tests.conftest import manifest
from tests.server.serving import ASKED, free_port, utc_now
from tests.server.test_program import cra
from tests.trace.postgres_server import database

psycopg: Any = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")


class Fleet:
    """The servers, and what they were told."""

    def __init__(self, folder: Path, store: str, counters: str, prefix: str, atlas: dict[str, Any]) -> None:
        self.place = ("--store", store, "--counters", counters, "--redis-prefix", prefix)
        self.store = store
        self.folder = folder
        self.said = folder / "said.txt"
        self.atlases = folder / "atlases"
        self.atlases.mkdir()
        (self.atlases / "tests.json").write_text(json.dumps(atlas))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.urls: list[str] = []
        self.clients = ExitStack()
        self.lock = threading.Lock()
        self.acknowledged: list[tuple[str, str, str]] = []
        self.reported: list[tuple[str, str]] = []
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.answered: Counter[str] = Counter()
        """How many requests each address has answered."""
        self.codes: Counter[tuple[int, str]] = Counter()
        """Every error that a server told, also those that were asked again."""

    def start(self, number: int | None = None, *options: str) -> None:
        """One more; or one in the place of another, at its address."""
        is_new = number is None or number == len(self.urls)
        port = free_port() if is_new else int(self.urls[number or 0].rpartition(":")[2])
        command = [sys.executable, "-m", "cra_middleware", "serve", "--atlas", str(self.atlases), "--port", str(port)]
        env = {name: value for name, value in os.environ.items() if name not in ("CRA_TRACE", "CRA_STATE")}
        with self.said.open("ab") as said:
            process = subprocess.Popen([*command, *self.place, *options], stderr=said, env=env)
        if is_new:
            self.processes.append(process)
            self.urls.append(f"http://127.0.0.1:{port}")
        else:
            self.processes[number or 0] = process

    def start_all(self, many: int, *options: str) -> None:
        """And wait until each answers."""
        for _ in range(many):
            self.start(None, *options)
        for number in range(many):
            self.wait(number)

    def wait(self, number: int) -> None:
        for _ in range(1200):
            try:
                if httpx.get(self.urls[number] + "/v1/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                assert self.processes[number].poll() is None, self.said.read_text()
            time.sleep(0.05)
        raise AssertionError("a server did not answer")

    def stop(self) -> list[int]:
        """All of them; how each ended."""
        self.clients.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        return [process.returncode for process in self.processes]

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

    def at(self, number: int, method: str, path: str, body: Any = None) -> httpx.Response:
        """Ask one server, once."""
        return self.http.request(method, self.fleet.urls[number] + path, json=body)

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                url = self.random.choice(self.fleet.urls)
                answer = self.http.request(method, url + path, json=body)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            error = answer.json().get("error", {}) if answer.status_code >= 400 else {}
            with self.fleet.lock:
                self.fleet.answered[url] += 1
                if error:
                    self.fleet.codes[answer.status_code, error["code"]] += 1
            if answer.status_code < 500 and error.get("code") != "IDEMPOTENCY_CONFLICT":
                return answer
            time.sleep(0.1)
        raise AssertionError(f"{path} was never answered")

    def session(self) -> str:
        answer = self.ask("POST", "/v1/sessions", {"agent_id": "bot", "goal": "Help", "session_id": str(uuid4())})
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["session_id"])

    def body(self, session_id: str, action_id: str, **parameters: object) -> dict[str, Any]:
        return {
            "carp_version": "1.0",
            "request_id": str(uuid4()),
            "timestamp": utc_now(),
            "operation": "execute",
            "requester": {"agent_id": "bot", "session_id": session_id},
            "execution": {"action_id": action_id, "parameters": parameters},
        }

    def execute(self, session_id: str, action_id: str, times: int = 1, **parameters: object) -> httpx.Response:
        """Ask for a call; ``times`` at once, of whatever servers, who must all say the same."""
        body = self.body(session_id, action_id, **parameters)
        answers: list[httpx.Response] = []
        together([lambda: answers.append(self.ask("POST", "/v1/execute", body))] * times)
        answer = answers[0]
        assert len({given.text for given in answers}) == 1
        with self.fleet.lock:
            self.fleet.statuses[action_id, answer.status_code] += 1
            if answer.status_code == 200:
                self.fleet.acknowledged.append((session_id, answer.json()["execution_id"], action_id))
        return answer

    def report(self, session_id: str, execution_id: str) -> None:
        report = {"session_id": session_id, "status": "success", "duration_ms": 1}
        told = self.ask("POST", f"/v1/executions/{execution_id}/report", report)
        assert told.status_code == 200, told.text
        with self.fleet.lock:
            self.fleet.reported.append((session_id, execution_id))

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


LIMITED = "ticket.update"


def limited(most: int) -> dict[str, Any]:
    """An Atlas in which refunds wait for a person, and all agents together update so many tickets."""
    limit = {
        "policy_id": "limit",
        "type": "rate_limit",
        "actions": [LIMITED],
        "parameters": {"max_calls": most, "window_seconds": 300, "scope": "global"},
    }
    return manifest(policies=[*manifest()["policies"], ASKED, limit])


def url_of(conninfo: str) -> str:
    """A connection string as an address."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    options = f"?options={quote(str(parts['options']))}" if "options" in parts else ""
    return f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}{options}"


@contextmanager
def fleet_in(folder: Path, atlas: dict[str, Any]) -> Iterator[Fleet]:
    """A fleet without a server yet, on stores that are nobody else's."""
    with database() as where, redis_prefix() as (counters, prefix):
        fleet = Fleet(folder, url_of(where), counters, prefix, atlas)
        try:
            yield fleet
        finally:
            fleet.stop()


def together(works: Sequence[Callable[[], object]]) -> None:
    """Do them at once; what one raises is raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # raised below, in the test's own thread
            failures.append(error)

    if len(works) == 1:
        works[0]()
        return
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    if failures:
        raise failures[0]
