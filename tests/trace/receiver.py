"""The other side of an ``HttpSink``: a real server that keeps what it gets, and can be told to misbehave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cra_middleware.trace.sink import SessionLog, TraceStore
from cra_middleware.trace.sinks.memory import MemorySink


class Receiver:
    """Keeps sessions in ``store`` by the contract in ``trace/sinks/http.py``."""

    def __init__(self, store: TraceStore | None = None, port: int = 0) -> None:
        self.store = store or MemorySink()
        self.requests: list[dict[str, str]] = []
        self.script: list[Callable[[Any], None]] = []
        """Answers to give instead, one a request."""
        self._connections: list[socket.socket] = []
        self._logs: dict[str, SessionLog] = {}
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._connections.append(self.connection)

            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a client that goes away in the middle
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/traces/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:  # as when its process ends: nothing goes on over old ones
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        with self._lock:
            for log in self._logs.values():
                log.close()

    def handle(self, request: Any) -> None:
        with self._lock:
            body = request.rfile.read(int(request.headers["Content-Length"]))
            self.requests.append(dict(request.headers))
            if self.script:
                self.script.pop(0)(request)
                return
            session_id, offset = request.headers["Cra-Session-Id"], int(request.headers["Cra-Offset"])
            assert request.path == f"/traces/sessions/{session_id}/events"
            log = self._log(session_id)
            held = b"".join(log.lines())
            if offset > len(held):
                answer(request, 409, {"events": held.count(b"\n")})
                return
            if held[offset : offset + len(body)] != body:
                log.append(offset, body, int(request.headers["Cra-First-Sequence"]) + body.count(b"\n"))
                log.flush()
                held = b"".join(log.lines())
            answer(request, 200, {"events": held.count(b"\n")})

    def _log(self, session_id: str) -> SessionLog:
        if session_id not in self._logs:
            known = session_id in self.store.session_ids()
            self._logs[session_id] = (self.store.reopen if known else self.store.create)(session_id)
        return self._logs[session_id]


def answer(request: Any, status: int, body: object, **headers: str) -> None:
    """Send one answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)
