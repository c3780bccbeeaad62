"""Four servers on one PostgreSQL database and one Redis: they behave as one, also when one is killed and replaced."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from cra_middleware.server.places import open_shared_keys
from tests.carp.redis_server import SERVER as REDIS
from tests.carp.redis_server import redis_module
from tests.server.fleet import LIMITED, Agent, Fleet, fleet_in, limited, together

pytest.importorskip("uvicorn")

SERVERS, AGENTS, SHARING, CALLS, MOST = 4, 64, 8, 6, 90
WAITS = {"approval_required", "approval_expired"}  # the second: used by another while this one was decided


class Load:
    """What the agents and an approver do, until a server was killed and the next one does its part."""

    def __init__(self, fleet: Fleet, approver: Agent) -> None:
        self.fleet = fleet
        self.approver = approver
        self.replaced = threading.Event()
        self.is_over = threading.Event()
        self.until = time.monotonic() + 150

    def work(self, agent: Agent, session_id: str) -> None:
        number = 0
        while number < CALLS or not self.replaced.is_set():
            assert time.monotonic() < self.until, "no other server took over"
            times = 3 if number % 6 == 0 else 1
            answer = agent.execute(session_id, ("ticket.get", LIMITED)[number % 2], times, n=number)
            if answer.status_code == 200 and number % 4 < 2:
                agent.report(session_id, answer.json()["execution_id"])
            number += 1
        while (answer := agent.execute(session_id, "refund.create", amount=5)).status_code != 200:
            assert answer.json()["error"]["details"]["reason_code"] in WAITS
            assert time.monotonic() < self.until, "nobody answered"
            time.sleep(0.2)

    def approve(self) -> None:
        """Say yes to whatever is asked, at any server."""
        while not self.is_over.wait(0.05):
            for asked in self.approver.ask("GET", "/v1/approvals?state=pending").json()["items"]:
                told = self.approver.ask("POST", f"/v1/approvals/{asked['approval_id']}/approve", {})
                assert told.status_code in (200, 409), told.text  # the second: an answer was lost, and given again

    def replace(self, number: int) -> None:
        """Kill one with a power cut's manners, and start another at its address."""
        while len(self.fleet.acknowledged) < 80:
            assert time.monotonic() < self.until, "there is no load"
            time.sleep(0.01)
        self.fleet.processes[number].send_signal(signal.SIGKILL)
        assert self.fleet.processes[number].wait(5) == -signal.SIGKILL
        before = self.fleet.answered[self.fleet.urls[number]]
        self.fleet.start(number)
        while self.fleet.answered[self.fleet.urls[number]] < before + 40:
            assert time.monotonic() < self.until, "the next one has nothing to do"
            time.sleep(0.01)
        self.replaced.set()


@pytest.mark.slow
def test_four_servers_and_one_is_killed(tmp_path: Path) -> None:
    """Sixty-four agents, eight of them in one session over all servers: no request counts twice, no limit is exceeded,
    each yes is used once, everything acknowledged is in the trace, and every chain verifies."""
    with fleet_in(tmp_path, limited(MOST)) as fleet:
        key = fleet.key("bot", "--role", "agent", "--agent", "*")
        approver = Agent(fleet, fleet.key("ann", "--role", "approver", "--role", "auditor"), 99)
        fleet.start_all(SERVERS)
        agents = [Agent(fleet, key, seed) for seed in range(AGENTS)]
        shared = agents[0].session()
        names = [shared] * SHARING
        together([lambda a=agent: names.append(a.session()) for agent in agents[SHARING:]])

        load = Load(fleet, approver)
        answering = threading.Thread(target=load.approve)
        answering.start()
        began = time.monotonic()
        try:
            works = [lambda a=agent, n=name: load.work(a, n) for agent, name in zip(agents, names, strict=True)]
            together([lambda: load.replace(0), *works])
        finally:
            load.is_over.set()
            answering.join(30)
        seconds = time.monotonic() - began

        asked = agents[0].execute(shared, "refund.create", amount=6)
        assert asked.status_code == 423, asked.text
        approval_id = asked.json()["error"]["details"]["approval_id"]
        assert approver.ask("POST", f"/v1/approvals/{approval_id}/approve", {}).status_code == 200
        refunds: list[httpx.Response] = []
        together([lambda a=a: refunds.append(a.execute(shared, "refund.create", amount=6)) for a in agents])
        refused = [answer.json()["error"]["details"]["reason_code"] for answer in refunds if answer.status_code != 200]
        assert len(refused) == AGENTS - 1
        assert set(refused) <= WAITS

        approved = {name: approver.events(name, "action.approved") for name in set(names)}
        payloads = [event["payload"] for events in approved.values() for event in events]
        recorded = {(name, event["payload"]["execution_id"]) for name, events in approved.items() for event in events}
        assert {(name, execution_id) for name, execution_id, _ in fleet.acknowledged} <= recorded
        assert len(recorded) == len(payloads) == len(fleet.acknowledged)
        executed = {
            (name, event["payload"]["execution_id"])
            for name in set(names)
            for event in approver.events(name, "action.executed")
        }
        assert set(fleet.reported) == executed
        counts = Counter(payload["action_id"] for payload in payloads)
        assert counts[LIMITED] == fleet.statuses[LIMITED, 200] <= MOST
        assert {status for action, status in fleet.statuses if action == LIMITED} == {200, 429}
        assert {status for action, status in fleet.statuses if action == "ticket.get"} == {200}
        used = [payload["approval_id"] for payload in payloads if payload["action_id"] == "refund.create"]
        assert len(used) == len(set(used)) == AGENTS + 1
        for name in set(names):
            assert agents[0].ask("DELETE", f"/v1/sessions/{name}").status_code == 204
            told = approver.ask("POST", f"/v1/traces/{name}/verify").json()
            assert (told["valid"], told["verdict"]) == (True, "INTACT, SEALED")
        with closing(open_shared_keys(fleet.store)) as keys:
            assert [known.name for known in keys.listed()] == ["ann", "bot"]
        with closing(redis_module().Redis.from_url(REDIS)) as redis:  # under the fleet's own prefix
            assert next(redis.scan_iter(match=f"{{{fleet.place[-1]}}}:*", count=10_000))
        assert fleet.stop() == [0] * SERVERS
        print(f"{sum(fleet.statuses.values())} calls in {seconds:.1f} s:", dict(fleet.statuses), dict(fleet.codes))
