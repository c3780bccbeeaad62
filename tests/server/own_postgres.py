"""A PostgreSQL server that a test may kill and start again, or stop in the middle of whatever it does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.server.serving import free_port


class OwnPostgres:
    """One cluster, in a folder of its own."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.port = free_port()
        self.url = f"postgresql://cra@127.0.0.1:{self.port}/postgres"
        self._programs = programs
        self._folder = folder
        self._as: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if os.geteuid() == 0:  # it refuses to be root
            shutil.chown(folder, "postgres", "postgres")
            self._as |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        data = ["-D", "data", "-U", "cra", "-A", "trust", "--no-sync"]
        subprocess.run([programs / "initdb", *data], check=True, timeout=120, **self._as)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """And wait until it answers."""
        options = [
            "-p",
            str(self.port),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={self._folder}",
        ]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", "data", *options, "-c", "fsync=off"], **self._as
        )
        psycopg = pytest.importorskip("psycopg")
        for _ in range(1200):
            with suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2):
                return
            time.sleep(0.05)
        self.kill()
        pytest.fail("PostgreSQL did not start")

    def kill(self) -> None:
        """All of its processes, at once; what they have written stays, as the system keeps it."""
        if self._process is None:
            return
        children = self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None
        for pid in children:  # the next one waits for their memory
            while Path(f"/proc/{pid}/stat").exists():
                time.sleep(0.01)

    def pause(self) -> None:
        """It says nothing any more, and keeps every connection; new ones are taken by the system."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """As if nothing had happened."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> list[int]:
        """To all of its processes; the children."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return [*map(int, children)]


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """One that runs; skips where its programs are not installed, unless services are wanted."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not places or not (places[-1] / "initdb").exists():
        if os.environ.get("CRA_REQUIRE_SERVICES") == "1":
            pytest.fail("no initdb program")
        pytest.skip("no initdb program")
    with tempfile.TemporaryDirectory(prefix="cra-postgres-", dir="/tmp") as folder:
        made = OwnPostgres(places[-1], Path(folder))
        try:
            yield made
        finally:
            made.kill()
