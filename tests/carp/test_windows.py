"""Counts, fixed and sliding, in memory and in a file: never more than the limit, and a place given back is free."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.quota import Counters, CountersError, Exhausted, Limit, Reservation, cost_millionths
from cra_middleware.carp.redis_counters import RedisCounters
from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.carp.windows import Count
from cra_middleware.errors import CallRefused
from tests.carp.redis_server import redis_prefix
from tests.conftest import manifest, policies

W = 60


def limit(capacity: int, sliding: bool = False, amount: int = 1, window: int | None = W, key: str = "k") -> Limit:
    return Limit((key,), capacity, window, amount, "p", "enough", sliding)


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "commit", "release", "wait"]), st.integers(0, 70), st.integers(0, 3)),
    max_size=30,
)


@given(st.integers(1, 4), st.booleans(), STEPS)
def test_never_more_than_the_limit(capacity: int, sliding: bool, steps: list[tuple[str, int, int]]) -> None:
    """Against a list of what was committed when; what is held counts, until its own window would be over."""
    count, now, held = Count(), 0, {}
    committed: list[tuple[int, int]] = []
    start: int | None = None
    for number, (what, pick, amount) in enumerate(steps):
        one = limit(capacity, sliding, amount)
        if what == "wait":
            now += pick
        elif what == "take":
            if sliding:
                used = sum(size for at, size in committed if now - W < at <= now)
            else:
                used = sum(size for at, size in committed if start is not None and at >= start and now < start + W)
            flying = sum(size for at, size in held.values() if now - W < at)
            wait = count.wait(one, now)
            assert (wait == 0) is (used + flying + amount <= capacity)
            if wait == 0:
                count.hold(str(number), one, now)
                held[str(number)] = (now, amount)
            elif wait is not None:
                later = Count(count.start_us, count.used, list(count.log), dict(count.held))
                assert later.wait(one, now + wait) == 0
                before = Count(count.start_us, count.used, list(count.log), dict(count.held))
                assert before.wait(one, now + wait - 1) != 0
        elif held:
            name = sorted(held)[pick % len(held)]
            at, size = held.pop(name)
            known = name in count.held
            if what == "release":
                count.release(name)
                continue
            count.commit(name, limit(capacity, sliding, size))
            if not known:
                continue
            if sliding:
                committed.append((at, size))
            elif start is None or at >= start + W:
                start = at
                committed.append((at, size))
            else:
                committed.append((max(at, start), size))


@pytest.fixture(params=["memory", "sqlite", "redis"])
def counters(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Counters]:
    if request.param != "redis":
        yield MemoryCounters() if request.param == "memory" else SqliteCounters(tmp_path / "c.db")
        return
    with redis_prefix() as (url, prefix), closing(RedisCounters(url, prefix, clock="caller")) as made:
        yield made


def take(counters: Counters, *limits: Limit, now: int = 0) -> Reservation:
    taken = counters.reserve(limits, now)
    assert isinstance(taken, Reservation)
    return taken


def test_all_or_none(counters: Counters) -> None:
    """A call that one limit refuses takes no place in another."""
    wide, narrow = limit(2, key="wide"), limit(1, key="narrow")
    counters.commit(take(counters, wide, narrow))
    refused = counters.reserve([wide, narrow], 5)
    assert isinstance(refused, Exhausted)
    assert (refused.limit.key, refused.retry_after_us) == (("narrow",), 55)
    counters.commit(take(counters, wide, now=5))
    assert counters.peek([wide], 5) is not None


def test_twice_is_once(counters: Counters) -> None:
    """A reservation is committed or released once; whatever comes after changes nothing."""
    taken = take(counters, limit(3))
    counters.commit(taken)
    counters.commit(taken)
    counters.release(taken)
    for now in (1, 2):
        counters.commit(take(counters, limit(3), now=now))
    assert counters.peek([limit(3)], 3) is not None
    free = take(counters, limit(1, key="x"))
    counters.release(free)
    counters.release(free)
    take(counters, limit(1, key="x"))


def test_sliding(counters: Counters) -> None:
    """The last minute, whenever it began."""
    for now in (0, 30, 59):
        counters.commit(take(counters, limit(3, True), now=now))
    refused = counters.peek([limit(3, True)], 59)
    assert refused is not None
    assert refused.retry_after_us == 1
    counters.commit(take(counters, limit(3, True), now=60))
    refused = counters.peek([limit(3, True, amount=2)], 61)
    assert refused is not None
    assert refused.retry_after_us == 58


def test_without_a_window(counters: Counters) -> None:
    """A session's budget never starts anew, and is forgotten with its session only."""
    mine = Limit(("atlas", "policy", "s1"), 10, None, 6, "p", "r")
    other = mine._replace(key=("atlas", "policy", "s2"))
    counters.commit(take(counters, mine))
    counters.commit(take(counters, other))
    refused = counters.peek([mine], 10**15)
    assert refused is not None
    assert refused.retry_after_us is None
    counters.forget("s1")
    assert counters.peek([mine], 0) is None
    assert counters.peek([other], 0) is not None
    counters.commit(take(counters, limit(1, key="s1")))
    counters.forget("s1")
    assert counters.peek([limit(1, key="s1")], 0) is not None


def test_more_than_ever_fits(counters: Counters) -> None:
    """Waiting does not help."""
    refused = counters.peek([limit(5, amount=6)], 0)
    assert refused is not None
    assert refused.retry_after_us is None


def test_a_clock_that_goes_back(counters: Counters) -> None:
    """Frees nothing."""
    counters.commit(take(counters, limit(1), now=100))
    assert counters.peek([limit(1)], 0) is not None
    assert counters.peek([limit(1)], 159) is not None
    assert counters.peek([limit(1)], 160) is None


def test_many_threads(counters: Counters) -> None:
    """32 threads, and not one call more than the limit."""
    won: list[bool] = []

    def work() -> None:
        for _ in range(4):
            taken = counters.reserve([limit(40, window=None)], 0)
            if isinstance(taken, Reservation):
                counters.commit(taken)
                won.append(True)

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 40


def _work(path: str, won: Any) -> None:
    counters = SqliteCounters(path, timeout_seconds=60)
    count = 0
    for _ in range(30):
        taken = counters.reserve([limit(50, window=None)], 0)
        if isinstance(taken, Reservation):
            counters.commit(taken)
            count += 1
    won.put(count)


@pytest.mark.slow
def test_four_processes(tmp_path: Path) -> None:
    """One file, four processes, not one call more than the limit."""
    context = multiprocessing.get_context("spawn")
    won = context.Queue()
    processes = [context.Process(target=_work, args=(str(tmp_path / "c.db"), won)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sum(won.get(timeout=10) for _ in range(4)) == 50


def test_a_killed_process_has_used_its_place_up(tmp_path: Path) -> None:
    """Its tool may have run: the place stays taken until its window is over, and no longer."""
    program = (
        "import sys, os, signal; from cra_middleware.carp.quota import Limit\n"
        "from cra_middleware.carp.sqlite_counters import SqliteCounters\n"
        "SqliteCounters(sys.argv[1]).reserve([Limit(('k',), 1, 60, 1, 'p', 'r')], 100)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "c.db")])
    assert done.returncode == -signal.SIGKILL
    counters = SqliteCounters(tmp_path / "c.db")
    assert counters.peek([limit(1)], 159) is not None
    assert counters.peek([limit(1)], 160) is None


def test_old_counts_are_swept(tmp_path: Path) -> None:
    """Sessions and agents come and go; the file does not keep them."""
    counters = SqliteCounters(tmp_path / "c.db")
    for number in range(1100):
        counters.commit(take(counters, limit(1, key=str(number)), now=number * 100))
    looking = sqlite3.connect(tmp_path / "c.db")
    (rows,) = looking.execute("SELECT count(*) FROM counts").fetchone()
    looking.close()
    assert rows < 200


def test_the_file_is_for_its_owner(tmp_path: Path) -> None:
    """And forks have connections of their own."""
    counters = SqliteCounters(tmp_path / "c.db")
    assert stat.S_IMODE((tmp_path / "c.db").stat().st_mode) == 0o600
    child = os.fork()
    if child == 0:
        try:
            counters.commit(take(counters, limit(1)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert counters.peek([limit(1)], 0) is not None


def test_a_fork_takes_no_lock_along(tmp_path: Path) -> None:
    """The child works while the parent closes and opens the file; both count in one file, and nobody hangs."""
    counters = SqliteCounters(tmp_path / "c.db")
    counters.commit(take(counters, limit(9)))
    child = os.fork()
    if child == 0:
        try:
            for _ in range(3):
                counters.commit(take(counters, limit(9)))
        finally:
            os._exit(0)
    for _ in range(3):
        counters.commit(take(counters, limit(9)))
        counters.close()
    os.waitpid(child, 0)
    taken = [counters.reserve([limit(9)], 0) for _ in range(3)]
    assert [isinstance(one, Reservation) for one in taken] == [True, True, False]


def _damage(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def _lock(path: Path) -> Any:
    SqliteCounters(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other


def _no_folder(path: Path) -> None:
    path.symlink_to("/no/such/folder/c.db")


@pytest.mark.parametrize(
    ("prepare", "why"), [(_damage, "is damaged"), (_lock, "is locked"), (_no_folder, "No such file")]
)
def test_files_that_cannot_be_used(tmp_path: Path, prepare: Callable[[Path], Any], why: str) -> None:
    """The error names the file and what to do."""
    path = tmp_path / "c.db"
    kept = prepare(path)
    with pytest.raises(CountersError, match=why):
        SqliteCounters(path, timeout_seconds=0.01).reserve([limit(1)], 0)
    if kept is not None:
        kept.close()


def test_a_broken_store_denies(tmp_path: Path) -> None:
    """Through a runtime: the call is refused, and the tool does not run."""
    rate = {"policy_id": "l", "type": "rate_limit", "parameters": {"max_calls": 9, "window_seconds": 60}}
    atlas, ran = Atlas.from_dict(manifest(policies=policies(rate))), []
    with Runtime(atlas, counters=tmp_path / "c.db") as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: ran.append(1))
        other = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
        other.execute("DROP TABLE counts")
        with pytest.raises(CallRefused) as refused:
            session.call("ticket.get", lambda: ran.append(2))
        other.close()
    assert (refused.value.code, ran) == ("policy_error", [1])


def test_a_full_disk(tmp_path: Path) -> None:
    """Nothing is half taken, and the store goes on when there is room again."""
    program = """
import resource, sys
from cra_middleware.carp.quota import CountersError, Limit
from cra_middleware.carp.sqlite_counters import SqliteCounters
counters = SqliteCounters(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
try:
    counters.reserve([Limit(("k",), 1, 60, 1, "p", "r")], 0)
except CountersError as error:
    print("refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(counters.peek([Limit(("k",), 1, 60, 1, "p", "r")], 0))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "c.db")], capture_output=True, text=True)
    assert done.stdout.split() == ["refused", "None"], done.stderr


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "millionths"),
    [
        (0, 0),
        (5, 5_000_000),
        (0.1, 100_000),
        (0.0000001, 1),
        (Decimal("2.50"), 2_500_000),
        (Decimal("0.0000001"), 1),
        (-0.0, 0),
        (-1, None),
        (-0.1, None),
        (True, None),
        ("5", None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        (Decimal("NaN"), None),
        (Decimal("-1"), None),
        (Decimal("1e400"), None),
        (10**40, None),
        (1e300, None),
        ([5], None),
        (Odd(), None),
    ],
)
def test_costs(value: object, millionths: int | None) -> None:
    """A number that is not negative, rounded up; nothing else is a cost."""
    assert cost_millionths(value) == millionths


@settings(max_examples=50)
@given(st.decimals(min_value=0, max_value=10**9, places=6))
def test_costs_are_exact(value: Decimal) -> None:
    """To the millionth."""
    assert cost_millionths(value) == int(value * 1_000_000)
