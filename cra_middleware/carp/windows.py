"""The state of one count: what was used when, and what is held for calls that are under way. No store, no clock.

A held place counts as used until it is released, or until the window it would open has closed: a process that was
killed while its tool ran blocks a limit for no longer than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cra_middleware.carp.quota import Exhausted, Limit


@dataclass(slots=True)
class Count:
    """One count, fixed or sliding as its limit says."""

    start_us: int | None = None
    """When the fixed window opened."""
    used: int = 0
    """In the fixed window, or in the log."""
    log: list[tuple[int, int]] = field(default_factory=list)
    """Of a sliding window: when, and how much; in order."""
    held: dict[str, tuple[int, int]] = field(default_factory=dict)

    def wait(self, limit: Limit, now_us: int) -> int | None:
        """0 when there is room; else the microseconds until there is, or None when waiting does not help."""
        self.prune(limit, now_us)
        taken = self.used + sum(amount for _, amount in self.held.values()) if self.held else self.used
        missing = taken + limit.amount - limit.capacity
        if missing <= 0:
            return 0
        if limit.window_us is None or limit.amount > limit.capacity:
            return None
        freed = [(at + limit.window_us, amount) for at, amount in self.held.values()]
        if limit.is_sliding:
            freed += [(at + limit.window_us, amount) for at, amount in self.log]
        elif self.start_us is not None:
            freed.append((self.start_us + limit.window_us, self.used))
        for at, amount in sorted(freed):
            missing -= amount
            if missing <= 0:
                return max(1, at - now_us)
        return None

    def hold(self, name: str, limit: Limit, now_us: int) -> None:
        """Take a place for a call that is about to run."""
        before = self.held.get(name)
        self.held[name] = (now_us, limit.amount + (before[1] if before else 0))

    def release(self, name: str) -> None:
        """Give a place back."""
        self.held.pop(name, None)

    def commit(self, name: str, limit: Limit) -> None:
        """A held place is used up, as of when it was taken."""
        place = self.held.pop(name, None)
        if place is None:
            return
        at, amount = place
        if limit.is_sliding and limit.window_us is not None:
            self._enter(at, amount)
            return
        self.start_us = at if self.start_us is None else self.start_us
        self.used += amount

    def prune(self, limit: Limit, now_us: int) -> None:
        """Forget what no longer counts."""
        window = limit.window_us
        if window is None:
            return
        over = now_us - window
        if limit.is_sliding:
            passed = 0
            while passed < len(self.log) and self.log[passed][0] <= over:
                self.used -= self.log[passed][1]
                passed += 1
            if passed:
                del self.log[:passed]
        elif self.start_us is not None and self.start_us <= over:
            self.start_us, self.used = None, 0
        if self.held:
            for name in [name for name, (at, _) in self.held.items() if at <= over]:
                del self.held[name]

    @property
    def is_empty(self) -> bool:
        """Whether nothing counts."""
        return not self.used and not self.held

    def _enter(self, at: int, amount: int) -> None:
        self.used += amount
        place = len(self.log)
        while place and self.log[place - 1][0] > at:
            place -= 1
        if place and self.log[place - 1][0] == at:
            self.log[place - 1] = (at, self.log[place - 1][1] + amount)
        else:
            self.log.insert(place, (at, amount))


def exhausted(counts: Iterable[tuple[Count, Limit]], now_us: int) -> Exhausted | None:
    """The first limit that has no room, and how long until all of them have."""
    first: Limit | None = None
    longest: int | None = 0
    for count, limit in counts:
        wait = count.wait(limit, now_us)
        if wait != 0:
            first = first or limit
            longest = None if wait is None or longest is None else max(longest, wait)
    return None if first is None else Exhausted(first, longest)
