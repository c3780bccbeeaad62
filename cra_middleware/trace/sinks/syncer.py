"""One thread that makes the logs of a sink durable, a moment behind their writers."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import Protocol

from cra_middleware.errors import SinkError

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
        self._pid = os.getpid()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cra-trace-sync", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not (self._stopped.is_set() and not self._waiting):
            self._wake.wait()
            self._wake.clear()
            for _ in range(len(self._waiting)):
                try:
                    self._waiting.popleft().flush()
                except SinkError as error:
                    _logger.error("%s", error)
            self._stopped.wait(self._interval)
