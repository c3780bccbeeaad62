"""A trace and its copies: the primary's word counts, and a copy never skips an event."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import AuditUnavailable, SinkError
from cra_middleware.testing import FailingSink
from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from cra_middleware.trace.tee import TeeSink
from tests.conftest import manifest
from tests.trace.places import in_child

ID = "01900000-0000-7000-8000-00000000000a"
ATLAS = Atlas.from_dict(manifest())


def until(what: Callable[[], object]) -> None:
    """Wait until it is so, at most 5 seconds."""
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def failing() -> tuple[FailingSink, MemorySink]:
    memory = MemorySink()
    return FailingSink(memory), memory


def test_a_copy_that_fails_stops_no_call(caplog: pytest.LogCaptureFixture) -> None:
    """Calls go on, it is said once, and the copy has everything in the end; the other copy never noticed."""
    (copy, kept), other, primary = failing(), MemorySink(), MemorySink()
    sink = TeeSink(primary, copy, other, retry_seconds=0.01)
    with Runtime(ATLAS, trace=sink) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: None)
        copy.failing = True
        for _ in range(5):
            session.call("ticket.get", lambda: None)
        assert session._log.witnessed_events == session._writer.end.sequence
        copy.failing = False
        session.call("ticket.get", lambda: None)
        until(lambda: kept.count(session.id) == primary.count(session.id))
        assert "up to date again" in caplog.text
    assert caplog.text.count("was told to fail") == 1
    for store in (primary, kept, other):
        assert str(verify_lines(store.lines(session.id), session.id)[0]) == "INTACT, SEALED"


def test_a_copy_that_was_not_there(caplog: pytest.LogCaptureFixture) -> None:
    """A copy that could not even be begun is begun later."""
    (copy, kept), primary = failing(), MemorySink()
    copy.failing = True
    sink = TeeSink(primary, copy, retry_seconds=0.01)
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    until(lambda: not log._copies[0]._is_queued)
    assert log.witnessed_events == 0
    copy.failing = False
    log.append(4, b"two\n", 2)
    until(lambda: log.witnessed_events == 2)
    assert list(kept.lines(ID)) == [b"one\n", b"two\n"]
    log.close()
    sink.close()


def test_a_copy_that_stays_away(caplog: pytest.LogCaptureFixture) -> None:
    """A copy that is still behind at the end is told, and catches up when the session is resumed."""
    (copy, kept), primary = failing(), MemorySink()
    sink = TeeSink(primary, copy)
    with Runtime(ATLAS, trace=sink) as runtime:
        session = runtime.session(keep=True)
        before = kept.count(session.id)
        copy.failing = True
        session.call("ticket.get", lambda: None)
        session.detach()
        assert "is left behind its original" in caplog.text
        assert kept.count(session.id) == before
        kept._logs[session.id].is_open = False
        copy.failing = False
        runtime.resume(session.id).end()
    assert list(kept.lines(session.id)) == list(primary.lines(session.id))


def test_the_primary_fails() -> None:
    """What the primary did not keep, no copy has, and the tool does not run."""
    (primary, kept), copy = failing(), MemorySink()
    with Runtime(ATLAS, trace=TeeSink(FailingSink(kept), copy)) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: None)
    assert primary.session_ids() == [session.id]
    sink = TeeSink(primary, copy)
    with Runtime(ATLAS, trace=sink) as runtime, runtime.session() as session:
        before = copy.count(session.id)
        primary.failing = True
        with pytest.raises(AuditUnavailable):
            session.call("ticket.get", lambda: pytest.fail("ran"))
        assert copy.count(session.id) == before
        primary.failing = False


class BrokenSink(MemorySink):
    """Somebody else's sink, with a bug."""

    def create(self, session_id: str, /) -> None:  # type: ignore[override]
        raise ZeroDivisionError("a bug")

    session_ids = reopen = create  # type: ignore[assignment]


def test_a_copy_with_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    """Not even a copy that raises what it must not stops a call."""
    sink = TeeSink(MemorySink(), BrokenSink(), retry_seconds=0.01)
    with Runtime(ATLAS, trace=sink) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: None)
    assert "ZeroDivisionError: a bug" in caplog.text
    assert str(session.verify()) == "INTACT, SEALED"


def test_what_a_copy_has_too_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Events that only the copy holds are moved aside, never deleted, and it is said."""
    primary, copy = JsonlSink(tmp_path / "a"), JsonlSink(tmp_path / "b")
    for place, data in ((primary, b"one\ntwo\n"), (copy, b"one\nother\nmore\n")):
        log = place.create(ID)
        log.append(0, data, data.count(b"\n"))
        log.close()
    sink = TeeSink(primary, copy)
    log = sink.reopen(ID)
    log.append(8, b"three\n", 3)
    until(lambda: not log._copies[0].is_behind)
    assert list(copy.lines(ID)) == [b"one\n", b"two\n", b"three\n"]
    assert (tmp_path / "b" / f"{ID}.trace.jsonl.4.torn").read_bytes() == b"other\nmore\n"
    assert "held 11 bytes" in caplog.text
    log.close()
    sink.close()


def test_taken_back() -> None:
    """What is taken back is taken back everywhere, and not counted as witnessed."""
    primary, copy = MemorySink(), MemorySink()
    log = TeeSink(primary, copy).create(ID)
    log.append(0, b"one\ntwo\n", 2)
    log.append(4, b"", 1)
    assert log.witnessed_events == 1
    log.append(4, b"2\n", 2)
    assert list(copy.lines(ID)) == list(primary.lines(ID)) == [b"one\n", b"2\n"]
    log.close()


def test_an_interrupt_in_a_copy() -> None:
    """Ctrl-C while a copy is written comes out; the copy is behind, and gets the same as the primary."""
    primary, copy = MemorySink(), MemorySink()
    sink = TeeSink(primary, copy, retry_seconds=0.01)
    log = sink.create(ID)
    inner = copy._logs[ID]
    real = inner.append

    def interrupted(*args: object) -> None:
        inner.append = real  # type: ignore[method-assign]
        raise KeyboardInterrupt

    inner.append = interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        log.append(0, b"one\n", 1)
    log.append(0, b"", 0)
    log.append(0, b"1\n", 1)
    until(lambda: log.witnessed_events == 1)
    assert list(copy.lines(ID)) == [b"1\n"]
    sink.close()


def test_a_forked_child_does_not_catch_up(caplog: pytest.LogCaptureFixture) -> None:
    """A child closes nothing of its parent's, and says nothing about copies that are its parent's."""
    (copy, kept), primary = failing(), MemorySink()
    sink = TeeSink(primary, copy)
    log = sink.create(ID)
    copy.failing = True
    log.append(0, b"one\n", 1)

    def child() -> int:
        copy.failing = False
        log.close()
        sink.close()
        return kept.count(ID)

    assert in_child(child) == "0"
    copy.failing = False
    log.close()
    assert kept.count(ID) == 1
    sink.close()


def test_a_copy_that_does_not_close(caplog: pytest.LogCaptureFixture) -> None:
    """A copy that cannot be closed is told; the primary is closed all the same."""

    class Stuck(MemorySink):
        def close(self) -> None:
            raise SinkError("stuck")

    caplog.set_level(logging.ERROR)
    primary = MemorySink()
    TeeSink(primary, Stuck()).close()
    assert "stuck" in caplog.text
