"""A server in this process, and one in its own; callers with keys."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from cra_middleware._clock import SystemClock, timestamp_text
from cra_middleware.server.access import Role, make_key
from cra_middleware.server.assembly import assemble
from cra_middleware.server.places import open_keys, state_folder
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest

ASKED = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.create"]}


class Served:
    """A server under test, and those who talk to it."""

    def __init__(self, folder: Path, atlas: dict[str, Any] | Path, **terms: Any) -> None:
        self.folder = folder
        self.clock = terms.pop("clock", None)
        self.with_keys = terms.pop("with_keys", True)
        self.trace = terms.pop("trace", folder / "traces")
        (folder / "atlases").mkdir(parents=True, exist_ok=True)
        if isinstance(atlas, Path):
            shutil.copytree(atlas, folder / "atlases" / atlas.name)
        else:
            (folder / "atlases" / "tests.json").write_text(json.dumps(atlas))
        self.keys = open_keys(state_folder(folder / "traces"))
        self.terms = terms
        self.texts: dict[str, str] = {}
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.start()

    def start(self) -> None:
        terms = {"keys": self.keys if self.with_keys else None, **self.terms}
        self.app = assemble([self.folder / "atlases"], self.trace, clock=self.clock, **terms)
        self.service = self.app.state.cra
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.wait(self._lifespan.__aenter__())

    def stop(self) -> None:
        self.wait(self._lifespan.__aexit__(None, None, None))

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        self.keys.close()

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def key(self, name: str, *roles: Role, agents: tuple[str, ...] = ("*",), **terms: Any) -> str:
        if name not in self.texts:
            now_us = SystemClock().wall_us() if self.clock is None else self.clock.wall_us()
            text, key = make_key(name, roles or ("agent",), now_us, agent_ids=agents, **terms)
            self.keys.add(key)
            self.texts[name] = text
        return self.texts[name]

    def by(self, name: str, *roles: Role, **terms: Any) -> Caller:
        """Somebody with a key of this name."""
        return Caller(self, {"x-api-key": self.key(name, *roles, **terms)})

    def now(self) -> str:
        return timestamp_text((self.clock or SystemClock()).wall_us())


class Caller:
    """Somebody who talks to a server."""

    def __init__(self, served: Served, headers: dict[str, str]) -> None:
        self.served = served
        self.headers = headers

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        async def send() -> Any:
            transport = httpx.ASGITransport(self.served.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                headers = {**self.headers, **more.pop("headers", {})}
                if body is not None:
                    more["json"] = body
                return await client.request(method, path, headers=headers, **more)

        return self.served.wait(send())

    def get(self, path: str, **more: Any) -> Any:
        return self.ask("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.ask("POST", path, body, **more)

    def session(self, agent_id: str = "bot", **more: Any) -> str:
        answer = self.post("/v1/sessions", {"agent_id": agent_id, "goal": "Help", **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["session_id"])

    def execution(self, session_id: str, action_id: str = "ticket.get", **more: Any) -> dict[str, Any]:
        parameters = more.pop("parameters", {"n": 1})
        agent_id = more.pop("agent_id", "bot")
        request_id = more.pop("request_id", None) or str(uuid4())
        return {
            "carp_version": "1.0",
            "request_id": request_id,
            "timestamp": self.served.now(),
            "operation": "execute",
            "requester": {"agent_id": agent_id, "session_id": session_id},
            "execution": {"action_id": action_id, "parameters": parameters, **more},
        }

    def execute(self, session_id: str, action_id: str = "ticket.get", **more: Any) -> Any:
        return self.post("/v1/execute", self.execution(session_id, action_id, **more))

    def report(self, session_id: str, execution_id: str, **more: Any) -> Any:
        body = {"session_id": session_id, "status": "success", "duration_ms": 5, **more}
        return self.post(f"/v1/executions/{execution_id}/report", body)

    def kinds(self, session_id: str) -> list[str]:
        answer = self.get(f"/v1/traces/{session_id}?limit=1000")
        assert answer.status_code == 200, answer.text
        return [event["event_type"] for event in answer.json()["events"]]


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers in this process."""
    made: list[Served] = []

    def start(atlas: dict[str, Any] | Path | None = None, **terms: Any) -> Served:
        folder = terms.pop("folder", tmp_path / f"server{len(made)}")
        made.append(Served(folder, atlas or manifest(), **terms))
        return made[-1]

    yield start
    for served in made:
        served.close()


@pytest.fixture
def served(serve: Serve) -> Served:
    """One with keys and a frozen clock."""
    return serve(manifest(policies=[*manifest()["policies"], ASKED]), clock=FrozenClock(NOON))


def code(answer: Any) -> tuple[int, str]:
    """Status and code of an error."""
    return answer.status_code, answer.json()["error"]["code"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(served: Served) -> Iterator[int]:
    """The same application on a real socket."""
    import uvicorn

    port = free_port()
    config = uvicorn.Config(
        served.app, port=port, lifespan="off", log_level="error", access_log=False, ws="websockets-sansio"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(10)


class Process:
    """``cra serve`` as a program."""

    def __init__(
        self, folder: Path, *options: str, atlas: dict[str, Any] | None = None, program: str | None = None
    ) -> None:
        """``program`` is run instead of the package."""
        self.program = ["-m", "cra_middleware"] if program is None else ["-c", program]
        self.folder = folder
        self.port = free_port()
        self.options = options
        (folder / "atlases").mkdir(parents=True, exist_ok=True)
        (folder / "atlases" / "tests.json").write_text(json.dumps(atlas or manifest()))
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        place = ["--atlas", str(self.folder / "atlases"), "--trace", str(self.folder / "traces")]
        command = [sys.executable, *self.program, "serve", *place, "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "CRA_TRACE": ""})
        for _ in range(300):
            try:
                httpx.get(self.url + "/v1/health", timeout=1)
                return
            except httpx.HTTPError:
                assert self.process.poll() is None, self.process.stderr.read() if self.process.stderr else ""
                time.sleep(0.05)
        raise AssertionError("the server did not answer")

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(20)
        finally:
            if self.process.stderr is not None:
                self.said = self.process.stderr.read().decode()
                self.process.stderr.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts servers as programs."""
    made: list[Process] = []

    def start(*options: str, **terms: Any) -> Process:
        made.append(Process(tmp_path / f"process{len(made)}", *options, **terms))
        return made[-1]

    yield start
    for server in made:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat()
