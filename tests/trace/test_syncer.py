"""Logs are made durable behind their writers, several at once where several wait."""

from __future__ import annotations

import threading

import pytest

from cra_middleware.errors import SinkError
from cra_middleware.trace.storage.syncer import HELPERS, Syncer


class Slow:
    """A log whose disk takes as long as the test says."""

    def __init__(self, together: threading.Barrier | None = None, fails: bool = False) -> None:
        self.together = together
        self.fails = fails
        self.flushed = threading.Event()

    def flush(self) -> None:
        if self.together is not None:
            self.together.wait(10)
        self.flushed.set()
        if self.fails:
            raise SinkError("the disk is gone")


def test_several_logs_are_flushed_at_once() -> None:
    """As many as there are helpers wait for one another: one after the other they would wait for ever."""
    syncer = Syncer(0.001)
    first = Slow(threading.Barrier(2))
    syncer.add(first)  # holds the thread up until the others are there, too
    together = threading.Barrier(HELPERS)
    logs = [Slow(together) for _ in range(HELPERS)]
    for log in logs:
        syncer.add(log)
    assert first.together is not None
    first.together.wait(10)
    assert all(log.flushed.wait(10) for log in (first, *logs))
    syncer.stop()
    assert not together.broken


def test_a_log_that_fails_hinders_no_other() -> None:
    """Alone, or in a round of many; and whatever waits is flushed before the end."""
    syncer = Syncer(0.001)
    alone = Slow(fails=True)
    syncer.add(alone)
    assert alone.flushed.wait(10)
    logs = [Slow(fails=number % 2 == 0) for number in range(20)]
    for log in logs:
        syncer.add(log)
    syncer.stop()
    assert all(log.flushed.is_set() for log in logs)
    assert not any(thread.name == "cra-trace-sync" and thread is syncer._thread for thread in threading.enumerate())


@pytest.mark.parametrize("is_started", [False, True])
def test_an_interrupt_while_the_thread_begins(monkeypatch: pytest.MonkeyPatch, is_started: bool) -> None:
    """The next log has it begun again, one thread in all, and the end waits for no thread that never was."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if is_started:
            start(thread)
            started.append(thread)
        raise KeyboardInterrupt

    syncer = Syncer(0.001)
    first, second = Slow(), Slow()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            syncer.add(first)
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    syncer.add(second)
    assert first.flushed.wait(10)
    assert second.flushed.wait(10)
    syncer.stop()
