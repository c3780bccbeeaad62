"""Forks and several processes: nobody writes another's session, and no lock outlives whoever took it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from cra_middleware import Atlas, Runtime
from cra_middleware.cli import app
from cra_middleware.errors import AuditUnavailable, SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.trace.ledger.folder import take_lock
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.crash.rounds import rounds
from tests.crash.victim import SIGNER, Life, live, parse, spawn

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def signing(folder: Path) -> Runtime:
    return Runtime(Atlas.from_dict(manifest()), trace=JsonlSink(folder, signer=SIGNER))


@contextmanager
def heir(folder: Path) -> Iterator[str]:
    """The session of a process that was killed, while a child that it forked is still alive."""
    stay, go = os.pipe()

    def parent(pipe: int) -> None:
        runtime = signing(folder)
        session = runtime.session()
        session.call("ticket.get", lambda: None)
        if os.fork() == 0:
            signal.alarm(30)
            os.close(go)
            os.write(pipe, f"session {session.id} 0 0\n".encode())
            os.read(stay, 1)
            os._exit(0)
        threading.Event().wait()

    pid, reading = spawn(parent)
    os.close(stay)
    with open(reading) as pipe:
        session_id = parse(pipe.readline()).session_id
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        yield session_id
        os.close(go)
        assert pipe.read() == ""  # the child is gone


def test_a_child_that_outlives_its_parent(tmp_path: Path) -> None:
    """A forked child holds neither the parent's session nor the parent's ledger, once the parent was killed."""
    with heir(tmp_path) as session_id:
        lock = take_lock(tmp_path / "ledger")
        assert lock is not None
        os.close(lock)
        with signing(tmp_path) as runtime:
            runtime.resume(session_id).call("ticket.get", lambda: None)
    (session,) = verify_folder(tmp_path, Against(SIGNER.verifier)).sessions
    assert session.sealed
    assert session.signed


def in_child(runtime: Runtime, foreign: object) -> str:
    """A child's own session, and what it may not do with its parent's."""
    session = foreign
    for forbidden in (lambda: session.call("ticket.get", lambda: None), session.flush):  # type: ignore[attr-defined]
        try:
            forbidden()
        except (AuditUnavailable, SinkError):
            continue
        return "wrote its parent's session"
    with runtime.session() as own:
        own.call("ticket.get", lambda: None)
    runtime.detach()  # what the interpreter's exit does
    return "sealed" if own.is_closed else "left open"


@pytest.mark.slow
@rounds(5, 40)
@pytest.mark.parametrize("with_key", [True, False])
def test_forks_in_the_middle(tmp_path: Path, with_key: bool, rounds: int) -> None:
    """Children that are forked while four threads write, sync and sign can work, and let go of everything."""
    sink = JsonlSink(tmp_path, sync_interval_seconds=0, signer=SIGNER if with_key else None)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        session, stop = runtime.session(), threading.Event()
        made = [0] * 4

        def write(place: int) -> None:
            while not stop.is_set():
                session.call("ticket.get", lambda: None)
                made[place] += 1

        threads = [threading.Thread(target=write, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(rounds):
                pid, reading = spawn(lambda pipe: os.write(pipe, in_child(runtime, session).encode()))
                with open(reading) as pipe:
                    assert pipe.read() == "sealed"
                os.waitpid(pid, 0)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        session.end()
    report = verify_folder(tmp_path, Against(SIGNER.verifier if with_key else None))
    assert report.intact
    assert len(report.sessions) == rounds + 1
    assert all(item.sealed and item.signed is with_key for item in report.sessions)
    executed = [line for line in sink.lines(session.id) if b'"event_type":"action.executed"' in line]
    assert len(executed) == sum(made)


def work(folder: str) -> str:
    """What a worker process does."""
    with signing(Path(folder)) as runtime:
        with runtime.session() as session:
            for _ in range(20):
                session.call("ticket.get", lambda: None)
    return session.id


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    """Workers of a pool and their parent write into one folder, with one ledger."""
    with signing(tmp_path) as runtime:
        with runtime.session() as session:
            with multiprocessing.get_context(method).Pool(2) as pool:
                ids = pool.map(work, [str(tmp_path)] * 2)
            session.call("ticket.get", lambda: None)
    report = verify_folder(tmp_path, Against(SIGNER.verifier))
    assert report.intact
    assert {item.session_id for item in report.sessions} == {session.id, *ids}
    assert all(item.sealed and item.signed for item in report.sessions)


@rounds(1, 12)
def test_the_owner_is_killed(tmp_path: Path, rounds: int) -> None:
    """Of two processes with four sessions each, the one that signs is killed: the other one signs for all."""
    for seed in range(rounds):
        folder = tmp_path / str(seed)
        life = Life(folder, "write_through", with_key=True, style="threads")
        pid, reading = spawn(partial(live, life, [], 4, first=0))
        with open(reading) as pipe, life.runtime() as runtime:
            theirs = [parse(pipe.readline()).session_id for _ in range(4)]
            assert take_lock(folder / "ledger") is None  # they own it
            ours = [runtime.session() for _ in range(4)]
            for _ in range(Random(seed).randint(5, 60)):
                pipe.readline()
                for session in ours:
                    session.call("ticket.get", lambda: None)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for session in ours:
                session.call("ticket.get", lambda: None)
            for name in theirs:
                runtime.resume(name).call("ticket.get", lambda: None)
        report = verify_folder(folder, Against(SIGNER.verifier))
        assert report.intact
        assert len(report.sessions) == 8
        assert all(item.sealed and item.signed for item in report.sessions)
        key = tmp_path / f"{seed}.pub"
        key.write_text(f"{SIGNER.verifier}\n")
        said = CliRunner().invoke(app, ["trace", "verify", str(folder), "--key", str(key), "--require", "signed"])
        assert said.exit_code == 0, said.output
        assert said.output.count("SIGNED") >= 8
