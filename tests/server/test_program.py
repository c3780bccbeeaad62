"""``cra serve`` as a program: killed, stopped, begun again; and the command that makes its keys."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
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
from tests.server.serving import Process, manifest, utc_now

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
        app,
        list(words),
        env={"CRA_TRACE": "", "CRA_STATE": "", "CRA_STORE": "", "CRA_ATLAS_DIR": "", "CRA_COUNTERS": ""},
    )
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return Done(found.exit_code, found.stdout, found.stderr)


def program(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "cra_middleware", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
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
    assert server.stop() == 0
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


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_twice(process: Callable[..., Process], how: signal.Signals) -> None:
    """It waits for what is being asked; a second signal does not wait, and it ends by that."""
    server = process()
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
        assert httpx.get(server.url + "/v1/health").status_code == 200
        server.process.send_signal(how)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
        assert server.stop(how) == -how


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(process: Callable[..., Process], how: signal.Signals) -> None:
    """It ends well, and says nothing of it."""
    server = process()
    assert server.stop(how) == 0
    assert "Traceback" not in server.said


@pytest.mark.slow
def test_an_end_that_failed(tmp_path: Path) -> None:
    """What could not be flushed makes another exit code."""
    program = """
from cra_middleware.server.host import Host
from cra_middleware.cli import main
def fail(host):
    raise OSError("the disk is gone")
Host.close = fail
main()
"""
    server = Process(tmp_path, program=program)
    assert server.stop() == 1
    assert "the disk is gone" in server.said


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
    redis = ("--counters", "redis://127.0.0.1:1/0")
    for options in (
        *(("--record", "some"), ("--jwks", "http://a.example/keys"), ("--counters", "http://a.example"), redis),
        *((*redis, "--redis-prefix", "a b"), ("--redis-prefix", "acme")),
    ):
        assert cra("serve", *place, *options).returncode == 2


@pytest.mark.slow
def test_where_it_listens(tmp_path: Path) -> None:
    """Is said when it is so; an address that is taken ends it with 1, and a sentence. A warning is one line."""
    rules = [{"policy_id": "none", "type": "deny", "actions": ["nothing.at.all"]}]
    (tmp_path / "atlas.json").write_text(json.dumps(manifest(policies=rules)))
    place = ("--atlas", str(tmp_path / "atlas.json"), "--trace", str(tmp_path / "traces"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = program("serve", *place, "--port", port)
    assert done.returncode == 1
    assert f"it cannot listen on 127.0.0.1, port {port}: choose another --host or --port" in done.stderr
    assert "listens on" not in done.stderr
    (warned,) = (line for line in done.stderr.splitlines() if "nothing.at.all" in line)
    assert "AtlasWarning: W" in warned
    assert ".py" not in done.stderr
    command = [sys.executable, "-m", "cra_middleware", "serve", *place, "--host", "::1", "--port", "0"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    (url,) = (line.split()[-1] for line in running.stderr if "listens on" in line and not running.send_signal(15))
    assert re.fullmatch(r"http://\[::1\]:[1-9]\d+", url)
    assert running.wait(20) == 0
    running.stderr.close()


@pytest.mark.slow
def test_what_lies_in_a_folder(tmp_path: Path) -> None:
    """Of several Atlases the one with an error is named, and the one that speaks of a project; none at all is said."""
    place = ("--trace", str(tmp_path / "traces"))
    folder = tmp_path / "atlases"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = program("serve", "--atlas", str(folder), *place, "--port", str(taken.getsockname()[1]))
    assert f"no Atlas lies in {folder}: every call is denied" in done.stderr
    rules = [
        {
            "policy_id": "own",
            "type": "deny",
            "actions": ["ticket.get"],
            "conditions": {"arguments": {"p": {"within": "$PROJECT"}}},
        }
    ]
    (folder / "one.json").write_text(json.dumps(manifest(policies=rules)))
    found = program("serve", "--atlas", str(folder), *place)
    assert (found.returncode, "policy own of com.example.tests: it speaks of $PROJECT" in found.stderr) == (2, True)
    (folder / "one.json").write_text("{")
    found = program("serve", "--atlas", str(folder), *place)
    assert (found.returncode, f"{folder / 'one.json'}: E" in found.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--jwks", "http://a.example/keys", "--issuer", "me"), "goes with --issuer and --audience"),
        (("--issuer", "me", "--audience", "cra"), "go with --jwks"),
    ],
)
def test_half_an_identity_provider(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    """Is none: who forgot the rest gets no server that asks nobody who they are."""
    done = cra("serve", "--atlas", str(tmp_path), "--trace", str(tmp_path / "traces"), *options)
    assert (done.returncode, said in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--store", "postgresql://127.0.0.1:1/none"), "count in one place"),
        (("--store", "postgresql://127.0.0.1:1/none", "--counters", "c.db", "--trace", "traces"), "leave --trace"),
        (("--store", "postgresql://127.0.0.1:1/none", "--counters", "c.db", "--state", "own"), "leave --trace"),
        (("--store", "s.db", "--counters", "c.db", "--redis-prefix", "acme"), "--redis-prefix goes with"),
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
    boss = ("--role", "admin", "--expires")
    for wrong in (("--role", "king"), ("--role", "agent"), (*boss, "soon"), (*boss, "0m")):
        assert cra("apikeys", "create", "x", *wrong, *place).returncode == 2
    assert cra("apikeys", "list").returncode == 2
    for words in (("list",), ("revoke", "ann")):  # a misspelt place is none, and is not made
        lost = cra("apikeys", *words, "--trace", str(tmp_path / "misspelt"))
        assert (lost.returncode, "is not there" in lost.stderr) == (1, True)
    assert not (tmp_path / "misspelt").exists()
    for wrong in (("--store", "postgresql://127.0.0.1:1/none", *place), ("--store", "keys.db")):
        assert cra("apikeys", "list", *wrong).returncode in (1, 2)
    listed = cra("apikeys", "list", *place)
    assert "ann" in listed.stdout
    assert told["api_key"][13:] not in listed.stdout
    assert cra("apikeys", "revoke", "ann", *place).returncode == 0
    assert cra("apikeys", "revoke", "ann", *place).returncode == 1
    assert json.loads(cra("apikeys", "list", *place, "--format", "json").stdout)["api_keys"][0]["state"] == "revoked"
    assert cra("apikeys", "create", "ann", "--role", "approver", *place).returncode == 1
