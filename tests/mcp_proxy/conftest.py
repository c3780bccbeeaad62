"""A client that speaks raw JSON-RPC to the real command, and reads the trace that it leaves."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import verify

SERVER = Path(__file__).with_name("raw_server.py")
SECONDS = 30
"""More than anything takes, on a machine that is busy."""
INITIALIZE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw-client", "version": "1"}}


def atlas(**parts: Any) -> dict[str, Any]:
    """Reading is allowed, writing is denied, moving wants a person, deleting is allowed by nothing."""
    ids = ("file.read", "file.write", "file.delete", "file.move", "text.echo")
    tools = {"read_file": "file.read", "write_file": "file.write", "delete_file": "file.delete", "ask": "file.move"}
    others = ("slow", "fail", "die", "hang", "twice", "noise", "batch", "huge", "rpc_error", "echo")
    return {
        "atlas_version": "1.0",
        "atlas_id": "com.example.files",
        "version": "1.0.0",
        "name": "Files",
        "description": "An Atlas for tests",
        "actions": [{"action_id": name, "name": name, "description": name} for name in ids],
        "policies": [
            {"policy_id": "some", "type": "allow", "actions": ["file.read", "file.move", "text.echo"]},
            {"policy_id": "no-write", "type": "deny", "actions": ["file.write"], "parameters": {"reason": "Never."}},
            {"policy_id": "person", "type": "require_approval", "actions": ["file.move"]},
        ],
        "adapters": {"mcp": {"tools": {**tools, **dict.fromkeys(others, "text.echo")}}},
        **parts,
    }


class Client:
    """Speaks to a child process, one line a message."""

    def __init__(self, command: Sequence[str], broken_output: bool = False, **popen: Any) -> None:
        """``broken_output`` gives the process an output that nobody reads."""
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **popen)
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if broken_output:
            assert self.process.stdout is not None
            self.process.stdout.close()
        self._stderr: list[bytes] = []
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._hear)]
        for thread in self._threads:
            thread.start()
        self._id = 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in () if self.process.stdout.closed else self.process.stdout:
            self._lines.put(line.rstrip(b"\n"))
        self._lines.put(None)

    def _hear(self) -> None:
        assert self.process.stderr is not None
        self._stderr.extend(self.process.stderr)

    def send(self, message: Any) -> None:
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def line(self, seconds: float = SECONDS) -> bytes | None:
        return self._lines.get(timeout=seconds)

    def next(self, seconds: float = SECONDS) -> Any:
        line = self.line(seconds)
        assert line is not None, f"the proxy closed its output: {self.stderr()}"
        return json.loads(line)

    def nothing(self, seconds: float = 0.3) -> bool:
        try:
            return self._lines.get(timeout=seconds) is None
        except queue.Empty:
            return True

    def request(self, method: str, params: Any = None, **more: Any) -> int:
        self._id += 1
        message = {"jsonrpc": "2.0", "id": self._id, "method": method, **more}
        self.send(message if params is None else {**message, "params": params})
        return self._id

    def ask(self, method: str, params: Any = None) -> Any:
        request_id = self.request(method, params)
        answer = self.next()
        assert answer["id"] == request_id, answer
        return answer

    def initialize(self, **more: Any) -> Any:
        answer = self.ask("initialize", {**INITIALIZE, **more})
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    def call(self, name: Any, **arguments: Any) -> Any:
        return self.ask("tools/call", {"name": name, "arguments": arguments})

    def refusal(self, name: Any, **arguments: Any) -> str:
        result = self.call(name, **arguments)["result"]
        assert result["isError"] is True
        (only,) = result["content"]
        return str(only["text"])

    def close(self) -> int:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait(SECONDS)
        for thread, pipe in zip(self._threads, (self.process.stdout, self.process.stderr), strict=True):
            thread.join(SECONDS)
            assert pipe is not None
            pipe.close()
        return code

    def stderr(self) -> str:
        return b"".join(self._stderr).decode()


class Proxied:
    """The files of one test, and the clients that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.traces = folder / "traces"
        self.log = folder / "server.log"
        self.clients: list[Client] = []
        self.write_atlas(atlas())

    def write_atlas(self, manifest: dict[str, Any]) -> None:
        (self.folder / "atlas.json").write_text(json.dumps(manifest))

    def start(self, *options: str, mode: str = "", server: Sequence[str] | None = None, **popen: Any) -> Client:
        behind = server or [sys.executable, str(SERVER), str(self.log), mode]
        given = ["--atlas", str(self.folder / "atlas.json"), "--trace", str(self.traces), *options]
        client = Client([sys.executable, "-m", "cra_middleware", "mcp-proxy", *given, "--", *behind], **popen)
        self.clients.append(client)
        return client

    def reached(self) -> list[Any]:
        """What reached the server."""
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def calls(self) -> list[Any]:
        """The tool calls that reached the server."""
        return [message for message in self.reached() if message.get("method") == "tools/call"]

    def events(self) -> list[Any]:
        """The one session's events, from a verified trace."""
        (file,) = self.traces.glob("*.jsonl")
        report = verify(file)
        assert report.intact, report
        assert report.sealed, report
        return [json.loads(line) for line in file.read_text().splitlines()]

    def told(self, *kinds: str) -> list[Any]:
        """The payloads of the events of these kinds."""
        return [event["payload"] for event in self.events() if event["event_type"] in kinds]


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    made = Proxied(tmp_path)
    yield made
    for client in made.clients:
        client.process.kill()
        client.close()


@pytest.fixture
def started(proxied: Proxied) -> Callable[..., Client]:
    def start(*options: str, **more: Any) -> Client:
        client = proxied.start(*options, **more)
        client.initialize()
        return client

    return start
