"""The writing end of one session's chain.

Every event is sealed and handed to the log under one lock; the head moves only after the log has kept it, so
a sequence number is never used for an event that is not there. What cannot be kept at once (the outcome of a
tool that has already run, or an event from a finaliser) is *owed*: it goes first into the next write, and
while it cannot be kept, nothing else is. What an operator chose to do without is *missed*: the next write says how
many events that were.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from cra_middleware._clock import Clock, timestamp_text, writable_us
from cra_middleware._fork import tell_child
from cra_middleware._ids import new_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.event import GENESIS, EventType, Sealed, seal
from cra_middleware.trace.payloads import render
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.sink import SessionLog

RETRY_SECONDS = 0.02
"""Between two tries of a write that may go through."""


class Entry(NamedTuple):
    """An event that is not sealed yet."""

    span_id: str
    parent_span_id: str | None
    event_type: EventType
    payload: str
    """Canonical JSON."""
    timestamp_us: int


class Position(NamedTuple):
    """The end of a chain: where the next event goes."""

    sequence: int = 0
    offset: int = 0
    head_hash: str = GENESIS
    timestamp_us: int = 0


class ChainWriter:
    """Seals events and keeps them, one chain however many threads."""

    def __init__(
        self, log: SessionLog, clock: Clock, session_id: str, trace_id: str, end: Position | None = None
    ) -> None:
        self.session_id = session_id
        self.trace_id = trace_id
        self._log = log
        self._clock = clock
        self._end = end or Position()
        self._last_us = self._end.timestamp_us
        self._lock = threading.Lock()
        self._holder = 0  # the thread that is writing
        self._owed: deque[Entry] = deque()
        self._paid: Sequence[Entry] = ()  # owed entries that are kept already, to be dropped from the queue
        self._missed = 0
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: what is owed is the parent's to write, and another thread may have held the lock."""
        self._lock = threading.Lock()
        self._holder = 0
        self._owed = deque()

    @property
    def end(self) -> Position:
        """Where the next event goes."""
        return self._end

    def now_us(self) -> int:
        """The time for the next event; a clock that went back repeats the last one."""
        us = self._clock.wall_us()
        if us % 1000 == 0:
            us = writable_us(us)
        if us < self._last_us:
            return self._last_us
        self._last_us = us
        return us

    def write(self, *entries: Entry) -> Sequence[Sealed]:
        """Keep everything owed, then ``entries``: all of it or nothing.

        Raises:
            SinkError: when the log did not keep them; the chain is as before.
        """
        return self._write(entries, owe=False)

    def owe(self, entry: Entry) -> None:
        """Keep ``entry`` with the next write. Takes no lock, so a finaliser may call it."""
        self._owed.append(entry)

    def miss(self, events: int) -> None:
        """Note that ``events`` were not kept and never will be; the next write begins with their number."""
        with self._lock:
            self._missed += events

    def settle(self) -> Sequence[Sealed]:
        """Write what is owed now.

        Raises:
            SinkError: as ``write``.
        """
        return self.write() if self._owed else ()

    def write_or_owe(self, entry: Entry) -> Sequence[Sealed]:
        """Keep ``entry`` now, or owe it: for an outcome, which has happened whether or not it can be kept."""
        return self._write((entry,), owe=True)

    def write_until(self, deadline_seconds: float, *entries: Entry) -> Sequence[Sealed]:
        """As ``write``, and again for ``deadline_seconds`` while the log says that it may go through. Blocks.

        Raises:
            SinkError: as ``write``, at the deadline.
        """
        waited = 0.0
        while True:
            try:
                return self.write(*entries)
            except SinkError as error:
                if not error.is_transient or waited >= deadline_seconds:
                    raise
            time.sleep(RETRY_SECONDS)
            waited += RETRY_SECONDS

    def flush(self) -> None:
        """Wait until everything that was kept is durable.

        Raises:
            SinkError: when the storage says that it is not.
        """
        self._log.flush()

    @property
    def durable_events(self) -> int:
        """How many events survive the death of the machine."""
        return self._log.durable_events

    @property
    def witnessed_events(self) -> int:
        """How many events a copy elsewhere has confirmed."""
        return self._log.witnessed_events

    def _write(self, entries: Sequence[Entry], owe: bool) -> Sequence[Sealed]:
        me = threading.get_ident()
        # A finaliser that calls a tool in the middle of a write would wait for itself.
        if self._holder == me and self._lock.locked():
            if owe:
                self._owed.extend(entries)
            raise SinkError("an event cannot be written in the middle of another one's writing")
        with self._lock:
            before = self._end
            self._holder = me
            try:
                return self._keep(entries)
            except BaseException as error:  # an interrupt, too, must not lose what has happened
                if self._end is before:
                    if owe:
                        self._owed.extend(entries)
                    if not isinstance(error, SinkError):
                        self._take_back(before)
                raise
            finally:
                self._holder = 0

    def _take_back(self, end: Position) -> None:
        """After an interrupt the log may hold what we do not know of; nobody may count it as durable."""
        with suppress(SinkError):  # then the log is failed, and counts nothing any more
            self._log.append(end.offset, b"", end.sequence)

    def _keep(self, entries: Sequence[Entry]) -> Sequence[Sealed]:
        if self._paid:
            self._drop_paid()
        # by index, because a finaliser may append meanwhile
        owed = [self._owed[place] for place in range(len(self._owed))] if self._owed else []
        batch = (*owed, *entries) if owed else entries
        missed = self._missed
        if missed and batch:
            batch = (self._gap(missed, batch[0].span_id), *batch)
        if not batch:  # another thread has settled it
            return ()
        sequence, offset, head, _ = self._end
        lines: list[str] = []
        sealed: list[Sealed] = []
        for span_id, parent, event_type, payload, us in batch:
            event_id = new_id()
            line, event_hash = seal(
                event_id,
                self.trace_id,
                span_id,
                parent,
                self.session_id,
                sequence,
                timestamp_text(us),
                event_type,
                payload,
                head,
            )
            lines.append(line)
            sealed.append(Sealed(event_type, event_id, sequence, event_hash, head, payload, us))
            sequence, head = sequence + 1, event_hash
        data = "".join(lines).encode()
        if len(data) > MAX_LINE_BYTES and any(len(line.encode()) > MAX_LINE_BYTES for line in lines):
            raise SinkError(f"an event is longer than {MAX_LINE_BYTES} bytes, which no reader takes")
        self._log.append(offset, data, sequence)
        # One statement, so that no interrupt comes between: what is kept must not be owed any more.
        self._end, self._paid, self._missed = (
            Position(sequence, offset + len(data), head, batch[-1].timestamp_us),
            owed,
            self._missed - missed,
        )
        if owed:
            self._drop_paid()
        return sealed

    def _gap(self, missed: int, span_id: str) -> Entry:
        message = f"{missed} events are missing here: the log could not be kept, and calls were let run all the same"
        payload = render({"error_code": "events_dropped", "message": message, "count": missed})
        return Entry(span_id, None, "error.occurred", payload, self.now_us())

    def _drop_paid(self) -> None:
        for entry in self._paid:
            if self._owed and self._owed[0] is entry:
                self._owed.popleft()
        self._paid = ()
