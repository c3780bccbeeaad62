"""Counting: reserve before the tool, commit when it ran, release when it did not.

A fixed window is ``[start, start + length)`` and opens at the first committed call after the last one closed. A
sliding one is the last ``length``, ``(now - length, now]``. Without a length a count lasts as long as its session.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Literal, NamedTuple, Protocol

from cra_middleware.errors import CRAError

MILLION = 1_000_000
MAX_COST = 10**18
"""Millionths; more is no cost but a mistake."""


class Limit(NamedTuple):
    """One limit, for one call of one caller."""

    key: tuple[str, ...]
    """Who shares it: Atlas, policy, and what the scope says."""
    capacity: int
    """Calls, or millionths of a budget's unit."""
    window_us: int | None
    amount: int
    """What this call takes."""
    policy_id: str
    reason: str
    is_sliding: bool = False
    kind: Literal["rate_limit", "budget"] = "rate_limit"


class Reservation(NamedTuple):
    """Places taken in some limits, by a call decided at ``now_us``."""

    limits: tuple[Limit, ...]
    now_us: int
    id: str


class Exhausted(NamedTuple):
    """A limit that has no room for the call."""

    limit: Limit
    retry_after_us: int | None
    """None: waiting does not help."""


class CountersError(CRAError):
    """A store of counters cannot be used; nothing was taken."""

    code = "counters_unavailable"


class Counters(Protocol):
    """A store of counters. Every method is atomic, and raises ``CountersError`` when it cannot be done."""

    def peek(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        """The first limit that has no room; takes nothing."""
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

    def forget(self, session_id: str) -> None:
        """A root session is sealed: what only it has spent need not be known any more."""
        ...


def cost_millionths(value: object) -> int | None:
    """A cost in millionths, rounded up; None when it is no number, negative, or not finite.

    A float is taken as it is written: 0.1 is exactly 100000.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = Decimal(repr(float(value)))
    if isinstance(value, int):
        value = int(value)
        return value * MILLION if 0 <= value <= MAX_COST // MILLION else None
    if not isinstance(value, Decimal) or not value.is_finite() or not 0 <= value <= MAX_COST // MILLION:
        return None
    return int((value * MILLION).to_integral_value(rounding=ROUND_CEILING))
