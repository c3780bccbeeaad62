"""``durability="sync"``: a decision is on the disk before its tool runs, or the tool does not run."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime, governed
from cra_middleware.errors import ActionDenied, AuditUnavailable
from cra_middleware.evidence.folder import verify_folder
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.crash.rounds import rounds
from tests.trace.forge import parse


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    """Decisions are waited for, and nothing else is synced."""
    sink = JsonlSink(tmp_path, sync_interval_seconds=3600)
    with Runtime(Atlas.from_dict(manifest()), trace=sink, durability="sync") as made:
        yield made


def test_durable_before_the_tool(runtime: Runtime) -> None:
    """Inside a function, a coroutine, a generator and an async generator, its own decision is durable."""
    seen: list[bool] = []
    with runtime.session() as session:

        def look() -> None:
            seen.append(session.durable_sequence == session.accepted_sequence)

        async def coroutine() -> None:
            look()

        @governed("ticket.list")
        def generator() -> Iterator[int]:
            look()
            yield 1

        @governed("ticket.list")
        async def async_generator() -> AsyncIterator[int]:
            look()
            yield 1

        async def drain() -> None:
            await session.acall("ticket.get", coroutine)
            async for _ in async_generator():
                pass

        session.call("ticket.get", look)
        assert list(generator()) == [1]
        asyncio.run(drain())
    assert seen == [True] * 4


def test_threads_share_a_sync(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight threads each decision is durable before its tool, with fewer syncs than decisions."""
    session, syncs, real = runtime.session(), [0], os.fdatasync
    together = threading.Barrier(8)

    def fdatasync(fd: int) -> None:
        syncs[0] += 1
        threading.Event().wait(0.002)  # a disk takes its time
        real(fd)

    seen: list[bool] = []

    def work() -> None:
        together.wait()
        for _ in range(10):
            before = session.accepted_sequence
            session.call("ticket.get", lambda: seen.append(session.durable_sequence > before))  # noqa: B023

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 80
    assert syncs[0] < 60
    session.end()


@contextmanager
def slow_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The disk confirms nothing until the second event is set; the first says that it was asked."""
    asked, done, real = threading.Event(), threading.Event(), os.fdatasync

    def fdatasync(fd: int) -> None:
        asked.set()
        assert done.wait(20)
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fdatasync)
        yield asked, done


def test_the_loop_goes_on(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one task waits for the disk, another one runs; without it the disk would never answer."""

    async def main() -> None:
        session = runtime.session()
        with slow_sync(monkeypatch) as (asked, done):

            async def tool() -> str:
                assert done.is_set()
                return "ran"

            async def other() -> None:
                while not asked.is_set():
                    await asyncio.sleep(0.001)
                done.set()

            assert (await asyncio.gather(session.acall("ticket.get", tool), other()))[0] == "ran"

    asyncio.run(main())


def test_changed_while_it_waits(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that another task changes while a decision goes to the disk do not run, and the trace says so."""

    async def main() -> str:
        session, order = runtime.session(), {"to": "ann"}
        with slow_sync(monkeypatch) as (asked, done):

            async def tool(order: dict[str, str]) -> None:
                pytest.fail("ran")

            task = asyncio.ensure_future(session.acall("ticket.get", tool, order))
            while not asked.is_set():
                await asyncio.sleep(0.001)
            order["to"] = "eve"
            done.set()
            with pytest.raises(ActionDenied) as refusal:
                await task
            assert refusal.value.code == "arguments_changed"
        session.end()
        return session.id

    session_id = asyncio.run(main())
    last = parse(runtime._sink.lines(session_id))[-2]  # type: ignore[attr-defined]
    assert (last["event_type"], last["payload"]["error_code"]) == ("action.failed", "arguments_changed")


@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_while_it_waits(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A task that is cancelled while it waits for the disk, once or again, has not run, and the trace says so."""

    async def main() -> str:
        session = runtime.session()
        with slow_sync(monkeypatch) as (asked, done):

            async def tool() -> None:
                pytest.fail("ran")

            task = asyncio.ensure_future(session.acall("ticket.get", tool))
            while not asked.is_set():
                await asyncio.sleep(0.001)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0.01)
                assert not task.done()
            done.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        session.end()
        return session.id

    session_id = asyncio.run(main())
    last = parse(runtime._sink.lines(session_id))[-2]  # type: ignore[attr-defined]
    assert (last["event_type"], last["payload"]["error_code"]) == ("action.failed", "audit_unavailable")


def test_the_loop_ends_while_it_waits(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of asyncio.run cancels everything; the call still ends as one that did not run."""
    session = runtime.session()

    async def main(asked: threading.Event, done: threading.Event) -> None:
        async def tool() -> None:
            pytest.fail("ran")

        tasks.append(asyncio.ensure_future(session.acall("ticket.get", tool)))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        threading.Timer(0.05, done.set).start()  # after the loop has begun to end

    tasks: list[asyncio.Future[None]] = []
    with slow_sync(monkeypatch) as (asked, done):
        asyncio.run(main(asked, done))
    assert tasks[0].cancelled()
    session.end()
    last = parse(runtime._sink.lines(session.id))[-2]  # type: ignore[attr-defined]
    assert (last["event_type"], last["payload"]["error_code"]) == ("action.failed", "audit_unavailable")


def test_a_disk_that_fails(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While the disk confirms nothing no tool runs, the trace says so, and the session goes on in a new segment."""
    session = runtime.session()
    session.call("ticket.get", lambda: None)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        for _ in range(2):
            with pytest.raises(AuditUnavailable):
                session.call("ticket.update", lambda: pytest.fail("ran"))
    session.flush()
    assert session.call("ticket.list", lambda: "ran") == "ran"
    session.end()
    events = parse(runtime._sink.lines(session.id))  # type: ignore[attr-defined]
    updates = [event for event in events if event["payload"].get("action_id") == "ticket.update"]
    assert [event["event_type"] for event in updates] == ["action.requested", "action.approved", "action.failed"]
    assert updates[-1]["payload"]["error_code"] == "audit_unavailable"
    assert len(list(tmp_path.glob("*.trace.jsonl"))) == 2
    assert verify_folder(tmp_path).sessions[0].sealed


def test_an_end_right_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose last decision could not be made durable is sealed all the same, once it has a new file."""
    real, left = os.fdatasync, [10**6]

    def fdatasync(fd: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, durability="sync") as runtime:
        session = runtime.session()
        session.flush()
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        with pytest.raises(AuditUnavailable):
            session.call("ticket.get", lambda: pytest.fail("ran"))
        left[0] = 1  # once more, and then the disk works
        session.end()
    (report,) = verify_folder(tmp_path).sessions
    assert report.sealed


@rounds(2, 16)
def test_a_disk_that_fails_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Eight threads over small segments on a disk whose every tenth sync fails: nothing that ran is missing."""
    before, real = sys.getswitchinterval(), os.fdatasync
    sys.setswitchinterval(1e-5)
    try:
        for seed in range(rounds):
            random, lock = Random(seed), threading.Lock()

            def fdatasync(fd: int, random: Random = random, lock: Any = lock) -> None:
                with lock:
                    fails = random.random() < 0.1
                if fails:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                real(fd)

            monkeypatch.setattr(os, "fdatasync", fdatasync)
            ran = _work(tmp_path / str(seed), "sync" if seed % 2 else "write_through")
            (session,) = verify_folder(tmp_path / str(seed)).sessions
            assert session.sealed, f"seed {seed}: {session}"
            lines = list(JsonlSink(tmp_path / str(seed)).lines(str(session.session_id)))
            assert sum(b'"event_type":"action.executed"' in line for line in lines) == ran
    finally:
        sys.setswitchinterval(before)


def _work(folder: Path, durability: Any) -> int:
    """How many tools ran, of those that eight threads called."""
    sink = JsonlSink(folder, sync_interval_seconds=0, segment_bytes=8000)
    ran: list[int] = []
    with Runtime(Atlas.from_dict(manifest()), trace=sink, durability=durability, audit_deadline_seconds=5) as runtime:
        with runtime.session() as session:
            call: Callable[[], object] = lambda: session.call("ticket.get", lambda: ran.append(1))  # noqa: E731

            def work() -> None:
                for _ in range(25):
                    with suppress(AuditUnavailable):
                        call()

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return len(ran)
