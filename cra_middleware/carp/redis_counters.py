"""Counters for processes of many machines, in Redis: each step is one script, so no two ever see the same room.

Time is the server's (``TIME``), not the callers': their clocks differ, and one that runs ahead would open a window
early for all. A place therefore counts from when it was taken at the server, and is never more than the limit in any
window of that clock; a call that was asked for earlier (it waited for a person) takes its place when it is decided.
What is told as ``retry_after`` is a length of time, and so the same on every clock.

What is kept in Redis is as safe as Redis is. Keys must not be evicted (``maxmemory-policy noeviction``; another one is
refused, also when it is set later), and a restart without an append-only file, or a failover that loses the last
writes, forgets calls.

All keys hold the same hash tag, ``{prefix}``, so that one call's limits lie on one node of a cluster; give each tenant
a prefix of its own to spread them. Names in keys are digests. Every key expires: a count a minute after its window, a
session's budgets after ``rest_days`` without a call, or when it ends.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import time
from collections.abc import Sequence
from typing import Any, Literal

from cra_middleware._ids import new_id
from cra_middleware.carp import redis_script
from cra_middleware.carp.quota import CountersError, Exhausted, Limit, Reservation

REDIS = ("redis://", "rediss://", "unix://")
"""What the address of a Redis server begins with."""
PREFIX = "cra"
"""What keys begin with when nobody says."""
_BASE = 10**9
_DAY_US = 86_400 * 1_000_000
_MOST_DAYS = 36_500
_LOOK_SECONDS = 5.0
"""How long what the server says of its memory counts: somebody may change it, or another machine take over."""
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)


class RedisCounters:
    """Safe under threads, tasks, forks, and processes of many machines."""

    def __init__(
        self,
        url: str,
        prefix: str = PREFIX,
        *,
        timeout_seconds: float = 2.0,
        rest_days: int = 90,
        clock: Literal["server", "caller"] = "server",
    ) -> None:
        """Connect, and look whether the server may be relied on.

        Args:
            url: ``redis://[user:password@]host:port/number``, ``rediss://…`` (TLS) or ``unix://path``.
            prefix: begins every key; counters with another one are others.
            timeout_seconds: how long to wait for a connection and for an answer; what is lost is tried once more.
            rest_days: for how long an open session may rest before what it has spent is forgotten.
            clock: ``caller`` takes the time from each call, which tests with a frozen clock need; everything else
                needs the server's.

        Raises:
            CountersError: when redis is not installed, the server cannot be used, or it may evict keys.
            ValueError: when the prefix, the days or the clock are none.
        """
        if not _PREFIX.fullmatch(prefix):
            raise ValueError("a prefix has 1 to 64 letters, digits, or one of _ . : -")
        if not isinstance(rest_days, int) or isinstance(rest_days, bool) or not 1 <= rest_days <= _MOST_DAYS:
            raise ValueError(f"rest_days is a whole number from 1 to {_MOST_DAYS}")
        if clock not in ("server", "caller"):
            raise ValueError(f"the clock is 'server' or 'caller', not {clock!r}")
        try:
            self._redis = importlib.import_module("redis")
        except ImportError as error:
            raise CountersError("counting in Redis needs redis: pip install 'cra-middleware[redis]'") from error
        self._tag = f"{{{prefix}}}"
        self._rest_us = rest_days * _DAY_US
        self._is_callers = clock == "caller"
        self._shas = {
            script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            for script in (
                redis_script.PEEK,
                redis_script.RESERVE,
                redis_script.COMMIT,
                redis_script.RELEASE,
                redis_script.TALLY,
            )
        }
        self._client = self._connect(url, timeout_seconds)
        self._look_at = 0.0
        self._check_server()

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def peek(self, limits: Sequence[Limit], now_us: int) -> Exhausted | None:
        first, wait, _ = self._run(redis_script.PEEK, "", limits, now_us)
        return _exhausted(limits, first, wait) if first else None

    def reserve(self, limits: Sequence[Limit], now_us: int) -> Reservation | Exhausted:
        name = new_id()
        first, wait, at = self._run(redis_script.RESERVE, name, limits, now_us)
        return _exhausted(limits, first, wait) if first else Reservation(tuple(limits), int(at), name)

    def commit(self, reservation: Reservation) -> None:
        self._run(redis_script.COMMIT, reservation.id, reservation.limits, reservation.now_us)

    def release(self, reservation: Reservation) -> None:
        self._run(redis_script.RELEASE, reservation.id, reservation.limits, reservation.now_us)

    def forget(self, session_id: str) -> None:
        self._ask(lambda: self._client.delete(self._session_key(session_id)))

    def tally(self, name: str, window_seconds: float) -> tuple[int, float]:
        """Count one more of what is no limit; how many there are, and for how many seconds they are remembered.

        The window begins with the first of them.

        Raises:
            CountersError: when Redis cannot be used.
        """
        key, window = f"{self._tag}:tally:{_digest(name)}", str(round(window_seconds * 1000))
        count, left_ms = self._ask(lambda: self._evaluate(redis_script.TALLY, [key], [window]))
        return int(count), max(0, int(left_ms)) / 1000

    def _run(self, script: str, name: str, limits: Sequence[Limit], now_us: int) -> Any:
        if not limits:
            return 0, "0", now_us
        if time.monotonic() >= self._look_at:
            self._check_server()
        keys: list[str] = []
        values = [name, str(now_us) if self._is_callers else ""]
        for number, limit in enumerate(limits):
            kind = "session" if limit.window_us is None else "sliding" if limit.is_sliding else "fixed"
            key, field = self._names(limit, kind)
            keys += (key, f"{key}:used", f"{key}:log")
            window = self._rest_us if limit.window_us is None else limit.window_us
            values += (kind, field, str(window), _pair(limit.amount), _pair(limit.capacity), str(number))
        return self._ask(lambda: self._evaluate(script, keys, values))

    def _evaluate(self, script: str, keys: list[str], values: list[str]) -> object:
        try:
            return self._client.evalsha(self._shas[script], len(keys), *keys, *values)
        except self._redis.exceptions.NoScriptError:  # a server that was restarted, or a node that never saw it
            return self._client.eval(script, len(keys), *keys, *values)

    def _ask(self, question: Any) -> Any:
        try:
            return question()
        except (self._redis.exceptions.RedisError, OSError) as error:
            raise CountersError(f"the counters in Redis cannot be used: {_first_line(error)}") from error

    def _names(self, limit: Limit, kind: str) -> tuple[str, str]:
        """The key of a count, and its field where the key is its session's: the last part of its name."""
        digest = _digest(json.dumps(limit.key))
        if kind == "session":
            return self._session_key(limit.key[-1]), digest
        return f"{self._tag}:{kind}:{digest}", ""

    def _session_key(self, session_id: str) -> str:
        return f"{self._tag}:session:{_digest(json.dumps(session_id))}"

    def _connect(self, url: str, timeout_seconds: float) -> Any:
        options = {
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "health_check_interval": 0,
            "decode_responses": True,
        }
        backoff = importlib.import_module("redis.backoff")
        retry = importlib.import_module("redis.retry").Retry(backoff.ConstantBackoff(0.02), 1)
        try:
            client = self._redis.Redis.from_url(url, retry=retry, **options)
        except ValueError as error:
            raise CountersError(f"the address of Redis is not understood: {error}") from None
        cluster = self._ask(lambda: client.info("cluster"))
        if not cluster.get("cluster_enabled"):
            return client
        client.close()
        return self._ask(lambda: self._redis.RedisCluster.from_url(url, **options))

    def _check_server(self) -> None:
        """Raise where a count could vanish because the memory is full."""
        found = self._ask(lambda: self._client.info("memory"))
        nodes = [found] if "maxmemory_policy" in found else [node for node in found.values() if isinstance(node, dict)]
        for node in nodes:
            policy = node.get("maxmemory_policy")
            if node.get("maxmemory") and policy != "noeviction":
                raise CountersError(f"Redis evicts keys when it is full ({policy}): set maxmemory-policy noeviction")
        self._look_at = time.monotonic() + _LOOK_SECONDS


def _exhausted(limits: Sequence[Limit], first: int, wait: str) -> Exhausted:
    return Exhausted(limits[first - 1], None if wait == "-1" else int(wait))


def _pair(amount: int) -> str:
    high, low = divmod(amount, _BASE)
    return f"{high}:{low}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
