"""A copy of one session in another place, and how it gets up to date again."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import SessionLog, Sink
from cra_middleware.trace.storage.syncer import Syncer

_logger = logging.getLogger("cra_middleware.trace")
_BATCH_BYTES = 1 << 20


class Original:
    """The primary's log, and how far it was accepted."""

    def __init__(self, log: SessionLog, pid: int) -> None:
        self.log = log
        self.pid = pid
        self.turn = threading.Lock()
        self.end = self.events = 0
        self.is_known = False
        """Whether something was appended; before that, a re-opened log may have a torn end."""

    def append(self, offset: int, data: bytes, events: int) -> None:
        """Keep ``data``.

        Raises:
            SinkError: when it was not kept.
        """
        if os.getpid() != self.pid:
            raise SinkError("the session belongs to the parent process; open a session of your own")
        with self.turn:
            self.log.append(offset, data, events)
            self.end, self.events, self.is_known = offset + len(data), events, True


class Copy:
    """Follows its original; never raises ``SinkError`` to it."""

    def __init__(self, sink: Sink, session_id: str, original: Original, *, is_new: bool) -> None:
        self._sink = sink
        self._session_id = session_id
        self._original = original
        self._guard = threading.Lock()
        self._log: SessionLog | None = None
        self._is_told = False  # whether its failing was logged
        self._is_queued = False
        self._is_closed = False
        self.is_behind = True
        """What it lacks is copied from the original later."""
        if is_new:
            try:
                self._log = sink.create(session_id)
                self.is_behind = False
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a copy, it must stop no call
                self._note(error)

    @property
    def durable_events(self) -> int:
        """How many events, from the first, it has made durable."""
        log = self._log
        return 0 if log is None else log.durable_events

    def append(self, offset: int, data: bytes, events: int) -> bool:
        """Keep what the original has kept; whether the copy is still up to date."""
        if self.is_behind:  # then the guard may be taken for long
            return False
        with self._guard:
            log, self.is_behind = self._log, True  # until it is known to be done: an interrupt may come between
            return log is not None and self._append(log, offset, data, events)

    def queue(self, syncer: Syncer) -> None:
        """Have ``syncer`` bring it up to date, soon."""
        if not self._is_queued:
            self._is_queued = True
            syncer.add(self)

    def flush(self) -> None:
        """Catch up with the original.

        Raises:
            SinkError: never; that it failed was logged, once.
        """
        self._is_queued = False
        if os.getpid() != self._original.pid or not self._original.is_known:
            return
        with self._guard:
            if not self.is_behind or self._is_closed:  # once closed, the session may have another writer
                return
            try:
                self._catch_up()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a copy, it must not end the thread
                self._note(error)

    def close(self) -> None:
        """One more try to catch up, then let go."""
        if os.getpid() != self._original.pid:  # a thread that does not exist here may hold the guard
            if self._log is not None:
                self._log.close()
            return
        self.flush()
        with self._guard:
            if self._is_closed:
                return
            self._is_closed = True
            if self.is_behind and self._original.is_known:
                _logger.error("a copy of session %s is left behind its original", self._session_id)
            log, self._log = self._log, None
            self.is_behind = True
            if log is not None:
                try:
                    log.close()
                except Exception as error:  # noqa: BLE001 - the original has it all
                    self._note(error)

    def _append(self, log: SessionLog, offset: int, data: bytes, events: int) -> bool:
        try:
            log.append(offset, data, events)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a copy, it must stop no call
            self._note(error)
            return False
        self.is_behind = False
        return True

    def _catch_up(self) -> None:
        if self._log is None:
            known = self._session_id in self._sink.session_ids()
            self._log = (self._sink.reopen if known else self._sink.create)(self._session_id)
        log, original = self._log, self._original
        offset, events = self._common(log)
        surplus = log.set_aside(offset)
        if surplus.size:
            _logger.error(
                "a copy of session %s held %d bytes (SHA-256 %s) that the original does not: they were moved aside",
                *(self._session_id, surplus.size, surplus.sha256),
            )
        while True:
            with original.turn:
                end = original.end
                if offset == end:
                    self.is_behind = False  # in the turn, so that no event comes between
                    break
            if offset > end:  # the original took something back meanwhile
                return
            for data in _batches(original.log.lines(), offset, end):
                events += data.count(b"\n")
                log.append(offset, data, events)
                offset += len(data)
        if self._is_told:
            self._is_told = False
            _logger.warning("a copy of session %s is up to date again", self._session_id)

    def _common(self, log: SessionLog) -> tuple[int, int]:
        """How many bytes, and events, are the same from the first."""
        offset = events = 0
        for ours, theirs in zip(self._original.log.lines(), log.lines(), strict=False):
            if ours != theirs or not ours.endswith(b"\n") or offset + len(ours) > self._original.end:
                break
            offset, events = offset + len(ours), events + 1
        return offset, events

    def _note(self, error: Exception) -> None:
        if not self._is_told:
            self._is_told = True
            reason = str(error) if isinstance(error, SinkError) else f"{type(error).__name__}: {error}"
            _logger.error("a copy of session %s is behind its original: %s", self._session_id, reason)


def _batches(lines: Iterable[bytes], begin: int, end: int) -> Iterator[bytes]:
    """The lines between two places, joined to larger writes."""
    place, parts, size = 0, [], 0
    for line in lines:
        if place >= end:
            break
        if place >= begin:
            parts.append(line)
            size += len(line)
        place += len(line)
        if size > _BATCH_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)
