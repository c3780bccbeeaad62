"""Each kind of bad input against ``cra serve`` itself, over its socket: the documented code, and nothing is let run."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from cra_middleware import verify
from cra_middleware._clock import SystemClock
from cra_middleware.server.access import make_key
from cra_middleware.server.places import open_keys, state_folder
from tests.conftest import manifest
from tests.server.serving import Process, code
from tests.server.test_program import execution

pytest.importorskip("uvicorn")


class Door:
    """The server, and its callers."""

    def __init__(self, folder: Path, start: Callable[..., Process]) -> None:
        self.traces = folder / "process0" / "traces"
        now_us = SystemClock().wall_us()
        self.texts = {}
        keys = open_keys(state_folder(self.traces))
        for name, role, expires_us in (
            ("bot", "agent", None),
            ("other", "agent", None),
            ("boss", "admin", None),
            ("gone", "agent", None),
            ("old", "agent", now_us + 1),
        ):
            text, key = make_key(name, (role,), now_us, agent_ids=("*",), expires_us=expires_us)
            keys.add(key)
            self.texts[name] = text
        keys.revoke("gone", now_us)
        keys.close()
        self.server = start()
        self.session_id = self.ask("bot", "POST", "/v1/sessions", {"agent_id": "bot", "goal": "g"}).json()["session_id"]

    def ask(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        sent = {"x-api-key": self.texts[who], **headers} if who else headers
        return httpx.request(method, self.server.url + path, json=body, headers=sent, timeout=10)

    def execute(self, who: str = "bot", session_id: str | None = None, **change: Any) -> httpx.Response:
        return self.ask(who, "POST", "/v1/execute", execution(session_id or self.session_id) | change)

    def lines(self) -> list[Any]:
        path = self.traces / f"{self.session_id}.trace.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def door(tmp_path: Path, process: Callable[..., Process]) -> Door:
    return Door(tmp_path, process)


@pytest.fixture
def shut(door: Door) -> Iterator[Door]:
    """At the end the session is as it was begun: nothing was decided in it, and it still takes a call."""
    before = door.lines()
    yield door
    assert door.lines() == before
    assert door.execute().status_code == 200
    door.server.stop()
    assert verify(door.traces / f"{door.session_id}.trace.jsonl").intact


@pytest.mark.slow
def test_wrong_versions(shut: Door) -> None:
    """Of CARP, and of an Atlas."""
    for version in ("2.0", "1.1", "1", 1.0, None, ""):
        assert code(shut.execute(carp_version=version)) == (400, "INVALID_CARP_REQUEST")
    for version in ("2.0", "0.9"):
        told = shut.ask("boss", "POST", "/v1/atlases", {"manifest": manifest(atlas_version=version)})
        assert code(told)[0] == 400


@pytest.mark.slow
def test_sessions_that_are_not_there(shut: Door) -> None:
    """Unknown, another agent's, or no id at all: nobody can tell which."""
    for who, name in (("bot", str(uuid4())), ("other", shut.session_id), ("bot", "0" * 36), ("bot", "..")):
        if name != "..":
            for method, path, body in (
                ("GET", f"/v1/sessions/{name}", None),
                ("DELETE", f"/v1/sessions/{name}", None),
                ("POST", f"/v1/sessions/{name}/end", {}),
                ("GET", f"/v1/traces/{name}", None),
                ("POST", f"/v1/traces/{name}/verify", None),
                ("POST", f"/v1/traces/{name}/note", {"error_code": "x", "message": "y"}),
                ("POST", f"/v1/executions/{uuid4()}/report", {"session_id": name, "status": "success"}),
            ):
                assert code(shut.ask(who, method, path, body)) in (
                    (404, "SESSION_NOT_FOUND"),
                    (400, "INVALID_CARP_REQUEST"),
                ), (method, path)
        assert shut.execute(who, name).status_code in (400, 404)
        assert shut.ask(who, "POST", "/v1/sessions", {"agent_id": "b", "goal": "g", "parent_session_id": name}).is_error


@pytest.mark.slow
def test_who_is_not_let_in(shut: Door) -> None:
    """No key, an expired one, a revoked one, one of nobody's, and tokens where no issuer is known."""
    claims = {"sub": "bot", "roles": ["admin"], "iss": "x", "aud": "cra", "exp": 2**40}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
    unsigned = b".".join([*parts, b""]).decode()
    for who, headers in (
        ("", {}),
        ("old", {}),
        ("gone", {}),
        ("", {"x-api-key": "cra_00000000_" + "x" * 43}),
        ("", {"authorization": f"Bearer {unsigned}"}),
        ("", {"authorization": "Basic Ym90OmJvdA=="}),
    ):
        answer = shut.ask(who, "POST", "/v1/execute", execution(shut.session_id), **headers)
        assert code(answer) == (401, "UNAUTHORIZED"), headers
        assert answer.headers["www-authenticate"] == "Bearer"


def test_clocks_that_are_off(shut: Door) -> None:
    """More than five minutes: refused, and told the server's time."""
    for seconds in (-310, 310, -86_400, 10**9):
        then = (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()
        answer = shut.execute(timestamp=then)
        assert code(answer) == (400, "INVALID_CARP_REQUEST")
        assert "server_time" in answer.json()["error"]["details"]


@pytest.mark.slow
def test_a_hundred_megabytes(shut: Door) -> None:
    """Really sent: told 413 before they have arrived, and the next one is answered."""
    size = 100 * 1024 * 1024
    with socket.create_connection(("127.0.0.1", shut.server.port), timeout=10) as link:
        link.sendall(
            f"POST /v1/execute HTTP/1.1\r\nhost: localhost\r\nx-api-key: {shut.texts['bot']}\r\n"
            f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n".encode()
        )
        sent = 0
        try:
            while sent < size:
                link.sendall(b"x" * 1_048_576)
                sent += 1_048_576
        except OSError:
            pass  # it does not read on
        assert sent < size
        try:
            said = link.recv(65_536)
        except OSError:
            said = b" 413 "
        assert b" 413 " in said.partition(b"\r\n")[0]


@pytest.mark.slow
def test_replays(door: Door) -> None:
    """The same request is the same call, whoever repeats it how often, also after a kill; another's is none."""
    body = execution(door.session_id)
    first = door.ask("bot", "POST", "/v1/execute", body).json()
    assert door.ask("other", "POST", "/v1/execute", body).status_code == 404
    for _ in range(3):
        assert door.ask("bot", "POST", "/v1/execute", body).json() == first
    door.server.stop(9)
    door.server.start()
    assert door.ask("bot", "POST", "/v1/execute", body).json() == first
    other = {**body, "execution": {"action_id": "ticket.update", "parameters": {"n": 2}}}
    assert code(door.ask("bot", "POST", "/v1/execute", other)) == (409, "IDEMPOTENCY_CONFLICT")
    where, told = f"/v1/executions/{first['execution_id']}/report", {"session_id": door.session_id, "status": "success"}
    assert door.ask("other", "POST", where, told).status_code == 404
    for _ in range(2):
        assert door.ask("bot", "POST", where, told).status_code == 200
    assert code(door.ask("bot", "POST", where, {**told, "status": "error"})) == (409, "IDEMPOTENCY_CONFLICT")
    kinds = [line["event_type"] for line in door.lines()]
    assert [kinds.count(kind) for kind in ("action.requested", "action.approved", "action.executed")] == [1, 1, 1]
