"""Questions in PostgreSQL where other processes, the network and the server get in the way: one yes, used once."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from cra_middleware import ApprovalRequired, Atlas, CallRefused, Runtime
from cra_middleware.approvals.approval import Answer, ApprovalError
from cra_middleware.approvals.postgres_store import PostgresApprovals
from tests.conftest import manifest, policies
from tests.cutting_proxy import CuttingProxy
from tests.test_approval_store import ASKED
from tests.trace.places import in_child
from tests.trace.postgres_server import database

psycopg: Any = pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")
ATLAS = Atlas.from_dict(manifest(policies=policies({"policy_id": "ask", "type": "require_approval"})))


@pytest.fixture
def conninfo() -> Iterator[str]:
    with database() as made:
        yield made


@pytest.fixture
def store(conninfo: str) -> Iterator[PostgresApprovals]:
    with closing(PostgresApprovals(conninfo)) as made:
        yield made


def terminate(conninfo: str) -> None:
    """The server drops every connection of ours to this schema but the one that asks, as at a restart."""
    (schema,) = [item for item in psycopg.conninfo.conninfo_to_dict(conninfo)["options"].split("=") if "cra_" in item]
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND application_name = %s",
            (schema,),
        )


def named(conninfo: str) -> str:
    """The address of connections that ``terminate`` finds."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    return str(psycopg.conninfo.make_conninfo(conninfo, application_name=parts["options"].split("=")[-1]))


def test_words_that_a_text_column_cannot_hold(store: PostgresApprovals) -> None:
    """NUL and half letters in arguments, names and reasons are kept; a guessed id with them is nobody's."""
    odd = replace(ASKED, arguments={"note": "a\0b"}, reason="\0", agent_id="\ud800")
    assert store.add(odd, 9)
    store.answer("a1", Answer(True, "an\0n", "\ud800"), 5)
    kept = store.get("a1")
    assert kept is not None
    assert (kept.pending, kept.by, kept.reason) == (odd, "an\0n", "\ud800")
    for guess in ("a\0", "\ud800"):
        assert store.get(guess) is None
        assert not store.consume(guess, 5)
        assert store.listed(None, guess) == []
        with pytest.raises(ApprovalError, match="no approval"):
            store.answer(guess, Answer(True, "ann"), 5)
        with pytest.raises(ApprovalError):
            store.add(replace(ASKED, session_id=guess, approval_id="a2"), 9)


def test_a_lost_connection_is_opened_again(conninfo: str) -> None:
    """Nobody hears of it: what was asked is done over a new one."""
    with closing(PostgresApprovals(named(conninfo))) as store:
        terminate(conninfo)
        assert store.add(ASKED, 9)
        terminate(conninfo)
        assert [item.pending.approval_id for item in store.listed("pending")] == ["a1"]
        terminate(conninfo)
        store.answer("a1", Answer(True, "ann"), 5)
        terminate(conninfo)
        assert store.consume("a1", 6)
        assert not store.consume("a1", 6)


def test_an_answer_that_is_lost(conninfo: str) -> None:
    """Wherever in a step the connection breaks: it is done once, and its result is told."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    proxy = CuttingProxy(parts["host"], int(parts["port"]))
    through = psycopg.conninfo.make_conninfo(conninfo, hostaddr="127.0.0.1", port=proxy.port, sslmode="disable")
    with closing(proxy), closing(PostgresApprovals(through)) as store:
        for number in range(1, 8):  # the n-th answer from now: in BEGIN, in the statements, in COMMIT, behind it
            name = f"a{number}"
            for step, wanted in (
                (lambda name=name: store.add(replace(ASKED, approval_id=name, session_id=name), 1), True),
                (lambda name=name: store.answer(name, Answer(True, "ann"), 5).state, "approved"),
                (lambda name=name: store.consume(name, 6), True),
            ):
                proxy.lose_after(number - 1)
                assert step() == wanted
            proxy.lose_after(None)
            assert not store.consume(name, 6)
            assert len(store.listed(None, name)) == 1
        assert proxy.lost > 10


def test_what_is_given_back_is_not_given_twice(conninfo: str, store: PostgresApprovals) -> None:
    """Where nobody knows whether it was, it is not tried again: another call may have used it since."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    proxy = CuttingProxy(parts["host"], int(parts["port"]))
    through = psycopg.conninfo.make_conninfo(conninfo, hostaddr="127.0.0.1", port=proxy.port, sslmode="disable")
    with closing(proxy), closing(PostgresApprovals(through)) as mine:
        store.add(ASKED, 9)
        store.answer("a1", Answer(True, "ann"), 5)
        for number in range(6):
            if not mine.consume("a1", 6):
                break
            proxy.lose_after(number)
            with suppress(ApprovalError):
                mine.give_back("a1")
            proxy.lose_after(None)
            current = store.get("a1")
            assert current is not None
            assert current.state in ("approved", "consumed")
            if current.state == "consumed":
                store.give_back("a1")


def _race(conninfo: str, names: list[str], begin: Any, won: Any) -> None:
    got: list[str] = []
    with closing(PostgresApprovals(conninfo)) as store:
        begin.wait(60)

        def work() -> None:
            got.extend(name for name in names if store.consume(name, 6))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    won.put(got)


@pytest.mark.slow
def test_four_processes_of_eight_threads(conninfo: str, store: PostgresApprovals) -> None:
    """Forty yeses, 32 that want each of them: every one is used once."""
    names = [f"a{number:02}" for number in range(40)]
    for name in names:
        store.add(replace(ASKED, approval_id=name), 99)
        store.answer(name, Answer(True, "ann"), 5)
    context = multiprocessing.get_context("spawn")
    won, begin = context.Queue(), context.Barrier(4)
    processes = [context.Process(target=_race, args=(conninfo, names, begin, won)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(name for _ in range(4) for name in won.get(timeout=60)) == names
    for process in processes:
        process.join(60)


def test_the_cap_holds_for_all_that_ask(conninfo: str) -> None:
    """Sixteen ask at once over four connections; three questions are kept."""
    stores = [PostgresApprovals(conninfo) for _ in range(4)]
    kept: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda number=number: kept.append(
                stores[number % 4].add(replace(ASKED, approval_id=f"a{number}"), 3)
            )
        )
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(kept), len(stores[0].listed())) == (3, 3)
    for store in stores:
        store.close()


def test_who_is_killed_holds_nothing(conninfo: str, store: PostgresApprovals) -> None:
    """In the middle of an answer: the question is as it was, and the next answer counts."""
    store.add(ASKED, 9)
    program = (
        "import os, signal, sys; from cra_middleware.approvals import postgres_store as p\n"
        "from cra_middleware.approvals.approval import Answer\n"
        "store = p.PostgresApprovals(sys.argv[1])\n"
        "p._update = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.answer('a1', Answer(True, 'ann'), 5)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, conninfo]).returncode == -signal.SIGKILL
    assert store.answer("a1", Answer(False, "bob"), 5).state == "rejected"


def test_a_fork_has_a_connection_of_its_own(store: PostgresApprovals) -> None:
    """A child process may go on with the same object, and takes nothing from its parent."""
    store.add(ASKED, 9)

    def child() -> None:
        store.answer("a1", Answer(True, "ann"), 5)

    assert in_child(child) == "None"
    assert store.consume("a1", 6)


def test_versions(conninfo: str, store: PostgresApprovals) -> None:
    """Tables of a later version are refused; those of an earlier one are brought up to date; all are made once."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("UPDATE cra_approvals_layout SET version = 99")
        with pytest.raises(ApprovalError, match="another version"):
            PostgresApprovals(conninfo)
        connection.execute("DROP TABLE cra_approvals")
        connection.execute("UPDATE cra_approvals_layout SET version = 0")
        made: list[PostgresApprovals] = []
        threads = [threading.Thread(target=lambda: made.append(PostgresApprovals(conninfo))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 4
        assert connection.execute("SELECT version FROM cra_approvals_layout").fetchall() == [(1,)]
        assert store.add(ASKED, 9)
        connection.execute("UPDATE cra_approvals SET question = '{'")
        with pytest.raises(ApprovalError, match="approval a1 is damaged"):
            store.get("a1")
        connection.execute("UPDATE cra_approvals SET answer = '{'")
        with pytest.raises(ApprovalError, match="approval a1 is damaged"):
            store.get("a1")
    for one in made:
        one.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_letter(conninfo: str, encoding: str) -> None:
    """It is refused when it is opened, with what it would have to be."""
    name = f"cra_{uuid4().hex}"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        try:
            with pytest.raises(ApprovalError, match=f"its encoding is {encoding}, and has to be UTF8"):
                PostgresApprovals(psycopg.conninfo.make_conninfo(conninfo, dbname=name, options=""))
        finally:
            connection.execute(f"DROP DATABASE {name}")


def test_an_encoding_of_the_environment_counts_for_nothing(conninfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back is what was written, in every letter."""
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")  # psycopg would give bytes for texts
    asked = replace(ASKED, reason="Zu teuer → 漢字")
    with closing(PostgresApprovals(conninfo)) as store:
        assert store.add(asked, 9)
        found = store.get("a1")
    assert found is not None
    assert found.pending == asked


def test_a_server_that_is_away(conninfo: str) -> None:
    """An error within the timeout that names no password; through a runtime, a call that is refused."""
    with pytest.raises(ApprovalError) as caught:
        PostgresApprovals("postgresql://cra:secret@127.0.0.1:1/none", timeout_seconds=1)
    assert "secret" not in str(caught.value)
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    proxy = CuttingProxy(parts["host"], int(parts["port"]))
    url = f"postgresql://{parts['user']}@127.0.0.1:{proxy.port}/{parts['dbname']}"
    options = parts["options"].replace(" ", "%20").replace("=", "%3D")
    with Runtime(ATLAS, approvals=f"{url}?options={options}&sslmode=disable") as runtime:
        session = runtime.session()
        with pytest.raises(ApprovalRequired) as asked:
            session.call("ticket.get", lambda: pytest.fail("ran"))
        with closing(PostgresApprovals(conninfo)) as elsewhere:
            elsewhere.answer(asked.value.approval_id, Answer(True, "ann"), time.time_ns() // 1000)
        proxy.close()
        with pytest.raises(CallRefused) as refused:
            session.call("ticket.get", lambda: pytest.fail("ran"))
        assert refused.value.code == "policy_error"
