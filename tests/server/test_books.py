"""The books of a server: one contract, in a file and in a database that many processes share."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware._ids import new_id
from cra_middleware._postgres import Layout, PostgresDatabase
from cra_middleware.server.access import ApiKeyError, ApiKeys, make_key
from cra_middleware.server.book import Answer, Book, BookError, Claim, ExecutionRow, SessionRow
from cra_middleware.server.postgres_api_keys import PostgresApiKeys
from cra_middleware.server.postgres_book import PostgresBook
from cra_middleware.server.postgres_book_layout import _FIRST
from cra_middleware.server.sqlite_api_keys import SqliteApiKeys
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.trace.sinks.postgres import PostgresSink
from tests.cutting_proxy import CuttingProxy
from tests.trace.postgres_server import database

ROW = SessionRow("s1", "bot", "key:bot", "Help", 10, None, ("a", "b"), None, '{"n":1}', '{"team":"x"}')
DONE = Answer("d", 200, b"{}")
CALL = ExecutionRow("e1", "s1", "key:bot", 100)
Open = Callable[..., PostgresBook]


@pytest.fixture(params=["file", "database", "database-with-traces"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield str(tmp_path / "own.db")
    else:
        with database() as conninfo:
            if request.param == "database-with-traces":
                PostgresSink(conninfo, shared=True).close()
            yield conninfo


@pytest.fixture
def book(place: str, request: pytest.FixtureRequest) -> Iterator[Book]:
    sees = "with-traces" in request.node.name
    made: Book = PostgresBook(place, sees_traces=sees) if "dbname" in place else SqliteBook(place)
    with closing(made):
        yield made


@pytest.fixture
def opened() -> Iterator[tuple[str, Open]]:
    """A database, and what opens books in it."""
    with database() as conninfo, ExitStack() as stack:

        def start(name: str = conninfo, **terms: Any) -> PostgresBook:
            return stack.enter_context(closing(PostgresBook(name, **terms)))

        yield conninfo, start


def test_sessions(book: Book) -> None:
    """Kept once, found by id, state, creator and parent, the newest first; an end forgets the facts, and stays."""
    assert book.add_session(ROW)
    assert not book.add_session(ROW._replace(goal="Another"))
    assert book.session("s1") == ROW
    assert book.session("s\0") is None
    child = ROW._replace(session_id="s2", created_us=11, parent_session_id="s1", creator="key:ann", goal="a\0\ud800ü")
    if not isinstance(book, SqliteBook):
        assert book.add_session(child)
        assert book.session("s2") == child
    else:
        child = child._replace(goal="ü")
        assert book.add_session(child)
    assert book.children("s1") == ["s2"]
    assert book.sessions("all", None, 1, 0) == ([child], 2)
    assert book.sessions("all", None, 5, 1) == ([ROW], 2)
    assert book.sessions("active", "key:bot", 5, 0) == ([ROW], 1)
    assert book.last_child_end("s1") is None
    book.end_session("s2", 20)
    book.end_session("s2", 30, is_expired=True)
    ended = child._replace(ended_us=20, context="{}")
    assert book.sessions("ended", None, 5, 0) == ([ended], 1)
    assert book.children("s1") == []
    assert book.last_child_end("s1") == 20
    book.add_session(ROW._replace(session_id="s3", parent_session_id="s1"))
    book.end_session("s3", 40, is_expired=True)
    assert book.session("s3") == ROW._replace(
        session_id="s3", parent_session_id="s1", ended_us=40, context="{}", is_expired=True
    )
    assert book.last_child_end("s1") == 20
    assert book.last_child_end("s2") is None


def test_open_sessions_are_walked_through(book: Book) -> None:
    """The oldest first, a part at a time, up to a time; those that ended are left out."""
    rows = [ROW._replace(session_id=name, created_us=at) for name, at in (("a", 5), ("b", 5), ("c", 1), ("d", 9))]
    for row in rows:
        book.add_session(row)
    book.add_session(ROW._replace(session_id="e", created_us=2))
    book.end_session("e", 6)
    a, b, c, d = rows
    assert book.open_before(9, None, 2) == [c, a]
    assert book.open_before(9, (5, "a"), 2) == [b]
    assert book.open_before(10, (5, "b"), 2) == [d]
    assert book.open_before(1, None, 2) == []


def test_what_was_pruned_is_forgotten(book: Book) -> None:
    """Sessions with their answers, by id; calls whose session nobody knows, once they are old; nothing else."""
    for name in ("a", "b", "c\0\ud800"):
        if name.isalpha() or not isinstance(book, SqliteBook):
            assert book.add_session(ROW._replace(session_id=name))
    for name in ("a", "b"):
        for number in (1, 2):
            call = CALL._replace(execution_id=f"{name}{number}", session_id=name, deadline_us=number * 10)
            assert book.claim(name, f"k{number}").state == "new"
            book.answer(name, f"k{number}", DONE, 2, call)
    assert book.session_ids("", 1) == ["a"]
    assert list(book.session_ids("a", 9))[:1] == ["b"]
    book.forget(["a", "c\0", "nobody's"])
    assert (book.session("a"), "a" in book.session_ids("", 9)) == (None, False)
    assert book.session("b") is not None
    assert [book.claim(name, "k1").state for name in ("a", "b")] == ["new", "answered"]
    book.forget_calls(15)
    assert [book.execution(name) is None for name in ("a1", "a2", "b1", "b2")] == [True, False, False, False]


def test_a_new_claim_tells_how_long_the_trace_is() -> None:
    """As it is when nobody else can have the claim, so that whoever knows as much need not ask; never of no trace."""
    with database() as conninfo, closing(PostgresSink(conninfo, shared=True)) as sink:
        name, line = new_id(), b'{"event_type":"x","sequence":0}\n'
        log = sink.create(name)
        with closing(PostgresBook(conninfo, sees_traces=True)) as book, closing(PostgresBook(conninfo)) as blind:
            assert book.claim(name, "k1").trace_size == 0
            log.append(0, line, 1)
            assert book.claim(name, "k2").trace_size == len(line)
            assert book.claim(new_id(), "k").trace_size is None
            assert blind.claim(name, "k3").trace_size is None
            book.answer(name, "k2", DONE, 1)
            assert book.claim(name, "k2") == Claim("answered", DONE)


def test_a_database_of_the_first_layout_is_taken_over() -> None:
    """With everything that is in it, while a server of that version goes on beside it."""
    with database() as conninfo:
        with closing(PostgresDatabase(conninfo, 5.0, Layout("cra_book_layout", (_FIRST,)), failed)) as first:
            with first.transaction() as connection:
                values = ("s1", "bot", "key:bot", "Help", 10, None, '["a", "b"]', None, '{"n":1}', '{"team":"x"}')
                sent = [item.encode() if isinstance(item, str) else item for item in values]
                connection.execute(f"INSERT INTO cra_book_sessions VALUES ({', '.join(['%s'] * 10)})", sent)
            with closing(PostgresBook(conninfo)) as book:
                assert book.session("s1") == ROW
                with first.transaction() as connection:
                    connection.execute("UPDATE cra_book_sessions SET ended_us = 20, context = '{}'")
                assert book.session("s1") == ROW._replace(ended_us=20, context="{}")


def failed(message: str, passes: bool) -> BookError:
    return BookError(message)


def test_one_of_many_is_told_that_a_request_is_new(book: Book) -> None:
    """The others wait, and are then told the answer."""
    found: list[Claim] = []
    threads = [threading.Thread(target=lambda: found.append(book.claim("s1", "k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claim.state for claim in found) == ["new", *["running"] * 7]
    book.answer("s1", "k", DONE, 2, CALL)
    assert book.claim("s1", "k") == Claim("answered", DONE)
    assert book.claim("s1", "other").state == "new"
    assert book.execution("e1") == CALL


def test_a_call_is_the_answer_to_one_request_only(book: Book) -> None:
    """The second one keeps nothing, and may be made again; what is told of a call is kept whoever answered with it."""
    for key in ("k", "j"):
        assert book.claim("s1", key).state == "new"
    book.answer("s1", "k", DONE, 2, CALL, is_final=False)
    for is_final in (False, True):
        with pytest.raises(BookError):
            book.answer("s1", "j", DONE, 2, CALL, is_final=is_final)
    book.give_back("s1", "j")
    assert book.claim("s1", "j").state == "new"
    book.answer("s1", "j", DONE, 4, CALL._replace(execution_id="e2"))
    book.answer("s1", "report e1", DONE, 4, CALL._replace(report="told"))
    assert book.execution("e1") == CALL._replace(report="told")
    book.answer("s1", "k", DONE, 5)
    assert [book.claim("s1", key).state for key in ("k", "j")] == ["answered", "answered"]


def test_what_is_not_final_and_what_is_given_back(book: Book) -> None:
    """An answer that is not final leaves the claim; given back, it is told, or the request is a new one."""
    book.claim("s1", "k")
    book.answer("s1", "k", DONE, 2, is_final=False)
    assert book.claim("s1", "k").state == "running"
    book.give_back("s1", "k", forget=False)
    assert book.claim("s1", "k") == Claim("answered", DONE)
    book.claim("s1", "j")
    book.answer("s1", "j", DONE, 2, is_final=False)
    book.give_back("s1", "j")
    assert book.claim("s1", "j").state == "new"


def test_only_the_answer_that_waits_is_withdrawn(book: Book) -> None:
    """Of two that see a person's yes, the slower one takes nothing from the faster one."""
    book.claim("s1", "k")
    book.answer("s1", "k", DONE._replace(status=423, approval_id="a1", retry_after_seconds=1.5), 2)
    book.withdraw("s1", "k", "a2")
    assert book.claim("s1", "k").state == "answered"
    book.withdraw("s1", "k", "a1")
    assert book.claim("s1", "k").state == "new"
    book.withdraw("s1", "k", "a1")
    assert book.claim("s1", "k").state == "running"
    book.answer("s1", "k", DONE, 4)
    book.withdraw("s1", "k", "a1")
    assert book.claim("s1", "k") == Claim("answered", DONE)


def test_calls_and_their_reports(book: Book) -> None:
    """Told of once; overdue until then; forgotten with the answers."""
    book.answer("s1", "report e1", DONE, 2, CALL)
    assert book.overdue(99, 5) == []
    assert book.overdue(100, 5) == [CALL]
    assert book.reported("e1", "r")
    assert book.reported("e1", "q")  # and changes nothing
    assert not book.reported("e9", "r")
    assert book.execution("e1") == CALL._replace(report="r")
    assert book.overdue(100, 5) == []
    book.prune(101)
    assert book.execution("e1") is None
    assert book.claim("s1", "report e1").state == "new"


def test_api_keys(place: str) -> None:
    """A name is taken once and for all, a key is found by its beginning, revoked once, listed by name."""
    made: ApiKeys = PostgresApiKeys(place) if "dbname" in place else SqliteApiKeys(place)
    with closing(made) as keys:  # type: ignore[type-var]
        _, bot = make_key("bot", ["agent"], 5, agent_ids=["a*", "b"], atlas_ids=["x"], expires_us=9)
        _, ann = make_key("ann", ["approver", "auditor"], 6, groups=["leads"])
        for key in (bot, ann):
            keys.add(key)
        _, again = make_key("bot", ["admin"], 7)
        with pytest.raises(ApiKeyError, match="never used again"):
            keys.add(again)
        assert keys.by_prefix(bot.prefix) == bot
        assert keys.by_prefix("cra_\0\ud800" if "dbname" in place else "cra_") is None
        assert keys.revoke("bot", 8)
        assert not keys.revoke("bot", 9)
        assert not keys.revoke("nobody", 9)
        assert list(keys.listed()) == [ann, bot._replace(revoked_us=8)]


def test_two_processes_claim_one_request(opened: tuple[str, Open]) -> None:
    """One has it, for as long as it lives: its lease is renewed."""
    _, start = opened
    one, other = start(lease_seconds=0.6), start(lease_seconds=0.6)
    assert one.claim("s1", "k").state == "new"
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert other.claim("s1", "k").state == "running"
        time.sleep(0.05)
    one.answer("s1", "k", DONE._replace(status=500), 2, is_final=False)
    assert other.claim("s1", "k").state == "running"
    one.answer("s1", "k", DONE, 2)
    for book in (other, one):  # who is told the answer holds nothing
        assert book.claim("s1", "k") == Claim("answered", DONE)


def test_who_lost_its_lease_cannot_answer(opened: tuple[str, Open]) -> None:
    """A process that slept while another took over: its answer is not kept, nor is what it would run."""
    _, start = opened
    one, other = start(lease_seconds=0.2), start()
    one._is_closed.set()  # it renews no more
    assert one.claim("s1", "k").state == "new"
    time.sleep(0.3)
    assert one.claim("s1", "k").state == "running"
    assert other.claim("s1", "k").state == "new"
    for is_final in (False, True):
        with pytest.raises(BookError, match="another process"):
            one.answer("s1", "k", Answer("d", 200, b"mine"), 2, CALL, is_final=is_final)
    assert one.execution("e1") is None
    other.answer("s1", "k", DONE, 3)
    one.give_back("s1", "k")
    assert one.claim("s1", "k") == Claim("answered", DONE)


def test_a_claim_that_could_not_be_given_back_runs_out(
    opened: tuple[str, Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was away just then; that the process answers other requests since does not hold it on."""
    _, start = opened
    one, other = start(lease_seconds=0.6), start()
    assert one.claim("s1", "k").state == one.claim("s1", "other").state == "new"

    def away(*given: object, **more: object) -> None:
        raise BookError("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(one._database, "twice", away)
        with pytest.raises(BookError):
            one.give_back("s1", "k")
    time.sleep(1)
    one.renew()
    assert other.claim("s1", "other").state == "running"
    assert other.claim("s1", "k").state == "new"


def test_a_killed_process_holds_a_request_for_its_lease(opened: tuple[str, Open]) -> None:
    """Then another answers; where something runs already, it tells the answer that was left for that."""
    conninfo, start = opened
    program = (
        "import os, signal, sys; from cra_middleware.server.postgres_book import PostgresBook\n"
        "from cra_middleware.server.book import Answer\n"
        "book = PostgresBook(sys.argv[1], lease_seconds=1)\n"
        "book.claim('s1', 'k'); book.claim('s1', 'j')\n"
        "book.answer('s1', 'j', Answer('d', 200, b'{}'), 2, is_final=False)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, conninfo]).returncode == -signal.SIGKILL
    book = start()
    assert book.claim("s1", "k").state == "running"
    time.sleep(1.1)
    assert book.claim("s1", "k").state == "new"
    assert book.claim("s1", "j") == Claim("answered", DONE)


def test_wherever_the_connection_breaks(opened: tuple[str, Open]) -> None:
    """A claim is one's own, and an answer is kept once."""
    psycopg: Any = pytest.importorskip("psycopg")
    conninfo, start = opened
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    proxy = CuttingProxy(parts["host"], int(parts["port"]))
    through = psycopg.conninfo.make_conninfo(conninfo, hostaddr="127.0.0.1", port=proxy.port, sslmode="disable")
    with closing(proxy), closing(PostgresBook(through, lease_seconds=60, connections=1)) as book:
        for number in range(8):
            proxy.lose_after(number)
            assert book.claim("s1", f"k{number}").state == "new"
            proxy.lose_after(number)
            book.answer("s1", f"k{number}", DONE, 2, CALL._replace(execution_id=f"e{number}"))
            proxy.lose_after(None)
            assert book.claim("s1", f"k{number}") == Claim("answered", DONE)
        assert proxy.lost == 2  # a claim is one statement, and so is an answer
        proxy.close()
        with pytest.raises(BookError):
            book.claim("s1", "lost")
    assert start().claim("s1", "lost").state == "new"
