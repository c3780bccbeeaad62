"""What belongs to one server process: a second one on the same places says so and does not start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.server.serving import Process
from tests.server.test_program import cra, program

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow  # every test starts programs, one after the other

Start = Callable[..., Process]


def refused(server: Process, *place: str) -> None:
    done = program("serve", "--atlas", str(server.folder / "atlases"), "--port", "0", *place)
    assert (done.returncode, "another server runs here" in done.stderr) == (2, True), done.stderr


def test_a_second_server_on_the_same_places_does_not_start(process: Start, tmp_path: Path) -> None:
    """Nor one that shares only the traces, or only the state, or comes by a link; what is killed holds nothing."""
    server = process()
    traces = server.folder / "traces"
    link = tmp_path / "link"
    link.symlink_to(traces)
    refused(server, "--trace", str(traces))
    refused(server, "--trace", str(link))
    refused(server, "--trace", str(traces), "--state", str(tmp_path / "own"))
    refused(server, "--trace", str(tmp_path / "others"), "--state", str(traces / "server"))
    assert httpx.get(server.url + "/v1/health").status_code == 200
    server.stop(signal.SIGKILL)
    server.start()
    assert server.stop() == 0
    server.start()


def test_nor_on_the_same_file(process: Start, tmp_path: Path) -> None:
    """A SQLite file is one place by all of its names."""
    file = tmp_path / "traces.db"
    server = process("--trace", f"sqlite:{file}")
    (tmp_path / "other.db").symlink_to(file)
    refused(server, "--trace", f"sqlite:{file}")
    refused(server, "--trace", f"sqlite:{tmp_path / 'other.db'}")
    refused(server, "--trace", f"sqlite:{file}", "--state", str(tmp_path / "own"))


def test_commands_work_beside_a_server(process: Start) -> None:
    """Keys, questions and traces are looked at while it runs, and the lock is no trace."""
    server = process()
    place = ("--trace", str(server.folder / "traces"))
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/sessions", json={"agent_id": "bot", "goal": "Help"}).status_code == 201
    assert cra("apikeys", "create", "ann", "--role", "admin", *place).returncode == 0
    assert cra("apikeys", "list", *place).returncode == 0
    store = str(server.folder / "traces" / "server" / "approvals.db")
    assert cra("approvals", "list", "--store", store).returncode == 0
    for words in (("verify",), ("prune", "--older-than", "1d", "--unsigned")):
        assert cra("trace", words[0], str(server.folder / "traces"), *words[1:]).returncode == 0


@pytest.mark.parametrize("loss", ["damaged", "moved away", "emptied"])
def test_lost_keys_let_nobody_in(process: Start, loss: str) -> None:
    """A server whose keys are gone does not start as one that never had any, and says what to do."""
    server = process()
    place = ("--trace", str(server.folder / "traces"))
    assert cra("apikeys", "create", "ann", "--role", "admin", *place).returncode == 0
    server.stop()
    folder = server.folder / "traces" / "server"
    file = folder / "api-keys.db"
    for more in folder.glob("api-keys.db-*"):
        more.unlink()
    if loss == "damaged":
        file.write_bytes(b"no database" * 1000)
    elif loss == "moved away":
        file.rename(folder / "aside")
    else:
        file.write_bytes(b"")
    done = program("serve", "--atlas", str(server.folder / "atlases"), *place, "--port", "0")
    said = " ".join(done.stderr.split())
    assert (done.returncode, "put a backup in its place" in said, "cra apikeys create" in said) == (2, True, True), said
    assert "a new one is made" not in said
    if loss == "damaged":
        return
    made = cra("apikeys", "create", "bob", "--role", "admin", *place)
    assert made.returncode == 0
    server.start()
    assert httpx.get(server.url + "/v1/sessions").status_code == 401
    key = {"x-api-key": made.stdout.split()[0]}
    assert httpx.get(server.url + "/v1/sessions", headers=key).status_code == 200


def test_keys_of_an_older_version_are_noted(process: Start) -> None:
    """A start with keys that nobody noted notes them."""
    server = process()
    place = ("--trace", str(server.folder / "traces"))
    assert cra("apikeys", "create", "ann", "--role", "admin", *place).returncode == 0
    server.stop()
    made = server.folder / "traces" / "server" / "api-keys.db.made"
    os.unlink(made)
    server.start()
    assert made.exists()
