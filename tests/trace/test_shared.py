"""A log that several processes write: one chain, whoever wrote which event, and nothing told twice."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cra_middleware import Atlas, CallRefused, Runtime, SessionEnded
from cra_middleware._clock import SystemClock
from cra_middleware._ids import new_id
from cra_middleware.calls.held_request import OvertakenError
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.let_run import Told
from cra_middleware.trace.payloads import render
from cra_middleware.trace.shared import EndedElsewhereError
from cra_middleware.trace.sink import MovedError, SharedLog, Torn
from cra_middleware.trace.sinks.postgres import PostgresSink
from cra_middleware.trace.writer import ChainWriter, Draft
from tests.conftest import manifest
from tests.trace import postgres_server
from tests.trace.places import in_child


class Board:
    """One log in memory, for several writers; told to, it keeps a batch and says that it did not."""

    def __init__(self) -> None:
        self.data = b""
        self.breaks = 0

    durable_events = 0
    noted_durable = 0
    witnessed_events = 0

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        if offset != len(self.data):
            raise MovedError("others were here")
        self.data += data
        if self.breaks:
            self.breaks -= 1
            raise SinkError("the connection broke behind the commit", is_transient=True)

    def lines_from(self, offset: int, /) -> Iterator[bytes]:
        return iter(self.data[offset:].splitlines(keepends=True))

    def lines(self) -> Iterator[bytes]:
        return self.lines_from(0)

    def set_aside(self, offset: int, /) -> Torn:
        return Torn(0, "")

    def flush(self) -> None: ...

    def close(self) -> None: ...


SESSION, TRACE = new_id(), new_id()


def entry(kind: str = "error.occurred", **payload: Any) -> Draft:
    given = payload or {"error_code": "x", "message": "y"}
    return Draft(new_id(), None, kind, render(given), 1_700_000_000_000_001)  # type: ignore[arg-type]


def writer(board: Board) -> ChainWriter:
    return ChainWriter(board, SystemClock(), SESSION, TRACE)


def begun(board: Board) -> ChainWriter:
    first = writer(board)
    metadata = {"policy_digest": "0" * 64, "canonicalization": "cra-1"}
    first.write(entry("session.started", agent_id="a", goal="g", metadata=metadata))
    return first


def intact(board: Board) -> int:
    """How many events verify; all of them must."""
    verdict = verify_lines(board.lines(), SESSION)[0]
    assert verdict.intact, str(verdict)
    return verdict.events


def test_two_writers_make_one_chain() -> None:
    """Whoever comes late reads on and links anew; each hears what the other wrote."""
    board = Board()
    assert isinstance(board, SharedLog)
    first, second = begun(board), writer(board)
    heard: list[str] = []
    second.heard_by(lambda event: heard.append(event.event_type))
    for _ in range(3):
        second.write(entry(), entry())
        first.write(entry())
    assert intact(board) == 10
    assert heard == ["session.started", "error.occurred", "error.occurred"]
    second.refresh()
    assert heard == ["session.started", *["error.occurred"] * 3]
    assert second.end == first.end


def test_what_was_kept_unheard_is_not_written_twice() -> None:
    """A retry of a batch whose commit was not confirmed finds it, also when others wrote behind it."""
    for others in (0, 2):
        board = Board()
        first, second = begun(board), writer(board)
        heard: list[str] = []
        first.heard_by(lambda event, heard=heard: heard.append(event.event_type))
        batch = (entry(), entry())
        board.breaks = 1
        with pytest.raises(SinkError):
            first.write(*batch)
        for _ in range(others):
            second.write(entry())
        sealed = first.write(*batch)
        assert intact(board) == 3 + others
        assert [item.sequence for item in sealed] == [1, 2]
        assert len(heard) == others


def test_what_was_given_up_is_heard_of() -> None:
    """A batch that was kept although its writer gave it up is, to that writer, an event like another's."""
    board = Board()
    first = begun(board)
    heard: list[str] = []
    first.heard_by(lambda event: heard.append(event.event_type))
    board.breaks = 1
    with pytest.raises(SinkError):
        first.write(entry())
    first.refresh()
    first.write(entry())
    assert heard == ["error.occurred"]
    assert intact(board) == 3


def test_what_another_thread_found_is_not_written_twice() -> None:
    """A thread reads on and finds what another one of its process tries to write again."""
    board = Board()
    first, second = begun(board), writer(board)
    heard: list[str] = []
    first.heard_by(lambda event: heard.append(event.event_type))
    mine, others = (entry(), entry()), entry()
    first.want(*mine)
    board.breaks = 1
    with pytest.raises(SinkError):
        first.write(*mine)
    second.write(entry())
    first.write(others)  # another thread's: it finds ours
    sealed = first.write_until(0, *mine)
    first.give_up(*mine)
    assert [item.sequence for item in sealed] == [1, 2]
    assert intact(board) == 5
    assert len(heard) == 1


def test_what_is_owed_is_not_written_twice() -> None:
    """An outcome that was kept unheard goes first into the next write, which is of more than it."""
    board = Board()
    first = begun(board)
    board.breaks = 1
    with pytest.raises(SinkError):
        first.write_or_owe(entry())
    first.write(entry())
    first.settle()
    assert intact(board) == 3


def test_what_is_missing_is_told_once() -> None:
    """Also when the event that tells of it was kept unheard."""
    board = Board()
    first = begun(board)
    first.miss(3)
    board.breaks = 1
    with pytest.raises(SinkError):
        first.write(entry())
    first.miss(1)
    first.write(entry())
    told = [line for line in board.lines() if b"events_dropped" in line]
    assert [b'"count":3' in line for line in told] == [True, False]
    assert b'"count":1' in told[1]
    assert intact(board) == 5


def test_a_reading_that_breaks_tells_nothing() -> None:
    """What was read before it broke is heard once, when all of it was read."""
    board = Board()
    first, second = begun(board), writer(board)
    heard: list[str] = []
    first.heard_by(lambda event: heard.append(event.event_type))
    second.write(entry(), entry())
    whole = board.lines_from

    def broken(offset: int, /) -> Iterator[bytes]:
        yield next(whole(offset))
        raise SinkError("the connection broke", is_transient=True)

    board.lines_from = broken  # type: ignore[method-assign]
    with pytest.raises(SinkError):
        first.write(entry())
    board.lines_from = whole  # type: ignore[method-assign]
    first.write(entry())
    assert len(heard) == 2
    assert intact(board) == 4


def test_an_end_of_ours_that_was_kept_unheard_is_an_end() -> None:
    """Who gave it up writes nothing behind it."""
    board = Board()
    first = begun(board)
    ended = {"reason": "completed", "duration_ms": 1, "event_count": 2, "action_count": 0, "error": None}
    board.breaks = 1
    with pytest.raises(SinkError):
        first.write(entry("session.ended", **ended))
    with pytest.raises(EndedElsewhereError):
        first.write(entry())
    assert intact(board) == 2


def test_a_guard_is_asked_again_after_others_wrote() -> None:
    """It sees what they wrote before anything is kept."""
    board = Board()
    first, second = begun(board), writer(board)
    heard: list[str] = []
    first.heard_by(lambda event: heard.append(event.event_type))
    second.write(entry())

    def only_if() -> None:
        if heard:
            raise ValueError("too late")

    with pytest.raises(ValueError, match="too late"):
        first.write(entry(), only_if=only_if)
    assert intact(board) == 2


def test_an_end_by_another_is_an_end() -> None:
    """Nothing follows it, however often it is tried."""
    board = Board()
    first, second = begun(board), writer(board)
    ended = {"reason": "completed", "duration_ms": 1, "event_count": 2, "action_count": 0, "error": None}
    second.write(entry("session.ended", **ended))
    for _ in range(2):
        with pytest.raises(EndedElsewhereError):
            first.write(entry())
    assert intact(board) == 2


def test_a_changed_log_is_not_continued() -> None:
    """What others appended is verified before anything is linked to it."""
    for change in (lambda data: data.replace(b'"y"', b'"z"'), lambda data: data + b"nonsense\n", lambda data: data * 2):
        board = Board()
        first, second = begun(board), writer(board)
        begin = len(board.data)
        second.write(entry())
        board.data = board.data[:begin] + change(board.data[begin:])
        with pytest.raises(ChainBroken):
            first.write(entry())


def test_threads_of_two_writers() -> None:
    """The chain stays one, and every event is there once."""
    board = Board()
    lock = threading.Lock()
    plain = board.append

    def append(offset: int, data: bytes, events: int, /) -> None:
        with lock:
            plain(offset, data, events)

    board.append = append  # type: ignore[method-assign]
    writers = [begun(board), writer(board)]

    def work(number: int) -> None:
        for _ in range(50):
            writers[number % 2].write(entry())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert intact(board) == 401


@pytest.fixture
def database() -> Iterator[str]:
    with postgres_server.database() as conninfo:
        yield conninfo


def shared_runtime(conninfo: str) -> Runtime:
    return Runtime(Atlas.from_dict(manifest()), trace=PostgresSink(conninfo, shared=True))


def use(conninfo: str, session_id: str, threads: int, calls: int) -> None:
    with shared_runtime(conninfo) as runtime:
        session = runtime.resume(session_id, keep=True, renew=False)

        def work() -> None:
            for _ in range(calls):
                session.call("ticket.get", lambda: "open")

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


@pytest.mark.slow
def test_processes_share_a_session(database: str) -> None:
    """Three processes with two threads each, in PostgreSQL: one chain, sealed with the counts of all."""
    with shared_runtime(database) as runtime:
        session = runtime.session("desk", keep=True)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=use, args=(database, session.id, 2, 5)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        session.end()
        verdict = session.verify()
        assert (verdict.intact, verdict.sealed) == (True, True), str(verdict)
        ended = session.events[-1].payload
        assert ended["action_count"] == 30
        assert ended["event_count"] == len(session.events)


def test_connections_of_a_pool(database: str) -> None:
    """No more than were asked for; all are opened again when the server dropped them, and a fork has its own."""
    import psycopg

    name = f"pool {new_id()}"
    sink = PostgresSink(psycopg.conninfo.make_conninfo(database, application_name=name), shared=True, connections=2)
    with Runtime(Atlas.from_dict(manifest()), trace=sink, audit_deadline_seconds=0) as runtime:
        sessions = [runtime.session("desk", keep=True) for _ in range(6)]

        def work() -> None:
            threads = [
                threading.Thread(target=lambda one=one: [one.call("ticket.get", lambda: None) for _ in range(5)])
                for one in sessions
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        def opened(what: str) -> int:
            with psycopg.connect(database, autocommit=True) as other:
                found = other.execute(f"SELECT {what} FROM pg_stat_activity WHERE application_name = %s", (name,))
                return len(found.fetchall())

        work()
        assert opened("pid") == 2
        assert opened("pg_terminate_backend(pid, 2000)") == 2
        with pytest.raises(CallRefused):
            sessions[0].call("ticket.get", lambda: pytest.fail("ran"))
        work()  # one refusal told that all were gone
        assert in_child(lambda: [sink.count(one.id) for one in sessions][0] > 20) == "True"
        work()
        for session in sessions:
            session.end()
            assert session.verify().intact
            assert session.events[-1].payload["action_count"] == 15
    with pytest.raises(ValueError, match="at least one"):
        PostgresSink(database, shared=True, connections=0)


def test_an_outcome_is_told_once(database: str) -> None:
    """By whichever process; the others learn that it was."""
    with shared_runtime(database) as one, shared_runtime(database) as two:
        here = one.session("desk", keep=True)
        call = here.let_run(here.freeze("ticket.get", "tool", {}))  # type: ignore[attr-defined]
        there = two.resume(here.id, keep=True, renew=False)
        assert [known.execution_id for known in there.untold] == [call.execution_id]  # type: ignore[attr-defined]
        there.tell(call, Told("client"))  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="no call with"):
            here.tell(call, Told("client"))  # type: ignore[attr-defined]
        here.refresh()  # type: ignore[attr-defined]
        assert here.untold == ()  # type: ignore[attr-defined]
        second = here.let_run(here.freeze("ticket.get", "tool", {}))  # type: ignore[attr-defined]
        there.refresh()  # type: ignore[attr-defined]
        assert [known.execution_id for known in there.untold] == [second.execution_id]  # type: ignore[attr-defined]
        assert here.verify().intact


def test_an_end_elsewhere_refuses_calls(database: str) -> None:
    """A process that still has the session open refuses, and lets go of it."""
    with shared_runtime(database) as one, shared_runtime(database) as two:
        here = one.session("desk", keep=True)
        two.resume(here.id, renew=False).end()
        with pytest.raises(SessionEnded):
            here.call("ticket.get", lambda: pytest.fail("ran"))
        with pytest.raises((SessionEnded, CallRefused)):
            here.refresh()  # type: ignore[attr-defined]
        assert here.verify().sealed


def test_one_writer_and_many_keep_apart(database: str) -> None:
    """A session that one process writes alone is not shared, and a shared one that is taken over takes no more."""
    with Runtime(Atlas.from_dict(manifest()), trace=PostgresSink(database)) as alone:
        session = alone.session("desk", keep=True)
        with shared_runtime(database) as runtime, pytest.raises(SinkError, match="one writer"):
            runtime.resume(session.id)
    with shared_runtime(database) as runtime:
        shared = runtime.resume(session.id, keep=True)
        with Runtime(Atlas.from_dict(manifest()), trace=PostgresSink(database)) as alone:
            alone.resume(session.id, keep=True)
            with pytest.raises(CallRefused):
                shared.call("ticket.get", lambda: pytest.fail("ran"))


@pytest.mark.parametrize("action_id", ["ticket.get", "refund.create", "ticket.delete"])
def test_a_call_whose_request_another_process_decides_is_over_here(database: str, action_id: str) -> None:
    """Nothing of it is kept, no place of it is taken, no question stays open, and its span has ended."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    limit = {"max_calls": 1, "window_seconds": 60}
    rules = [
        *manifest()["policies"],
        {"policy_id": "ask", "type": "require_approval", "actions": ["refund.create"]},
        {"policy_id": "one", "type": "rate_limit", "actions": ["ticket.get"], "parameters": limit},
    ]
    atlas = Atlas.from_dict(manifest(policies=rules))
    sink = PostgresSink(database, shared=True)
    with Runtime(atlas, trace=sink, tracer_provider=provider) as one, shared_runtime(database) as two:
        here: Any = one.session("desk", keep=True)
        there: Any = two.resume(here.id, keep=True, renew=False)
        call = here.freeze(action_id, "tool", {})._replace(request_key="k")
        with here.hold("k") as held:
            there.let_run(there.freeze("ticket.list", "tool", {})._replace(request_key="k"))
            with pytest.raises(OvertakenError):
                here.let_run(call, held)
        assert [event.event_type for event in here.events].count("action.requested") == 1
        assert list(one.approvals.list()) == []
        assert here.let_run(here.freeze("ticket.get", "tool", {}))
        assert not here.is_busy
    spans = [span for span in exporter.get_finished_spans() if span.attributes.get("cra.action.id") == action_id]
    assert "overtaken" in {span.attributes.get("error.type") for span in spans}
