"""How a thread that carries events on is told that there are some."""

from __future__ import annotations

import threading


class Wakeup:
    """Tells a thread that something waits, and whether it may wait a little longer."""

    def __init__(self) -> None:
        self._something = threading.Event()
        self._urgent = threading.Event()

    def soon(self) -> None:
        """There is something to do."""
        self._something.set()

    def now(self) -> None:
        """There is something to do at once."""
        self._urgent.set()
        self._something.set()

    def wait(self, interval_seconds: float) -> None:
        """Until something is to be done, and then for more of it, for so long."""
        self._something.wait()
        self._urgent.wait(interval_seconds)
        self._something.clear()
        self._urgent.clear()
