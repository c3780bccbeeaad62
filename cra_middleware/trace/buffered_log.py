"""One session's queue, and the hand-over to the log behind it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import SessionLog, Torn
from cra_middleware.trace.storage.rows import lines_of, rows_of
from cra_middleware.trace.wakeup import Wakeup

_logger = logging.getLogger("cra_middleware.trace")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_BATCH_BYTES = 1 << 20


class Limits(NamedTuple):
    """How much a queue holds, and how long it is waited for."""

    capacity_bytes: int
    flush_bytes: int
    flush_seconds: float
    close_seconds: float


class _Piece(NamedTuple):
    offset: int
    data: bytes
    events: int

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class BufferedLog:
    """Two locks, always taken in this order: ``_carrying`` while the log behind is used, ``_turn`` for the queue."""

    def __init__(self, session_id: str, inner: SessionLog, limits: Limits, wakeup: Wakeup) -> None:
        self._session_id = session_id
        self._inner = inner
        self._limits = limits
        self._wakeup = wakeup
        self._pid = os.getpid()
        self._carrying = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._queue: deque[_Piece] = deque()
        self._under_way: _Piece | None = None
        self._waiting = 0  # bytes
        self._end = 0
        self._taken_end = 0
        self._durable_cap: int | None = None
        """While a cut waits: how many events stand before it. What ``inner`` counts behind that is to be dropped."""
        self._is_cut_under_way = False
        self._pause = 0.0
        self._not_before = 0.0
        self._problem = ""
        self._failure: str | None = None
        self.is_open = True

    @property
    def durable_events(self) -> int:
        with self._turn:
            known, cap = self._inner.durable_events, self._durable_cap
        return known if cap is None else min(known, cap)

    @property
    def noted_durable(self) -> int | None:
        return self._inner.noted_durable

    @property
    def witnessed_events(self) -> int:
        with self._turn:
            known, cap = self._inner.witnessed_events, self._durable_cap
        return known if cap is None else min(known, cap)

    @property
    def waiting_bytes(self) -> int:
        """How much is not carried on yet."""
        return self._waiting

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to carry on."""
        with self._turn:
            return self.is_open and self._failure is None and bool(self._pieces())

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._check()
        with self._turn:
            self._check_room(offset, len(data))
            if offset < self._end:
                self._cut(offset, events - data.count(b"\n"))
            if data or offset != self._end:
                self._queue.append(_Piece(offset, data, events))
            self._end = offset + len(data)
            self._waiting += len(data)
            is_urgent = self._waiting >= self._limits.flush_bytes
        if is_urgent:
            self._wakeup.now()
        else:
            self._wakeup.soon()

    def lines(self) -> Iterator[bytes]:
        """Those that are behind, and those that wait."""
        with self._turn:
            pieces = self._pieces()
        if not pieces:
            return self._inner.lines()
        return lines_of(_joined(self._inner.lines(), pieces))

    def set_aside(self, offset: int, /) -> Torn:
        self.flush()
        with self._carrying:
            self._end = offset
            return self._inner.set_aside(offset)

    def flush(self) -> None:
        self._check()
        self.hand_over(time.monotonic() + self._limits.flush_seconds)
        with self._carrying:
            self._inner.flush()

    def close(self) -> None:
        """Carry on what waits, within ``close_seconds``, and close the log behind.

        Raises:
            SinkError: when something was lost; it says what.
        """
        if os.getpid() == self._pid and self.is_open:
            try:
                self.hand_over(time.monotonic() + self._limits.close_seconds)
            finally:
                self.is_open = False
                has_turn = self._carrying.acquire(timeout=self._limits.close_seconds)
                try:
                    self._inner.close()
                finally:
                    if has_turn:
                        self._carrying.release()
        else:
            self._inner.close()

    def hand_over(self, deadline: float) -> None:
        """Wait until nothing waits any more.

        Raises:
            SinkError: when it does at the deadline, or for ever.
        """
        with self._turn:
            self._not_before = 0.0
            self._wakeup.now()
            self._turn.wait_for(
                lambda: self._failure or not self._pieces(), timeout=max(0.0, deadline - time.monotonic())
            )
            if not self._pieces():
                return
            pieces = self._pieces()
            lines, size = sum(piece.data.count(b"\n") for piece in pieces), self._waiting
            reason = self._failure or self._problem or "there was no time"
            raise SinkError(
                f"{lines} events ({size} bytes) of session {self._session_id} wait to be kept: {reason}",
                is_transient=self._failure is None,
            )

    def carry_on(self) -> None:
        """Give the log behind what waits. Never raises: what fails and may go through is tried again."""
        with self._carrying:
            while self.is_open and self._failure is None and time.monotonic() >= self._not_before:
                piece = self._take()
                if piece is None:
                    return
                try:
                    self._inner.append(*piece)
                except SinkError as error:
                    self._note(error)
                except Exception as error:  # noqa: BLE001 - a sink of somebody else's: its bug must not end the thread unseen
                    self._note(SinkError(f"{type(error).__name__}: {error}"))
                else:
                    self._done()

    def _take(self) -> _Piece | None:
        """The next bytes to carry on: what failed before, or as much of the queue as makes one write."""
        with self._turn:
            if self._under_way is not None or not self._queue:
                return self._under_way
            first = self._queue.popleft()
            parts, events, end = [first.data], first.events, first.end
            while self._queue and self._queue[0].offset == end and end - first.offset < _BATCH_BYTES:
                piece = self._queue.popleft()
                parts.append(piece.data)
                events, end = piece.events, piece.end
            self._under_way = _Piece(first.offset, b"".join(parts), events)
            self._taken_end = max(end, self._taken_end if self._durable_cap is None else 0)
            self._is_cut_under_way = self._durable_cap is not None
            return self._under_way

    def _done(self) -> None:
        with self._turn:
            if self._under_way is not None:
                self._waiting -= len(self._under_way.data)
            self._under_way = None
            if self._is_cut_under_way:
                self._durable_cap = None
            self._pause, self._problem = 0.0, ""
            self._turn.notify_all()

    def _note(self, error: SinkError) -> None:
        with self._turn:
            if not error.is_transient:
                self._failure = f"session {self._session_id} takes no more events: {error}"
                _logger.error("%s", self._failure)
                self._turn.notify_all()
                return
            if not self._problem:
                _logger.warning("events of session %s wait: %s", self._session_id, error)
            self._problem = str(error)
            self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
            self._not_before = time.monotonic() + self._pause

    def _cut(self, offset: int, events: int) -> None:
        """Drop what waits behind ``offset``, which is the end of event ``events``; of what the log behind has taken
        already, the next bytes it is given say so."""
        while self._queue and self._queue[-1].offset >= offset:
            self._queue.pop()
        if self._queue:
            self._queue.append(_shortened(self._queue.pop(), offset))
        if self._under_way is not None:  # the attempt that runs may still take all of it
            short = self._under_way.offset >= offset
            self._under_way = None if short else _shortened(self._under_way, offset)
        self._waiting = sum(len(piece.data) for piece in self._pieces())
        if offset < self._taken_end:
            self._durable_cap = events if self._durable_cap is None else min(events, self._durable_cap)
            self._is_cut_under_way = False

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SinkError(f"session {self._session_id} belongs to the parent process; open a session of your own")
        if not self.is_open:
            raise SinkError(f"the log of session {self._session_id} is closed")
        if self._failure is not None:
            raise SinkError(self._failure)

    def _check_room(self, offset: int, more: int) -> None:
        waiting = self._waiting
        kept = waiting - min(waiting, max(0, self._end - offset))
        if kept and kept + more > self._limits.capacity_bytes:
            self._wakeup.now()
            reason = f": {self._problem}" if self._problem else ""
            raise SinkError(f"{kept} bytes of session {self._session_id} wait already{reason}", is_transient=True)

    def _pieces(self) -> list[_Piece]:
        return [piece for piece in (self._under_way, *self._queue) if piece is not None]


def _shortened(piece: _Piece, end: int) -> _Piece:
    if piece.end <= end:
        return piece
    gone = piece.data[end - piece.offset :]
    return _Piece(piece.offset, piece.data[: end - piece.offset], piece.events - gone.count(b"\n"))


def _joined(behind: Iterator[bytes], pieces: list[_Piece]) -> Iterator[bytes]:
    missing = pieces[0].offset
    for line in behind:
        if missing <= 0:
            break
        yield line[:missing]
        missing -= len(line)
    for piece in pieces:
        yield from (row.line for row in rows_of(piece.offset, piece.data))
