"""Stores of open questions: one contract, in memory and in a file that processes share."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.approvals.approval import Answer, ApprovalError, ApprovalStore, CountsWaiting, Pending, as_answer
from cra_middleware.approvals.postgres_store import PostgresApprovals
from cra_middleware.approvals.sqlite_store import SqliteApprovals
from cra_middleware.approvals.store import MAX_CLOSED, MemoryApprovals
from tests.trace.postgres_server import database

LATER = 10**12
ASKED = Pending(
    approval_id="a1",
    session_id="s1",
    agent_id="Bot",
    action_id="refund.create",
    tool_name="t",
    arguments={"amount": 250.5, "note": "ünï"},
    policy_id="ask",
    reason="Large.",
    arguments_digest="d1",
    policy_digest="p1",
    requested_us=1,
    expires_us=LATER,
)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ApprovalStore]:
    if request.param != "postgres":
        yield MemoryApprovals() if request.param == "memory" else SqliteApprovals(tmp_path / "a.db")
        return
    with database() as conninfo, closing(PostgresApprovals(conninfo)) as made:
        yield made


def test_what_was_asked_in_a_session_is_forgotten(store: ApprovalStore) -> None:
    """All of it, whatever its state, and nothing of another session."""
    if isinstance(store, MemoryApprovals):
        return  # it forgets by itself
    assert isinstance(store, SqliteApprovals | PostgresApprovals)
    for number, session_id in enumerate(("s1", "s1", "s2")):
        asked = replace(ASKED, approval_id=f"a{number}", session_id=session_id, arguments_digest=f"d{number}")
        assert store.add(asked, 9)
    store.answer("a1", Answer(True, "ann", "fine"), 5)
    assert sorted(store.session_ids()) == ["s1", "s2"]
    store.forget(["s1", "s\0", "s2' OR '1' = '1"])
    assert store.session_ids() == ["s2"]
    assert [store.get(f"a{number}") is None for number in range(3)] == [True, True, False]


def test_from_pending_to_consumed(store: ApprovalStore) -> None:
    """Each step happens once, and what is kept is what was asked."""
    assert store.add(ASKED, 9)
    found = store.find("s1", "refund.create", "d1")
    assert found is not None
    assert (found.state, found.pending, dict(found.pending.arguments)) == ("pending", ASKED, dict(ASKED.arguments))
    assert not store.consume("a1", 5)
    answered = store.answer("a1", Answer(True, "ann", "fine"), 5)
    assert (answered.state, answered.by, answered.reason, answered.decided_us) == ("approved", "ann", "fine", 5)
    assert store.get("a1") == answered
    assert [store.consume("a1", 6) for _ in range(2)] == [True, False]
    assert store.find("s1", "refund.create", "d1") is None
    store.give_back("a1")
    assert store.consume("a1", 7)
    with pytest.raises(ApprovalError, match="is consumed already"):
        store.answer("a1", Answer(False, "ann"), 8)


def test_rejected_and_expired(store: ApprovalStore) -> None:
    """A no is found again; what has expired is not, and is answered no more."""
    store.add(ASKED, 9)
    store.answer("a1", Answer(False, "ann", "No."), 5)
    found = store.find("s1", "refund.create", "d1")
    assert found is not None
    assert (found.state, found.reason) == ("rejected", "No.")
    store.expire("a1", "the policies changed")
    assert store.find("s1", "refund.create", "d1") is None
    gone = store.get("a1")
    assert gone is not None
    assert (gone.state, gone.reason) == ("expired", "the policies changed")
    store.add(replace(ASKED, approval_id="a2", expires_us=100), 9)
    with pytest.raises(ApprovalError, match="has expired"):
        store.answer("a2", Answer(True, "ann"), 100)
    store.answer("a2", Answer(True, "ann"), 99)
    assert not store.consume("a2", 100)
    assert store.consume("a2", 99)
    store.expire("a2", "too late")
    consumed = store.get("a2")
    assert consumed is not None
    assert consumed.state == "consumed"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(True, "bOT "), "may not answer itself"),
        (Answer(False, "bot"), "may not answer itself"),
        (Answer(True, " "), "needs the name"),
        (Answer(True, "bob"), "wants the yes of leads or ann"),
        (Answer(True, "bob", None, ("lead",)), "wants the yes of leads or ann"),
    ],
)
def test_answers_that_do_not_count(store: ApprovalStore, answer: Answer, why: str) -> None:
    """The requester, nobody, and who is not among the approvers; the question stays open."""
    store.add(replace(ASKED, approvers=("leads", "ann")), 9)
    with pytest.raises(ApprovalError, match=why):
        store.answer("a1", answer, 5)
    assert [item.state for item in store.listed()] == ["pending"]
    assert store.answer("a1", Answer(True, "bob", None, ("leads",)), 5).state == "approved"


def test_unknown(store: ApprovalStore) -> None:
    """A guessed id is nobody's."""
    with pytest.raises(ApprovalError, match="there is no approval"):
        store.answer("guess", Answer(True, "ann"), 5)
    assert store.get("guess") is None
    assert not store.consume("guess", 5)
    store.give_back("guess")
    store.expire("guess", "x")
    assert store.listed() == []


def test_cap_and_list(store: ApprovalStore) -> None:
    """A session has only so many open ones; the newest of the same call is found; lists are by state and session."""
    for number in range(3):
        assert store.add(replace(ASKED, approval_id=f"a{number}"), 3)
    assert not store.add(replace(ASKED, approval_id="a9"), 3)
    assert store.add(replace(ASKED, approval_id="b", session_id="s2"), 3)
    store.answer("a0", Answer(True, "ann"), 5)
    assert store.add(replace(ASKED, approval_id="a9"), 3)
    assert [item.pending.approval_id for item in store.listed("pending", "s1")] == ["a1", "a2", "a9"]
    assert [item.pending.approval_id for item in store.listed("approved")] == ["a0"]
    assert len(store.listed()) == 5
    newest = store.find("s1", "refund.create", "d1")
    assert newest is not None
    assert newest.pending.approval_id == "a9"
    assert store.find("s1", "refund.create", "d2") is None
    assert store.find("s3", "refund.create", "d1") is None


def test_how_many_wait(store: ApprovalStore) -> None:
    """Those that are pending and have not expired, of all sessions."""
    assert isinstance(store, CountsWaiting)
    assert store.waiting(5) == 0
    for number, expires_us in enumerate((10, 20, 30, LATER)):
        asked = replace(ASKED, approval_id=f"a{number}", session_id=f"s{number % 2}", expires_us=expires_us)
        assert store.add(asked, 9)
    assert [store.waiting(now_us) for now_us in (5, 10, 29, 30, LATER)] == [4, 3, 2, 1, 0]
    store.answer("a3", Answer(True, "ann"), 5)
    store.expire("a2", "no more")
    assert store.waiting(5) == 2


def test_one_of_many_threads_consumes(store: ApprovalStore) -> None:
    """However many try, one is told yes."""
    store.add(ASKED, 9)
    store.answer("a1", Answer(True, "ann"), 5)
    won: list[bool] = []
    threads = [threading.Thread(target=lambda: won.append(store.consume("a1", 6))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]


def test_memory_forgets_what_is_over() -> None:
    """A long life does not fill the memory; what is open stays."""
    store = MemoryApprovals()
    store.add(replace(ASKED, approval_id="open"), 9)
    for number in range(2 * MAX_CLOSED):
        store.add(replace(ASKED, approval_id=str(number), session_id=str(number)), 9)
        store.expire(str(number), "x")
    assert len(store.listed()) < 2 * MAX_CLOSED
    assert [item.pending.approval_id for item in store.listed("pending")] == ["open"]


def test_memory_lets_go_of_what_no_call_meets() -> None:
    """A no of a session that has ended is not looked up again; it is remembered, and does not fill the memory."""
    store = MemoryApprovals()
    for number in range(2 * MAX_CLOSED + 1):
        name = f"s{number}"
        store.add(replace(ASKED, approval_id=f"a{number}", session_id=name), 9)
        store.answer(f"a{number}", Answer(False, "ann", "No."), 5)
        store.session_ended(name)
    assert store.find(name, "refund.create", "d1") is None
    last = store.listed("rejected", name)
    assert [(item.state, item.reason) for item in last] == [("rejected", "No.")]
    assert len(store.listed()) <= MAX_CLOSED + 1


def test_the_newest_of_one_call_is_found(store: ApprovalStore) -> None:
    """And when it counts no more, the one before it."""
    for name in ("a1", "a2", "a3"):
        store.add(replace(ASKED, approval_id=name), 9)
    for name in ("a3", "a2", "a1"):
        found = store.find("s1", "refund.create", "d1")
        assert found is not None
        assert found.pending.approval_id == name
        store.expire(name, "x")
    assert store.find("s1", "refund.create", "d1") is None


def _consume(path: str, won: Any) -> None:
    won.put(SqliteApprovals(path).consume("a1", 6))


@pytest.mark.slow
def test_one_of_many_processes_consumes(tmp_path: Path) -> None:
    """One file, four processes, one yes."""
    store = SqliteApprovals(tmp_path / "a.db")
    store.add(ASKED, 9)
    store.answer("a1", Answer(True, "ann"), 5)
    context = multiprocessing.get_context("spawn")
    won = context.Queue()
    processes = [context.Process(target=_consume, args=(str(tmp_path / "a.db"), won)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(won.get(timeout=10) for _ in range(4)) == [False, False, False, True]


def test_the_file(tmp_path: Path) -> None:
    """It is for its owner only, and outlives the store that made it."""
    path = tmp_path / "a.db"
    SqliteApprovals(path).add(ASKED, 9)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.pending for item in SqliteApprovals(path).listed()] == [ASKED]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Damaged, of another program, of another version, locked, or in no folder: an error that names the file."""
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"not a database at all" * 500)
    with pytest.raises(ApprovalError, match=r"damaged.db is damaged"):
        SqliteApprovals(damaged)
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE mine (x)")
    foreign.commit()
    with pytest.raises(ApprovalError, match="belongs to another program"):
        SqliteApprovals(tmp_path / "foreign.db")
    foreign.execute("PRAGMA user_version=99")
    foreign.commit()
    with pytest.raises(ApprovalError, match=r"another version \(99\)"):
        SqliteApprovals(tmp_path / "foreign.db")
    foreign.close()
    with pytest.raises(ApprovalError, match="No such file"):
        SqliteApprovals(tmp_path / "no" / "a.db")
    store = SqliteApprovals(tmp_path / "a.db", timeout_seconds=0.01)
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ApprovalError, match=r"a.db is locked"):
        store.add(ASKED, 9)
    other.execute("ROLLBACK")
    assert store.add(ASKED, 9)
    other.execute("UPDATE approvals SET question = '{'")
    with pytest.raises(ApprovalError, match="approval a1 is damaged"):
        store.get("a1")
    other.close()


def test_a_fork_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """A child process may go on with the same object."""
    store = SqliteApprovals(tmp_path / "a.db")
    store.add(ASKED, 9)
    child = os.fork()
    if child == 0:
        try:
            store.answer("a1", Answer(True, "ann"), 5)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert store.consume("a1", 6)


@pytest.mark.parametrize(
    ("reply", "approved"),
    [(True, True), (False, False), (1, False), ("yes", False), (None, False), (Answer(1), False)],  # type: ignore[arg-type]
)
def test_only_true_is_a_yes(reply: object, approved: bool) -> None:
    """Whatever else an approver gives is a no."""
    assert as_answer(reply).approved is approved
