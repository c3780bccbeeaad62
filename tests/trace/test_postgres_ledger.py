"""The ledger in PostgreSQL where processes die, connections break, and somebody writes into the tables."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.ledger import follower as follower_module
from cra_middleware.trace.ledger import session_tree
from cra_middleware.trace.ledger.follower import LedgerFollower
from cra_middleware.trace.ledger.owner import Owner
from cra_middleware.trace.ledger.place import LostError
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import Checkpoint, open_note
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.sinks.postgres_ledger import PostgresHold, PostgresPlace
from cra_middleware.trace.storage.rows import rows_of
from cra_middleware.trace.tree import Leaves
from tests.conftest import manifest
from tests.trace.forge import lines_of, rewrite, write_trace
from tests.trace.ledger.ledgers import SIGNER, Owners, PostgresLedger, ask, noted, sizes
from tests.trace.ledger.waiting import until
from tests.trace.postgres_server import database

psycopg: Any = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")
ATLAS = Atlas.from_dict(manifest())
TABLES = ("cra_ledger_entries", "cra_ledger_head")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[PostgresLedger]:
    (tmp_path / "made").mkdir()
    with ExitStack() as stack:
        yield PostgresLedger(tmp_path / "made", stack)


@pytest.fixture
def owners(ledger: PostgresLedger) -> Iterator[Owners]:
    made = Owners(ledger)
    yield made
    made.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "HEAD_SECONDS", 0.06)


def cut(ledger: PostgresLedger, place: PostgresPlace) -> None:
    """The server drops the ledger's connection, as at a restart."""
    until(lambda: place._link._idle, "its connection is free")
    pid = place._link._idle[-1].info.backend_pid
    ledger.execute("SELECT pg_terminate_backend(%s, 2000)", pid)


def check_heads(ledger: PostgresLedger, heads: list[str]) -> list[Checkpoint]:
    """Every head that was published is about the beginning of what the ledger has now, and so of each later one."""
    leaves = Leaves()
    for entry in noted(ledger):
        leaves.append(entry.leaf())
    told = [open_note(head.encode(), SIGNER.verifier) for head in heads]
    for head in told:
        assert head.size <= len(leaves)
        assert leaves.root(head.size) == head.root
    return told


def work(runtime: Runtime, calls: int = 2) -> str:
    with runtime.session() as session:
        for number in range(calls):
            session.call("ticket.get", lambda n: n, number)
    return session.id


def covers_all(ledger: PostgresLedger, session_ids: list[str]) -> bool:
    last = {entry.session_id: entry.size for entry in noted(ledger)}
    return all(last.get(name) == len(ledger.lines(name)) for name in session_ids)


WRITER = """
import os, sys
from cra_middleware import Atlas, Runtime
from cra_middleware.sinks import PostgresSink
from cra_middleware.trace.ledger import follower
from tests.conftest import manifest
from tests.trace.ledger.ledgers import SIGNER
follower.HEAD_SECONDS = 0.06
heads = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
done = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def publish(head):
    os.write(heads, head.encode() + b"\\0")
sink = PostgresSink(sys.argv[1], shared=True, signer=SIGNER, on_head=publish)
with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
    while os.getppid() == int(sys.argv[4]):
        with runtime.session() as session:
            for number in range(3):
                session.call("ticket.get", lambda n: n, number)
        os.write(done, session.id.encode() + b"\\n")
"""


class Writers:
    """Processes that write and sign until they are killed."""

    def __init__(self, ledger: PostgresLedger, folder: Path) -> None:
        self._ledger, self._folder = ledger, folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> int:
        number = len(self.processes)
        names = [str(self._folder / f"{kind}-{number}") for kind in ("heads", "done")]
        args = [sys.executable, "-c", WRITER, self._ledger.address, *names, str(os.getpid())]
        self.processes[number] = subprocess.Popen(args, cwd=ROOT)
        return number

    def heads(self, number: int) -> list[str]:
        path = self._folder / f"heads-{number}"
        return path.read_text().split("\0")[:-1] if path.exists() else []

    def done(self) -> list[str]:
        return [name for path in self._folder.glob("done-*") for name in path.read_text().split("\n")[:-1]]

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.mark.slow
def test_owners_that_are_killed(ledger: PostgresLedger, tmp_path: Path) -> None:
    """Another takes over each time, and every head that anybody published extends those before it."""
    writers = Writers(ledger, tmp_path)
    try:
        alive = {writers.start(), writers.start()}
        owner = -1
        for _ in range(4):
            seen = {number: len(writers.heads(number)) for number in alive}
            until(lambda seen=seen: any(len(writers.heads(one)) > seen[one] + 2 for one in seen), "somebody signs")
            owner = max(alive, key=lambda one: len(writers.heads(one)) - seen[one])
            writers.kill(owner)
            alive.remove(owner)
            alive.add(writers.start())
        assert sum(bool(writers.heads(number)) for number in writers.processes) >= 3
    finally:
        writers.close()
    with closing(ledger.sink(shared=True, signer=SIGNER)):
        pass  # signs what those that were killed had asked for
    heads = [head for number in writers.processes for head in writers.heads(number)]
    told = check_heads(ledger, heads)
    assert len({head.size for head in told}) == len(told)  # no two trees, and none twice
    known = {entry.session_id for entry in noted(ledger)}
    assert len(known & set(writers.done())) > 4


@pytest.mark.usefixtures("soon")
def test_connections_that_are_cut(ledger: PostgresLedger, caplog: pytest.LogCaptureFixture) -> None:
    """The lock goes with its connection; it is taken anew, and what was asked meanwhile is signed."""
    heads: list[str] = []
    sink = ledger.sink(signer=SIGNER, on_head=heads.append, shared=True)
    with Runtime(ATLAS, trace=sink) as runtime:
        wrote = []
        for _ in range(6):
            wrote.append(work(runtime))
            assert sink._follower is not None
            cut(ledger, sink._follower._place)  # type: ignore[arg-type]
            wrote.append(work(runtime))
            until(lambda: covers_all(ledger, wrote), "all is signed over the next connection")
    sink.close()
    told = check_heads(ledger, heads)
    assert [head.size for head in told] == sorted({head.size for head in told})
    assert told[-1].size == len(noted(ledger))
    assert "not signed any more" not in caplog.text


@pytest.mark.usefixtures("soon")
def test_a_head_whose_commit_was_not_heard_of(ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, so it is published, once, as soon as its owner knows."""
    heads: list[str] = []
    real, session = PostgresHold.note, ledger.write()

    def lose(self: PostgresHold, *args: Any) -> None:
        real(self, *args)
        monkeypatch.setattr(PostgresHold, "note", real)
        self._link.close()
        raise SinkError("the answer is lost", is_transient=True)

    monkeypatch.setattr(PostgresHold, "note", lose)
    follower = LedgerFollower(ledger.open(), SIGNER, heads.append)
    follower.durable(session, 5, 5)
    until(lambda: heads, "the head is published")
    follower.durable(session, 7, 2)
    follower.close()
    assert [head.size for head in check_heads(ledger, heads)] == [1, 2]
    assert sizes(ledger) == [5, 7]


def owner_of(place: PostgresPlace) -> Owner:
    hold = place.take()
    assert hold is not None
    trees: dict[str, SessionTree] = {}
    return Owner(place, hold, SIGNER, lambda name: trees.setdefault(name, SessionTree(name, place.lines(name))))


def test_two_who_believe_that_they_own_it(ledger: PostgresLedger) -> None:
    """Who lost the lock with its connection, and has not heard yet, notes nothing: not a second tree, not one entry."""
    session, first, second = ledger.write(), ledger.open(), ledger.open()
    assert isinstance(first, PostgresPlace)
    assert isinstance(second, PostgresPlace)
    stale = owner_of(first)
    ask(ledger, session, 3)
    stale.work()
    cut(ledger, first)
    until(lambda: (hold := second.take()) is None or hold.close() is None, "the lock is free")
    fresh = owner_of(second)
    with pytest.raises(SinkError):
        stale.work()
    with pytest.raises(LostError, match="the connection was lost"):
        stale.work()
    stale._hold._taken_in = first._link.generation  # type: ignore[attr-defined]  # as if nothing had been lost
    ask(ledger, session, 5)
    with pytest.raises(LostError, match="another process owns it"):
        stale.work()
    assert fresh.work() is not None
    fresh.close()
    ask(ledger, session, 7)
    before = (ledger.entries(), ledger.head())
    with pytest.raises(LostError, match="its head is not the one that this process left"):
        stale.work()
    with pytest.raises(LostError, match="its head is not the one that this process left"):
        stale._hold.note(1, [], b"another")
    assert (ledger.entries(), ledger.head(), ledger.waiting()) == (*before, 1)
    owner_of(second).work()
    assert sizes(ledger) == [3, 5, 7]


def test_one_session_of_many_processes(
    ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each asks for what it saw, later than others got more noted: nobody cries wolf, and all of it is signed."""
    monkeypatch.setattr(follower_module, "HEAD_SECONDS", 0.06)
    monkeypatch.setattr(session_tree, "REMEMBERED", 2)
    heads: list[str] = []
    sinks = [ledger.sink(shared=True, signer=SIGNER, on_head=heads.append) for _ in range(4)]
    runtimes = [Runtime(ATLAS, trace=sink, audit_deadline_seconds=10) for sink in sinks]
    session = runtimes[0].session(keep=True)
    sessions = [session, *(runtime.resume(session.id, keep=True) for runtime in runtimes[1:])]

    def call(number: int) -> None:
        for turn in range(25):
            sessions[number].call("ticket.get", lambda n: n, turn)
            time.sleep(random.random() * 0.02)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sessions[2].end()
    for runtime, sink in zip(runtimes, sinks, strict=True):
        runtime.close()
        sink.close()
    assert caplog.text == ""
    assert covers_all(ledger, [session.id])
    assert len(check_heads(ledger, heads)) > 1


def test_schemas_do_not_share_a_lock(ledger: PostgresLedger) -> None:
    """Each has an owner of its own."""
    with database() as conninfo:
        places = [ledger.open(), PostgresPlace(conninfo, 2)]
        holds = [place.take() for place in places]
        assert None not in holds
        for place in places:
            place.close()


@pytest.mark.parametrize("is_owner", [True, False])
@pytest.mark.usefixtures("soon")
def test_a_database_that_is_rolled_back(
    ledger: PostgresLedger, is_owner: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole older state is put back while processes live: none of them signs it on, and no session is begun."""
    first = ledger.sink(shared=True, signer=SIGNER)
    other = None if is_owner else ledger.sink(shared=True, signer=SIGNER)
    sink = other or first
    assert sink._follower is not None
    runtime = Runtime(ATLAS, trace=first)
    wrote = [work(runtime)]
    until(lambda: covers_all(ledger, wrote), "the first session is signed")
    for table in TABLES:
        ledger.execute(f"CREATE TABLE old_{table} AS TABLE {table}")
    wrote.append(work(runtime))
    until(lambda: covers_all(ledger, wrote), "the second session is signed")
    size = len(ledger.entries())
    until(lambda: sink._follower._known and sink._follower._known.size == size, "it is known")
    if not is_owner:
        runtime.close()
        until(lambda: sink._follower._owner, "the other takes over")
    parts = (f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM old_{table};" for table in TABLES)
    with psycopg.connect(ledger.conninfo) as connection:
        connection.execute("".join(parts))
    before = ledger.head()
    until(lambda: f"an earlier head is about {size} entries that are not there" in caplog.text, "an alarm")
    with pytest.raises(SinkError, match="is not signed any more"):
        sink.create("01900000-0000-7000-8000-000000000002")
    assert not sink.health().ok
    runtime.close()
    sink.close()
    assert ledger.head() == before


@pytest.mark.usefixtures("soon")
def test_who_waits_sees_that_a_ledger_went_back(ledger: PostgresLedger, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that never owned it."""
    session, place = ledger.write(), ledger.open()
    owner = owner_of(place)  # type: ignore[arg-type]
    ask(ledger, session, 3)
    owner.work()
    before = ledger.head()
    ask(ledger, session, 5)
    owner.work()
    waiting = LedgerFollower(ledger.open(), SIGNER)
    until(lambda: waiting._known and waiting._known.size == 2, "it has seen the head")
    ledger.put_head(before)
    until(lambda: "it had 2 entries, and an older state of it was put back" in caplog.text, "an alarm")
    with pytest.raises(SinkError):
        waiting.check()
    waiting.close()
    owner.close()


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("DELETE FROM cra_ledger_entries WHERE place = 0", "entry 0 is not there"),
        ("DELETE FROM cra_ledger_entries WHERE place = 1", "its last head is about 2 entries that are not there"),
        (
            "INSERT INTO cra_ledger_entries SELECT place + 2, entry FROM cra_ledger_entries",
            "entries lie behind its last head",
        ),
        ("UPDATE cra_ledger_head SET note = NULL", "entries lie behind its last head"),
        ("DELETE FROM cra_ledger_head", "the head of the ledger in .* was removed"),
    ],
)
def test_tables_that_somebody_changed(ledger: PostgresLedger, owners: Owners, statement: str, why: str) -> None:
    """Entries and head are one commit, so there is no crash that explains it: nothing is signed."""
    session, owner = ledger.write(), owners.new()
    for size in (3, 5):
        ask(ledger, session, size)
        owner.work()
    owners.close()
    ledger.execute(statement)
    with pytest.raises(ChainBroken, match=why):
        owners.new()


def test_a_head_that_is_removed_under_its_owner(ledger: PostgresLedger, owners: Owners) -> None:
    """Nothing more is noted."""
    session, owner = ledger.write(), owners.new()
    ask(ledger, session, 3)
    owner.work()
    ledger.execute("DELETE FROM cra_ledger_head")
    ask(ledger, session, 5)
    with pytest.raises(LostError):
        owner.work()
    assert sizes(ledger) == [3]


def keep(count: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:count]


def change_goal(lines: list[bytes]) -> list[bytes]:
    return rewrite(lines, lambda events: events[0]["payload"].update(goal="Another"))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("damage", "why"),
    [(keep(6), "has 6 events where 7 were written"), (change_goal, "is not what the ledger says of its first 7")],
)
def test_damage_below_the_last_head(
    ledger: PostgresLedger, shared: bool, damage: Callable[[list[bytes]], list[bytes]], why: str
) -> None:
    """Nobody goes on with such a session, with the key or without."""
    with closing(ledger.sink(shared=shared, signer=SIGNER)) as sink, Runtime(ATLAS, trace=sink) as runtime:
        session = runtime.session(keep=True)
        session.call("ticket.get", lambda: 1)
    ledger.put(session.id, damage(ledger.lines(session.id)))
    for signer in (SIGNER, None):
        with closing(ledger.sink(shared=shared, signer=signer)) as sink, pytest.raises(ChainBroken, match=why):
            sink.reopen(session.id)


BEFORE = """
CREATE TABLE cra_layout (version integer NOT NULL);
INSERT INTO cra_layout VALUES (1);
CREATE TABLE cra_sessions (
    number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, session_id text UNIQUE NOT NULL, writer text,
    size bigint NOT NULL DEFAULT 0, events bigint NOT NULL DEFAULT 0);
CREATE TABLE cra_lines (
    session integer NOT NULL REFERENCES cra_sessions, place bigint NOT NULL, sequence bigint, event_type text,
    line bytea NOT NULL, PRIMARY KEY (session, place));
CREATE INDEX cra_by_type ON cra_lines (session, event_type, place);
CREATE TABLE cra_torn (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, session integer NOT NULL REFERENCES cra_sessions,
    place bigint NOT NULL, line bytea NOT NULL);
"""
"""The tables as they were before there was a ledger."""


def test_a_database_of_an_earlier_version(tmp_path: Path) -> None:
    """It is brought up to date while an older process writes to it; what that one wrote goes on, and is signed."""
    lines = lines_of(write_trace(tmp_path))
    session_id = next(tmp_path.glob("*.trace.jsonl")).name.split(".")[0]
    opened, rest = lines[:5], lines[5:-1]

    def add(connection: Any, lines: list[bytes], place: int, events: int) -> None:
        rows = rows_of(place, b"".join(lines))
        size = place + sum(map(len, lines))
        connection.execute("UPDATE cra_sessions SET size = %s, events = %s", (size, events))
        for row in rows:
            connection.execute("INSERT INTO cra_lines SELECT number, %s, %s, %s, %s FROM cra_sessions", row)

    with database() as conninfo, psycopg.connect(conninfo, autocommit=True) as older:
        older.execute(BEFORE)
        older.execute("INSERT INTO cra_sessions (session_id, writer) VALUES (%s, 'shared')", (session_id,))
        add(older, opened, 0, len(opened))
        with older.transaction():
            add(older, rest, sum(map(len, opened)), len(opened) + len(rest))  # it is in the middle of an append
            sink = PostgresSink(conninfo, timeout_seconds=2, shared=True, signer=SIGNER)
        assert older.execute("SELECT version FROM cra_layout").fetchall() == [(4,)]
        with Runtime(ATLAS, trace=sink) as runtime:
            with runtime.resume(session_id) as session:
                session.call("ticket.get", lambda: 1)
            assert session.verify().sealed
        sink.close()
        with closing(PostgresSink(conninfo)) as sink:
            [entry] = sink.read_book() or []
            assert (entry.session_id, entry.size) == (session_id, sink.count(session_id))
