"""One thread that makes the logs of a sink durable, a moment behind their writers.

Where several logs wait, some more help it: a disk that is asked by four at once confirms them together, and a server
that begins hundreds of sessions a second would otherwise fall behind.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from queue import SimpleQueue
from typing import Protocol

from cra_middleware.errors import SinkError

HELPERS = 4

_logger = logging.getLogger("cra_middleware.trace")


class Flushable(Protocol):
    """What can be made durable."""

    def flush(self) -> None:
        """Wait until it is.

        Raises:
            SinkError: when the storage says that it is not.
        """
        ...


class Syncer:
    """Flushes each log that was added, at most ``interval_seconds`` after it was."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self._begin()

    def add(self, log: Flushable) -> None:
        """Flush ``log`` soon. To be called again only after its flush has begun."""
        if os.getpid() != self._pid:
            self._begin()  # a forked child has neither the thread nor the parent's logs
        self._waiting.append(log)
        if self._thread is None:
            self._start()
        self._wake.set()

    def stop(self) -> None:
        """Flush what waits, and end the thread."""
        if os.getpid() != self._pid:
            return
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def _begin(self) -> None:
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._waiting: deque[Flushable] = deque()  # a writer may append while the thread takes out
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._helpers: list[threading.Thread] = []
        self._round: SimpleQueue[Flushable | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._pid = os.getpid()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="cra-trace-sync", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():  # who started it was interrupted: the next starts one
                return
        while not (self._stopped.is_set() and not self._waiting):
            self._wake.wait()
            self._wake.clear()
            logs = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if len(logs) > 1 and not self._helpers:
                self._call_helpers()
            if len(logs) > 1 and self._helpers:
                for log in logs:
                    self._round.put(log)
                for _ in logs:
                    self._done.get()
            else:
                for log in logs:
                    _flush(log)
            self._stopped.wait(self._interval)
        for _ in self._helpers:
            self._round.put(None)

    def _call_helpers(self) -> None:
        for _ in range(HELPERS):
            helper = threading.Thread(target=_help, args=(self._round, self._done), name="cra-trace-help", daemon=True)
            try:
                helper.start()
            except RuntimeError:  # no thread can be had, or the interpreter is ending
                return
            self._helpers.append(helper)


def _help(logs: SimpleQueue[Flushable | None], done: SimpleQueue[None]) -> None:
    while (log := logs.get()) is not None:
        try:
            _flush(log)
        finally:
            done.put(None)


def _flush(log: Flushable) -> None:
    try:
        log.flush()
    except SinkError as error:
        _logger.error("%s", error)
