"""One chain from many threads, what is owed goes first, and no file can make a reader take up the memory."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime, verify
from cra_middleware._ids import new_id
from cra_middleware.errors import AuditUnavailable, SinkError
from cra_middleware.testing import FailingSink, FrozenClock
from cra_middleware.trace import chain
from cra_middleware.trace import writer as writer_module
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.payloads import render
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.shared import EndedElsewhereError
from cra_middleware.trace.sink import Sink
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemoryLog, MemorySink
from cra_middleware.trace.storage import segments
from cra_middleware.trace.writer import ChainWriter, Draft
from tests.conftest import NOON, manifest
from tests.trace.forge import lines_of, parse, write_trace

THREADS, EVENTS = 8, 200


@contextmanager
def restless() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def together(*works: Callable[[], object]) -> list[object]:
    """The results of functions that begin at the same moment."""
    gate = threading.Barrier(len(works))

    def begin(work: Callable[[], object]) -> object:
        gate.wait(5)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(20) for future in [pool.submit(begin, work) for work in works]]


def started(sink: Sink, clock: FrozenClock | None = None) -> ChainWriter:
    """The writer of a new session."""
    session_id = new_id()
    writer = ChainWriter(sink.create(session_id), clock or FrozenClock(NOON), session_id, new_id())
    payload = render({"agent_id": "a", "goal": "g"})
    writer.write(Draft(new_id(), None, "session.started", payload, writer.now_us()))
    return writer


def note(writer: ChainWriter, message: str) -> Draft:
    payload = render({"error_code": "note", "message": message})
    return Draft(new_id(), None, "error.occurred", payload, writer.now_us())


def verdict_on(writer: ChainWriter) -> Verdict:
    (verdict,) = verify_lines(writer._log.lines(), writer.session_id)
    return verdict


def messages(writer: ChainWriter) -> list[str]:
    return [str(event["payload"]["message"]) for event in parse(writer._log.lines())[1:]]


@pytest.mark.parametrize("kind", ["jsonl", "memory"])
def test_many_threads(tmp_path: Path, kind: str) -> None:
    """8 threads that write 200 events each write one chain: no gap, no loss, each thread's events in its order."""
    sink: Sink = JsonlSink(tmp_path) if kind == "jsonl" else MemorySink()
    writer = started(sink)

    def work(name: int) -> list[int]:
        return [writer.write(note(writer, f"{name} {number}"))[0].sequence for number in range(EVENTS)]

    with restless():
        taken = together(*(lambda name=name: work(name) for name in range(THREADS)))
    assert sorted(sequence for own in taken for sequence in own) == list(range(1, THREADS * EVENTS + 1))
    assert verdict_on(writer).intact
    assert verdict_on(writer).events == THREADS * EVENTS + 1 == writer.end.sequence
    for name in range(THREADS):
        own = [message for message in messages(writer) if message.startswith(f"{name} ")]
        assert own == [f"{name} {number}" for number in range(EVENTS)]
    writer._log.close()
    sink.close()


def test_many_threads_that_call(tmp_path: Path) -> None:
    """Calls of many threads, some refused, leave one sealed chain in which each call's story is whole."""

    def work() -> None:
        for number in range(25):
            session.call("ticket.get", lambda n: n, number)
            with pytest.raises(Exception, match="Never"):
                session.call("ticket.delete", lambda: None)

    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path) as runtime, runtime.session() as session, restless():
        together(*[work] * THREADS)
    path = tmp_path / f"{session.id}.trace.jsonl"
    assert str(verify(path).sessions[0]) == "INTACT, SEALED"
    kinds = [event["event_type"] for event in parse(lines_of(path))]
    assert kinds.count("action.requested") == 2 * 25 * THREADS
    assert kinds.count("action.executed") == kinds.count("action.denied") == 25 * THREADS


def test_a_batch_is_all_or_nothing() -> None:
    """Entries that are written together are kept together, or none of them is and no number is used up."""
    sink = FailingSink()
    writer = started(sink)
    before = writer.end
    sink.failing = True
    with pytest.raises(SinkError):
        writer.write(note(writer, "a"), note(writer, "b"))
    assert writer.end == before
    sink.failing = False
    assert [sealed.sequence for sealed in writer.write(note(writer, "c"), note(writer, "d"))] == [1, 2]
    assert messages(writer) == ["c", "d"]
    assert writer.write() == ()
    assert verdict_on(writer).intact


def test_nothing_follows_the_last_event() -> None:
    """Neither of another thread's, nor what is owed: a chain that goes on behind its end is broken."""
    sink = MemorySink()
    writer = started(sink)
    ending = render({"reason": "completed"})
    writer.write(Draft(new_id(), None, "session.ended", ending, writer.now_us()))
    before = writer.end
    for write in (writer.write, writer.write_or_owe):
        with pytest.raises(EndedElsewhereError):
            write(note(writer, "late"))
    with pytest.raises(EndedElsewhereError):
        writer.settle()
    assert writer.end == before


def test_what_is_owed_goes_first() -> None:
    """Owed events are written before anything else, in their order; while they cannot be kept, nothing is."""
    sink = FailingSink()
    writer = started(sink)
    sink.failing = True
    with pytest.raises(SinkError):
        writer.write_or_owe(note(writer, "outcome 1"))
    writer.owe(note(writer, "outcome 2"))
    for _ in range(2):
        with pytest.raises(SinkError):
            writer.write(note(writer, "refused"))
    with pytest.raises(SinkError):
        writer.settle()
    with pytest.raises(SinkError):
        writer.write_or_owe(note(writer, "outcome 3"))
    assert messages(writer) == []
    sink.failing = False
    kept = writer.write(note(writer, "decision"))
    assert [sealed.sequence for sealed in kept] == [1, 2, 3, 4]
    assert messages(writer) == ["outcome 1", "outcome 2", "outcome 3", "decision"]
    assert writer.settle() == ()
    assert verdict_on(writer).intact


def test_owing_takes_no_lock() -> None:
    """A finaliser may run in the middle of a write, in the very thread that holds the lock."""
    writer = started(MemorySink())
    with writer._lock:
        writer.owe(note(writer, "late"))
    assert [sealed.sequence for sealed in writer.settle()] == [1]
    assert messages(writer) == ["late"]


def test_a_write_in_the_middle_of_a_write() -> None:
    """A finaliser that writes in the thread that is writing is refused and not left waiting; a debt is noted."""
    writer = started(MemorySink())
    inner: list[str] = []

    class Reentrant(MemoryLog):
        def append(self, offset: int, data: bytes, events: int, /) -> None:
            if not inner:
                inner.append("began")
                for write in (writer.write, writer.write_or_owe):
                    with pytest.raises(SinkError, match="in the middle"):
                        write(note(writer, "inner"))
            super().append(offset, data, events)

    kept = writer._log
    writer._log = Reentrant()
    writer._log._chunks, writer._log._size = kept._chunks, kept._size
    writer.write(note(writer, "outer"))
    writer.write(note(writer, "next"))
    assert inner == ["began"]
    assert messages(writer) == ["outer", "inner", "next"]
    assert verdict_on(writer).intact


def test_two_that_settle() -> None:
    """Of two threads that settle at once, one writes and the other finds nothing left to do."""
    writer = started(MemorySink())
    writer._lock.acquire()
    writer.owe(note(writer, "late"))
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(writer.settle) for _ in range(2)]
        while not all(future.running() for future in futures):
            pass
        threading.Event().wait(0.05)  # both are at the lock now, or come to it later: the outcome is the same
        writer._lock.release()
        assert sorted(len(future.result(5)) for future in futures) == [0, 1]
    assert messages(writer) == ["late"]


def test_finalisers_while_others_write() -> None:
    """Nothing that is owed while other threads write is lost or written twice."""
    writer = started(MemorySink())

    def owe() -> None:
        for number in range(EVENTS):
            writer.owe(note(writer, f"owed {number}"))

    def write() -> None:
        for number in range(EVENTS):
            writer.write(note(writer, f"written {number}"))
            writer.settle()

    with restless():
        together(owe, owe, write, write)
    writer.settle()
    assert sorted(messages(writer)) == sorted(
        f"{kind} {number}" for kind in ("owed", "written") for number in range(EVENTS) for _ in range(2)
    )
    assert verdict_on(writer).intact


@given(st.lists(st.integers(-5_000, 5_000), min_size=1, max_size=20))
def test_the_clock_of_a_chain(steps: list[int]) -> None:
    """Time never runs back in a chain: a clock that does repeats the last time."""
    clock = FrozenClock(NOON)
    writer = started(MemorySink(), clock)
    times = [writer.now_us()]
    for step in steps:
        clock._us += step
        times.append(writer.now_us())
        assert times[-1] == max(times[-2], clock._us + (clock._us % 1000 == 0))
        writer.write(note(writer, "x"))
    assert verdict_on(writer).intact


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Writer and reader with a limit that is quickly reached."""
    for module in (chain, writer_module):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 5000)
    return 5000


def test_an_event_that_no_reader_takes(limit: int) -> None:
    """An event longer than a reader's limit is refused by the writer; the longest that is read is written."""
    writer = started(MemorySink())
    before = writer.end
    writer.write(note(writer, ""))
    base = writer.end.offset - before.offset
    with pytest.raises(SinkError, match="longer than"):
        writer.write(note(writer, "é" * (limit // 2 - base // 2 + 1)))
    with pytest.raises(SinkError, match="longer than"):
        writer.write(note(writer, "short"), note(writer, "x" * (limit - base + 1)))
    writer.write(note(writer, "x" * (limit - base)), note(writer, "short"))
    assert verdict_on(writer).intact
    assert verdict_on(writer).events == 4


def test_values_too_long_to_record(tmp_path: Path, limit: int) -> None:
    """Facts that make an event too long stop the session from beginning, not its file from being read."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, record="full") as runtime:
        with pytest.raises(SinkError, match="longer than"):
            runtime.session(context={"k": "x" * limit})
        with runtime.session() as session:
            with pytest.raises(AuditUnavailable):
                session.call("x" * limit, lambda: None)
            session.call("ticket.get", lambda: None)
        assert session.verify().sealed


@pytest.fixture
def small_memory() -> Iterator[None]:
    """The test may not hold more than three lines of the greatest length at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(("place", "ending"), [(0, b'"}\n'), (1, b"\n"), (-1, b""), (-1, b'"}\n')])
def test_a_line_of_100_mb(tmp_path: Path, place: int, ending: bytes) -> None:
    """A line of 100 MB is a finding at its place, read in small memory, wherever it stands."""
    lines = lines_of(write_trace(tmp_path, calls=0))
    place %= len(lines)
    path = tmp_path / "long.trace.jsonl"
    with path.open("wb") as file:
        file.writelines(lines[:place])
        file.write(lines[place][:-10])
        file.truncate(file.tell() + 100_000_000)  # a hole: zeros that take no space
        file.seek(0, 2)
        file.write(ending)
        file.writelines(lines[place + 1 :] if ending else [])
    (verdict,) = verify(path).sessions
    assert verdict.error is not None
    assert (verdict.error.kind, verdict.error.sequence) == ("malformed_event", place)
    assert "longer than" in verdict.error.message


@pytest.mark.usefixtures("small_memory")
def test_a_file_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that gives bytes for ever is a finding, too."""
    monkeypatch.setattr(segments, "_MAX_PASSED_OVER", 1 << 24)
    (verdict,) = verify("/dev/zero").sessions
    assert verdict.error is not None
    assert "longer than" in verdict.error.message


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("opening", ['{"k":', "["])
@pytest.mark.parametrize("whole", [True, False], ids=["event", "bare"])
@pytest.mark.parametrize("place", [0, 1])
def test_json_nested_100_000_deep(tmp_path: Path, opening: str, whole: bool, place: int) -> None:
    """A line nested 100,000 deep, alone or as a payload in our own form, is a finding, not a crash."""
    path = write_trace(tmp_path, calls=0)
    lines = lines_of(path)
    nested = opening * 100_000 + "1" + ("]" if opening == "[" else "}") * 100_000
    if whole:
        before, _, after = lines[place].partition(b'"payload":{')
        lines[place] = before + b'"payload":{"k":' + nested.encode() + b"}," + after.partition(b"},")[2]
    else:
        lines[place] = nested.encode() + b"\n"
    path.write_bytes(b"".join(lines))
    (verdict,) = verify(path).sessions
    assert verdict.error is not None
    assert (verdict.error.kind, verdict.error.sequence) == ("malformed_event", place)
    assert len(verdict.error.message) < 200


@given(
    st.lists(
        st.sampled_from([b"\n", b"a", b"bcd", b"0123456789", b"\r", b"\xe2\x80\xa8", b"\x85\x0b\x0c"]), max_size=30
    )
)
def test_how_a_file_is_split(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    """Lines end at the newline byte only; of one that is too long, the first part comes and the rest is passed over."""
    data = b"".join(parts)
    path = tmp_path_factory.getbasetemp() / "split.jsonl"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "MAX_LINE_BYTES", 10)
        found = list(segments.read_lines(path))
    lines = data.split(b"\n")
    whole = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    assert found == [line[:11] for line in whole]
