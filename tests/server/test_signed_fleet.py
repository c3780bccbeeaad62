"""Two servers with one signing key on one database: heads cover what both wrote, also when one of them is killed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.keys import generate_key
from tests.conftest import manifest
from tests.server.fleet import Agent, fleet_in
from tests.server.test_program import cra

pytest.importorskip("uvicorn")
pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")


@pytest.mark.slow
def test_both_are_signed(tmp_path: Path) -> None:
    """Sessions that both wrote are signed to their last event, by whoever of them lives; a head that was taken before
    the kill still counts after it."""
    key = tmp_path / "bot.key"
    generate_key(key, "example.com/bot")
    with fleet_in(tmp_path, manifest()) as fleet:
        fleet.place = (*fleet.place, "--signing-key", str(key))
        agent_key = fleet.key("bot", "--role", "agent", "--agent", "*")
        for number in range(2):
            fleet.start()
            fleet.wait(number)

        def verified(*more: str) -> Any:
            found = cra("trace", "verify", fleet.store, "--key", f"{key}.pub", "--format", "json", *more)
            return found.returncode, json.loads(found.stdout)

        def wait_until_signed() -> None:
            end = time.monotonic() + 20
            while verified("--require", "signed")[0] != 0:
                assert time.monotonic() < end, (verified(), fleet.said.read_text())
                time.sleep(0.1)

        agent = Agent(fleet, agent_key, 1)
        names = [agent.session() for _ in range(3)]
        for name in names:
            for number in range(4):
                assert agent.execute(name, "ticket.get", n=number).status_code == 200
        wait_until_signed()
        held = tmp_path / "held.head"
        held.write_text(cra("trace", "head", fleet.store).stdout)

        fleet.processes[0].send_signal(signal.SIGKILL)
        for name in names:
            assert agent.execute(name, "ticket.get", n=9).status_code == 200
            assert agent.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
        wait_until_signed()
        code, found = verified("--head", str(held), "--require", "signed", "--require", "sealed")
        assert (code, len(found["files"])) == (0, 3)
        grown = cra("trace", "prove", fleet.store, "--since", str(held))
        assert grown.returncode == 0, grown.stderr
        assert "not signed" not in fleet.said.read_text()
