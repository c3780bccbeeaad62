"""The PostgreSQL store where the server, the network and other writers get in its way."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime, _postgres
from cra_middleware._ids import new_id
from cra_middleware.errors import AuditUnavailable, ChainBroken, SinkError
from cra_middleware.trace.sinks.postgres import PostgresSink
from tests.conftest import manifest
from tests.cutting_proxy import CuttingProxy
from tests.trace.places import in_child
from tests.trace.postgres_server import database

psycopg: Any = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")
ID = "01900000-0000-7000-8000-00000000000a"
ATLAS = Atlas.from_dict(manifest())


@pytest.fixture
def conninfo() -> Iterator[str]:
    """An empty schema."""
    with database() as made:
        yield made


@pytest.fixture
def sink(conninfo: str) -> Iterator[PostgresSink]:
    made = PostgresSink(conninfo, timeout_seconds=2)
    yield made
    made.close()


def terminate(conninfo: str, sink: PostgresSink, used: psycopg.Connection[Any] | None = None) -> None:
    """The server drops the sink's connection, as at a restart: the one that is ``used`` now, or else the idle one."""
    pid = (used or sink._link._idle[0]).info.backend_pid
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 2000)", (pid,))


def execute(conninfo: str, statement: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(statement)


def test_a_connection_that_is_lost(conninfo: str, sink: PostgresSink) -> None:
    """The event that met the loss is refused for now; the same one goes through next, once, over a new connection."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    terminate(conninfo, sink)
    with pytest.raises(SinkError) as caught:
        log.append(4, b"two\n", 2)
    assert caught.value.is_transient
    log.append(4, b"two\n", 2)
    assert log.durable_events == 2
    assert list(log.lines()) == [b"one\n", b"two\n"]
    with closing(PostgresSink(conninfo)) as other, pytest.raises(SinkError, match="another writer"):
        other.reopen(ID)  # the new connection holds the session, too
    log.close()


def test_a_commit_whose_answer_is_lost(conninfo: str, sink: PostgresSink) -> None:
    """What was committed although its answer never came does not stand there twice."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    real = psycopg.Connection.execute

    def lose(self: Any, *args: Any, **more: Any) -> Any:
        real(self, *args, **more)
        patch.undo()
        terminate(conninfo, sink, self)
        raise psycopg.OperationalError("the connection is lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", lose)
        with pytest.raises(SinkError, match="lost"):
            log.append(4, b"two\nthree\n", 3)
    with pytest.raises(SinkError):  # it hears only now that the connection is gone
        sink.count(ID)
    assert sink.count(ID) == 3
    log.append(4, b"two\n", 2)
    assert list(log.lines()) == [b"one\n", b"two\n"]
    log.close()


def test_what_became_of_a_shared_write_is_said_to_be_unsure_only_where_it_was_sent(conninfo: str) -> None:
    """Its answer was lost; not so where another one's lock was in the way, or where there is no connection at all."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    proxy = CuttingProxy(str(parts["host"]), int(str(parts["port"])))
    through = psycopg.conninfo.make_conninfo(conninfo, hostaddr="127.0.0.1", port=proxy.port, sslmode="disable")
    with closing(proxy), closing(PostgresSink(through, timeout_seconds=1, shared=True)) as sink:
        log = sink.create(new_id())
        with psycopg.connect(conninfo) as other:
            other.execute("SELECT FROM cra_sessions FOR UPDATE")
            with pytest.raises(SinkError) as locked:
                log.append(0, b"{}\n", 1)
        proxy.lose(1)
        with pytest.raises(SinkError) as lost:
            log.append(0, b"{}\n", 1)
        proxy.close()
        with pytest.raises(SinkError) as away:
            log.append(3, b"{}\n", 2)
    assert [found.value.is_unsure for found in (locked, lost, away)] == [False, True, False]


def test_a_session_of_a_runtime_over_a_lost_connection(conninfo: str, sink: PostgresSink) -> None:
    """A call is refused when nobody waits for the server, or goes through when somebody does; the chain is whole."""
    for deadline in (0, 1):
        with Runtime(ATLAS, trace=sink, audit_deadline_seconds=deadline) as runtime, runtime.session() as session:
            session.call("ticket.get", lambda: None)
            terminate(conninfo, sink)
            if deadline == 0:
                with pytest.raises(AuditUnavailable):
                    session.call("ticket.get", lambda: pytest.fail("ran"))
            session.call("ticket.get", lambda: None)
        assert str(session.verify()) == "INTACT, SEALED"


def test_a_session_that_was_taken_over(conninfo: str, sink: PostgresSink) -> None:
    """Who lost its connection and its session writes nothing more into it."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    terminate(conninfo, sink)
    with closing(PostgresSink(conninfo)) as other:
        theirs = other.reopen(ID)
        with pytest.raises(SinkError):
            log.append(4, b"mine\n", 2)
        for use in (lambda: log.append(4, b"mine\n", 2), lambda: log.set_aside(0)):
            with pytest.raises(SinkError, match="took it over") as caught:
                use()
            assert not caught.value.is_transient
        theirs.append(4, b"two\n", 2)
        log.close()
        theirs.append(8, b"three\n", 3)
        assert list(other.lines(ID)) == [b"one\n", b"two\n", b"three\n"]


def test_a_writer_that_was_killed(conninfo: str) -> None:
    """Its lock goes with its connection: the session goes on elsewhere."""

    def die() -> None:
        PostgresSink(conninfo).create(ID).append(0, b"one\n", 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == ""
    with closing(PostgresSink(conninfo)) as sink:
        log = sink.reopen(ID)
        assert log.noted_durable == 1
        log.append(4, b"two\n", 2)
        log.close()


def test_locked_rows(conninfo: str, sink: PostgresSink) -> None:
    """While somebody holds the session's row, events are refused for now."""
    log = sink.create(ID)
    with psycopg.connect(conninfo) as connection:
        connection.execute("SELECT * FROM cra_sessions FOR UPDATE")
        sink._link._idle[0].execute("SET lock_timeout = '50ms'")
        with pytest.raises(SinkError, match="lock timeout") as caught:
            log.append(0, b"one\n", 1)
        assert caught.value.is_transient
    log.append(0, b"one\n", 1)
    log.close()


def test_a_removed_end_is_seen(conninfo: str) -> None:
    """Committed events whose rows were deleted are missed when the session is resumed."""
    with Runtime(ATLAS, trace=PostgresSink(conninfo)) as runtime:
        session = runtime.session(keep=True)
        session.call("ticket.get", lambda: None)
    execute(conninfo, "DELETE FROM cra_lines WHERE sequence > 4")
    with Runtime(ATLAS, trace=PostgresSink(conninfo)) as runtime, pytest.raises(ChainBroken, match="end was removed"):
        runtime.resume(session.id)


def test_many_sinks_at_once(conninfo: str) -> None:
    """Several processes' sinks make the tables once, and each has its sessions."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with closing(PostgresSink(conninfo)) as mine, Runtime(ATLAS, trace=mine) as runtime:
                with runtime.session() as session:
                    session.call("ticket.get", lambda: None)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    with closing(PostgresSink(conninfo)) as sink:
        assert len(sink.session_ids()) == 4


def test_who_makes_the_tables_is_waited_for(conninfo: str) -> None:
    """For longer than any other lock, and only in the same schema."""
    making = psycopg.connect(conninfo)
    making.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", (_postgres._MAKING,))
    with database() as other:
        PostgresSink(other, timeout_seconds=0.2).close()
    made: list[PostgresSink] = []
    thread = threading.Thread(target=lambda: made.append(PostgresSink(conninfo, timeout_seconds=0.2)))
    thread.start()
    time.sleep(0.6)
    assert made == []
    making.close()
    thread.join()
    with closing(made[0]) as sink, sink._link.transaction() as connection:
        assert connection.execute("SHOW lock_timeout").fetchone() == ("200ms",)


def test_large_pages(sink: PostgresSink) -> None:
    """A log larger than one page is read page by page, whole and in order."""
    lines = [b"%d " % number + b"x" * 300_000 + b"\n" for number in range(9)] + [b"%d\n" % n for n in range(1200)]
    log = sink.create(ID)
    log.append(0, b"".join(lines), len(lines))
    assert list(log.lines()) == lines
    log.close()


def test_a_gap_is_refused(sink: PostgresSink) -> None:
    """Nothing is written behind the end of what is there."""
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    with pytest.raises(SinkError, match="ends at byte 4"):
        log.append(5, b"two\n", 2)
    log.close()


def test_other_tables(conninfo: str) -> None:
    """Tables of another version, and another program's of the same name, are left alone."""
    execute(conninfo, "CREATE TABLE cra_layout (version integer); INSERT INTO cra_layout VALUES (99)")
    with pytest.raises(SinkError, match="another version"):
        PostgresSink(conninfo)
    execute(conninfo, "DROP TABLE cra_layout; CREATE TABLE cra_sessions (x text)")
    with pytest.raises(SinkError, match="already exists"):
        PostgresSink(conninfo)


def test_servers_that_are_not_there() -> None:
    """No server, one that says nothing, a wrong address: an error, and no password in it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for conninfo in (
            "postgresql://me:secret@127.0.0.1:1/x",
            f"host=127.0.0.1 port={port} user=me password=secret dbname=x connect_timeout=1",
            "postgresql://me:secret@[::1/x",
            "secret=secret",
        ):
            with pytest.raises(SinkError) as caught:
                PostgresSink(conninfo, timeout_seconds=0.1)
            assert "secret" not in str(caught.value)


def test_without_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where psycopg is not installed, the error names what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SinkError, match=r"cra-middleware\[postgres\]"):
        PostgresSink("postgresql:///x")


def test_a_database_that_takes_nothing(conninfo: str) -> None:
    """One that was made read-only is not healthy, whatever it answers."""
    with closing(PostgresSink(conninfo)):
        pass
    read_only = conninfo.replace("-c search_path", "-c default_transaction_read_only=on -c search_path")
    assert read_only != conninfo
    for shared in (False, True):
        with closing(PostgresSink(read_only, shared=shared)) as sink:
            assert not sink.health().ok
            assert "read-only" in sink.health().detail
            with pytest.raises(SinkError) as refused:
                sink.create(ID)
            assert refused.value.is_transient


def test_a_connection_to_a_server_that_is_the_primary_no_more(conninfo: str) -> None:
    """It is given up: the address leads to another one by then."""
    with closing(PostgresSink(conninfo)) as sink:
        with sink._link.transaction() as connection:
            connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(SinkError, match="read-only"):
            sink.create(ID)
        sink.create(ID).close()
        assert sink.health().ok
