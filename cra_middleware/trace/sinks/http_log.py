"""One session on its way to a receiver: written to the spool, sent behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import SessionLog, Torn
from cra_middleware.trace.sinks.outbox import Outbox, Reach
from cra_middleware.trace.wakeup import Wakeup


class HttpLog:
    """A log in the spool, and the outbox that follows it."""

    def __init__(
        self,
        box: Outbox,
        spooled: SessionLog,
        wakeup: Wakeup,
        check_room: Callable[[int], None],
        flush_seconds: float,
    ) -> None:
        self._box = box
        self._spooled = spooled
        self._wakeup = wakeup
        self._check_room = check_room
        self._flush_seconds = flush_seconds
        self._pid = os.getpid()

    @property
    def durable_events(self) -> int:
        """What the other side has acknowledged."""
        return self._box.sent.events

    @property
    def noted_durable(self) -> int | None:
        """What had reached the disk of the spool."""
        return self._spooled.noted_durable

    @property
    def witnessed_events(self) -> int:
        """What the other side has acknowledged."""
        return self._box.sent.events

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._check()
        self._check_room(len(data))
        if offset < self._box.written.offset:
            self._box.cut(Reach(events - data.count(b"\n"), offset))
        self._spooled.append(offset, data, events)
        self._box.extend(Reach(events, offset + data.rfind(b"\n") + 1))
        self._wakeup.soon()

    def lines(self) -> Iterator[bytes]:
        return self._spooled.lines()

    def set_aside(self, offset: int, /) -> Torn:
        self._check()
        events = size = 0
        for line in self._spooled.lines():
            if size + len(line) > offset:
                break
            size, events = size + len(line), events + 1
        self._box.cut(Reach(events, offset))
        return self._spooled.set_aside(offset)

    def flush(self) -> None:
        """Wait until the other side has everything.

        Raises:
            SinkError: when it does not take it, or does not have it in time; the spool does.
        """
        self._check()
        self._spooled.flush()
        self._wakeup.now()
        box, deadline = self._box, time.monotonic() + self._flush_seconds
        with box.changed:
            wanted = box.written
            box.changed.wait_for(
                lambda: box.failure is not None or box.sent >= min(wanted, box.written), deadline - time.monotonic()
            )
            if box.failure is not None:
                raise SinkError(box.failure)
            missing = box.written.events - box.sent.events
            if missing > 0 and box.sent < wanted:
                raise SinkError(f"{missing} events of session {box.session_id} wait in the spool", is_transient=True)

    def close(self) -> None:
        self._spooled.close()
        if os.getpid() == self._pid:
            self._wakeup.now()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SinkError(f"session {self._box.session_id} belongs to the parent process; open one of your own")
        if self._box.failure is not None:
            raise SinkError(self._box.failure)
