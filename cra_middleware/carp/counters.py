"""Counters in this process, safe under threads and tasks; they are gone with it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from cra_middleware._fork import tell_child
from cra_middleware.carp.quota import Exhausted, Limit, Reservation
from cra_middleware.carp.windows import Count, exhausted


class MemoryCounters:
    """One count for each key."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], tuple[Count, Limit]] = {}
        self._lock = threading.RLock()  # a finaliser may call in the middle of a call
        self._names = itertools.count()
        self._sweep_at = 1024
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.RLock()

    def peek(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        with self._lock:
            return self._exhausted(limits, now_us)

    def reserve(self, limits: Sequence[Limit], now_us: int) -> Reservation | Exhausted:
        with self._lock:
            full = self._exhausted(limits, now_us)
            if full is not None:
                return full
            if len(self._counts) >= self._sweep_at:
                self._sweep(now_us)
            name = str(next(self._names))
            for limit in limits:
                known = self._counts.get(limit.key)
                count = Count() if known is None else known[0]
                count.hold(name, limit, now_us)
                self._counts[limit.key] = (count, limit)
            return Reservation(tuple(limits), now_us, name)

    def commit(self, reservation: Reservation) -> None:
        with self._lock:
            for limit in reservation.limits:
                known = self._counts.get(limit.key)
                if known is not None:
                    known[0].commit(reservation.id, limit)

    def release(self, reservation: Reservation) -> None:
        with self._lock:
            for limit in reservation.limits:
                known = self._counts.get(limit.key)
                if known is not None:
                    known[0].release(reservation.id)

    def forget(self, session_id: str) -> None:
        with self._lock:
            over = [key for key, (_, limit) in self._counts.items() if limit.window_us is None and session_id in key]
            for key in over:
                del self._counts[key]

    def _exhausted(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        known = ((self._counts.get(limit.key), limit) for limit in limits)
        return exhausted(((Count() if found is None else found[0], limit) for found, limit in known), now_us)

    def _sweep(self, now_us: int) -> None:
        """Sessions and agents come and go: counts that hold nothing any more are let go."""
        for count, limit in self._counts.values():
            count.prune(limit, now_us)
        self._counts = {key: known for key, known in self._counts.items() if not known[0].is_empty}
        self._sweep_at = max(1024, 2 * len(self._counts))
