"""One contract for every sink, and one suite that holds them to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware._ids import new_id
from cra_middleware.errors import AuditUnavailable, SinkError
from cra_middleware.testing import FailingSink
from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.query import place_of, select
from cra_middleware.trace.sink import Query
from tests.conftest import manifest
from tests.trace.places import ACROSS_PROCESSES, NAMES, SURVIVE_KILL, Place, in_child, place

ID = "01900000-0000-7000-8000-00000000000a"
ATLAS = Atlas.from_dict(manifest())


@pytest.fixture(params=NAMES)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each kind of place, one after the other."""
    with place(request.param, tmp_path) as made:
        yield made


def test_the_contract_of_a_sink(where: Place) -> None:
    """Create, append, roll back, reopen, set aside: the same answers everywhere."""
    hold_to_the_contract(where.open())


def test_the_contract_of_a_failing_sink() -> None:
    """The sink for tests keeps the contract while it is not told to fail."""
    hold_to_the_contract(FailingSink())


def hold_to_the_contract(sink: Any) -> None:
    assert sink.session_ids() == []
    with pytest.raises(SinkError):
        sink.reopen(ID)
    log = sink.create(ID)
    assert log.noted_durable in (None, 0)
    for again in (sink.create, sink.reopen):
        with pytest.raises(SinkError):
            again(ID)
    assert list(log.lines()) == []
    log.append(0, b"one\n", 1)
    log.append(4, b"two\nthree\n", 3)
    assert list(log.lines()) == [b"one\n", b"two\n", b"three\n"]
    log.append(4, b"2\n", 2)
    assert list(log.lines()) == [b"one\n", b"2\n"]
    log.append(4, b"", 1)
    assert list(log.lines()) == [b"one\n"]
    log.append(4, b"2\n", 2)
    log.flush()
    assert log.durable_events == 2
    log.append(6, b"torn\x85 line\x00", 2)
    log.flush()
    log.close()
    log.close()
    with pytest.raises(SinkError):
        log.append(6, b"late\n", 3)
    assert sink.session_ids() == [ID]

    again = sink.reopen(ID)
    assert list(again.lines()) == [b"one\n", b"2\n", b"torn\x85 line\x00"]
    assert again.noted_durable in (None, 0, 2)
    assert again.set_aside(17).size == 0
    torn = again.set_aside(6)
    assert torn.size == 11
    assert again.set_aside(6) == torn  # nothing was appended there: it is still to be recorded
    assert list(again.lines()) == [b"one\n", b"2\n"]
    again.append(6, b"four\n", 3)
    assert again.set_aside(11).size == 0
    again.close()
    assert list(again.lines()) == [b"one\n", b"2\n", b"four\n"]
    sink.close()


def test_bytes_are_kept_as_they_are(where: Place) -> None:
    """U+2028, emoji, NUL, bytes that are no UTF-8, and a line of a megabyte come back as they went in."""
    lines = ["\u2028 inside\n".encode(), "🙂 \u0085 é\n".encode(), b"\x00\xff\xfe\r\n", b"x" * (1 << 20) + b"\n", b"\n"]
    sink = where.open()
    log = sink.create(ID)
    log.append(0, b"".join(lines[:2]), 2)
    log.append(sum(map(len, lines[:2])), b"".join(lines[2:]), 5)
    assert list(log.lines()) == lines
    log.flush()
    assert list(sink.lines(ID)) == lines
    assert sink.count(ID) == 5
    log.close()
    if where.arrived is not None:
        assert where.arrived(ID) == lines


@pytest.mark.parametrize("name", NAMES)
def test_the_offset_is_the_truth(name: str) -> None:
    """Whatever is written and taken back, the log holds what stands before the last offset, and what came there."""
    step = st.tuples(st.integers(0, 3), st.lists(st.binary(max_size=9).map(_as_line), min_size=0, max_size=3))

    with TemporaryDirectory() as folder, place(name, Path(folder)) as made:
        sink = made.open()

        @settings(max_examples=20)
        @given(st.lists(step, max_size=6), st.booleans())
        def holds(steps: list[tuple[int, list[bytes]]], flushes: bool) -> None:
            log, model = sink.create(session_id := new_id()), list[bytes]()
            is_cut = False
            try:
                for back, lines in steps:
                    is_cut |= back > 0 and bool(model)
                    model = model[: max(0, len(model) - back)]
                    offset = sum(map(len, model))
                    model += lines
                    log.append(offset, b"".join(lines), len(model))
                    if flushes:
                        log.flush()
                        assert log.durable_events == len(model)
                    assert log.durable_events <= len(model)
                    assert list(log.lines()) == model
            except SinkError as error:  # the other side had seen already what was taken back, and says so
                assert made.arrived is not None
                assert is_cut
                assert "or was changed" in str(error)
                return
            finally:
                log.close()
            if made.arrived is None and any(lines for _, lines in steps):  # one that nothing came to may be gone
                assert list(sink.lines(session_id)) == model

        holds()


def _as_line(data: bytes) -> bytes:
    return data.replace(b"\n", b" ") + b"\n"


def write_session(sink: Any, calls: int = 3) -> str:
    """A whole session of a runtime; its id."""
    with Runtime(ATLAS, trace=sink) as runtime, runtime.session(goal="a \u2028 🙂 goal") as session:
        for _ in range(calls):
            session.call("ticket.get", lambda: None)
        assert session.verify().intact
    assert str(session.verify()) == "INTACT, SEALED"
    return str(session.id)


def test_a_session_of_a_runtime(where: Place) -> None:
    """A runtime's session verifies at every place, also at the far end, and a second one beside it."""
    for _ in range(2):
        session_id = write_session(where.open())
        if where.arrived is not None:
            assert str(verify_lines(where.arrived(session_id), session_id)[0]) == "INTACT, SEALED"
        if where.name != "http":  # there it is gone from the spool once it has arrived, and nobody looks at it
            assert str(verify_lines(where.open().lines(session_id), session_id)[0]) == "INTACT, SEALED"


QUERIES = [
    *(Query(), Query("action.executed"), Query(since_sequence=4), Query("action.requested", 4), Query(last=2)),
    *(Query("action.approved", last=1), Query("action.approved", 5, 99), Query(last=0), Query(last=-1)),
    *(Query("no.such"), Query("'; --"), Query(since_sequence=10**30), Query(since_sequence=-5), Query(last=10**30)),
]


def test_questions(where: Place) -> None:
    """By type, since a sequence, the last n, how many, which sessions: the same answers as from the lines."""
    sink = where.open()
    runtime = Runtime(ATLAS, trace=sink)
    sessions = [runtime.session() for _ in range(2)]
    for session in sessions:
        for _ in range(3):
            session.call("ticket.get", lambda: None)
    for session in sessions:
        lines = list(sink.lines(session.id))
        assert [place_of(line).sequence for line in lines] == list(range(len(lines)))
        assert sink.count(session.id) == len(lines) > 10
        for query in QUERIES:
            assert list(sink.find(session.id, query)) == list(select(lines, query)), query
        assert len(list(sink.find(session.id, Query("action.executed")))) == 3
    session_ids = [session.id for session in sessions]
    assert sink.session_ids() == sorted(session_ids)
    assert sink.count(new_id()) == 0
    for ask in (sink.lines, lambda one: sink.find(one, Query())):
        with pytest.raises(SinkError):
            list(ask(new_id()))
    assert sink.health().ok, sink.health()
    assert sink.health().detail
    runtime.close()


@pytest.mark.parametrize(
    "session_id",
    [
        *("../x", "a/b", "", ".", ID.upper(), ID + "\0", ID + "\n", "\0", f"../{ID}", f" {ID}", ID[:-1], ID + "0"),
        *("'; DROP TABLE cra_lines; --", "０1900000-0000-7000-8000-00000000000a", "\ud800", "x" * 100_000),
    ],
)
@pytest.mark.parametrize("name", ["jsonl", "sqlite", "postgres", "http", "buffered-sqlite", "tee"])
def test_hostile_session_ids(tmp_path: Path, places: dict[str, Any], name: str, session_id: str) -> None:
    """Only a lower-case UUID names a session; anything else is refused before it is used."""
    sink = places[name]
    for use in (sink.create, sink.reopen, sink.lines, sink.count, lambda one: sink.find(one, Query())):
        with pytest.raises(SinkError, match="UUID"):
            use(session_id)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One open sink of each kind, for tests that write nothing."""
    made = {name: place(name, tmp_path_factory.mktemp(name)) for name in NAMES}
    yield {name: one.__enter__().open() for name, one in made.items()}
    for one in made.values():
        one.__exit__(None, None, None)


def test_threads(where: Place) -> None:
    """Eight threads write eight sessions at once, and each is whole."""
    problems: list[BaseException] = []
    sink = where.open()
    with Runtime(ATLAS, trace=sink) as runtime:

        def work() -> None:
            try:
                with runtime.session() as session:
                    for _ in range(5):
                        session.call("ticket.get", lambda: None)
                assert str(session.verify()) == "INTACT, SEALED"
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


@pytest.mark.parametrize("name", ACROSS_PROCESSES)
def test_a_second_writer(tmp_path: Path, name: str) -> None:
    """While a session has a writer, no other gets it, in this process or another; then anybody does."""
    with place(name, tmp_path) as where:
        sink = where.open()
        log = sink.create(ID)
        log.append(0, b"one\n", 1)
        log.flush()
        with pytest.raises(SinkError, match="another"):
            where.open().reopen(ID)
        assert in_child(lambda: where.open().reopen(ID)) == "SinkError"
        log.append(4, b"two\n", 2)
        log.close()
        if name == "http":  # a process has the spool to itself
            sink.close()
        again = where.open().reopen(ID)
        assert list(again.lines()) == [b"one\n", b"two\n"]
        again.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_forked_child(tmp_path: Path, name: str) -> None:
    """A forked child neither writes, nor carries on, nor closes what is its parent's; the parent goes on."""
    with place(name, tmp_path) as where:
        sink = where.open()
        with Runtime(ATLAS, trace=sink) as runtime, runtime.session() as session:
            session.call("ticket.get", lambda: None)
            if name != "memory":  # a child's memory is its own
                assert in_child(lambda: session.call("ticket.get", lambda: print("ran"))) == "AuditUnavailable"
                assert in_child(runtime.close) == "None"
            session.call("ticket.get", lambda: None)
        assert str(session.verify()) == "INTACT, SEALED"
        assert session.verify().events == 11


def test_a_child_has_sessions_of_its_own(tmp_path: Path) -> None:
    """The stores that several processes share can be used in a forked child, with sessions of its own."""
    for name in ("jsonl", "sqlite", "postgres", "buffered-sqlite"):
        (folder := tmp_path / name).mkdir()
        with place(name, folder) as where:
            sink = where.open()
            log = sink.create(ID)
            assert in_child(lambda sink=sink: verify_lines(_own(sink))[0]) == "INTACT, SEALED"
            log.append(0, b"one\n", 1)
            log.close()
            assert len(sink.session_ids()) == 2


def _own(sink: Any) -> list[bytes]:
    with Runtime(ATLAS, trace=sink) as runtime:
        with runtime.session() as session:
            session.call("ticket.get", lambda: None)
        return list(sink.lines(session.id))


def write_until_killed(sink: Any, session_id: str | None, out: int) -> None:
    """Call tools without end; tell the id, then every sequence that was accepted."""
    runtime = Runtime(ATLAS, trace=sink)
    session = runtime.resume(session_id) if session_id else runtime.session()
    os.write(out, f"{session.id}\n".encode())
    while True:
        session.call("ticket.get", lambda: None)
        os.write(out, f"{session._writer.end.sequence}\n".encode())


@pytest.mark.parametrize("name", SURVIVE_KILL)
def test_kill_9(tmp_path: Path, name: str) -> None:
    """No accepted event is lost when the process is killed, and the next process goes on with the chain."""
    session_id: str | None = None
    with place(name, tmp_path) as where:
        for wanted in (1, 2, 25, 7):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    write_until_killed(where.open(), session_id, writing)
                finally:
                    os._exit(1)
            os.close(writing)
            with open(reading) as pipe:
                session_id = pipe.readline().strip()
                for _ in range(wanted):
                    pipe.readline()
                os.kill(pid, signal.SIGKILL)  # it is in the middle of whatever comes next
                accepted = [int(line) for line in pipe if line.endswith("\n")]
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            sink = where.open()
            (verdict,) = verify_lines(sink.lines(session_id), session_id)
            sink.close()
            assert verdict.events >= max(accepted, default=wanted)
            assert verdict.error is None or verdict.error.kind == "truncated"
        assert session_id is not None
        with Runtime(ATLAS, trace=where.open()) as runtime:
            runtime.resume(session_id).end()
        lines = where.arrived(session_id) if where.arrived is not None else where.open().lines(session_id)
        assert verify_lines(lines, session_id)[0].sealed


def test_after_the_end(where: Place) -> None:
    """A closed log takes nothing, and a tool whose decision cannot be kept does not run."""
    with Runtime(ATLAS, trace=where.open()) as runtime:
        session = runtime.session()
        session._log.close()
        with pytest.raises(AuditUnavailable):
            session.call("ticket.get", lambda: pytest.fail("ran"))
