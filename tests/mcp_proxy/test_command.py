"""``cra mcp-proxy`` as a command: its usage, its help, and the spans that it sends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.mcp_proxy.conftest import Proxied

pytestmark = pytest.mark.slow  # each starts processes


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cra_middleware", "mcp-proxy", *args]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--observe"], "name the server"),
        (["--observe", "--url", "http://x", "--", "server"], "name the server"),
        (["--", "server"], "name an Atlas"),
        (["--atlas", "/none", "--", "server"], "cannot be read"),
        (["--observe", "--record", "some", "--", "server"], "--record is hash or full"),
        (["--observe", "--url", "http://x", "--header", "Authorization"], "--header Authorization: is NAME=VARIABLE"),
    ],
)
def test_wrong_usage(args: list[str], said: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_the_help_teaches() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert '"args": ["mcp-proxy", "--atlas", "atlases/files"' in done.stdout
    assert "--elicit" in done.stdout


def test_the_sdk_is_not_needed_before_a_url_is_given() -> None:
    program = "import sys, cra_middleware.cli; print(sorted(m for m in sys.modules if m.split('.')[0] == 'mcp'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_calls_are_exported_as_spans(proxied: Proxied) -> None:
    """Where the environment says to where."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{collector.server_port}"
            exporting = {
                **os.environ,
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            }
            client = proxied.start(env=exporting)
            client.initialize()
            client.call("echo")
            assert client.close() == 0
        finally:
            collector.shutdown()
            thread.join()
    assert any(b"text.echo" in body and b"cra-mcp-proxy" in body for body in bodies)


def test_nothing_else_comes_out_of_stdout(proxied: Proxied, tmp_path: Path) -> None:
    """A module that prints while the proxy runs does not come between the messages."""
    (tmp_path / "sitecustomize.py").write_text("import atexit; atexit.register(print, 'not a message')")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    client = proxied.start(env=env)
    client.initialize()
    client.close()
    assert client.line() is None
    assert "not a message" in client.stderr()
