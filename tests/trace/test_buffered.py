"""A queue in front of a slow sink: bounded, in order, and honest about what it lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import AuditUnavailable, SinkError
from cra_middleware.trace import buffered_log
from cra_middleware.trace.buffered import BufferedSink
from cra_middleware.trace.sink import SessionLog
from cra_middleware.trace.sinks.memory import MemorySink
from tests.conftest import manifest
from tests.trace.places import in_child

ID = "01900000-0000-7000-8000-00000000000a"
ATLAS = Atlas.from_dict(manifest())


class SlowSink(MemorySink):
    """Memory behind a gate; ``error`` is raised instead while it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.arrived = threading.Event(), threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.appends: list[tuple[int, bytes, int]] = []

    def create(self, session_id: str, /) -> SessionLog:
        log: Any = super().create(session_id)
        real = log.append

        def append(offset: int, data: bytes, events: int) -> None:
            self.arrived.set()
            self.gate.wait(10)
            if self.error is not None:
                raise self.error
            self.appends.append((offset, data, events))
            real(offset, data, events)

        log.append = append
        return log


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowSink:
    monkeypatch.setattr(buffered_log, "_FIRST_PAUSE", 0.01)
    return SlowSink()


@pytest.fixture
def make(slow: SlowSink) -> Iterator[Callable[..., BufferedSink]]:
    """Sinks in front of ``slow``, closed at the end."""
    made: list[BufferedSink] = []

    def build(**options: Any) -> BufferedSink:
        made.append(BufferedSink(slow, **{"interval_seconds": 0.01, "close_seconds": 1.0, **options}))
        return made[-1]

    yield build
    slow.gate.set()
    slow.error = None
    for sink in made:
        sink.close()


def until(what: Callable[[], object]) -> None:
    """Wait until it is so, at most 5 seconds."""
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_append_does_not_wait(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """While the sink behind stands still, events are taken and can be read."""
    slow.gate.clear()
    log = make().create(ID)
    log.append(0, b"one\n", 1)
    assert slow.arrived.wait(5)
    log.append(4, b"two\n", 2)
    assert list(log.lines()) == [b"one\n", b"two\n"]
    assert log.durable_events == 0
    slow.gate.set()
    log.flush()
    assert log.durable_events == 2
    assert slow.appends == [(0, b"one\n", 1), (4, b"two\n", 2)]


def test_a_full_queue(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """When there is no room an event is refused at once, and for now only; one that is too large for it goes alone."""
    slow.gate.clear()
    log = make(capacity_bytes=10).create(ID)
    log.append(0, b"x" * 20 + b"\n", 1)
    with pytest.raises(SinkError, match="wait already") as caught:
        log.append(21, b"y\n", 2)
    assert caught.value.is_transient
    slow.gate.set()
    log.flush()
    log.append(21, b"y\n", 2)
    log.flush()
    assert list(log.lines()) == [b"x" * 20 + b"\n", b"y\n"]


def test_a_full_queue_refuses_the_call(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """A tool whose decision finds no room does not run, and the chain goes on when there is room again."""
    with Runtime(ATLAS, trace=make(capacity_bytes=9000)) as runtime, runtime.session() as session:
        slow.gate.clear()

        def call_on() -> None:
            while True:
                session.call("ticket.get", lambda: None)

        with pytest.raises(AuditUnavailable):
            call_on()
        slow.gate.set()
        session._log.flush()
        session.call("ticket.get", lambda: None)
    assert str(session.verify()) == "INTACT, SEALED"


def test_by_size(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """A queue that is large enough is carried on before the interval is over, joined to one write."""
    log = make(interval_seconds=3600.0, flush_bytes=12).create(ID)
    log.append(0, b"one\n", 1)
    log.append(4, b"two\n", 2)
    assert not slow.arrived.wait(0.05)
    log.append(8, b"three\n", 3)
    until(lambda: log.durable_events == 3)
    assert slow.appends == [(0, b"one\ntwo\nthree\n", 3)]


def test_by_time(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """A queue that is small is carried on after the interval, without being asked."""
    log = make().create(ID)
    for events in (1, 2):
        log.append(4 * events - 4, b"one\n", events)
        until(lambda events=events: log.durable_events == events)


def test_failures_that_pass(
    slow: SlowSink, make: Callable[..., BufferedSink], caplog: pytest.LogCaptureFixture
) -> None:
    """What fails for now is tried again until it goes through; nothing is lost, and it is said once."""
    slow.error = SinkError("no room now", is_transient=True)
    log = make().create(ID)
    log.append(0, b"one\n", 1)
    until(lambda: "no room now" in caplog.text)
    log.append(4, b"two\n", 2)
    until(lambda: log._pause > 0.02)
    slow.error = None
    log.flush()
    assert list(log.lines()) == [b"one\n", b"two\n"]
    assert caplog.text.count("no room now") == 1


@pytest.mark.parametrize("error", [SinkError("gone for good"), ZeroDivisionError("gone for good")])
def test_failures_that_last(slow: SlowSink, make: Callable[..., BufferedSink], error: Exception) -> None:
    """What fails for good fails the log; closing says what is lost, and other sessions go on."""
    sink = make()
    log = sink.create(ID)
    slow.error = error
    log.append(0, b"one\ntwo\n", 2)
    with pytest.raises(SinkError, match="gone for good"):
        log.flush()
    slow.error = None
    with pytest.raises(SinkError, match="takes no more events"):
        log.append(8, b"three\n", 3)
    with pytest.raises(SinkError, match=r"2 events \(8 bytes\).*gone for good"):
        log.close()
    other = sink.create(ID[:-1] + "b")
    other.append(0, b"one\n", 1)
    other.flush()


def test_closing_in_time(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """Closing waits for a sink that stands still, but not for ever, and says what was lost."""
    sink = make(close_seconds=0.1)
    log = sink.create(ID)
    slow.error = SinkError("busy", is_transient=True)
    log.append(0, b"one\n", 1)
    with pytest.raises(SinkError, match=r"1 events \(4 bytes\).*busy"):
        sink.close()
    with pytest.raises(SinkError, match="busy"):
        log.close()
    slow.error = None


def test_flushing_in_time(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """A flush gives up after its time, with an error that may pass."""
    slow.gate.clear()
    log = make(flush_seconds=0.05).create(ID)
    log.append(0, b"one\n", 1)
    with pytest.raises(SinkError, match="no time") as caught:
        log.flush()
    assert caught.value.is_transient
    slow.gate.set()


@pytest.mark.parametrize("after", [b"", b"2\n", b"two again\n"])
def test_what_is_taken_back_while_it_is_carried(
    slow: SlowSink, make: Callable[..., BufferedSink], after: bytes
) -> None:
    """What is taken back while the sink behind takes it is dropped there next, and never counted."""
    log = make().create(ID)
    log.append(0, b"one\n", 1)
    log.flush()
    slow.gate.clear()
    slow.arrived.clear()
    log.append(4, b"two\nthree\n", 3)
    assert slow.arrived.wait(5)
    log.append(4, after, 1 + after.count(b"\n"))
    assert log.durable_events == 1
    slow.gate.set()
    until(lambda: not log.waiting_bytes and not log.is_waiting)
    log.flush()
    assert list(log.lines()) == [line for line in (b"one\n", after) if line]
    assert log.durable_events == 1 + after.count(b"\n")


def test_what_is_taken_back_afterwards(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """What the sink behind has made durable is not counted any more as soon as it is taken back."""
    log = make().create(ID)
    log.append(0, b"one\ntwo\n", 2)
    log.flush()
    slow.gate.clear()
    log.append(4, b"", 1)
    assert log.durable_events == 1
    slow.gate.set()
    log.append(4, b"2\n", 2)
    log.flush()
    assert log.durable_events == 2


def test_what_is_taken_back_after_a_failure(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """What is taken back while it waits to be tried again is not tried again."""
    slow.error = SinkError("busy", is_transient=True)
    log = make().create(ID)
    log.append(0, b"one\ntwo\n", 2)
    until(lambda: log._pause)
    log.append(4, b"2\n", 2)
    slow.error = None
    log.flush()
    assert slow.appends in ([(0, b"one\n", 1), (4, b"2\n", 2)], [(0, b"one\n2\n", 2)])


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.sampled_from([b"a\n", b"bb\n", b"ccc\n"]), max_size=3), st.booleans()),
        max_size=12,
    )
)
def test_the_queue_carries_the_truth(steps: list[tuple[int, list[bytes], bool]]) -> None:
    """However writes, cuts and failures fall together, the end is the same on both sides."""
    slow = SlowSink()
    sink = BufferedSink(slow, interval_seconds=0.0001)
    log, model = sink.create(ID), list[bytes]()
    for back, lines, fails in steps:
        slow.error = SinkError("busy", is_transient=True) if fails else None
        model = model[: max(0, len(model) - back)]
        offset = sum(map(len, model))
        model += lines
        log.append(offset, b"".join(lines), len(model))
        assert list(log.lines()) == model
        assert log.durable_events <= len(model)
    slow.error = None
    log.flush()
    assert list(slow.lines(ID)) == model
    assert log.durable_events == len(model)
    sink.close()


def test_a_fork_while_it_carries(slow: SlowSink, make: Callable[..., BufferedSink]) -> None:
    """A child that was forked in the middle neither waits for a thread it does not have, nor carries anything on."""
    slow.gate.clear()
    sink = make()
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    assert slow.arrived.wait(5)
    log.append(4, b"two\n", 2)

    def child() -> tuple[int, list[bytes]]:
        slow.gate.set()
        sink.close()
        log.close()
        return len(slow.appends), list(slow.lines(ID))

    assert in_child(child) == "(0, [])"
    slow.gate.set()
    log.flush()
    assert list(slow.lines(ID)) == [b"one\n", b"two\n"]


@pytest.mark.parametrize("option", ["capacity_bytes", "flush_bytes", "interval_seconds", "close_seconds"])
def test_options(option: str) -> None:
    """A size or a time that is not positive is told when the sink is made."""
    with pytest.raises(ValueError, match="positive"):
        BufferedSink(MemorySink(), **{option: 0})
