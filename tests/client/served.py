"""A real server in a process of its own, on a port of its own, that a test may kill and start again."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import uvicorn

from cra_middleware import Runtime
from cra_middleware._clock import SystemClock
from cra_middleware.server.access import Role, make_key
from cra_middleware.server.assembly import assemble
from cra_middleware.server.places import open_keys, state_folder
from tests.conftest import manifest

_FORK = multiprocessing.get_context("forkserver")  # one process imports everything, the servers are its forks
_FORK.set_forkserver_preload(["uvicorn", "cra_middleware.server.assembly", "tests.client.served"])


def _serve(folder: Path, keyed: str, listening: socket.socket, timeout: float, expires: float) -> None:
    traces = folder / "traces"
    with (folder / "server.log").open("ab") as log:
        os.dup2(log.fileno(), 2)
    app = assemble(
        [folder / "atlases"],
        traces,
        keys=open_keys(state_folder(traces)) if keyed == "keys" else None,
        executors={"ticket.list": lambda **arguments: {"value": ["T-1", "T-2"]}} if keyed == "executors" else None,
        timeout_seconds=timeout,
        expires_seconds=expires,
    )
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none")
    uvicorn.Server(config).run(sockets=[listening])


ASKED = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.create"]}
LIMITED = {
    "policy_id": "few",
    "type": "rate_limit",
    "actions": ["ticket.update"],
    "parameters": {"max_calls": 2, "window_seconds": 3600},
}


def atlas(**parts: Any) -> dict[str, Any]:
    """What the server of most tests decides by."""
    base = manifest(adapters={"any": {"tools": {"lookup": "ticket.get"}}})
    return {**base, "policies": [*base["policies"], ASKED, LIMITED], **parts}


def listen(port: int = 0) -> socket.socket:
    """A socket to listen on; asyncio sends without delay only where it is told that this is TCP."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.listen(128)
    return made


class Served:
    """One server."""

    def __init__(
        self,
        folder: Path,
        told: dict[str, Any] | Path | None = None,
        *,
        keyed: str = "keys",
        timeout: float = 900.0,
        expires: float = 86_400.0,
    ) -> None:
        self.folder = folder
        self.traces = folder / "traces"
        (folder / "atlases").mkdir(parents=True, exist_ok=True)
        if isinstance(told, Path):
            shutil.copytree(told, folder / "atlases" / told.name)
        else:
            (folder / "atlases" / "tests.json").write_text(json.dumps(told or atlas()))
        self._keyed = keyed
        self._timeout = timeout
        self._expires = expires
        self._texts: dict[str, str] = {}
        self._socket = listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._process: Any = None
        if keyed == "keys":
            self.key("bot")

    def start(self) -> Served:
        """Start it; the socket is the test's own, so that what is asked meanwhile waits there."""
        arguments = (self.folder, self._keyed, self._socket, self._timeout, self._expires)
        self._process = _FORK.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        return self

    def kill(self) -> None:
        """End it at once, as a machine's death does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as an operator does."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it answer nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def gone(self) -> None:
        """Nobody listens there any more."""
        self.kill()
        self._socket.close()

    def back(self) -> None:
        """Somebody does again."""
        self._socket = listen(int(self.url.rpartition(":")[2]))
        self.start()

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self.kill()
        self._socket.close()

    def key(self, name: str, *roles: Role, **terms: Any) -> str:
        """The text of a key of this name."""
        if name not in self._texts:
            agents = terms.pop("agents", ("*",))
            text, key = make_key(name, roles or ("agent",), SystemClock().wall_us(), agent_ids=agents, **terms)
            keys = open_keys(state_folder(self.traces))
            keys.add(key)
            keys.close()
            self._texts[name] = text
        return self._texts[name]

    def connect(self, name: str | None = "bot", **options: Any) -> Runtime:
        """A runtime at this server."""
        api_key = self.key(name) if name is not None and self._keyed == "keys" else None
        return Runtime.connect(self.url, api_key=api_key, **options)

    def events(self, session_id: str) -> list[tuple[str, dict[str, Any]]]:
        """What its trace says on the disk."""
        path = self.traces / f"{session_id}.trace.jsonl"
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [(line["event_type"], line["payload"]) for line in lines]

    def outcomes(self, session_id: str) -> list[tuple[str, str]]:
        """Of the calls: how each ended, and which action it was."""
        kinds = ("action.executed", "action.failed", "action.denied")
        return [(kind, payload["action_id"]) for kind, payload in self.events(session_id) if kind in kinds]

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, how)
        self._process.join(30)
        self._process.close()
        self._process = None


def until(holds: Any, seconds: float = 10.0) -> None:
    """Wait for what another thread or process does."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)
