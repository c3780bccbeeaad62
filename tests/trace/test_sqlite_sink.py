"""The SQLite store where the disk, other processes and other programs get in its way."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.errors import AuditUnavailable, ChainBroken, SinkError
from cra_middleware.trace.sink import Query
from cra_middleware.trace.sinks.sqlite import SqliteSink
from tests.conftest import manifest
from tests.trace.places import in_child

ID = "01900000-0000-7000-8000-00000000000a"
ATLAS = Atlas.from_dict(manifest())


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SqliteSink]:
    """A file that is not waited for long."""
    made = SqliteSink(tmp_path / "traces.db", timeout_seconds=0.05)
    yield made
    made.close()


def test_a_full_disk(tmp_path: Path) -> None:
    """On a file system that is full: refused, nothing half written, and it goes on once there is space."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        with Runtime(ATLAS, trace=SqliteSink(folder / "traces.db")) as runtime:
            session, ran, ballast = runtime.session(), list[int](), folder / "ballast"
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            with suppress(AuditUnavailable):
                while True:
                    session.call("ticket.get", lambda: ran.append(1))
            with pytest.raises(SinkError, match="the disk is full") as caught:
                session._log.append(session._writer.end.offset, b"x" * 9000 + b"\n", 99)
            assert caught.value.is_transient
            verdict = session.verify()
            assert verdict.intact
            assert sum(event.event_type == "action.approved" for event in session.events) == len(ran)
            ballast.unlink()
            session.call("ticket.get", lambda: None)
            session.end()
            assert str(session.verify()) == "INTACT, SEALED"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_that_may_not_grow(sink: SqliteSink, tmp_path: Path) -> None:
    """A real short write leaves nothing of an event, and the next one that fits is kept."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "traces.db-wal").stat().st_size + 5000, limits[1]))
    try:
        with pytest.raises(SinkError):
            log.append(4, b"x" * 50_000 + b"\n", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(log.lines()) == [b"one\n"]
    log.append(4, b"two\n", 2)
    assert list(log.lines()) == [b"one\n", b"two\n"]
    log.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process is in the middle of a transaction."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def test_locked_by_another_process(sink: SqliteSink, tmp_path: Path) -> None:
    """While another process holds the file, events are refused for now; reading and flushing go on."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    with locked(tmp_path / "traces.db"):
        with pytest.raises(SinkError, match="locked by another process") as caught:
            log.append(4, b"two\n", 2)
        assert caught.value.is_transient
        assert not sink.health().ok
        assert list(sink.lines(ID)) == [b"one\n"]
        log.flush()
    log.append(4, b"two\n", 2)
    log.close()
    assert sink.count(ID) == 2


def test_files_that_are_something_else(tmp_path: Path) -> None:
    """Another program's database, one of our own of another kind, noise and a folder are refused, and left alone."""
    foreign, counters, noise = tmp_path / "foreign.db", tmp_path / "counters.db", tmp_path / "noise.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE precious (x)")
    SqliteCounters(counters).close()
    noise.write_bytes(b"no database\n" * 500)
    for path, words in (
        (foreign, "another program"),
        (counters, "another version"),
        (noise, "damaged"),
        (tmp_path, "cannot be used"),
        (tmp_path / "absent" / "x.db", "cannot be used"),
    ):
        with pytest.raises(SinkError, match=words):
            SqliteSink(path)
    with closing(sqlite3.connect(foreign)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("precious",)]


def test_a_damaged_file(tmp_path: Path) -> None:
    """Pages that were overwritten are an error that says so, from every question."""
    path = tmp_path / "traces.db"
    sink = SqliteSink(path)
    log = sink.create(ID)
    log.append(0, b"x" * 5000 + b"\n", 1)
    log.close()
    sink.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    again = SqliteSink(path)
    for ask in (again.session_ids, lambda: list(again.lines(ID)), lambda: again.reopen(ID), lambda: again.create(ID)):
        with pytest.raises(SinkError, match="damaged"):
            ask()
    assert not again.health().ok or again.health().detail
    again.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE lines SET line = 'text', place = place",
        "UPDATE lines SET sequence = 'x', event_type = x'ff'",
        "UPDATE sessions SET writer = x'ff', durable = 'many'",
        "UPDATE sessions SET writer = '../../etc/passwd/1'",
        "UPDATE lines SET place = place || 'x'",
        "INSERT INTO sessions (session_id, durable) VALUES ('../x', 0), (x'ff', 0), (7, 0)",
    ],
)
def test_rows_of_other_types(sink: SqliteSink, tmp_path: Path, change: str) -> None:
    """Rows that somebody else wrote give lines, or the promised error."""
    log = sink.create(ID)
    log.append(0, b"one\ntwo\n", 2)
    log.close()
    with closing(sqlite3.connect(tmp_path / "traces.db")) as connection, connection:
        connection.execute(change)
    with suppress(SinkError):
        assert sink.session_ids() in ([ID], [])
    for ask in (sink.lines, lambda one: sink.find(one, Query("x", 1, 1)), lambda one: [sink.count(one)]):
        with suppress(SinkError):
            list(ask(ID))
    with suppress(SinkError):
        again = sink.reopen(ID)
        again.set_aside(4)
        again.append(4, b"2\n", 2)
        again.close()


def test_a_removed_end_is_seen(tmp_path: Path) -> None:
    """Durable events whose rows were deleted are missed when the session is resumed."""
    path = tmp_path / "traces.db"
    with Runtime(ATLAS, trace=SqliteSink(path)) as runtime:
        session = runtime.session(keep=True)
        session.call("ticket.get", lambda: None)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM lines WHERE sequence > 4")
    with Runtime(ATLAS, trace=SqliteSink(path)) as runtime, pytest.raises(ChainBroken, match="its end was removed"):
        runtime.resume(session.id)


def test_a_writer_that_was_killed(sink: SqliteSink, tmp_path: Path) -> None:
    """Its sign of life is gone with it: the session goes on elsewhere, and its lock file is swept."""

    def die() -> None:
        SqliteSink(tmp_path / "traces.db").create(ID).append(0, b"one\n", 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == ""
    assert len(list(tmp_path.glob("*.writer"))) == 1
    log = sink.reopen(ID)
    assert list(log.lines()) == [b"one\n"]
    assert len(list(tmp_path.glob("*.writer"))) == 1  # its own
    log.close()


def test_a_child_does_not_keep_the_session(tmp_path: Path) -> None:
    """A forked child that outlives its parent does not keep the parent's sessions closed."""
    reading, writing = os.pipe()

    def leave_a_child() -> None:
        theirs = SqliteSink(tmp_path / "traces.db")
        theirs.create(ID).append(0, b"one\n", 1)
        begun, begin = os.pipe()
        if os.fork() == 0:
            os.write(begin, b"x")
            os.close(writing)
            os.read(reading, 1)  # until the test is over
            os._exit(0)
        os.read(begun, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        leave_a_child()
    os.waitpid(pid, 0)
    sink = SqliteSink(tmp_path / "traces.db")
    sink.reopen(ID).close()
    sink.close()
    os.close(writing)
    os.close(reading)


def test_a_session_that_was_taken_over(sink: SqliteSink, tmp_path: Path) -> None:
    """Who lost its session, by whatever means, writes nothing more into it."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    for path in tmp_path.glob("*.writer"):
        path.unlink()  # somebody tidied up
    other = SqliteSink(tmp_path / "traces.db")
    theirs = other.reopen(ID)
    for use in (lambda: log.append(4, b"mine\n", 2), lambda: log.set_aside(0)):
        with pytest.raises(SinkError, match="took it over"):
            use()
    theirs.append(4, b"two\n", 2)
    log.close()
    theirs.append(8, b"three\n", 3)
    assert list(other.lines(ID)) == [b"one\n", b"two\n", b"three\n"]
    theirs.close()
    other.close()


def test_a_disk_that_fails(sink: SqliteSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync nothing more is called durable, and nothing more is taken."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    log.flush()

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        log.append(4, b"two\n", 2)
        with pytest.raises(SinkError, match="not durable any more"):
            log.flush()
    with pytest.raises(SinkError, match="not durable any more"):
        log.append(8, b"three\n", 3)
    assert log.durable_events == 1
    with pytest.raises(SinkError):
        log.close()


def test_a_gap_is_refused(sink: SqliteSink) -> None:
    """Nothing is written behind the end of what is there."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    with pytest.raises(SinkError, match="ends at byte 4"):
        log.append(5, b"two\n", 2)
    log.append(4, b"two\n", 2)
    log.close()


def test_what_is_taken_back_is_not_durable(sink: SqliteSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that is taken back while the disk is asked is not counted."""
    log, real = sink.create(ID), os.fdatasync
    log.append(0, b"one\ntwo\n", 2)

    def meanwhile(fd: int) -> None:
        real(fd)
        patch.undo()
        log.append(4, b"2\n", 2)

    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fdatasync", meanwhile)
    log.flush()
    assert log.durable_events < 2
    log.flush()
    assert log.durable_events == 2
    log.close()


def test_the_file_is_the_owners(sink: SqliteSink, tmp_path: Path) -> None:
    """Only its owner may read the file and what stands beside it."""
    sink.create(ID).append(0, b"one\n", 1)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_checkpoints(sink: SqliteSink, tmp_path: Path) -> None:
    """What was written ahead is moved into the file behind the writers, so it does not grow for ever."""
    log, line, end = sink.create(ID), b"x" * 100_000 + b"\n", 0
    for events in range(1, 200):
        log.append(end, line, events)
        end += len(line)
        if events % 20 == 0:
            log.flush()
    assert (tmp_path / "traces.db-wal").stat().st_size < 12 << 20
    log.close()
