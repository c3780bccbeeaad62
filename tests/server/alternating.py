"""A balancer without stickiness: each request goes to the next server, whoever sent it."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_OWN = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@contextmanager
def alternating(urls: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Its address, and how many requests each server has had."""
    had = [0] * len(urls)
    turns = itertools.cycle(range(len(urls)))
    lock = threading.Lock()

    class Balancer(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            with lock:
                number = next(turns)
                had[number] += 1
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            server = http.client.HTTPConnection(urlsplit(urls[number]).netloc, timeout=20)
            server.request(self.command, self.path, body or None, dict(self.headers))
            answer = server.getresponse()
            told = answer.read()
            server.close()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OWN:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(told)))
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = do_DELETE = pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Balancer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", had
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
