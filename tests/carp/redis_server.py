"""The Redis server that tests use: a prefix of its own for each, whose keys are deleted at the end."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

SERVER = os.environ.get("CRA_TEST_REDIS", "redis://127.0.0.1:6379/0")


def redis_module() -> Any:
    """The client's package; skips where it is not installed, unless services are wanted."""
    if os.environ.get("CRA_REQUIRE_SERVICES") == "1":
        return importlib.import_module("redis")
    return pytest.importorskip("redis", reason="Redis needs the redis extra")


@contextmanager
def redis_prefix() -> Iterator[tuple[str, str]]:
    """The server's address, and a prefix that is nobody else's."""
    redis = redis_module()
    with closing(redis.Redis.from_url(SERVER, socket_connect_timeout=2, decode_responses=True)) as client:
        try:
            client.ping()
        except redis.exceptions.ConnectionError as error:
            if os.environ.get("CRA_REQUIRE_SERVICES") == "1":
                raise
            pytest.skip(f"no Redis server; set CRA_TEST_REDIS to one: {error}")
        prefix = f"cra-test-{uuid4().hex}"
        try:
            yield SERVER, prefix
        finally:
            for key in list(client.scan_iter(match=f"{{{prefix}}}*", count=1000)):
                client.delete(key)


class OwnServer:
    """A server that a test may stop, start again and configure."""

    def __init__(self, folder: Path, *options: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            if os.environ.get("CRA_REQUIRE_SERVICES") == "1":
                pytest.fail("no redis-server program")
            pytest.skip("no redis-server program")
        self.redis = redis_module()
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """And wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(600):
            with closing(self.client()) as client, suppress(self.redis.exceptions.RedisError):
                client.ping()
                return
            time.sleep(0.05)
        self.stop()
        pytest.fail("the server did not start")

    def stop(self) -> None:
        """At once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def client(self) -> Any:
        """A connection beside the counters'."""
        return self.redis.Redis.from_url(self.url, decode_responses=True)


def _free_port() -> int:
    """One whose neighbour 10,000 above is free as well: nodes of a cluster talk to each other there."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            if port <= 55_535:
                with suppress(OSError):
                    other.bind(("127.0.0.1", port + 10_000))
                    return port
