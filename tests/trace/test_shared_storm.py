"""A shared session, killed processes, cut connections: what was acknowledged is there, and nothing is there twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, CallRefused, Runtime
from cra_middleware.errors import SinkError
from cra_middleware.trace.let_run import Told
from cra_middleware.trace.sinks.postgres import PostgresSink
from tests.conftest import manifest
from tests.cutting_proxy import CuttingProxy
from tests.trace.postgres_server import database

psycopg: Any = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")
ATLAS = Atlas.from_dict(manifest())


@pytest.fixture
def conninfo() -> Iterator[str]:
    with database() as made:
        yield made


def shared_runtime(conninfo: str, deadline: float = 1.0) -> Runtime:
    sink = PostgresSink(conninfo, shared=True)
    return Runtime(ATLAS, trace=sink, audit_deadline_seconds=deadline)


def work(conninfo: str, session_id: str, told: Path, threads: int, calls: int, deadline: float) -> None:
    """Let calls run, note each that was let run, tell its outcome, note that that was acknowledged."""
    notes = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what: str, name: str) -> None:
        os.write(notes, f"{what} {name}\n".encode())

    runtime, session = opened(conninfo, session_id, deadline)
    with runtime:

        def make() -> None:
            for turn in range(calls):
                if turn % 3 == 2:  # one that runs here
                    with suppress(CallRefused):
                        session.call("ticket.get", lambda: note("ran", "-"))
                    continue
                try:
                    call = session.let_run(session.freeze("ticket.get", "tool", {}))
                except CallRefused:
                    note("refused", "-")
                    continue
                note("let", call.execution_id)
                try:
                    session.tell(call, Told("client", None, 1))
                except Exception as error:
                    note("untold", f"{call.execution_id} {type(error).__name__} {error}")
                    continue
                note("told", call.execution_id)

        workers = [threading.Thread(target=make) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    note("done", "-")


def opened(conninfo: str, session_id: str, deadline: float) -> tuple[Runtime, Any]:
    """As a server does at its start: until it works."""
    for _ in range(400):
        with suppress(SinkError):
            runtime = shared_runtime(conninfo, deadline)
            try:
                return runtime, runtime.resume(session_id, keep=True, renew=False)
            except SinkError:
                runtime.close()
        time.sleep(0.02)
    pytest.fail("the session could not be opened")


def notes_of(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {
        "let": set(),
        "told": set(),
        "untold": set(),
        "refused": set(),
        "done": set(),
        "ran": set(),
    }
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            what, name = line.split(" ", 1)
            found[what].add(name.split(" ")[0])
    return found


def judge(conninfo: str, session_id: str, folder: Path) -> tuple[set[str], dict[str, set[str]]]:
    """The session verifies; what was acknowledged is there once; the calls that nobody told are found."""
    notes = notes_of(folder)
    with shared_runtime(conninfo) as runtime:
        session: Any = runtime.resume(session_id, keep=True, renew=False)
        untold = {call.execution_id for call in session.untold}
        approved = Counter(e.payload["execution_id"] for e in session.events if e.event_type == "action.approved")
        ended = Counter(
            e.payload["execution_id"]
            for e in session.events
            if e.event_type in ("action.executed", "action.failed", "action.denied")
        )
        assert max(approved.values()) == 1
        assert max(ended.values()) == 1
        assert notes["let"] <= set(approved), "a call that was let run is not in the trace"
        assert notes["told"] <= set(ended), "an outcome that was acknowledged is not in the trace"
        assert untold == set(approved) - set(ended)
        for call in session.untold:
            session.tell(call, Told("sweeper", ("outcome_unknown", "nobody said how it ended")))
        session.end()
        verdict = session.verify()
        assert str(verdict) == "INTACT, SEALED"
        assert session.events[-1].payload["event_count"] == len(session.events)
    return untold, notes


@pytest.mark.slow
def test_a_killed_process(conninfo: str, tmp_path: Path) -> None:
    """Four processes with eight threads each; one is killed in the middle, and another begins."""
    with shared_runtime(conninfo) as runtime:
        session = runtime.session("desk", keep=True)
        session.detach()
    context = multiprocessing.get_context("spawn")

    def begin(number: int, calls: int) -> Any:
        process = context.Process(target=work, args=(conninfo, session.id, tmp_path / str(number), 8, calls, 1.0))
        process.start()
        return process

    processes = [begin(number, 12 if number else 10_000) for number in range(4)]
    while not (tmp_path / "0").exists() or (tmp_path / "0").stat().st_size < 2000:
        time.sleep(0.02)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes.append(begin(4, 5))
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0, 0, 0]
    _, notes = judge(conninfo, session.id, tmp_path)
    assert len(notes["let"]) >= 3 * 8 * 8


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminated", "cut", "answers lost"])
def test_connections_that_break(conninfo: str, tmp_path: Path, how: str) -> None:
    """At random, often: by the server, in the network, and behind a commit whose answer never comes."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    proxy = CuttingProxy(parts["host"], int(parts["port"]))
    through = psycopg.conninfo.make_conninfo(
        conninfo, hostaddr="127.0.0.1", port=proxy.port, sslmode="disable", application_name=f"storm {os.getpid()}"
    )
    with shared_runtime(conninfo) as runtime:
        session = runtime.session("desk", keep=True)
        session.detach()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(through, session.id, tmp_path / str(number), 4, 20, number % 2 * 1.0))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    chance = random.Random(how)
    with closing(proxy), psycopg.connect(conninfo, autocommit=True) as other:
        while any(process.is_alive() for process in processes):
            time.sleep(chance.random() * 0.1)
            if how == "terminated":
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s "
                    "ORDER BY random() LIMIT 1",
                    (f"storm {os.getpid()}",),
                )
            elif how == "cut":
                proxy.cut()
            else:
                proxy.lose_after(chance.randrange(12))
    assert [process.exitcode for process in processes] == [0] * 4
    _, notes = judge(conninfo, session.id, tmp_path)
    assert len(notes["let"]) > 50
