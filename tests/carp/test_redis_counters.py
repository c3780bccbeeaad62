"""Counters in Redis: exact for many processes, by the server's clock, and never a pass when the server is away."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cra_middleware import Atlas, CallRefused, Runtime
from cra_middleware._ids import new_id
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.quota import CountersError, Exhausted, Limit, Reservation
from cra_middleware.carp.redis_counters import RedisCounters
from cra_middleware.stores import open_counters
from tests.carp.redis_server import OwnServer, redis_module, redis_prefix
from tests.conftest import manifest, policies
from tests.cutting_proxy import CuttingProxy

redis = redis_module()
SECOND = 1_000_000


def limit(
    capacity: int, window: int | None = 60 * SECOND, key: str = "k", sliding: bool = False, amount: int = 1
) -> Limit:
    return Limit((key,), capacity, window, amount, "p", "enough", sliding)


def take(counters: RedisCounters, *limits: Limit) -> Reservation:
    taken = counters.reserve(limits, 0)
    assert isinstance(taken, Reservation)
    return taken


@pytest.fixture
def place() -> Iterator[tuple[str, str]]:
    with redis_prefix() as made:
        yield made


@pytest.fixture
def counters(place: tuple[str, str]) -> Iterator[RedisCounters]:
    with closing(RedisCounters(*place)) as made:
        yield made


@pytest.fixture
def by_callers_clock(place: tuple[str, str]) -> Iterator[RedisCounters]:
    with closing(RedisCounters(*place, clock="caller")) as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    made = OwnServer(tmp_path)
    yield made
    made.stop()


BIG = 10**18
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "both", "peek", "commit", "release", "forget", "wait"]),
        st.integers(0, 90),
        st.sampled_from([0, 1, 2, 3, 2**53 + 1, BIG - 1, BIG]),
    ),
    min_size=4,
    max_size=60,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(capacity=st.sampled_from([1, 3, 10, 2**54 + 1, BIG]), sliding=st.sampled_from([None, False, True]), steps=STEPS)
def test_as_in_memory(
    by_callers_clock: RedisCounters, capacity: int, sliding: bool | None, steps: list[tuple[str, int, int]]
) -> None:
    """Whatever is done, in whatever order: the answers are those of the counters in memory, to the last millionth."""
    memory, now, counters, fresh = MemoryCounters(), 0, by_callers_clock, new_id()
    held: list[tuple[Reservation, Reservation]] = []
    for what, number, amount in steps:
        window = None if sliding is None else 60
        one = Limit(("a", "p", fresh), capacity, window, amount, "p", "r", bool(sliding))
        limits = [one, one._replace(key=("other", fresh), capacity=5, window_us=40, amount=1, is_sliding=not sliding)]
        limits = limits if what == "both" else limits[:1]
        if what == "wait":
            now += number
        elif what == "peek":
            assert counters.peek(limits, now) == memory.peek(limits, now)
        elif what in ("take", "both"):
            ours, theirs = counters.reserve(limits, now), memory.reserve(limits, now)
            if isinstance(ours, Exhausted) or isinstance(theirs, Exhausted):
                assert ours == theirs
            else:
                held.append((ours, theirs))
        elif what == "forget":
            for store in (counters, memory):
                store.forget(fresh)  # type: ignore[attr-defined]
        elif held:
            mine, other = held[number % len(held)]  # and perhaps again later: the second time changes nothing
            (counters.commit if what == "commit" else counters.release)(mine)
            (memory.commit if what == "commit" else memory.release)(other)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("held_first", [False, True])
def test_what_is_free_first(by_callers_clock: RedisCounters, sliding: bool, held_first: bool) -> None:
    """How long to wait: until the earlier one of what is held and what was used up."""
    one = Limit(("k",), 2, 60, 1, "p", "r", sliding)
    first, second = by_callers_clock.reserve([one], 0), by_callers_clock.reserve([one], 10)
    used = second if held_first else first
    assert isinstance(used, Reservation)
    by_callers_clock.commit(used)
    full = by_callers_clock.peek([one], 20)
    assert full is not None
    assert full.retry_after_us == 40


def test_a_long_log_is_read_page_by_page(counters: RedisCounters) -> None:
    """How long to wait is told however many small calls have to be over first."""
    for _ in range(200):
        counters.commit(take(counters, limit(200, sliding=True)))
    full = counters.peek([limit(200, sliding=True, amount=150)], 0)
    assert full is not None
    assert full.retry_after_us is not None
    assert 50 * SECOND < full.retry_after_us < 60 * SECOND


def test_the_clock_is_the_servers(counters: RedisCounters) -> None:
    """Callers whose clocks are wrong open no window early, and close none."""
    counters.commit(take(counters, limit(1)))
    for wrong in (0, time.time_ns() // 1000 + 3600 * SECOND, 2**60):
        full = counters.reserve([limit(1)], wrong)
        assert isinstance(full, Exhausted)
        assert full.retry_after_us is not None
        assert 50 * SECOND < full.retry_after_us <= 60 * SECOND


@pytest.mark.parametrize("sliding", [False, True])
def test_a_window_passes(counters: RedisCounters, sliding: bool) -> None:
    """What was committed is free after it, and so is what was only held."""
    short = limit(2, window=300_000, sliding=sliding)
    counters.commit(take(counters, short))
    held = take(counters, short)
    full = counters.reserve([short], 0)
    assert isinstance(full, Exhausted)
    time.sleep((full.retry_after_us or 0) / SECOND + 0.05)
    take(counters, short)
    counters.commit(held)  # too late to count
    take(counters, short)
    assert isinstance(counters.reserve([short], 0), Exhausted)


def test_nothing_stays_for_ever(place: tuple[str, str], counters: RedisCounters) -> None:
    """Every key expires, holds the one hash tag, and names nobody."""
    limits = [limit(9, key="ann"), limit(9, key="ann", sliding=True), limit(9, window=None, key="ann")]
    held = take(counters, *limits)
    counters.commit(take(counters, *limits))
    with closing(redis.Redis.from_url(place[0], decode_responses=True)) as client:
        keys = list(client.scan_iter(match=f"*{place[1]}*", count=1000))
        assert len(keys) == 6
        for key in keys:
            assert key.startswith(f"{{{place[1]}}}:")
            assert "ann" not in key
            assert 60_000 < client.pttl(key) <= 90 * 86_400_000 + 60_000
        counters.release(held)
        counters.forget("ann")
        assert not [key for key in client.scan_iter(match=f"*{place[1]}*", count=1000) if ":session:" in key]


def _work(url: str, prefix: str, limits: list[Limit], keep: bool, won: Any) -> None:
    counts = []
    with closing(RedisCounters(url, prefix, timeout_seconds=30)) as counters:

        def work() -> None:
            for turn in range(10):
                taken = counters.reserve(limits, 0)
                if isinstance(taken, Reservation):
                    if keep or turn % 2:
                        counters.commit(taken)
                        counts.append(1)
                    else:
                        counters.release(taken)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    won.put(len(counts))


@pytest.mark.slow
def test_four_processes_of_eight_threads(place: tuple[str, str]) -> None:
    """On one fixed, one sliding and one session's limit at once: exactly as many as the narrowest allows."""
    limits = [
        limit(50, window=600 * SECOND),
        limit(52, window=600 * SECOND, key="s", sliding=True),
        limit(55 * 2**53, window=None, key="b", amount=2**53),
    ]
    context = multiprocessing.get_context("spawn")
    won = context.Queue()
    processes = [context.Process(target=_work, args=(*place, limits, True, won)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sum(won.get(timeout=60) for _ in range(4)) == 50
    for process in processes:
        process.join(60)
    with closing(RedisCounters(*place)) as counters:
        assert counters.peek([limits[1]._replace(amount=2)], 0) is None
        assert counters.peek([limits[1]._replace(amount=3)], 0) is not None
        assert counters.peek([limits[2]._replace(amount=5 * 2**53)], 0) is None
        assert counters.peek([limits[2]._replace(amount=5 * 2**53 + 1)], 0) is not None


def test_a_killed_process_has_used_its_place_up(place: tuple[str, str]) -> None:
    """Until its window is over."""
    program = (
        "import sys, os, signal; from cra_middleware.carp.quota import Limit\n"
        "from cra_middleware.carp.redis_counters import RedisCounters\n"
        "RedisCounters(*sys.argv[1:]).reserve([Limit(('k',), 1, 700_000, 1, 'p', 'r')], 0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *place])
    assert done.returncode == -signal.SIGKILL
    with closing(RedisCounters(*place)) as counters:
        full = counters.peek([limit(1, window=700_000)], 0)
        assert full is not None
        time.sleep((full.retry_after_us or 0) / SECOND + 0.05)
        assert counters.peek([limit(1, window=700_000)], 0) is None


def test_a_fork(counters: RedisCounters) -> None:
    """The child has connections of its own; both count in one place."""
    counters.commit(take(counters, limit(3)))
    child = os.fork()
    if child == 0:
        try:
            counters.commit(take(counters, limit(3)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    counters.commit(take(counters, limit(3)))
    assert counters.peek([limit(3)], 0) is not None


def test_an_answer_that_is_lost(place: tuple[str, str]) -> None:
    """The place was taken, and the second try finds it: one call, one place; so for a commit and a release."""
    address = urlsplit(place[0])
    proxy = CuttingProxy(address.hostname or "127.0.0.1", address.port or 6379)
    with closing(proxy), closing(RedisCounters(f"redis://127.0.0.1:{proxy.port}/0", place[1])) as counters:
        limits = [limit(3), limit(3, key="s", sliding=True), limit(3, key="b", window=None)]
        counters.peek(limits, 0)
        for finish in (counters.release, counters.commit, counters.release, counters.commit):
            proxy.lose(1)
            held = take(counters, *limits)
            proxy.lose(1)
            finish(held)
        assert proxy.lost == 8
        for one in limits:
            assert counters.peek([one], 0) is None
            assert counters.peek([one._replace(amount=2)], 0) is not None
        proxy.lose(2)
        with pytest.raises(CountersError):
            counters.reserve(limits, 0)
        proxy.lose(0)
        assert all(counters.peek([one], 0) is not None for one in limits)  # taken unheard: too few, never too many


def test_a_server_that_is_away_denies(server: OwnServer) -> None:
    """Through a runtime: the tool does not run; when the server is back without its scripts, it does."""
    rate = {"policy_id": "l", "type": "rate_limit", "parameters": {"max_calls": 9, "window_seconds": 60}}
    atlas, ran = Atlas.from_dict(manifest(policies=policies(rate))), []
    with Runtime(atlas, counters=server.url) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: ran.append(1))
        server.stop()
        with pytest.raises(CallRefused) as refused:
            session.call("ticket.get", lambda: ran.append(2))
        assert refused.value.code == "policy_error"
        server.start()
        session.call("ticket.get", lambda: ran.append(3))
        with closing(server.client()) as client:
            client.script_flush()
        session.call("ticket.get", lambda: ran.append(4))
        server.stop()
    assert ran == [1, 3, 4]


def test_a_server_that_may_forget_is_refused(server: OwnServer) -> None:
    """One that throws keys away when it is full would let calls pass."""
    with closing(server.client()) as client:
        for most, policy in (("0", "volatile-ttl"), ("9mb", "noeviction")):
            client.config_set("maxmemory", most)
            client.config_set("maxmemory-policy", policy)
            RedisCounters(server.url).close()
        client.config_set("maxmemory-policy", "volatile-ttl")
        with pytest.raises(CountersError, match="noeviction"):
            RedisCounters(server.url)


def test_a_server_that_is_told_to_forget_later(server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at again and again: by who set it so, or because another machine has taken over."""
    with closing(server.client()) as client, closing(RedisCounters(server.url)) as counters:
        take(counters, limit(9))
        client.config_set("maxmemory", "9mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        monkeypatch.setattr("cra_middleware.carp.redis_counters._LOOK_SECONDS", 0)
        monkeypatch.setattr(counters, "_look_at", 0.0)
        for _ in range(2):
            with pytest.raises(CountersError, match="noeviction"):
                counters.reserve([limit(9)], 0)
        client.config_set("maxmemory-policy", "noeviction")
        take(counters, limit(9))


@pytest.mark.parametrize("days", [-1, 0, 36_501, True, 0.5])
def test_rests_that_cannot_be_used(server: OwnServer, days: Any) -> None:
    """What a session has spent would be forgotten at once, or could not be told to Redis."""
    with pytest.raises(ValueError, match="rest_days"):
        RedisCounters(server.url, rest_days=days)


def test_what_is_damaged(server: OwnServer) -> None:
    """A key of another kind is an error, never room; nothing is half taken."""
    with closing(server.client()) as client, closing(RedisCounters(server.url)) as counters:
        limits = [limit(9), limit(9, key="s", sliding=True)]
        counters.commit(take(counters, *limits))
        (damaged,) = [key for key in client.scan_iter() if "sliding" in key and key.endswith(":used")]
        client.set(damaged, "x")
        with pytest.raises(CountersError, match="WRONGTYPE"):
            counters.reserve(limits, 0)
        assert counters.peek([limit(9, amount=8)], 0) is None
        assert counters.peek([limit(9, amount=9)], 0) is not None


def test_a_cluster(tmp_path: Path) -> None:
    """All limits of a call lie on one node."""
    server = OwnServer(tmp_path, "--cluster-enabled", "yes")
    try:
        with closing(server.client()) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            for _ in range(600):
                if "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")):
                    break
                time.sleep(0.05)
        with closing(RedisCounters(server.url)) as counters:
            limits = [limit(2), limit(2, key="s", sliding=True), limit(2, key="b", window=None)]
            counters.commit(take(counters, *limits))
            counters.release(take(counters, *limits))
            take(counters, *limits)
            assert isinstance(counters.reserve(limits, 0), Exhausted)
            counters.forget("b")
            assert counters.peek([limits[2]], 0) is None
    finally:
        server.stop()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://127.0.0.1:1/0", "redis://127.0.0.1:x/0", "nonsense"])
def test_addresses_that_cannot_be_used(url: str) -> None:
    """An error at once, not at the first call."""
    with pytest.raises(CountersError):
        RedisCounters(url)


def test_two_prefixes_are_two_counters(place: tuple[str, str]) -> None:
    """Also when they are opened by name."""
    url, prefix = place
    for name in (f"{prefix}.one", f"{prefix}.two"):
        with closing(open_counters(url, name)) as counters:
            assert isinstance(counters, RedisCounters)
            take(counters, limit(1))
            assert isinstance(counters.reserve((limit(1),), 0), Exhausted)
            for key in counters._client.scan_iter(match=f"{{{name}}}*", count=1000):
                counters._client.delete(key)


@pytest.mark.parametrize("prefix", ["", "{x}", "x y", "x" * 65])
def test_prefixes_that_cannot_be_used(prefix: str) -> None:
    """They would move keys off their node."""
    with pytest.raises(ValueError, match="prefix"):
        RedisCounters("redis://127.0.0.1", prefix)
