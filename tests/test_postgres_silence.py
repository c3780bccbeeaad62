"""A PostgreSQL database that keeps its connections and says nothing: whoever asks it is told so, and goes on later."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from cra_middleware import Atlas, AuditUnavailable, Runtime
from cra_middleware._ids import new_id
from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.approvals.postgres_store import PostgresApprovals
from cra_middleware.server.book import SessionRow
from cra_middleware.server.postgres_book import PostgresBook
from cra_middleware.trace.pruned import Pruned
from cra_middleware.trace.sinks.postgres import PostgresSink
from tests.conftest import manifest
from tests.cutting_proxy import CuttingProxy
from tests.trace.postgres_server import address_of, database

psycopg: Any = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")

SECONDS = 60
"""Much longer than anything here may take, and shorter than for ever."""


class FailedError(Exception):
    """What is raised here when the database cannot be used."""


def failed(message: str, passes: bool) -> FailedError:
    assert passes, message
    return FailedError(message)


class Silenced:
    """A database, and the proxy that stands before it."""

    def __init__(self, conninfo: str) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(conninfo)
        self.direct = conninfo
        self.proxy = CuttingProxy(parts["host"], int(parts["port"]))
        self.through = psycopg.conninfo.make_conninfo(
            conninfo, hostaddr="127.0.0.1", port=self.proxy.port, sslmode="disable"
        )


@pytest.fixture
def there() -> Iterator[Silenced]:
    with database() as conninfo:
        made = Silenced(conninfo)
        with closing(made.proxy):
            yield made


def in_time(*works: Callable[[], object]) -> list[object]:
    """What each returns or raises, all at once; none may wait without limit."""
    pool = ThreadPoolExecutor(len(works))
    asked = [pool.submit(work) for work in works]
    told = [future.exception(SECONDS) or future.result() for future in asked]
    pool.shutdown()
    return told


def test_a_silent_server(there: Silenced) -> None:
    """Every waiting thread is told, though there are more of them than connections; afterwards all is as before."""
    with closing(PostgresApprovals(there.through, timeout_seconds=1)) as store:
        assert store.listed() == []
        there.proxy.hush()
        told = in_time(*[store.listed] * 8)
        assert there.proxy.held.is_set()
        assert {type(error) for error in told} == {ApprovalError}
        assert all("cannot be used" in str(error) for error in told)
        assert there.proxy.taken < 8  # what one found out the others need not
        there.proxy.speak()
        assert within_a_while(store.listed) == []


def test_a_silent_connection(there: Silenced) -> None:
    """Where others are answered, what was asked is asked once more, over a new one."""
    with closing(PostgresApprovals(there.through, timeout_seconds=1)) as store:
        there.proxy.hush(new=False)
        assert in_time(store.listed) == [[]]
        assert there.proxy.held.is_set()


def test_a_socket_that_says_nothing() -> None:
    """Connecting ends, too; and who asks again at once is told at once."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        conninfo = f"postgresql://cra@127.0.0.1:{nobody.getsockname()[1]}/none"
        (error,) = in_time(lambda: PostgresApprovals(conninfo, timeout_seconds=1))
        assert isinstance(error, ApprovalError)


@pytest.mark.slow
def test_a_server_that_works_long(there: Silenced) -> None:
    """It says that it is at it, and is not given up: a long work never, another after a while."""
    with closing(PostgresDatabase(there.through, 1, None, failed)) as known:
        for is_long in (True, False):
            with known.statements(is_long=is_long) as connection:
                connection.seconds = 0.2  # type: ignore[attr-defined]
                assert connection.execute("SELECT 1 FROM pg_sleep(1.5)").fetchone() == (1,)
            assert known.generation == 1
        with known.statements(is_long=True) as connection:
            assert connection.execute("SELECT 1 FROM pg_sleep(4)").fetchone() == (1,)

        def too_long() -> None:
            with known.statements() as connection:
                connection.execute("SELECT pg_sleep(300)")

        (error,) = in_time(too_long)
        assert isinstance(error, FailedError)
        assert "it has said nothing for" in str(error)
        with known.statements() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.slow
def test_a_long_work_that_falls_silent(there: Silenced) -> None:
    """It is not waited for when nobody says any more that it is being done."""
    with closing(PostgresDatabase(there.through, 1, None, failed)) as known:

        def work() -> None:
            with known.transaction(is_long=True) as connection:
                connection.execute("SELECT 1")
                there.proxy.hush()
                connection.execute("SELECT 1")

        (error,) = in_time(work)
        assert isinstance(error, FailedError)


def test_an_answer_that_comes_in_pieces(there: Silenced) -> None:
    """What comes is a sign of life, however long the whole takes: nobody asks."""
    with closing(PostgresDatabase(there.direct, 1, None, failed)) as known, known.statements() as connection:
        connection.seconds, connection.is_at_it = 1, None  # type: ignore[attr-defined]
        slow = "SELECT pg_sleep(0.4), repeat('x', 100000) FROM generate_series(1, 6)"
        assert len(connection.execute(slow).fetchall()) == 6


def test_an_answer_that_comes_at_last(there: Silenced) -> None:
    """What has come while others were asked is heard."""

    def is_at_it() -> bool:
        there.proxy.speak()
        return False

    with closing(PostgresDatabase(there.through, 1, None, failed)) as known, known.statements() as connection:
        connection.is_at_it = is_at_it  # type: ignore[attr-defined]
        there.proxy.hush()
        assert in_time(lambda: connection.execute("SELECT 1").fetchone()) == [(1,)]


def test_an_interrupt_while_others_are_asked(there: Silenced) -> None:
    """What was told of it is read by nobody any more: its connection is given up, and the next one is a new one."""

    def is_at_it() -> bool:
        raise KeyboardInterrupt

    with closing(PostgresDatabase(there.through, 1, None, failed)) as known:

        def interrupted() -> None:
            with known.statements() as connection:
                connection.is_at_it = is_at_it  # type: ignore[attr-defined]
                there.proxy.hush(new=False)
                connection.execute("SELECT 1")

        assert isinstance(in_time(interrupted)[0], KeyboardInterrupt)
        with known.statements() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            assert known.generation == 2  # who holds a lock of the connection's has to know that it is gone


@pytest.mark.slow
def test_what_may_take_long(there: Silenced, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts, and whatever removes what is old: given up, they would begin anew each time."""
    monkeypatch.setattr(
        "cra_middleware._silence._MOST", 0
    )  # nothing else may be silent for longer than a statement's seconds
    layout = Layout("slow_layout", ("CREATE TABLE slow (n integer); SELECT pg_sleep(2)",))
    with closing(PostgresDatabase(there.direct, 0.1, layout, failed)) as known:

        def too_long() -> None:
            with known.statements() as connection:
                connection.execute("SELECT pg_sleep(2)")

        assert isinstance(in_time(too_long)[0], FailedError)
    sink = PostgresSink(there.direct, timeout_seconds=0.1, shared=True)
    store = PostgresApprovals(there.direct, timeout_seconds=0.1)
    book = PostgresBook(there.direct, timeout_seconds=0.1)
    with closing(sink), closing(store), closing(book):
        log = sink.create(name := new_id())
        log.append(0, b"{}\n", 1)
        book.add_session(SessionRow(name, "bot", "ann", "Help", 5))
        with psycopg.connect(there.direct, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN PERFORM pg_sleep(2); RETURN NULL; END$$"
            )
            for table in ("cra_lines", "cra_approvals", "cra_book_answers", "cra_book_executions"):
                connection.execute(f"CREATE TRIGGER slow BEFORE DELETE ON {table} EXECUTE FUNCTION slowly()")
        told = in_time(
            lambda: sink.prune(name, Pruned(bytes(32))),
            lambda: store.forget([name]),
            lambda: book.prune(5),
            lambda: book.forget([name]),
            lambda: book.forget_calls(5),
        )
    assert told == [None] * 5


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_calls_while_the_database_is_silent(there: Silenced, shared: bool) -> None:
    """No tool runs; what was committed meanwhile is found, and the trace is one."""
    ran: list[int] = []
    sink = PostgresSink(there.through, timeout_seconds=1, shared=shared)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        session = runtime.session("bot", "Help")
        session.call("ticket.get", ran.append, 1)
        there.proxy.hush()  # requests get through: the decision is committed, and nobody hears of it
        (error,) = in_time(lambda: session.call("ticket.get", ran.append, 2))
        assert isinstance(error, AuditUnavailable)
        assert ran == [1]
        there.proxy.speak()
        within_a_while(lambda: session.call("ticket.get", ran.append, 3))
        assert ran == [1, 3]
        session.end()
        assert str(session.verify()) == "INTACT, SEALED"


@pytest.mark.slow
def test_an_end_while_the_database_is_silent(there: Silenced) -> None:
    """Sessions are let go of, as when the process is killed, and gone on with later."""
    address = address_of(there.through)
    runtime = Runtime(Atlas.from_dict(manifest()), trace=address, approvals=address)
    names = []
    for number in range(3):
        session = runtime.session("bot", "Help")
        session.call("ticket.get", str, number)
        names.append(session.id)
    there.proxy.hush()
    assert in_time(runtime.detach) == [None]
    there.proxy.cut()
    with Runtime(Atlas.from_dict(manifest()), trace=address_of(there.direct)) as later:
        for name in names:
            session = later.resume(name)
            assert session.call("ticket.get", str, 9) == "9"
            session.end()


def within_a_while(work: Callable[[], Any]) -> Any:
    """Who was silent is asked again after a second."""
    pause = threading.Event()
    for _ in range(SECONDS * 10):
        try:
            return work()
        except (ApprovalError, AuditUnavailable):
            pause.wait(0.1)
    return work()
