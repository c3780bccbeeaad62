"""Traces kept in this process, and gone with it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from hashlib import sha256

from cra_middleware.errors import SinkError
from cra_middleware.trace.query import select
from cra_middleware.trace.sink import Health, Query, SessionLog, Torn

_UNKNOWN = -1


class MemoryLog:
    """One session's lines in memory."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self.durable_events = 0  # memory is as durable as it will ever be
        self.noted_durable: int | None = None
        self.witnessed_events = 0
        self.torn: dict[int, bytes] = {}
        """What was set aside, by its place."""
        self.is_open = True

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        if not self.is_open:
            raise SinkError("the session's log is closed")
        if offset != self._size:
            self._cut(offset)
        self._size = _UNKNOWN  # an interrupt may come between the data and our note of it
        self._chunks.append(data)
        self._size = offset + len(data)
        self.durable_events = events

    def lines(self) -> Iterator[bytes]:
        yield from io.BytesIO(b"".join(self._chunks))

    def set_aside(self, offset: int, /) -> Torn:
        if excess := b"".join(self._chunks)[offset:]:
            self.torn[offset] = self.torn.get(offset, b"") + excess
            self._cut(offset)
        torn = self.torn.get(offset, b"")
        return Torn(len(torn), sha256(torn).hexdigest())

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.is_open = False

    def _cut(self, offset: int) -> None:
        self._chunks = [b"".join(self._chunks)[:offset]]
        self._size = offset


class MemorySink:
    """The default: traces for as long as the runtime lives."""

    def __init__(self) -> None:
        self._logs: dict[str, MemoryLog] = {}

    def create(self, session_id: str, /) -> SessionLog:
        if session_id in self._logs:
            raise SinkError(f"session {session_id} is already there; resume it instead")
        log = self._logs[session_id] = MemoryLog()
        return log

    def reopen(self, session_id: str, /) -> SessionLog:
        log = self._logs.get(session_id)
        if log is None:
            raise SinkError(f"no session {session_id} is kept in this process's memory")
        if log.is_open:
            raise SinkError(f"session {session_id} is open: it has a writer already")
        log.is_open = True
        return log

    def session_ids(self) -> list[str]:
        return sorted(self._logs)

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        log = self._logs.get(session_id)
        if log is None:
            raise SinkError(f"no session {session_id} is kept in this process's memory")
        return log.lines()

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        return select(self.lines(session_id), query)

    def count(self, session_id: str, /) -> int:
        log = self._logs.get(session_id)
        return 0 if log is None else sum(1 for _ in log.lines())

    def health(self) -> Health:
        return Health(True, "kept in this process's memory, and gone with it")

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
