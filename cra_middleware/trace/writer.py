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
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import is_
from typing import NamedTuple

from cra_middleware._clock import Clock, timestamp_text, writable_us
from cra_middleware._fork import tell_child
from cra_middleware._ids import new_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.event import Event, EventType, Sealed, seal
from cra_middleware.trace.payloads import render
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.shared import EndedElsewhereError, Follow, Position, read_on
from cra_middleware.trace.sink import MovedError, SessionLog, SharedLog

RETRY_SECONDS = 0.02
"""Between two tries of a write that may go through."""
MAX_UNSURE = 64
"""Tries that are remembered, of which nobody knows whether they were kept."""


class Entry(NamedTuple):
    """An event that is not sealed yet."""

    span_id: str
    parent_span_id: str | None
    event_type: EventType
    payload: str
    """Canonical JSON."""
    timestamp_us: int


class _Try(NamedTuple):
    """A batch that was handed to a shared log, which said that it was not kept."""

    batch: tuple[Entry, ...]
    sealed: list[Sealed]
    found: list[Event]
    """Its events, as they stand in the log all the same."""


class ChainWriter:
    """Seals events and keeps them, one chain however many threads."""

    def __init__(
        self,
        log: SessionLog,
        clock: Clock,
        session_id: str,
        trace_id: str,
        end: Position | None = None,
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
        self._follow: Follow = _ignore
        self._is_over = False  # another process has ended the session
        self._unsure: list[_Try] = []  # those that may be kept although we were told that they are not
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: what is owed is the parent's to write, and another thread may have held the lock."""
        self._lock = threading.Lock()
        self._holder = 0
        self._owed = deque()

    def heard_by(self, follow: Follow) -> None:
        """Let ``follow`` hear what other processes append, where the log is one that several write."""
        self._follow = follow

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

    def write(self, *entries: Entry, only_if: Callable[[], None] | None = None) -> Sequence[Sealed]:
        """Keep everything owed, then ``entries``: all of it or nothing.

        ``only_if`` raises when they must not be kept any more; it is asked again after other processes wrote.

        Raises:
            SinkError: when the log did not keep them; the chain is as before.
        """
        return self._write(entries, owe=False, only_if=only_if)

    def refresh(self) -> None:
        """Read on in a log that several write.

        Raises:
            ChainBroken: when it was changed.
            SinkError: when it cannot be read, or another process ended the session.
        """
        if isinstance(self._log, SharedLog):
            with self._lock:
                self._read_on()

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

    def write_until(
        self, deadline_seconds: float, *entries: Entry, only_if: Callable[[], None] | None = None
    ) -> Sequence[Sealed]:
        """As ``write``, and again for ``deadline_seconds`` while the log says that it may go through. Blocks.

        Raises:
            SinkError: as ``write``, at the deadline.
        """
        waited = 0.0
        while True:
            try:
                return self.write(*entries, only_if=only_if)
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

    def _write(
        self, entries: Sequence[Entry], owe: bool, only_if: Callable[[], None] | None = None
    ) -> Sequence[Sealed]:
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
                return self._keep(entries, only_if)
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

    def _keep(self, entries: Sequence[Entry], only_if: Callable[[], None] | None) -> Sequence[Sealed]:
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
        self._check_over()
        while True:
            kept = self._kept_before(batch)
            if kept is not None:
                sealed, end = kept, self._end
                break
            if only_if is not None:
                only_if()
            data, sealed, end = self._sealed(batch)
            try:
                self._log.append(self._end.offset, data, end.sequence)
                break
            except MovedError:
                self._read_on()
            except SinkError:
                if isinstance(self._log, SharedLog):  # the connection may have broken behind the commit
                    self._unsure = [*self._unsure[-MAX_UNSURE:], _Try(tuple(batch), sealed, [])]
                raise
        # One statement, so that no interrupt comes between: what is kept must not be owed any more.
        self._end, self._paid, self._missed = end, owed, self._missed - missed
        if owed:
            self._drop_paid()
        return sealed

    def _sealed(self, batch: Sequence[Entry]) -> tuple[bytes, list[Sealed], Position]:
        """The lines of a batch, linked to the end as we know it."""
        sequence, offset, head, last_us = self._end
        lines: list[str] = []
        sealed: list[Sealed] = []
        for span_id, parent, event_type, payload, us in batch:
            last_us = max(us, last_us)
            event_id = new_id()
            line, event_hash = seal(
                event_id,
                self.trace_id,
                span_id,
                parent,
                self.session_id,
                sequence,
                timestamp_text(last_us),
                event_type,
                payload,
                head,
            )
            lines.append(line)
            sealed.append(Sealed(event_type, event_id, sequence, event_hash, head, payload, last_us))
            sequence, head = sequence + 1, event_hash
        data = "".join(lines).encode()
        if len(data) > MAX_LINE_BYTES and any(len(line.encode()) > MAX_LINE_BYTES for line in lines):
            raise SinkError(f"an event is longer than {MAX_LINE_BYTES} bytes, which no reader takes")
        return data, sealed, Position(sequence, offset + len(data), head, last_us)

    def _read_on(self) -> None:
        """Read what others wrote, and find out which of our own tries were kept after all."""
        tries = {item.event_id: one for one in self._unsure for item in one.sealed}

        def take(event: Event) -> None:
            known = tries.get(event.event_id)
            if known is not None:
                known.found.append(event)
            else:
                self._is_over |= event.event_type == "session.ended"
                self._follow(event)

        self._end = read_on(self._log, self.session_id, self._end, take)
        self._check_over()

    def _check_over(self) -> None:
        if self._is_over:
            raise EndedElsewhereError(f"session {self.session_id} was ended by another process; nothing may follow")

    def _kept_before(self, batch: Sequence[Entry]) -> list[Sealed] | None:
        """The batch as it stands in the log, when an earlier try of it was kept.

        What was kept of tries that nobody makes any more is another's event to us, like those of other processes.
        """
        if not self._unsure:
            return None
        found = [one for one in self._unsure if one.found]
        self._unsure = [one for one in self._unsure if not one.found]
        for one in found:
            if len(one.batch) == len(batch) and all(map(is_, one.batch, batch)):
                return one.sealed
            for event in one.found:
                self._follow(event)
        return None

    def _gap(self, missed: int, span_id: str) -> Entry:
        message = f"{missed} events are missing here: the log could not be kept, and calls were let run all the same"
        payload = render({"error_code": "events_dropped", "message": message, "count": missed})
        return Entry(span_id, None, "error.occurred", payload, self.now_us())

    def _drop_paid(self) -> None:
        for entry in self._paid:
            if self._owed and self._owed[0] is entry:
                self._owed.popleft()
        self._paid = ()


def _ignore(event: Event) -> None:
    """Where a log has one writer, nobody else's events come."""
