"""Sessions of a database whose time is over: what goes, what stays, and what can still be told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware._clock import parse_us
from cra_middleware.errors import SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.evidence.pruning import PrunedSession, prune_folder
from cra_middleware.evidence.pruning_rows import prune_rows
from cra_middleware.evidence.reports import FolderReport
from cra_middleware.evidence.session import Subject, verify_session
from cra_middleware.evidence.traces import StoreRecord, StoreTraces
from cra_middleware.sinks_by_name import open_existing
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.note import Signer
from cra_middleware.trace.pruned import Pruned, PrunedError
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.sinks.sqlite import SqliteSink
from tests.conftest import NOON, manifest
from tests.trace.ledger.ledgers import PostgresLedger
from tests.trace.test_profiles import published

SIGNER = Signer("example.com/bot", bytes(32))
ATLAS = Atlas.from_dict(manifest())
DAY = 86_400.0
GOAL = "Call Mrs. Example"


class Place:
    """A database, signed where it can be."""

    def __init__(self, folder: Path, kind: str, stack: ExitStack) -> None:
        self.folder = folder
        self.is_signed = kind == "signed"
        self.ledger = None if kind == "sqlite" else PostgresLedger(folder, stack)
        self.address = f"sqlite:{folder}/odd 'name;--.db" if self.ledger is None else self.ledger.address
        self.key = SIGNER.verifier if self.is_signed else None

    def sink(self, **terms: Any) -> Any:
        if self.ledger is None:
            return SqliteSink(self.address.removeprefix("sqlite:"))
        return self.ledger.sink(**{"signer": SIGNER if self.is_signed else None, **terms})

    def record(self, day: float = 0, *, ends: bool = True, **terms: Any) -> str:
        """A session of one day."""
        clock = FrozenClock(NOON)
        clock.advance(day * DAY)
        with Runtime(ATLAS, trace=self.sink(**terms), clock=clock) as runtime:
            session = runtime.session("bot'); DROP TABLE cra_lines; --", GOAL, keep=not ends)
            session.call("ticket.get", lambda: None)
        return str(session.id)

    def prune(self, days: float = 30, **more: Any) -> list[PrunedSession]:
        with closing(open_existing(self.address)) as store:
            assert isinstance(store, (PostgresSink, SqliteSink))
            before_us = parse_us(NOON) + int(days * DAY * 1_000_000)
            key = more.pop("key", self.key)
            return list(prune_rows(StoreTraces(store, "it"), store, key, before_us, **more))

    def verified(self, head: bytes | None = None) -> FolderReport:
        with closing(open_existing(self.address)) as store:
            return verify_folder(StoreTraces(store, "it"), Against(self.key, head))

    def head(self) -> bytes | None:
        return None if self.ledger is None else self.ledger.head()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        if self.ledger is not None:
            return self.ledger.execute(statement)
        import sqlite3

        with closing(sqlite3.connect(self.address.removeprefix("sqlite:"))) as connection, connection:
            return connection.execute(statement.replace("cra_", "")).fetchall()


@pytest.fixture(params=["signed", "unsigned", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, request.param, stack)


@pytest.fixture
def signed(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, "signed", stack)


def test_the_rest_still_verifies(place: Place) -> None:
    """Old sessions are hashes, others are whole, heads that were taken before still count; once is enough."""
    old, young = place.record(), place.record(20)
    head = place.head()
    whole = place.verified(head)
    assert whole.intact
    (found,) = place.prune(10)
    assert (found.session_id, found.why_not, found.files) == (old, None, ())
    assert found.bytes > 1000
    report = place.verified(head)
    assert report.intact
    assert report.missing == ()
    by_id = {session.session_id: session for session in report.sessions}
    assert str(by_id[old]).startswith(f"PRUNED: {found.events} events were removed, and their hashes kept")
    assert by_id[young] == next(session for session in whole.sessions if session.session_id == young)
    if place.is_signed:
        assert all(session.signed and session.sealed for session in report.sessions)
    assert place.prune(10) == []
    assert len(place.sql("SELECT line FROM cra_lines")) == found.events
    with closing(place.sink()) as sink:
        assert sink.session_ids() == [young]


def test_nothing_of_it_is_left_in_the_file(place: Place) -> None:
    """What is removed from a SQLite file is overwritten there."""
    if place.ledger is not None:
        return
    for _ in range(20):
        place.record()
    assert any(GOAL.encode() in path.read_bytes() for path in place.folder.iterdir())
    place.prune()
    for path in place.folder.iterdir():
        assert GOAL.encode() not in path.read_bytes(), path


def test_the_id_stays_taken(place: Place) -> None:
    """Nobody begins or opens a session that was pruned."""
    old = place.record()
    place.prune()
    for terms in ({}, {"shared": True}):
        with closing(place.sink(**terms)) as sink:
            for work in (sink.create, sink.reopen, sink.lines):
                with pytest.raises(PrunedError, match="was pruned: take another id"):
                    work(old)
            assert sink.count(old) == 0


def test_the_id_stays_taken_in_a_folder(tmp_path: Path) -> None:
    """As in a database."""
    with Runtime(ATLAS, trace=JsonlSink(tmp_path, signer=SIGNER), clock=FrozenClock(NOON)) as runtime:
        session = runtime.session("bot")
        session.end()
    before_us = parse_us(NOON) + 1_000_000
    assert prune_folder(tmp_path, SIGNER.verifier, before_us)[0].files
    with closing(JsonlSink(tmp_path)) as sink:
        for work in (sink.create, sink.reopen):
            with pytest.raises(PrunedError, match="was pruned: take another id"):
                work(session.id)


@pytest.mark.parametrize("how", ["open", "changed", "cut", "unsigned"])
def test_what_is_kept(place: Place, how: str) -> None:
    """A session that was not ended, was changed, or is not signed loses nothing, and the reason is told."""
    unsigned = {"signer": None} if how == "unsigned" and place.ledger is not None else {}
    place.record(ends=how != "open", **unsigned)
    if how == "changed":
        changed = "replace(encode(line, 'escape'), 'ticket.get', 'ticket.bet')::bytea"
        other = "CAST(replace(CAST(line AS TEXT), 'ticket.get', 'ticket.bet') AS BLOB)"
        place.sql(f"UPDATE cra_lines SET line = {changed if place.ledger is not None else other}")
    if how == "cut":
        place.sql("DELETE FROM cra_lines WHERE sequence = (SELECT max(sequence) FROM cra_lines)")
    before = place.sql("SELECT * FROM cra_lines ORDER BY place")
    key = SIGNER.verifier if how == "unsigned" else place.key
    (found,) = place.prune(key=key)
    words = {"open": "was not ended", "changed": "BROKEN", "cut": "CHANGED|not ended", "unsigned": "no signed head"}
    assert found.why_not is not None
    assert any(word in found.why_not for word in words[how].split("|"))
    assert found.events == 0
    assert place.sql("SELECT * FROM cra_lines ORDER BY place") == before
    assert place.prune(-1, key=key) == []  # nothing of it is old


def test_a_signed_place_wants_its_key(signed: Place) -> None:
    """Without a key only what was never signed goes."""
    signed.record()
    with pytest.raises(SinkError, match="is signed: name the key"):
        signed.prune(key=None)
    assert len(signed.verified().sessions) == 1
    folder = signed.folder / "t"
    with Runtime(ATLAS, trace=JsonlSink(folder, signer=SIGNER), clock=FrozenClock(NOON)) as runtime:
        runtime.session("bot").end()
    with pytest.raises(SinkError, match="is signed: name the key"):
        prune_folder(folder, None, parse_us(NOON) + 1_000_000)


def test_a_rehearsal_removes_nothing(place: Place) -> None:
    """It says what would go, exactly."""
    place.record()
    before = place.sql("SELECT * FROM cra_lines ORDER BY place")
    told = place.prune(is_rehearsal=True)
    assert place.sql("SELECT * FROM cra_lines ORDER BY place") == before
    assert place.prune() == told


def test_a_hand_is_still_noticed(signed: Place) -> None:
    """A session that somebody deletes is missing, and a kept hash that somebody changes or removes is told."""
    names = [signed.record() for _ in range(3)]
    head = signed.head()
    signed.prune()
    young = signed.record(40)
    assert signed.verified(head).intact
    signed.sql(f"DELETE FROM cra_lines; DELETE FROM cra_sessions WHERE session_id = '{young}'")
    (missing,) = signed.verified(head).missing
    assert young in missing
    kept = "session = (SELECT number FROM cra_sessions WHERE session_id = '{}')"
    signed.sql(
        f"UPDATE cra_pruned SET hashes = overlay(hashes placing '\\x00'::bytea from 5) WHERE {kept.format(names[0])}"
    )
    signed.sql(f"UPDATE cra_pruned SET hashes = substr(hashes, 1, 33) WHERE {kept.format(names[1])}")
    signed.sql(f"DELETE FROM cra_pruned WHERE {kept.format(names[2])}")
    report = signed.verified(head)
    assert not any(session.intact for session in report.sessions if session.session_id in names)
    assert {session.session_id for session in report.sessions} == set(names[:2])
    assert any(names[2] in missing for missing in report.missing)


def test_what_a_process_has_open(place: Place) -> None:
    """It stays until that lets go of it, or dies."""
    old = place.record()
    with closing(place.sink()) as sink:
        log = sink.reopen(old)
        (found,) = place.prune()
        assert found.why_not == "a process has it open"
        log.close()
    assert place.prune()[0].events


def test_what_a_transaction_has(signed: Place) -> None:
    """Nothing waits for a session's row, and nobody else's row is waited for."""
    import psycopg

    assert signed.ledger is not None
    old, other = signed.record(), signed.record()
    with psycopg.connect(signed.ledger.conninfo) as connection:
        connection.execute(f"SELECT FROM cra_sessions WHERE session_id = '{old}' FOR UPDATE")
        found = {session.session_id: session for session in signed.prune()}
        assert found[old].why_not == "another process is at it just now"
        assert found[other].events


def test_a_session_that_changed_meanwhile(place: Place) -> None:
    """The removal is all of what was verified, or nothing."""
    old = place.record()
    count = len(place.sql("SELECT 1 FROM cra_lines"))
    with closing(place.sink()) as sink:
        assert sink.prune(old, Pruned(bytes(32 * (count - 1)))) == "it was changed while it was looked at"
        assert sink.count(old) == count
        assert sink.session_ids() == [old]
        assert sink.prune(old, Pruned(bytes(32 * count))) is None
        with pytest.raises(PrunedError):
            sink.prune(old, Pruned(bytes(32 * count)))


def test_who_opens_it_at_that_moment(signed: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between finding a session and taking it, it may be pruned: nobody takes it then."""
    old = signed.record()
    sink = signed.sink(signer=None)
    real = sink._link.lock

    def lock(*terms: Any) -> bool:
        monkeypatch.setattr(sink._link, "lock", real)
        assert signed.prune()[0].events
        return bool(real(*terms))

    with closing(sink):
        monkeypatch.setattr(sink._link, "lock", lock)
        with pytest.raises(PrunedError):
            sink.reopen(old)
    assert signed.verified().intact


def test_who_verifies_at_that_moment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a session while it is pruned does not call it changed."""
    old = place.record()
    real: Callable[..., Iterator[bytes]] = StoreRecord.lines

    def lines(record: StoreRecord, first: int) -> Iterator[bytes]:
        monkeypatch.setattr(StoreRecord, "lines", real)
        assert place.prune()[0].events
        return real(record, first)

    monkeypatch.setattr(StoreRecord, "lines", lines)
    with closing(open_existing(place.address)) as store:
        record = StoreTraces(store, "it").record(old)
        (report,) = verify_session(Subject(record, (), 0))
    assert str(report).startswith("PRUNED")


def test_names_that_are_no_ids(place: Place) -> None:
    """What somebody planted among the sessions is passed by."""
    place.record()
    durable = "" if place.ledger is not None else ", durable"
    for name in ("../../etc/passwd", "x''; DROP TABLE cra_lines; --", "\x1b[31m"):
        place.sql(f"INSERT INTO cra_sessions (session_id{durable}) VALUES ('{name}'{', 0' if durable else ''})")
    place.sql(
        "INSERT INTO cra_lines (session, place, line) SELECT number, 0, line FROM cra_sessions CROSS JOIN "
        "(SELECT line FROM cra_lines LIMIT 1) AS taken WHERE session_id = '../../etc/passwd'"
    )
    assert [session.why_not for session in place.prune()] == [None]
    assert len(place.sql("SELECT 1 FROM cra_lines")) == 1


def test_what_another_implementation_recorded(place: Place) -> None:
    """It stays, as in a folder: nobody asked for its hashes to be kept as ours."""
    events = published()
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    with closing(place.sink(signer=None)) as sink:
        log = sink.create(str(events[0]["session_id"]))
        log.append(0, b"".join(lines), len(lines))
        log.close()
        assert place.prune(key=None) == []
        assert list(sink.lines(str(events[0]["session_id"]))) == lines


def test_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    """It is brought up to date, with what is in it."""
    import sqlite3

    with ExitStack() as stack:
        place = Place(tmp_path, "sqlite", stack)
        old = place.record()
        with closing(sqlite3.connect(place.address.removeprefix("sqlite:"))) as connection, connection:
            connection.execute("DROP TABLE pruned")
            connection.execute("PRAGMA user_version = 7001")
        assert place.prune()[0].session_id == old
        assert str(place.verified().sessions[0]).startswith("PRUNED")


MANY = 100
KILLED = """
import sys
from contextlib import closing
from cra_middleware.evidence.pruning_rows import prune_rows
from cra_middleware.evidence.traces import StoreTraces
from cra_middleware.sinks_by_name import open_existing
from cra_middleware.trace.note import Signer
key = Signer("example.com/bot", bytes(32)).verifier if sys.argv[2] == "signed" else None
with closing(open_existing(sys.argv[1])) as store:
    for _ in prune_rows(StoreTraces(store, "it"), store, key, 2**60):
        print("one", flush=True)
"""


@pytest.mark.slow
def test_killed_in_the_middle(place: Place) -> None:
    """Each session is whole or pruned, and the next prune does the rest."""
    names = [place.record() for _ in range(MANY)]
    kind = "signed" if place.is_signed else "unsigned"
    counts: list[int] = []
    for delay in (0, 0.001, 0.003, 0.006):
        process = subprocess.Popen([sys.executable, "-c", KILLED, place.address, kind], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        report = place.verified()
        assert report.intact
        assert {session.session_id for session in report.sessions} == set(names)
        counts.append(sum(session.verdict is None for session in report.sessions))
    assert 5 <= counts[0] < MANY
    assert counts == sorted(counts)
    end = time.monotonic() + 20
    while found := place.prune():  # the server may hold the killed one's row for a moment
        assert time.monotonic() < end, found
    report = place.verified()
    assert report.intact
    assert [session.verdict for session in report.sessions] == [None] * MANY


@pytest.mark.slow
def test_two_at_once(place: Place) -> None:
    """Each session is removed by one of them, and neither fails."""
    names = [place.record() for _ in range(30)]
    kind = "signed" if place.is_signed else "unsigned"
    command = [sys.executable, "-c", KILLED, place.address, kind]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    place.prune()  # what one had just then, the other passed by
    report = place.verified()
    assert report.intact
    assert [(session.session_id, session.verdict) for session in report.sessions] == [(name, None) for name in names]
