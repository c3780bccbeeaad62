"""What is durable is signed soon, by one process for all, wherever the ledger lies; what goes wrong stops no call."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.trace.ledger import follower as module
from cra_middleware.trace.ledger.follower import LedgerFollower
from cra_middleware.trace.note import open_note
from cra_middleware.trace.tree import Leaves
from tests.conftest import manifest
from tests.trace.ledger.ledgers import KINDS, SIGNER, Ledger, ledger_in, noted
from tests.trace.ledger.waiting import LATE, until

Followers = list[LedgerFollower]


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with ledger_in(request.param, tmp_path / "traces") as made:
        yield made


@pytest.fixture
def session(ledger: Ledger) -> str:
    """A sealed session in it."""
    return ledger.write()


@pytest.fixture
def followers() -> Iterator[Followers]:
    """Those that are appended to it are closed at the end."""
    made: Followers = []
    yield made
    for follower in made:
        follower.close()


def covered(ledger: Ledger) -> list[int]:
    """What the signed head covers: each entry's number of events."""
    note = ledger.head()
    if note is None:
        return []
    head, entries = open_note(note, SIGNER.verifier), noted(ledger)
    leaves = Leaves()
    for entry in entries:
        leaves.append(entry.leaf())
    assert leaves.root(head.size) == head.root
    return [entry.size for entry in entries][: head.size]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is due at once, or nearly."""
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.06)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second after which a head is due never comes."""
    monkeypatch.setattr(module, "HEAD_SECONDS", LATE)


@pytest.mark.usefixtures("late")
def test_a_head_at_a_sessions_end(ledger: Ledger, session: str, followers: Followers) -> None:
    """Its end does not wait for the second."""
    followers.append(LedgerFollower(ledger.open(), SIGNER))
    followers[0].durable(session, 5, 5)
    followers[0].ended(session)
    until(lambda: covered(ledger) == [5], "a head at the session's end")


@pytest.mark.usefixtures("late")
def test_a_head_after_a_thousand_events(ledger: Ledger, session: str, followers: Followers) -> None:
    """However many sessions they are of."""
    other = ledger.write()
    followers.append(LedgerFollower(ledger.open(), SIGNER))
    followers[0].durable(session, 5, 600)
    followers[0].durable(other, 4, 400)
    until(lambda: covered(ledger) == [5, 4], "a head after 1,000 events")


def test_a_head_after_a_second(
    ledger: Ledger, session: str, followers: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event is enough, and it need not be the last."""
    assert module.HEAD_SECONDS == 1.0
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.06)
    followers.append(LedgerFollower(ledger.open(), SIGNER))
    for size in (1, 2):
        followers[0].durable(session, size, 1)
        until(lambda size=size: size in covered(ledger), "a head after a second")
    assert covered(ledger) == [1, 2]


def test_close_signs_the_rest(ledger: Ledger, session: str) -> None:
    """Nothing that was durable before is left out; a second close does nothing, and the lock is free."""
    follower = LedgerFollower(ledger.open(), SIGNER)
    follower.durable(session, 7, 7)
    follower.close()
    assert covered(ledger) == [7]
    follower.close()
    assert covered(ledger) == [7]
    hold = ledger.open().take()
    assert hold is not None
    hold.close()


def test_a_runtime_signs(ledger: Ledger, tmp_path: Path) -> None:
    """From the calls of sessions to a head over all of their events, when close() returns."""
    generate_key(tmp_path / "key", "example.com/bot")
    heads: list[str] = []
    sink = ledger.sink(signer=load_signer(tmp_path / "key"), on_head=heads.append)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        for _ in range(3):
            with runtime.session() as session:
                for number in range(4):
                    session.call("ticket.get", lambda n: n, number)
    assert heads[-1].encode() == ledger.head()
    last = {entry.session_id: entry.size for entry in noted(ledger)}
    assert last == {name: sink.count(name) for name in sink.session_ids()}
    assert open_note(heads[-1].encode(), load_signer(tmp_path / "key").verifier).size == len(noted(ledger))
    sink.close()


def test_whoever_publishes_heads_may_fail(
    ledger: Ledger, session: str, followers: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    """The head is kept all the same, the next one is offered again, and the error's text stays out of the log."""
    heard: list[str] = []

    def publish(head: str) -> None:
        heard.append(head)
        raise ValueError("secret")

    followers.append(LedgerFollower(ledger.open(), SIGNER, publish))
    for size in (3, 6):
        followers[0].durable(session, size, size)
        followers[0].ended(session)
        until(lambda size=size: size in covered(ledger), "a head")
    followers[0].close()
    assert [head.split("\n")[1] for head in heard] == ["1", "2"]
    assert caplog.text.count("a head was not published: ValueError") == 2
    assert "secret" not in caplog.text


def test_a_session_that_was_changed_is_left_out(
    ledger: Ledger, session: str, followers: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and everything else is signed."""
    other, lines = ledger.write(), ledger.lines(session)
    ledger.put(session, [lines[0].replace(b'"event_hash":"', b'"event_hash":"\xff'), *lines[1:]])
    followers.append(LedgerFollower(ledger.open(), SIGNER))
    followers[0].durable(session, len(lines), len(lines))
    followers[0].durable(other, 4, 4)
    followers[0].close()
    assert covered(ledger) == [4]
    assert f"not signed: session {session} does not go on from event 0" in caplog.text


def spoil(ledger: Ledger, session: str) -> None:
    """A ledger whose entries do not extend its head."""
    follower = LedgerFollower(ledger.open(), SIGNER)
    follower.durable(session, 5, 5)
    follower.close()
    ledger.put_entries([])


def test_a_spoilt_ledger_is_not_opened(ledger: Ledger, session: str) -> None:
    """Whoever begins hears of it at once, and the lock is free for whoever looks after it."""
    spoil(ledger, session)
    with pytest.raises(ChainBroken, match="are not there"):
        LedgerFollower(ledger.open(), SIGNER)
    hold = ledger.open().take()
    assert hold is not None
    hold.close()


@pytest.mark.usefixtures("soon")
def test_a_ledger_that_is_spoilt_before_it_is_taken_over(
    ledger: Ledger,
    session: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who waits for the owner's place raises the alarm: no session is begun any more, and nobody waits at the end."""
    hold = ledger.open().take()
    assert hold is not None
    sink = ledger.sink(signer=SIGNER)
    follower = sink._follower
    assert follower is not None
    follower.check()
    follower.durable(session, 5, 5)
    until(ledger.waiting, "an entry in the inbox")
    ledger.put_head(b"garbage")
    hold.close()
    until(lambda: "it is not signed any more" in caplog.text, "an alarm")
    with pytest.raises(SinkError, match="was changed"):
        sink.create("01900000-0000-7000-8000-000000000001")
    assert "is not signed any more" in sink.health().detail
    assert not sink.health().ok
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nobody will sign"))
    sink.close()
    assert caplog.text.count("it is not signed any more") == 1


WRITER = """
import sys
from pathlib import Path
from cra_middleware import Atlas, Runtime
from cra_middleware.trace.ledger import follower
from tests.conftest import manifest
follower.HEAD_SECONDS = 0.1
with Runtime(Atlas.from_dict(manifest()), trace=sys.argv[1], signing_key=sys.argv[2]) as runtime:
    print(flush=True)
    for line in sys.stdin:
        with runtime.session() as session:
            session.call("ticket.get", lambda: 1)
        print(session.id, flush=True)
"""


class Writer:
    """Another process that writes sessions to the same place."""

    def __init__(self, ledger: Ledger, key: Path) -> None:
        args = [sys.executable, "-c", WRITER, ledger.address, str(key)]
        root = Path(__file__).resolve().parents[3]
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        self._ask("")

    def write(self) -> str:
        """The id of a session that it began and ended."""
        return self._ask("\n")

    def _ask(self, text: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> int:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
        return self.process.returncode


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
def test_two_processes(ledger: Ledger, tmp_path: Path) -> None:
    """One signs for both; what the other wrote is signed when it is gone, and it takes over when the owner is."""
    generate_key(tmp_path / "key", SIGNER.name)
    signer = load_signer(tmp_path / "key")

    def covered() -> set[str]:
        note = ledger.head()
        if note is None:
            return set()
        head, entries, leaves = open_note(note, signer.verifier), noted(ledger), Leaves()
        for entry in entries:
            leaves.append(entry.leaf())
        assert leaves.root(head.size) == head.root
        return {entry.session_id for entry in entries[: head.size]}

    owner = LedgerFollower(ledger.open(), signer)
    first, second = Writer(ledger, tmp_path / "key"), Writer(ledger, tmp_path / "key")
    wrote = {first.write()}
    assert first.close() == 0
    assert covered() == wrote
    wrote.add(second.write())
    owner.close()
    until(lambda: covered() == wrote, "the other process takes over")
    wrote.add(second.write())
    until(lambda: covered() == wrote, "and signs what it writes")
    second.process.kill()
    second.close()
    LedgerFollower(ledger.open(), signer).close()
    assert covered() == wrote


def test_an_end_does_not_wait_for_ever(
    ledger: Ledger, session: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An owner that hangs is told of; what was asked is in the inbox, for the next."""
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    hold = ledger.open().take()
    assert hold is not None
    follower = LedgerFollower(ledger.open(), SIGNER)
    follower.durable(session, 5, 5)
    follower.close()
    assert "does not sign; another will" in caplog.text
    hold.close()
    LedgerFollower(ledger.open(), SIGNER).close()
    assert covered(ledger) == [5]


def in_a_child(work: Callable[[], bool]) -> bool:
    """Whether ``work`` says yes in a forked child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("soon")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child(ledger: Ledger, session: str, followers: Followers) -> None:
    """It owns nothing, does not let go of its parent's lock, and what it writes its parent signs."""
    follower = LedgerFollower(ledger.open(), SIGNER)
    followers.append(follower)
    other, place = ledger.write(), ledger.open()

    def child() -> bool:
        if follower._owner is not None or place.take() is not None:
            return False
        follower.durable(other, 3, 3)
        follower.close()  # waits for its parent
        return covered(ledger) == [3]

    assert in_a_child(child)
    assert place.take() is None
    follower.durable(session, 5, 5)
    follower.close()
    assert covered(ledger) == [3, 5]


def test_no_thread_is_left(ledger: Ledger) -> None:
    """After close there is none."""
    before = threading.active_count()
    LedgerFollower(ledger.open(), SIGNER).close()
    assert threading.active_count() == before


def test_trees_of_ended_sessions_are_forgotten(
    ledger: Ledger, session: str, followers: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with the sessions: those that ended go, and all of them when there are too many."""
    follower = LedgerFollower(ledger.open(), SIGNER)
    followers.append(follower)
    other = ledger.write()
    follower.durable(session, 5, 5)
    follower.durable(other, 4, 4)
    follower.ended(session)
    until(lambda: set(follower._trees) == {other}, "the ended session's tree is forgotten")
    monkeypatch.setattr(module, "MAX_TREES", 0)
    follower.ended(session)
    until(lambda: not follower._trees, "all trees are forgotten")
    follower.durable(other, 6, 2)
    follower.close()
    assert covered(ledger) == [5, 4, 6]


def test_nothing_is_said_when_all_is_well(ledger: Ledger, session: str, caplog: pytest.LogCaptureFixture) -> None:
    """No line in the log."""
    caplog.set_level(logging.DEBUG)
    for size in (3, 5):
        follower = LedgerFollower(ledger.open(), SIGNER)
        follower.durable(session, size, size)
        follower.close()
    assert covered(ledger) == [3, 5]
    assert caplog.records == []
