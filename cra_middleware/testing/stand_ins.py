"""A clock that stands still, and a sink that fails when it is told to."""

from __future__ import annotations

from collections.abc import Iterator

from cra_middleware._clock import parse_us
from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import SessionLog, Sink, Torn
from cra_middleware.trace.sinks.memory import MemorySink


class FrozenClock:
    """Stands at one instant until it is moved."""

    def __init__(self, iso: str) -> None:
        """Start at an ISO 8601 time with an offset.

        Raises:
            ValueError: when ``iso`` is no such time.
        """
        self._us = parse_us(iso)
        self._monotonic_ns = 0

    def wall_us(self) -> int:
        return self._us

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        """Move on; a negative number is a wall clock that was set back."""
        self._us += round(seconds * 1_000_000)
        self._monotonic_ns += max(0, round(seconds * 1_000_000_000))


class FailingSink:
    """Keeps events in memory, and raises ``SinkError`` while ``failing`` is true."""

    def __init__(self, inner: Sink | None = None) -> None:
        self.failing = False
        self._inner: Sink = inner or MemorySink()

    def create(self, session_id: str, /) -> SessionLog:
        self._check()
        return _FailingLog(self, self._inner.create(session_id))

    def reopen(self, session_id: str, /) -> SessionLog:
        self._check()
        return _FailingLog(self, self._inner.reopen(session_id))

    def session_ids(self) -> list[str]:
        return self._inner.session_ids()

    def close(self) -> None:
        self._inner.close()

    def _check(self) -> None:
        if self.failing:
            raise SinkError("the sink was told to fail")


class _FailingLog:
    def __init__(self, sink: FailingSink, inner: SessionLog) -> None:
        self._sink = sink
        self._inner = inner

    @property
    def durable_events(self) -> int:
        return self._inner.durable_events

    @property
    def noted_durable(self) -> int | None:
        return self._inner.noted_durable

    @property
    def witnessed_events(self) -> int:
        return self._inner.witnessed_events

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._sink._check()
        self._inner.append(offset, data, events)

    def lines(self) -> Iterator[bytes]:
        return self._inner.lines()

    def set_aside(self, offset: int, /) -> Torn:
        self._sink._check()
        return self._inner.set_aside(offset)

    def flush(self) -> None:
        self._sink._check()
        self._inner.flush()

    def close(self) -> None:
        self._inner.close()
