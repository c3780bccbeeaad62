"""Failed logins: counted by address, as one by all servers of a Redis, and by each alone while that is away."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.carp.redis_counters import RedisCounters
from cra_middleware.server.failures import Failures, SharedFailures
from cra_middleware.server.faults import Fault
from tests.carp.redis_server import OwnServer, redis_prefix
from tests.server.serving import Caller, Serve

WRONG = {"x-api-key": "cra_00000000_" + "x" * 43}


def refused(failures: Failures, address: str) -> bool:
    """Whether a failed try is told to wait."""
    try:
        failures.check(address)
        failures.count(address)
    except Fault as fault:
        assert fault.code == "RATE_LIMIT_EXCEEDED"
        return True
    return False


def test_failures_are_forgotten() -> None:
    """A window later, and when there are too many addresses to remember."""
    failures = Failures(1, window_seconds=0.05, addresses=3)
    failures.count("a")
    with pytest.raises(Fault, match="too many"):
        failures.check("a")
    time.sleep(0.06)
    failures.check("a")
    for number in range(50):
        failures.count(str(number))
    assert len(failures._failed) <= 3


def test_two_servers_count_as_one(serve: Serve) -> None:
    """Ten tries of an address fail, whichever server they are sent to and however many at once; the rest is told to
    wait, and who has a key is heard all the same."""
    with redis_prefix() as (url, prefix), closing(RedisCounters(url, prefix)) as counters:
        servers = [serve(counters=counters), serve(counters=counters)]
        answers: list[Any] = []

        def work(number: int) -> None:
            wrong = Caller(servers[number % 2], WRONG)
            answers.extend(wrong.get("/v1/tools") for _ in range(6))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(answer.status_code for answer in answers) == {401: 10, 429: 26}
        waits = [int(answer.headers["retry-after"]) for answer in answers if answer.status_code == 429]
        assert 0 < min(waits) <= max(waits) <= 60
        assert servers[1].by("bot").get("/v1/tools").status_code == 200
        (key,) = counters._client.scan_iter(match=f"{{{prefix}}}:tally:*")
        assert 0 < counters._client.pttl(key) <= 60_000


def test_a_window_ends_for_all() -> None:
    """It begins with the first failure, wherever that was."""
    with redis_prefix() as (url, prefix), closing(RedisCounters(url, prefix)) as counters:
        one, other = (SharedFailures(counters, most=2, window_seconds=1) for _ in range(2))
        assert [refused(failures, "a") for failures in (one, other, one, other)] == [False, False, True, True]
        assert not refused(other, "b")
        time.sleep(1.1)
        assert not refused(other, "a")


def test_redis_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server goes on from what it knows, and does not wait for Redis at each try; then they count as one again."""
    redis = OwnServer(tmp_path)
    try:
        with closing(RedisCounters(redis.url, timeout_seconds=0.5)) as counters:
            one, other = (SharedFailures(counters, most=4) for _ in range(2))
            assert [refused(one, "a"), refused(one, "a"), refused(other, "a")] == [False] * 3
            redis.stop()
            assert [refused(one, "a"), refused(one, "a"), refused(one, "a")] == [False, False, True]
            assert [refused(other, "a"), refused(other, "a")] == [False, True]
            asked: list[str] = []
            monkeypatch.setattr(counters, "tally", lambda name, seconds: asked.append(name))
            one.count("c")
            assert asked == []
            monkeypatch.undo()
            redis.start()
            time.sleep(1.1)
            assert [refused(one, "c") for _ in range(4)] == [False] * 3 + [
                True
            ]  # Redis has forgotten, the server has not
            assert [refused(failures, "b") for failures in (one, other) * 3] == [False] * 4 + [True] * 2
    finally:
        redis.stop()
