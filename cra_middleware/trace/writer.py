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
from cra_middleware.trace.unsure import Unsure

RETRY_SECONDS = 0.02
"""Between two tries of a write that may go through."""


class Draft(NamedTuple):
    """An event that is not sealed yet."""

    span_id: str
    parent_span_id: str | None
    event_type: EventType
    payload: str
    """Canonical JSON."""
    timestamp_us: int


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
        self._owed: deque[Draft] = deque()
        self._paid: Sequence[Draft] = ()  # owed entries that are kept already, to be dropped from the queue
        self._missed = 0
        self._follow: Follow = _ignore
        self._is_over = False  # the last event is there
        self._is_shared = isinstance(log, SharedLog)
        self._unsure = Unsure()
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: what is owed is the parent's to write, and another thread may have held the lock."""
        self._lock = threading.Lock()
        self._holder = 0
        self._owed = deque()
        self._unsure = Unsure()

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

    def write(self, *entries: Draft, only_if: Callable[[], None] | None = None) -> Sequence[Sealed]:
        """Keep everything owed, then ``entries``: all of it or nothing.

        ``only_if`` raises when they must not be kept any more; it is asked again after other processes wrote.

        Raises:
            SinkError: when the log did not keep them; the chain is as before.
        """
        return self._write(entries, owe=False, only_if=only_if)

    def refresh(self, known_size: int | None = None) -> None:
        """Read on in a log that several write, unless nothing is behind ``known_size`` bytes and those are known.

        Raises:
            ChainBroken: when it was changed.
            SinkError: when it cannot be read, or another process ended the session.
        """
        if self._is_shared:
            with self._lock:
                if known_size is not None and known_size <= self._end.offset:
                    self._check_over()
                else:
                    self._read_on(())

    def want(self, *entries: Draft) -> None:
        """Say that they are handed in again when they are not kept, until ``give_up``."""
        if self._is_shared:
            self._unsure.want(entries)

    def give_up(self, *entries: Draft) -> None:
        """Say that nobody hands them in any more; such as were kept unheard are another's events to us from now on."""
        if self._is_shared:
            for event in self._unsure.give_up(entries):
                self._heard(event)

    def may_hold(self, *entries: Draft) -> bool:
        """Whether entries that were not kept may be there all the same, as far as anybody knows by now."""
        return self._is_shared and self._unsure.may_hold(entries)

    def owe(self, entry: Draft) -> None:
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

    def write_or_owe(self, entry: Draft) -> Sequence[Sealed]:
        """Keep ``entry`` now, or owe it: for an outcome, which has happened whether or not it can be kept."""
        return self._write((entry,), owe=True)

    def write_until(
        self, deadline_seconds: float, *entries: Draft, only_if: Callable[[], None] | None = None
    ) -> Sequence[Sealed]:
        """As ``write``, and again for ``deadline_seconds`` while the log says that it may go through. Blocks.

        Raises:
            SinkError: as ``write``, at the deadline.
        """
        waited = 0.0
        self.want(*entries)
        try:
            while True:
                try:
                    return self.write(*entries, only_if=only_if)
                except SinkError as error:
                    if not error.is_transient or waited >= deadline_seconds:
                        raise
                time.sleep(RETRY_SECONDS)
                waited += RETRY_SECONDS
        finally:
            self.give_up(*entries)

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
        self, entries: Sequence[Draft], owe: bool, only_if: Callable[[], None] | None = None
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

    def _keep(self, entries: Sequence[Draft], only_if: Callable[[], None] | None) -> Sequence[Sealed]:
        if self._paid:
            self._drop_paid()
        owed = self._owed_now()
        batch = (*owed, *entries) if owed else entries
        if not batch:  # another thread has settled it
            return ()
        self._check_over()
        while True:
            missed = self._missed
            rest = [entry for entry in batch if not self._unsure.has(entry)] if self._is_shared else batch
            sealed: list[Sealed] = []
            end = self._end
            if not rest:
                missed = 0
                break
            if only_if is not None and not (entries and all(map(self._unsure.has, entries))):
                only_if()
            if missed:
                rest = (self._gap(missed, rest[0].span_id), *rest)
            data, sealed, end = self._sealed(rest)
            try:
                self._log.append(self._end.offset, data, end.sequence)
                break
            except MovedError:
                self._read_on(batch)
            except BaseException as error:  # an interrupt, too, leaves unknown whether it was kept
                if self._is_shared:  # the connection may have broken behind the commit
                    self._unsure.tried(rest, sealed, missed, not isinstance(error, SinkError) or error.is_unsure)
                raise
        # One statement, so that no interrupt comes between: what is kept must not be owed any more.
        self._end, self._paid, self._missed = end, owed, self._missed - missed
        self._is_over |= bool(sealed) and sealed[-1].event_type == "session.ended"
        if self._is_shared:
            sealed = self._claimed(batch, sealed)
        if owed:
            self._drop_paid()
        return sealed

    def _owed_now(self) -> list[Draft]:
        # by index, because a finaliser may append meanwhile
        return [self._owed[place] for place in range(len(self._owed))] if self._owed else []

    def _claimed(self, batch: Sequence[Draft], sealed: list[Sealed]) -> list[Sealed]:
        """What was just written, and what an earlier try of ours had kept."""
        if sealed:
            self._unsure.moved()
        known = [self._unsure.claim(entry) for entry in batch]
        gap = sealed[: len(sealed) - known.count(None)]
        fresh = iter(sealed[len(gap) :])
        return [*gap, *(one or next(fresh) for one in known)]

    def _sealed(self, batch: Sequence[Draft]) -> tuple[bytes, list[Sealed], Position]:
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

    def _read_on(self, batch: Sequence[Draft]) -> None:
        """Read what others wrote, and find out which of our own tries were kept after all.

        Nobody hears of anything before all of it was read: what breaks in the middle is read from the start again.
        """
        heard: list[Event] = []
        before, self._end = self._end, read_on(self._log, self.session_id, self._end, heard.append)
        self._missed -= self._unsure.hear(heard, (*self._owed_now(), *batch), self._heard)
        if self._end is not before:
            self._unsure.moved()
        self._check_over()

    def _heard(self, event: Event) -> None:
        self._is_over |= event.event_type == "session.ended"
        self._follow(event)

    def _check_over(self) -> None:
        if self._is_over:
            raise EndedElsewhereError(f"session {self.session_id} was ended meanwhile; nothing may follow")

    def _gap(self, missed: int, span_id: str) -> Draft:
        message = f"{missed} events are missing here: the log could not be kept, and calls were let run all the same"
        payload = render({"error_code": "events_dropped", "message": message, "count": missed})
        return Draft(span_id, None, "error.occurred", payload, self.now_us())

    def _drop_paid(self) -> None:
        for entry in self._paid:
            if self._owed and self._owed[0] is entry:
                self._owed.popleft()
        self._paid = ()


def _ignore(event: Event) -> None:
    """Where a log has one writer, nobody else's events come."""
