"""Failed logins, counted by address: in this process, and in Redis where several servers count as one."""

from __future__ import annotations

import logging
import threading
import time
from typing import NamedTuple

from cra_middleware.carp.quota import CountersError
from cra_middleware.carp.redis_counters import RedisCounters
from cra_middleware.server.faults import Fault

MOST = 10
WINDOW_SECONDS = 60.0
_AWAY_SECONDS = 1.0
"""For how long Redis is left alone after it did not answer: nobody waits for it at each try."""
_logger = logging.getLogger("cra_middleware.server")


class _Failed(NamedTuple):
    until: float
    times: int


class Failures:
    """Counts in windows of a minute, which begin with an address's first failure. Safe under threads."""

    def __init__(self, most: int = MOST, window_seconds: float = WINDOW_SECONDS, addresses: int = 10_000) -> None:
        self._most = most
        self._window = window_seconds
        self._addresses = addresses
        self._lock = threading.Lock()
        self._failed: dict[str, _Failed] = {}

    def check(self, address: str) -> None:
        """Let a try pass.

        Raises:
            Fault: when so many have failed that nothing is tried any more.
        """
        failed = self._failed.get(address)
        if failed is not None and failed.times >= self._most and failed.until > time.monotonic():
            raise _too_many(failed)

    def count(self, address: str) -> None:
        """One has failed.

        Raises:
            Fault: when it was one too many, which nobody is told apart from a try that did not pass.
        """
        failed = self._add(address)
        if failed.times > self._most:
            raise _too_many(failed)

    def _add(self, address: str) -> _Failed:
        now = time.monotonic()
        with self._lock:
            failed = self._failed.get(address)
            if failed is None or failed.until <= now:
                failed = _Failed(now + self._window, 0)
            return self._keep(address, failed._replace(times=failed.times + 1), now)

    def _keep(self, address: str, failed: _Failed, now: float) -> _Failed:
        if address not in self._failed and len(self._failed) >= self._addresses:
            self._failed = {key: value for key, value in self._failed.items() if value.until > now}
            while len(self._failed) >= self._addresses:  # the oldest are the first
                del self._failed[next(iter(self._failed))]
        self._failed[address] = failed
        return failed


class SharedFailures(Failures):
    """Counts for all servers of one Redis. What Redis said last is remembered, so that only a failure asks it.

    While it is away each server goes on from there by itself: never without a count.
    """

    def __init__(
        self, counters: RedisCounters, most: int = MOST, window_seconds: float = WINDOW_SECONDS, addresses: int = 10_000
    ) -> None:
        super().__init__(most, window_seconds, addresses)
        self._counters = counters
        self._away_until = 0.0
        self._asking = threading.Lock()  # one after the other, so that the count here is never ahead of the one there

    def _add(self, address: str) -> _Failed:
        with self._asking:
            failed = super()._add(address)
            if time.monotonic() < self._away_until:
                return failed
            try:
                count, left_seconds = self._counters.tally(f"failed login {address}", self._window)
            except CountersError as error:
                self._away_until = time.monotonic() + _AWAY_SECONDS
                _logger.error("failed logins are counted by this server alone now: %s", error)
                return failed
            if count < failed.times:  # a Redis that was begun anew
                return failed
            now = time.monotonic()
            with self._lock:
                return self._keep(address, _Failed(now + left_seconds, count), now)


def _too_many(failed: _Failed) -> Fault:
    return Fault(
        "RATE_LIMIT_EXCEEDED",
        "too many failed logins from this address",
        category="access",
        recoverable=True,
        retry_after_seconds=max(0.0, failed.until - time.monotonic()),
    )
