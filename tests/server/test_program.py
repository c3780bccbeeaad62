"""``cra serve`` as a program: killed, stopped, begun again; and the command that makes its keys."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from cra_middleware import verify
from cra_middleware.cli import app
from tests.server.serving import Process, utc_now

pytest.importorskip("uvicorn")


def execution(session_id: str, number: int = 1) -> dict[str, Any]:
    return {
        "carp_version": "1.0",
        "request_id": str(uuid4()),
        "timestamp": utc_now(),
        "operation": "execute",
        "requester": {"agent_id": "bot", "session_id": session_id},
        "execution": {"action_id": "ticket.get", "parameters": {"n": number}},
    }


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def cra(*words: str) -> Done:
    """The command line, in this process."""
    found = CliRunner().invoke(
        app, list(words), env={"CRA_TRACE": "", "CRA_STATE": "", "CRA_STORE": "", "CRA_ATLAS_DIR": ""}
    )
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return Done(found.exit_code, found.stdout, found.stderr)


def test_killed_between_authorise_and_report(process: Callable[..., Process]) -> None:
    """The next process takes the report, answers the same request the same, and the chain is whole and sealed."""
    server = process()
    with httpx.Client(base_url=server.url) as client:
        name = client.post("/v1/sessions", json={"agent_id": "bot", "goal": "Help"}).json()["session_id"]
        body = execution(name)
        call = client.post("/v1/execute", json=body).json()
    server.stop(signal.SIGKILL)
    server.start()
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/execute", json=body).json() == call
        report = {"session_id": name, "status": "success", "duration_ms": 1}
        for _ in range(2):
            assert client.post(f"/v1/executions/{call['execution_id']}/report", json=report).status_code == 200
        assert client.delete(f"/v1/sessions/{name}").status_code == 204
    assert server.stop() in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    verdict = verify(server.folder / "traces" / f"{name}.trace.jsonl")
    assert (verdict.intact, verdict.sealed) == (True, True)


@pytest.mark.slow
def test_killed_under_load(process: Callable[..., Process]) -> None:
    """Nothing that was acknowledged is lost."""
    server = process()
    acknowledged: list[tuple[str, str]] = []

    def work() -> None:
        with httpx.Client(base_url=server.url, timeout=5) as client:
            try:
                name = client.post("/v1/sessions", json={"agent_id": "bot", "goal": "Help"}).json()["session_id"]
                while True:
                    acknowledged.append((name, client.post("/v1/execute", json=execution(name)).json()["execution_id"]))
            except (httpx.HTTPError, KeyError, ValueError):
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    server.stop(signal.SIGKILL)
    for thread in threads:
        thread.join(10)
    server.start()
    assert len(acknowledged) > 8
    with httpx.Client(base_url=server.url) as client:
        for name, execution_id in acknowledged[-20:]:
            report = {"session_id": name, "status": "success"}
            assert client.post(f"/v1/executions/{execution_id}/report", json=report).status_code == 200
        for name in {name for name, _ in acknowledged}:
            assert client.post(f"/v1/traces/{name}/verify").json()["valid"]


@pytest.mark.slow
def test_stopped_while_it_answers(process: Callable[..., Process]) -> None:
    """SIGTERM: what is being asked is answered, sessions stay open for the next process."""
    server = process()
    answers: list[int] = []
    with httpx.Client(base_url=server.url) as client:
        name = client.post("/v1/sessions", json={"agent_id": "bot", "goal": "Help"}).json()["session_id"]

    def work() -> None:
        with httpx.Client(base_url=server.url, timeout=10) as client:
            try:
                while True:
                    answers.append(client.post("/v1/execute", json=execution(name)).status_code)
            except httpx.ConnectError:
                return
            except httpx.HTTPError as error:
                answers.append(0 if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) else 1)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.4)
    server.stop()
    thread.join(10)
    assert "Traceback" not in server.said
    assert set(answers) <= {200, 0}
    assert answers.count(0) <= 1  # a kept connection may be closed just as it is used again
    server.start()
    with httpx.Client(base_url=server.url) as client:
        assert client.get(f"/v1/sessions/{name}").json()["status"] == "active"
        assert client.post("/v1/execute", json=execution(name)).status_code == 200
        told = client.get(f"/v1/traces/{name}", params={"event_type": "action.approved", "limit": 1000}).json()
        assert len(told["events"]) >= answers.count(200)


def test_without_keys_only_loopback(tmp_path: Path) -> None:
    """Any other address needs a key first; it says so, and does not start."""
    (tmp_path / "atlases").mkdir()
    place = ("--atlas", str(tmp_path / "atlases"), "--trace", str(tmp_path / "traces"))
    for address in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        done = cra("serve", *place, "--host", address)
        assert done.returncode == 2
        assert "make a key first" in done.stderr
    wrong = cra("serve", "--atlas", str(tmp_path / "atlases"))
    assert (wrong.returncode, "name where traces are kept" in wrong.stderr) == (2, True)
    for options in (("--record", "some"), ("--jwks", "http://a.example/keys"), ("--counters", "http://a.example")):
        assert cra("serve", *place, *options).returncode == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--store", "postgresql://127.0.0.1:1/none"), "count in one place"),
        (("--store", "postgresql://127.0.0.1:1/none", "--counters", "c.db", "--trace", "traces"), "leave --trace"),
        (("--store", "postgresql://127.0.0.1:1/none", "--counters", "c.db", "--state", "own"), "leave --trace"),
        (("--store", "traces.db", "--counters", "c.db"), "several servers share a PostgreSQL database"),
        (("--store", "postgresql://u:secret@127.0.0.1:1/none", "--counters", "c.db"), "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_shared(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    """Half of what servers share, two places for the same, or none: it says what is wanted, and does not start."""
    done = cra("serve", "--atlas", str(tmp_path), *options)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "secret" not in done.stderr


@pytest.mark.slow
def test_it_says_that_it_is_open(process: Callable[..., Process]) -> None:
    """At its start, on stderr; and once keys were made, it asks for them, even when none of them counts any more."""
    server = process()
    server.stop()
    assert "everybody on this machine may do everything here" in server.said
    place = ("--trace", str(server.folder / "traces"))
    made = cra("apikeys", "create", "bot", "--role", "agent", "--agent", "*", *place)
    assert made.returncode == 0
    key = made.stdout.split()[0]
    assert key.startswith("cra_")
    server.start()
    assert httpx.get(server.url + "/v1/tools").status_code == 401
    assert httpx.get(server.url + "/v1/tools", headers={"x-api-key": key}).status_code == 200
    assert cra("apikeys", "revoke", "bot", *place).returncode == 0
    time.sleep(1.1)
    assert httpx.get(server.url + "/v1/tools", headers={"x-api-key": key}).status_code == 401
    server.stop()
    assert "everybody" not in server.said
    server.start()
    assert httpx.get(server.url + "/v1/tools").status_code == 401


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    """Made once by a name, listed without what they are, revoked once."""
    place = ("--state", str(tmp_path))
    made = cra(
        "apikeys",
        "create",
        "ann",
        "--role",
        "approver",
        "--group",
        "leads",
        "--expires",
        "90d",
        *place,
        "--format",
        "json",
    )
    told = json.loads(made.stdout)
    assert (told["roles"], told["groups"], told["state"]) == (["approver"], ["leads"], "counts")
    assert cra("apikeys", "create", "ann", "--role", "approver", *place).returncode == 1
    for wrong in (("--role", "king"), ("--role", "agent"), ("--role", "admin", "--expires", "soon")):
        assert cra("apikeys", "create", "x", *wrong, *place).returncode == 2
    assert cra("apikeys", "list").returncode == 2
    for wrong in (("--store", "postgresql://127.0.0.1:1/none", *place), ("--store", "keys.db")):
        assert cra("apikeys", "list", *wrong).returncode in (1, 2)
    listed = cra("apikeys", "list", *place)
    assert "ann" in listed.stdout
    assert told["api_key"][13:] not in listed.stdout
    assert cra("apikeys", "revoke", "ann", *place).returncode == 0
    assert cra("apikeys", "revoke", "ann", *place).returncode == 1
    assert json.loads(cra("apikeys", "list", *place, "--format", "json").stdout)["api_keys"][0]["state"] == "revoked"
    assert cra("apikeys", "create", "ann", "--role", "approver", *place).returncode == 1
