"""A queue in front of a slow sink: ``append`` costs what memory costs, and a thread carries the bytes on.

It carries sealed bytes, in their order, and computes nothing. What it promises is less than other sinks do: an event
in the queue survives an exception, but not the death of the process; alone, it loses its queue on ``kill -9``. Put a
``TeeSink`` in front, with a folder of files first, where that matters.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

from cra_middleware.errors import SinkError
from cra_middleware.trace.buffered_log import BufferedLog, Limits
from cra_middleware.trace.ledger.backlog import Backlog, TellsBacklog
from cra_middleware.trace.query import select
from cra_middleware.trace.sink import Health, Query, SessionLog, TraceStore
from cra_middleware.trace.wakeup import Wakeup

CAPACITY_BYTES = 16 * 1024 * 1024
"""How much a session's queue holds before it refuses."""
FLUSH_BYTES = 256 * 1024
"""A queue that holds so much is carried on at once."""


class BufferedSink:
    """The sessions of ``inner``, with a bounded queue before each."""

    def __init__(
        self,
        inner: TraceStore,
        *,
        capacity_bytes: int = CAPACITY_BYTES,
        flush_bytes: int = FLUSH_BYTES,
        interval_seconds: float = 0.2,
        flush_seconds: float = 30.0,
        close_seconds: float = 5.0,
    ) -> None:
        """Nothing is started before the first event.

        Args:
            inner: where the events go.
            capacity_bytes: the most that a session's queue holds; an event that finds no room is refused at once,
                with an error that is transient. One that finds the queue empty is always taken.
            flush_bytes: a queue of this size is carried on without waiting for the interval.
            interval_seconds: how long an event waits at most before it is carried on.
            flush_seconds: how long ``flush`` waits for a sink that is away.
            close_seconds: how long closing does; what is not carried on by then is lost, and the error says so.

        Raises:
            ValueError: when a size or a time is not positive.
        """
        if min(capacity_bytes, flush_bytes, interval_seconds, flush_seconds, close_seconds) <= 0:
            raise ValueError("the sizes and times of a BufferedSink must be positive")
        self._inner = inner
        self._limits = Limits(capacity_bytes, flush_bytes, flush_seconds, close_seconds)
        self._interval = interval_seconds
        self._thread: threading.Thread | None = None
        self._logs: dict[str, BufferedLog] = {}
        self._begin()

    def create(self, session_id: str, /) -> SessionLog:
        return self._open(session_id, self._inner.create(session_id))

    def reopen(self, session_id: str, /) -> SessionLog:
        return self._open(session_id, self._inner.reopen(session_id))

    def session_ids(self) -> list[str]:
        return self._inner.session_ids()

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        """Every line: those that ``inner`` has, and those that wait."""
        log = self._open_log(session_id)
        return self._inner.lines(session_id) if log is None else log.lines()

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        log = self._open_log(session_id)
        return self._inner.find(session_id, query) if log is None else select(log.lines(), query)

    def count(self, session_id: str, /) -> int:
        log = self._open_log(session_id)
        return self._inner.count(session_id) if log is None else sum(line.endswith(b"\n") for line in log.lines())

    def backlog(self) -> Backlog | None:
        """What waits for a signed head at the sink that signs; None where none does.

        Raises:
            SinkError: when it cannot be read.
        """
        return self._inner.backlog() if isinstance(self._inner, TellsBacklog) else None

    def health(self) -> Health:
        known = self._inner.health()
        waiting = sum(log.waiting_bytes for log in self._mine().values())
        return Health(known.ok, f"{known.detail}; {waiting} bytes wait for it")

    def close(self) -> None:
        """Carry on what waits, within ``close_seconds`` for all, and close ``inner``.

        Raises:
            SinkError: when something was lost; it says what.
        """
        lost = []
        deadline = time.monotonic() + self._limits.close_seconds
        for log in list(self._mine().values()):
            try:
                log.hand_over(deadline)
            except SinkError as error:
                lost.append(str(error))
        self._is_stopped = True
        self._wakeup.now()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout=self._limits.close_seconds)
        self._logs = {}
        self._inner.close()
        if lost:
            raise SinkError("; ".join(lost))

    def _begin(self) -> None:
        """At first, and again in a forked child, which has neither the thread nor a claim on the parent's queues."""
        self._pid = os.getpid()
        self._logs = {}
        self._lock = threading.Lock()
        self._wakeup = Wakeup()
        self._thread = None
        self._is_stopped = False

    def _mine(self) -> dict[str, BufferedLog]:
        if os.getpid() != self._pid:
            self._begin()
        return self._logs

    def _open_log(self, session_id: str) -> BufferedLog | None:
        log = self._mine().get(session_id)
        return log if log is not None and log.is_open else None

    def _open(self, session_id: str, inner: SessionLog) -> BufferedLog:
        self._mine()
        log = BufferedLog(session_id, inner, self._limits, self._wakeup)
        with self._lock:
            self._logs = {name: other for name, other in self._logs.items() if other.is_open}
            self._logs[session_id] = log
            if self._thread is None:
                self._is_stopped = False
                self._thread = threading.Thread(target=self._run, name="cra-trace-buffer", daemon=True)
                self._thread.start()
        return log

    def _run(self) -> None:
        wakeup = self._wakeup
        while not self._is_stopped:
            wakeup.wait(self._interval)
            for log in list(self._logs.values()):
                log.carry_on()
            if any(log.is_waiting for log in self._logs.values()):
                wakeup.soon()
