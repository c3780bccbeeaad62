"""Time: an injected clock, and the one text form in which a trace writes it."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """Where the runtime gets its time from."""

    def wall_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds from an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


def writable_us(us: int) -> int:
    """``us``, or one microsecond more when it ends in three zeros.

    The Rust implementation re-renders an instant before it hashes and drops trailing groups of three
    zeros; a time that has none is a fixed point of that rendering, so both hash the same bytes.
    """
    return us + 1 if us % 1000 == 0 else us


class _Text:
    """Renders timestamps; remembers the text of the current second, which most events share."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        self._second: tuple[int, str] = (-1, "")

    def __call__(self, us: int) -> str:
        second, micros = divmod(us, 1_000_000)
        known, prefix = self._second
        if second != known:
            prefix = datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.")
            self._second = (second, prefix)  # one assignment: threads see the old pair or the new one
        return f"{prefix}{micros:06d}+00:00"


timestamp_text = _Text()
"""``2026-01-05T12:00:00.000001+00:00``: always six digits, always ``+00:00``."""


def parse_us(text: str) -> int:
    """Microseconds since the epoch of an ISO 8601 text with an offset.

    Raises:
        ValueError: when ``text`` is no such time.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no UTC offset")
    delta = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
