"""What was accepted is in the file, whatever happens to the process or the disk; what was refused is not."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest

from cra_middleware import Atlas, Runtime, verify
from cra_middleware._ids import new_id
from cra_middleware.errors import AuditUnavailable, SinkError
from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.payloads import render
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from cra_middleware.trace.sinks.null import NullSink
from cra_middleware.trace.storage.segments import read_lines
from cra_middleware.trace.writer import Draft
from tests.conftest import manifest
from tests.trace.forge import lines_of, parse
from tests.trace.places import in_child


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    """A runtime that writes files to ``tmp_path``."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, audit_deadline_seconds=0.02) as made:
        yield made


def file_of(folder: Path, session_id: str) -> Path:
    return folder / f"{session_id}.trace.jsonl"


def kinds(path: Path) -> list[str]:
    return [event["event_type"].rpartition(".")[2] for event in parse(lines_of(path))]


def ends_well(path: Path) -> bool:
    """Whether the file is one whole, sealed, plain chain."""
    return str(verify(path).sessions[0]) == "INTACT, SEALED"


def finish(folder: Path, session_id: str) -> None:
    """What another process does: resume the session, and end it."""
    with Runtime(Atlas.from_dict(manifest()), trace=folder) as runtime:
        runtime.resume(session_id).end()


def write_until_killed(folder: Path, session_id: str | None, out: int) -> None:
    """Call tools without end; tell the id, then every sequence that was accepted."""
    runtime = Runtime(Atlas.from_dict(manifest()), trace=folder)
    session = runtime.resume(session_id) if session_id else runtime.session()
    os.write(out, f"{session.id}\n".encode())
    while True:
        session.call("ticket.get", lambda: None)
        os.write(out, f"{session._writer.end.sequence}\n".encode())


def test_kill_9(tmp_path: Path) -> None:
    """No accepted event is lost when the process is killed, and the next process goes on with the chain."""
    session_id: str | None = None
    for wanted in (1, 2, 40, 200, 7):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                write_until_killed(tmp_path, session_id, writing)
            finally:
                os._exit(1)
        os.close(writing)
        with open(reading) as pipe:
            session_id = pipe.readline().strip()
            for _ in range(wanted):
                pipe.readline()
            os.kill(pid, signal.SIGKILL)  # it is in the middle of whatever comes next
            accepted = [int(line) for line in pipe if line.endswith("\n")]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        (verdict,) = verify(file_of(tmp_path, session_id)).sessions
        assert verdict.events >= max(accepted, default=wanted)
        assert verdict.error is None or verdict.error.kind == "truncated"
    assert session_id is not None
    finish(tmp_path, session_id)
    assert verify(file_of(tmp_path, session_id)).sealed


@contextmanager
def room(path: Path, more: int) -> Iterator[None]:
    """The file may grow by ``more`` bytes: real short writes, and then a real error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("more", [0, 1, 300, 900])
def test_no_room_for_the_decision(tmp_path: Path, runtime: Runtime, more: int) -> None:
    """Without room for the decision the tool does not run, nothing is left in the file, and later it goes on."""
    session = runtime.session()
    path = file_of(tmp_path, session.id)
    before, ran = path.read_bytes(), []
    with room(path, more):
        for _ in range(2):
            with pytest.raises(AuditUnavailable, match="tool did not run"):
                session.call("ticket.get", lambda: ran.append(1))
            assert path.read_bytes() == before
    assert ran == []
    session.call("ticket.get", lambda: ran.append(1))
    session.end()
    assert ran == [1]
    assert ends_well(path)
    assert kinds(path).count("requested") == 1


def test_no_room_for_the_outcome(tmp_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """A tool that ran gives its value; its outcome waits, nothing else is kept before it, and then it comes first."""
    session = runtime.session()
    path = file_of(tmp_path, session.id)
    with room(path, 10_000):

        def tool() -> str:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limit[1]))
            return "ran"

        assert session.call("ticket.get", tool) == "ran"
        assert "waits to be recorded" in caplog.text
        assert kinds(path)[-1] == "approved"
        with pytest.raises(AuditUnavailable):
            session.call("ticket.list", lambda: pytest.fail("ran"))
        assert kinds(path)[-1] == "approved"
    session.call("ticket.update", lambda: None)
    session.end()
    assert kinds(path)[-7:] == ["requested", "approved", "executed", "requested", "approved", "executed", "ended"]
    assert [event["payload"].get("action_id") for event in parse(lines_of(path))][-5:-1] == [
        *("ticket.get", "ticket.update", "ticket.update", "ticket.update")
    ]
    assert ends_well(path)


def test_a_full_disk(tmp_path: Path) -> None:
    """On a file system that is full: refused, no partial line, and it goes on once there is space."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        with Runtime(Atlas.from_dict(manifest()), trace=folder) as runtime:
            session = runtime.session()
            path, ballast = file_of(folder, session.id), folder / "ballast"
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            ran: list[int] = []
            with suppress(AuditUnavailable):
                while True:  # the file's last page still has room for some
                    session.call("ticket.get", lambda: ran.append(1))
            with pytest.raises(AuditUnavailable, match="free some space"):
                session.call("ticket.get", lambda: ran.append(1))
            assert path.read_bytes().endswith(b"\n")
            assert session.verify().intact
            assert kinds(path).count("approved") == len(ran)
            with pytest.raises(SinkError, match="free some space"):
                runtime.session()
            ballast.unlink()
            session.call("ticket.get", lambda: None)
            session.end()
            assert ends_well(path)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def closed_folder() -> Iterator[Path]:
    """A folder in which this user may not write."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{uuid4()}.trace.jsonl").touch(0o444)
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_places_that_may_not_be_written() -> None:
    """Neither a folder nor a file that may not be written becomes anything but a SinkError that says why."""
    with closed_folder() as folder:
        with pytest.raises(SinkError, match="check who may write there"):
            JsonlSink(folder / "below")
        with pytest.raises(SinkError, match="check who may write there"):
            Runtime(Atlas.from_dict(manifest()), trace=folder).session()
        (there,) = JsonlSink(folder).session_ids()
        with pytest.raises(SinkError, match="check who may write there"):
            JsonlSink(folder).reopen(there)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    """A folder that cannot be made is told when the runtime is, not at the first event."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SinkError, match="cannot be made"):
            Runtime(Atlas.from_dict(manifest()), trace=path)


ID = "01900000-0000-7000-8000-00000000000a"


@pytest.mark.parametrize(
    "session_id",
    [
        *("../x", "a/b", "", ".", "..", ID.upper(), ID + "\0", ID + "\n", "\0", ID + "/../../x", f"../{ID}", f" {ID}"),
        *(ID[:-1], ID + "0", "０1900000-0000-7000-8000-00000000000a", "~", "CON"),
    ],
)
def test_hostile_session_ids(tmp_path: Path, session_id: str) -> None:
    """Only an id may become a file name; nothing is made for anything else."""
    folder = tmp_path / "a" / "b"
    sink = JsonlSink(folder)
    for use in (sink.create, sink.reopen, Runtime(Atlas.from_dict(manifest()), trace=folder).resume):
        with pytest.raises(SinkError, match="UUID"):
            use(session_id)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_second_writer(tmp_path: Path, runtime: Runtime) -> None:
    """While a session has a writer, no other gets its file, in this process or in another one."""
    session = runtime.session()
    for sink in (runtime._sink, JsonlSink(tmp_path)):
        with pytest.raises(SinkError, match="another writer"):
            sink.reopen(session.id)
        with pytest.raises(SinkError, match="already there"):
            sink.create(session.id)
    assert in_child(lambda: JsonlSink(tmp_path).reopen(session.id)) == "SinkError"
    session.call("ticket.get", lambda: None)
    session.end()
    assert ends_well(file_of(tmp_path, session.id))


def test_a_forked_child(tmp_path: Path, runtime: Runtime) -> None:
    """A forked child can neither write nor spoil its parent's log, and has sessions of its own."""
    session = runtime.session()
    path = file_of(tmp_path, session.id)
    session.call("ticket.get", lambda: None)
    before = path.read_bytes()

    assert in_child(lambda: session.call("ticket.get", lambda: print("ran"))) == "AuditUnavailable"
    assert in_child(lambda: session._log.set_aside(0)) == "SinkError"
    assert in_child(runtime.close) == "None"
    assert path.read_bytes() == before

    def own() -> bool:
        mine = runtime.session()
        mine.call("ticket.get", lambda: None)
        alive = runtime._sink._syncer._thread.is_alive()
        mine.end()
        return alive and ends_well(file_of(tmp_path, mine.id))

    assert in_child(own) == "True"
    session.call("ticket.get", lambda: None)
    session.end()
    assert ends_well(path)


def test_a_fork_in_the_middle_of_a_sync(runtime: Runtime) -> None:
    """A child that was forked while the parent's log was being made durable can still let go of it."""
    session = runtime.session()
    with session._log._guard:
        assert in_child(session._log.close) == "None"
    session.call("ticket.get", lambda: None)


def test_a_child_does_not_keep_the_lock(tmp_path: Path, runtime: Runtime) -> None:
    """A session can be resumed although a forked child still holds a copy of its descriptor."""
    session = runtime.session()
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(writing)
        os.read(reading, 1)  # until the parent is done
        os._exit(0)
    try:
        session.detach()
        finish(tmp_path, session.id)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)
    assert ends_well(file_of(tmp_path, session.id))


@pytest.mark.parametrize("exists", [True, False])
def test_symbolic_links(tmp_path: Path, exists: bool) -> None:
    """A link at the place of a trace is not followed, so nothing elsewhere is written or made."""
    target, sink = tmp_path / "target", JsonlSink(tmp_path / "traces")
    if exists:
        target.write_bytes(b"precious")
    session_id = new_id()
    file_of(tmp_path / "traces", session_id).symlink_to(target)
    with pytest.raises(SinkError):
        sink.create(session_id)
    with pytest.raises(SinkError):
        sink.reopen(session_id)
    assert (target.read_bytes() if target.exists() else None) == (b"precious" if exists else None)


def _no_sync(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("durable", [True, False])
def test_a_failed_sync(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, durable: bool
) -> None:
    """After a failed sync calls are refused until the session has a new file, from the last durable event on."""
    session = runtime.session()
    path = file_of(tmp_path, session.id)
    if durable:
        session._log.flush()
    before = session._log.durable_events
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _no_sync)
        with suppress(AuditUnavailable):  # the background may have met the failure already
            session.call("ticket.get", lambda: None)
        with pytest.raises(SinkError, match="new file cannot be opened"):
            session._log.flush()
        for _ in range(2):
            with pytest.raises(AuditUnavailable, match="not durable any more"):
                session.call("ticket.get", lambda: pytest.fail("ran"))
    session._log.flush()
    assert session._log.durable_events == session._writer.end.sequence > before
    session.call("ticket.get", lambda: None)
    assert session.verify().intact
    session.end()
    files = sorted(item.name for item in tmp_path.iterdir())
    if durable:
        assert files == sorted([path.name, path.name.replace(".trace", f".{before}.trace")])
        assert lines_of(path) == list(JsonlSink(tmp_path).lines(session.id))[:before]
    else:
        assert files == [path.name]
    assert "goes on in" in caplog.text
    assert verify_lines(JsonlSink(tmp_path).lines(session.id), session.id)[0].sealed


def test_a_sync_that_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log whose last sync fails says so, and is let go of all the same."""
    sink = JsonlSink(tmp_path, sync_interval_seconds=60)
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _no_space)
        with pytest.raises(SinkError):
            log.close()
    log.close()
    again = sink.reopen(ID)
    assert again.noted_durable == 0
    assert list(again.lines()) == [b"one\n"]
    again.close()


def _no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of a new file whose name may not survive are not called durable."""
    log = JsonlSink(tmp_path, sync_interval_seconds=60).create(ID)
    log.append(0, b"one\n", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_space)
        with pytest.raises(SinkError, match="No space"):
            log.flush()
    assert log.durable_events == 0
    log.flush()
    assert log.durable_events == 1
    assert list(log.lines()) == [b"one\n"]
    log.close()


def test_durable_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every log that was written is made durable soon, without being asked, however many there are."""
    synced: dict[int, threading.Event] = {}
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        synced[fd].set()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    sink = JsonlSink(tmp_path, sync_interval_seconds=0)
    logs = [sink.create(new_id()) for _ in range(5)]
    for events in (1, 2, 3):
        synced.update({log._file.fd: threading.Event() for log in logs})
        for log in logs:
            log.append(log._end, b"line\n", events)
        assert all(synced[log._file.fd].wait(5) for log in logs)
    for log in logs:
        log.close()
    sink.close()


@pytest.mark.parametrize("error", [None, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("part", [0, 1, -1])
def test_short_writes(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, part: int, error: int | None
) -> None:
    """A write that took only part of an event, and said so or failed, leaves nothing of it behind."""
    session = runtime.session()
    path = file_of(tmp_path, session.id)
    before, real = path.read_bytes(), os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        written = real(fd, data[:part], offset)
        if error is not None:
            raise OSError(error, os.strerror(error))
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(AuditUnavailable, match="only part of an event" if error is None else os.strerror(error)):
            session.call("ticket.get", lambda: pytest.fail("ran"))
    assert path.read_bytes() == before
    session.end()
    assert ends_well(path)


def test_a_part_that_cannot_be_removed(tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """When not even the part can be taken back, the log takes nothing more; the next writer sets the part aside."""
    session = runtime.session()
    path, real = file_of(tmp_path, session.id), os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:99], offset))
        patch.setattr(os, "ftruncate", _no_space)
        for _ in range(2):
            with pytest.raises(AuditUnavailable, match="cannot be removed"):
                session.call("ticket.get", lambda: pytest.fail("ran"))
        session.end()
    finish(tmp_path, session.id)
    (verdict,) = verify(path).sessions
    assert verdict.sealed
    assert verdict.recovered is not None
    assert verdict.recovered.bytes == 99


@pytest.mark.parametrize("part", [0, 99, None], ids=["before", "within", "after"])
@pytest.mark.parametrize("event", ["decision", "outcome", "end"])
def test_interrupts(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, event: str, part: int | None
) -> None:
    """Ctrl-C inside a write leaves the chain whole; the outcome of a tool that ran is still recorded, once."""
    session = runtime.session()
    path, real = file_of(tmp_path, session.id), os.pwrite
    calls: list[bytes] = []

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if not data.startswith(b"{"):  # the note of what is durable, from a thread of its own
            return real(fd, data, offset)
        calls.append(data)
        if len(calls) == (2 if event == "outcome" else 1):
            if part != 0:
                real(fd, data[:part], offset)
            raise KeyboardInterrupt
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(KeyboardInterrupt):
            session.end() if event == "end" else session.call("ticket.get", lambda: None)
    assert session.verify().intact
    session.end()
    if event == "end":  # the first end was on its way; the file can still be sealed by who resumes it
        session._log.close()
        finish(tmp_path, session.id)
    assert ends_well(path)
    assert kinds(path).count("executed") == kinds(path).count("approved") == (1 if event == "outcome" else 0)


@contextmanager
def interrupt(step: int, *files: str) -> Iterator[list[int]]:
    """Ctrl-C at the ``step``-th line of these files; gives how many lines are left, when it is over."""
    left = [step]

    def trace(frame: FrameType, what: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(files) or threading.current_thread() is not threading.main_thread():
            return None
        # Python lets no signal in between a lock and its `with`, or at `try`; a trace function could get there.
        source = getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if what == "line" and not source.startswith(("with ", "try:")):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield left
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)


@pytest.mark.slow
def test_an_interrupt_anywhere(tmp_path: Path) -> None:
    """Ctrl-C at any line of the writing path leaves a chain that goes on whole, with all that was owed, once."""

    def interrupted(step: int) -> bool:
        folder = tmp_path / str(step)
        with Runtime(Atlas.from_dict(manifest()), trace=folder) as runtime:
            session = runtime.session()
            payload = render({"error_code": "owed", "message": "from a finaliser"})
            session._writer.owe(Draft(session._identity.span_id, None, "error.occurred", payload, 1))
            with interrupt(step, "trace/writer.py", "trace/sinks/jsonl_log.py") as left:
                session.call("ticket.get", lambda: None)
            session._writer.owe(Draft(session._identity.span_id, None, "error.occurred", payload, 2))
            session.call("ticket.list", lambda: None)
            assert session.verify().intact, step
            session.end()
        file = file_of(folder, session.id)
        assert ends_well(file), step
        assert [event["payload"].get("error_code") for event in parse(lines_of(file))].count("owed") == 2, step
        return left[0] <= 0

    step = 1
    while interrupted(step):
        step += 1
    assert step > 40  # the path has at least that many lines


@pytest.mark.parametrize("then", ["append", "close"])
def test_an_interrupt_in_append(tmp_path: Path, then: str) -> None:
    """What an interrupted append left is cut, whether something shorter follows or nothing at all."""
    sink, step = JsonlSink(tmp_path), 0
    left = [0]
    while left[0] <= 0:
        step += 1
        log = sink.create(session_id := new_id())
        log.append(0, b"first\n", 1)
        with interrupt(step, "trace/sinks/jsonl_log.py") as left:
            log.append(6, b"a long line\n", 2)
        kept = log._end > 6  # only when the interrupt came behind the last step, or not at all
        if then == "append":
            log.append(6, b"x\n", 2)
        log.close()
        whole = b"first\nx\n" if then == "append" else b"first\na long line\n" if kept else b"first\n"
        assert file_of(tmp_path, session_id).read_bytes() == whole, step
    assert step > 10
    sink.close()


def test_a_folder_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of the working folder moves no trace."""
    monkeypatch.chdir(tmp_path)
    with Runtime(Atlas.from_dict(manifest()), trace="traces") as runtime:
        with runtime.session() as session:
            monkeypatch.chdir("/")
            session.call("ticket.get", lambda: None)
            assert session.verify().intact
    assert ends_well(file_of(tmp_path / "traces", session.id))


def test_modes_and_names(tmp_path: Path, runtime: Runtime) -> None:
    """A trace may be read by its owner only, and only whole ids are listed, the oldest first."""
    sessions = [runtime.session() for _ in range(3)]
    (tmp_path / "other.trace.jsonl").touch()
    (tmp_path / f"{uuid4()}.jsonl").touch()
    (tmp_path / f"{uuid4()}.trace.jsonl.17.torn").touch()
    assert runtime._sink.session_ids() == [session.id for session in sessions]
    assert {file_of(tmp_path, session.id).stat().st_mode & 0o777 for session in sessions} == {0o600}


def test_the_null_sink() -> None:
    """It takes every event, keeps none, and does not pretend otherwise."""
    sink = NullSink()
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime, runtime.session() as session:
        assert session.call("ticket.get", lambda: 7) == 7
        assert session.events == ()
        assert not session.verify().intact
        assert sink.session_ids() == []
    with pytest.raises(SinkError, match="kept nothing"):
        Runtime(Atlas.from_dict(manifest()), trace=sink).resume(session.id)
    log = sink.create(ID)
    log.flush()
    log.close()
    with pytest.raises(SinkError):
        log.set_aside(0)


def test_an_interrupt_in_memory() -> None:
    """Data that was taken before an interrupt, and never accepted, does not come twice."""
    log = MemorySink().create(ID)

    class Late(list[bytes]):
        def append(self, data: bytes) -> None:
            super().append(data)
            raise KeyboardInterrupt

    log._chunks = Late()
    with pytest.raises(KeyboardInterrupt):
        log.append(0, b"one\n", 1)
    log._chunks = list(log._chunks)
    log.append(0, b"one\n", 1)
    assert list(log.lines()) == [b"one\n"]


def test_reading_while_it_is_written(tmp_path: Path, runtime: Runtime) -> None:
    """Another process may verify the file at any time: it sees whole events only."""
    session = runtime.session()
    path = file_of(tmp_path, session.id)
    for _ in range(20):
        session.call("ticket.get", lambda: None)
        assert verify(path).intact
    assert sum(len(line) for line in read_lines(path)) == path.stat().st_size
