"""Counting calls: reserve before the tool, commit when it ran, release when it did not.

A window is ``[start, start + length)``. It opens at the first committed call after the last one closed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Limit(NamedTuple):
    """One limit, for one caller."""

    key: tuple[str, ...]
    """Who shares it: Atlas, policy, and what the scope says."""
    max_calls: int
    window_us: int
    policy_id: str
    reason: str


class Reservation(NamedTuple):
    """Places taken in some limits, by a call decided at ``now_us``."""

    limits: tuple[Limit, ...]
    now_us: int


class Exhausted(NamedTuple):
    """A limit that has no place left."""

    limit: Limit
    retry_after_us: int


class Counters(Protocol):
    """A store of counters. Every method is atomic; nothing here waits."""

    def peek(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        """The first limit that has no place left; takes none."""
        ...

    def reserve(self, limits: Sequence[Limit], now_us: int) -> Reservation | Exhausted:
        """Take a place in every limit, or in none."""
        ...

    def commit(self, reservation: Reservation) -> None:
        """The tool ran, well or badly: the places are used up."""
        ...

    def release(self, reservation: Reservation) -> None:
        """The tool did not run: the places are free again."""
        ...


@dataclass(slots=True)
class _Window:
    start_us: int | None = None
    used: int = 0
    reserved: int = 0
    length_us: int = 0


class MemoryCounters:
    """Fixed windows in this process, safe under threads and tasks."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, ...], _Window] = {}
        self._lock = threading.RLock()  # a finaliser may call in the middle of a call
        self._sweep_at = 1024

    def peek(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        with self._lock:
            return self._exhausted(limits, now_us)

    def reserve(self, limits: Sequence[Limit], now_us: int) -> Reservation | Exhausted:
        with self._lock:
            exhausted = self._exhausted(limits, now_us)
            if exhausted is not None:
                return exhausted
            if len(self._windows) >= self._sweep_at:
                self._forget_closed(now_us)
            for limit in limits:
                window = self._windows.setdefault(limit.key, _Window())
                window.length_us = limit.window_us
                window.reserved += 1
            return Reservation(tuple(limits), now_us)

    def commit(self, reservation: Reservation) -> None:
        with self._lock:
            for limit in reservation.limits:
                window = self._windows[limit.key]
                window.reserved -= 1
                self._close_if_over(window, limit, reservation.now_us)
                if window.start_us is None:
                    window.start_us = reservation.now_us
                window.used += 1

    def release(self, reservation: Reservation) -> None:
        with self._lock:
            for limit in reservation.limits:
                self._windows[limit.key].reserved -= 1

    def _forget_closed(self, now_us: int) -> None:
        """Sessions and agents come and go: windows that nobody counts in any more are let go."""
        self._windows = {
            key: window
            for key, window in self._windows.items()
            if window.reserved or (window.start_us is not None and now_us < window.start_us + window.length_us)
        }
        self._sweep_at = max(1024, 2 * len(self._windows))

    def _exhausted(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        for limit in limits:
            window = self._windows.get(limit.key)
            if window is None:
                continue
            self._close_if_over(window, limit, now_us)
            if window.used + window.reserved >= limit.max_calls:
                # no window is open yet: the calls in flight will open one when they end
                left = limit.window_us if window.start_us is None else window.start_us + limit.window_us - now_us
                return Exhausted(limit, left)
        return None

    @staticmethod
    def _close_if_over(window: _Window, limit: Limit, now_us: int) -> None:
        if window.start_us is not None and now_us >= window.start_us + limit.window_us:
            window.start_us, window.used = None, 0
