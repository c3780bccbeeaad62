"""A file system that is really full: waited for, refused or let run, and never a part of an event."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime, Session
from cra_middleware.errors import AuditUnavailable
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.writer import ChainWriter
from tests.conftest import manifest
from tests.trace.forge import lines_of, parse


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


def fill_up(disk: Path, session: Session) -> Path:
    """The same, and the last page of the session's file as well: no further call can be recorded."""
    ballast = fill(disk)
    with suppress(AuditUnavailable):
        while True:
            session.call("ticket.get", lambda: None)
    return ballast


def opened(disk: Path, **options: object) -> Runtime:
    return Runtime(Atlas.from_dict(manifest()), trace=disk, **options)  # type: ignore[arg-type]


def trace_of(disk: Path) -> Path:
    (path,) = disk.glob("*.trace.jsonl")
    return path


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every try of a write."""
    made: list[int] = []
    real = ChainWriter.write

    def write(self: ChainWriter, *entries: object, **options: object) -> object:
        made.append(len(entries))
        return real(self, *entries, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ChainWriter, "write", write)
    return made


def test_room_within_the_deadline(disk: Path, tries: list[int]) -> None:
    """A call that finds no room waits, and goes through once another thread has made some."""
    with opened(disk, audit_deadline_seconds=30) as runtime:
        session = runtime.session()
        impatient = Runtime(Atlas.from_dict(manifest()), trace=JsonlSink(disk), audit_deadline_seconds=0)
        other = impatient.session()
        ballast = fill_up(disk, other)
        tries.clear()

        def free() -> None:
            while len(tries) < 5:  # it is waiting
                threading.Event().wait(0.001)
            ballast.unlink()

        thread = threading.Thread(target=free, daemon=True)
        thread.start()
        assert [session.call("ticket.get", lambda: "ran") for _ in range(20)] == ["ran"] * 20
        thread.join(10)
        assert len(tries) > 20
        session.end()
        assert session.verify().sealed
        impatient.close()


def test_no_room_until_the_deadline(disk: Path) -> None:
    """Beyond the deadline the call is refused, its tool has not run, and nothing of it is in the file."""
    with opened(disk, audit_deadline_seconds=0.05) as runtime:
        session = runtime.session()
        ballast = fill_up(disk, session)
        before = trace_of(disk).read_bytes()
        for _ in range(3):
            with pytest.raises(AuditUnavailable, match="free some space"):
                session.call("ticket.get", lambda: pytest.fail("ran"))
            assert trace_of(disk).read_bytes() == before
        assert before.endswith(b"\n")
        ballast.unlink()
        session.call("ticket.get", lambda: None)
        session.end()
        assert session.verify().sealed


def test_calls_that_run_unrecorded(disk: Path) -> None:
    """Where the operator wants it, calls run without a record, and the next event says how many events are missing."""
    with opened(disk, audit_deadline_seconds=0, on_audit_failure="allow") as runtime:
        session = runtime.session()
        ballast = fill(disk)
        ran: list[int] = []
        events = -1
        while events != session.accepted_sequence:  # until the last page is full, too
            events = session.accepted_sequence
            session.call("ticket.get", lambda: ran.append(1))
        before = len(ran)
        missed_before = session._writer._missed
        for _ in range(4):
            session.call("ticket.get", lambda: ran.append(1))
        assert len(ran) == before + 4
        assert session._writer._missed == missed_before + 12  # asked for, approved, executed
        missed = session._writer._missed
        ballast.unlink()
        session.call("ticket.list", lambda: None)
        session.end()
        (gap,) = [event for event in parse(lines_of(trace_of(disk))) if event["event_type"] == "error.occurred"]
        assert gap["sequence"] == events + 1
        assert (gap["payload"]["error_code"], gap["payload"]["count"]) == ("events_dropped", missed)
        assert session.verify().sealed


def test_the_loop_goes_on(disk: Path) -> None:
    """While a call waits for room, other tasks run; it is one of them that makes the room."""

    async def main() -> int:
        with opened(disk, audit_deadline_seconds=30) as runtime:
            impatient = opened(disk, audit_deadline_seconds=0)
            session = runtime.session()
            ballast = fill_up(disk, impatient.session())
            turns = 0

            async def counter() -> None:
                nonlocal turns
                while turns < 50:
                    turns += 1
                    await asyncio.sleep(0.001)
                ballast.unlink()

            async def tool() -> None:
                return None

            counting = asyncio.ensure_future(counter())
            for _ in range(20):
                await session.acall("ticket.get", tool)
            await counting
            impatient.close()
            session.end()
            assert session.verify().sealed
        return turns

    assert asyncio.run(main()) == 50
