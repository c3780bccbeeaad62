"""What reached the disk is signed soon, by one process for all; what goes wrong stops no call."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.trace.ledger import follower as module
from cra_middleware.trace.ledger import owner as owner_module
from cra_middleware.trace.ledger.book import read_book, read_head
from cra_middleware.trace.ledger.follower import LedgerFollower
from cra_middleware.trace.ledger.owner import take_lock
from cra_middleware.trace.note import open_note
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.trace.forge import lines_of, write_trace
from tests.trace.ledger.conftest import SIGNER, session_of

Followers = list[LedgerFollower]
LATE = 1000.0
"""Seconds that no test waits."""


def until(condition: Callable[[], object], what: str) -> None:
    """Look again and again, for ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"not within 10 s: {what}"
        time.sleep(0.005)


def sizes(folder: Path) -> list[int]:
    """What the signed head covers: each entry's number of events."""
    note = read_head(folder)
    if note is None:
        return []
    head, book = open_note(note, SIGNER.verifier), read_book(folder)
    assert book is not None
    assert book.leaves().root(head.size) == head.root
    return [entry.size for entry in book][: head.size]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is due at once, or nearly."""
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.06)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second after which a head is due never comes."""
    monkeypatch.setattr(module, "HEAD_SECONDS", LATE)


@pytest.mark.usefixtures("late")
def test_a_head_at_a_sessions_end(folder: Path, trace: Path, followers: Followers) -> None:
    """Its end does not wait for the second."""
    followers.append(LedgerFollower(folder, SIGNER))
    followers[0].durable(session_of(trace), 5, 5)
    followers[0].ended(session_of(trace))
    until(lambda: sizes(folder) == [5], "a head at the session's end")


@pytest.mark.usefixtures("late")
def test_a_head_after_a_thousand_events(folder: Path, trace: Path, followers: Followers) -> None:
    """However many sessions they are of."""
    other = write_trace(folder)
    followers.append(LedgerFollower(folder, SIGNER))
    followers[0].durable(session_of(trace), 5, 600)
    followers[0].durable(session_of(other), 4, 400)
    until(lambda: sizes(folder) == [5, 4], "a head after 1,000 events")


def test_a_head_after_a_second(
    folder: Path, trace: Path, followers: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event is enough, and it need not be the last."""
    assert module.HEAD_SECONDS == 1.0
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.06)
    followers.append(LedgerFollower(folder, SIGNER))
    for size in (1, 2):
        followers[0].durable(session_of(trace), size, 1)
        until(lambda size=size: size in sizes(folder), "a head after a second")
    assert sizes(folder) == [1, 2]


@pytest.mark.parametrize(
    ("seconds", "events", "over", "due"),
    [
        (0.0, 0, False, False),
        (0.04, 1000, True, False),  # heads are not made one behind the other
        (0.06, 999, False, False),
        (0.06, 1000, False, True),
        (0.06, 1, True, True),
        (0.99, 1, False, False),
        (1.0, 1, False, True),
    ],
)
def test_when_a_head_is_due(
    folder: Path, followers: Followers, seconds: float, events: int, over: bool, due: bool
) -> None:
    """A second behind the first event, sooner after 1,000 of them or at an end, but not at once."""
    follower = LedgerFollower(folder, SIGNER)
    follower.close()
    follower._stopped = False
    follower._heard.append(("s", events, events))
    if over:
        follower._over.append("s")
    assert follower._is_due(seconds) is due
    follower._stopped = True
    assert follower._is_due(seconds)
    follower._heard.clear()


def test_close_signs_the_rest(folder: Path, trace: Path) -> None:
    """Nothing that was durable before is left out; a second close does nothing, and the lock is free."""
    follower = LedgerFollower(folder, SIGNER)
    follower.durable(session_of(trace), 7, 7)
    follower.close()
    assert sizes(folder) == [7]
    follower.close()
    assert sizes(folder) == [7]
    lock = take_lock(folder / "ledger")
    assert lock is not None
    os.close(lock)


def test_a_runtime_signs(folder: Path, tmp_path: Path) -> None:
    """From the calls of sessions to a head over all of their events, when close() returns."""
    generate_key(tmp_path / "key", "example.com/bot")
    heads: list[str] = []
    sink = JsonlSink(folder, signer=load_signer(tmp_path / "key"), on_head=heads.append, segment_bytes=2000)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        for _ in range(3):
            with runtime.session() as session:
                for number in range(4):
                    session.call("ticket.get", lambda n: n, number)
    book = read_book(folder)
    assert book is not None
    assert heads[-1].encode() == read_head(folder)
    last = {entry.session_id: entry.size for entry in book}
    assert last == {name: sink.count(name) for name in sink.session_ids()}
    assert open_note(heads[-1].encode(), load_signer(tmp_path / "key").verifier).size == len(book)


def test_whoever_publishes_heads_may_fail(
    folder: Path, trace: Path, followers: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    """The head is kept all the same, the next one is offered again, and the error's text stays out of the log."""
    heard: list[str] = []

    def publish(head: str) -> None:
        heard.append(head)
        raise ValueError("secret")

    followers.append(LedgerFollower(folder, SIGNER, publish))
    for size in (3, 6):
        followers[0].durable(session_of(trace), size, size)
        followers[0].ended(session_of(trace))
        until(lambda size=size: size in sizes(folder), "a head")
    followers[0].close()
    assert [head.split("\n")[1] for head in heard] == ["1", "2"]
    assert caplog.text.count("a head was not published: ValueError") == 2
    assert "secret" not in caplog.text


def test_a_session_that_was_changed_is_left_out(
    folder: Path, trace: Path, followers: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and everything else is signed."""
    other, size = write_trace(folder), len(lines_of(trace))
    trace.write_bytes(trace.read_bytes().replace(b'"event_hash":"', b'"event_hash":"\xff', 1))
    followers.append(LedgerFollower(folder, SIGNER))
    followers[0].durable(session_of(trace), size, size)
    followers[0].durable(session_of(other), 4, 4)
    followers[0].close()
    assert sizes(folder) == [4]
    assert f"not signed: session {session_of(trace)} does not go on from event 0" in caplog.text


def test_what_cannot_be_read_now_is_tried_again(folder: Path, trace: Path) -> None:
    """A session whose file could not be opened (too many are open) is signed with the next head."""
    follower = LedgerFollower(folder, SIGNER)
    follower.durable(session_of(trace), 5, 5)
    trace.rename(folder / "aside")
    trace.symlink_to(folder / "aside")
    follower.close()
    assert sizes(folder) == []
    trace.unlink()
    (folder / "aside").rename(trace)
    follower.close()
    assert sizes(folder) == [5]


@pytest.mark.usefixtures("soon")
def test_a_full_disk_costs_no_head(
    folder: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread goes on, and signs when there is room again."""
    follower = LedgerFollower(folder, SIGNER)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    real = owner_module.replace_file
    for place in (module, owner_module):
        monkeypatch.setattr(place, "replace_file", full)
    follower.durable(session_of(trace), 5, 5)
    until(lambda: "no head could be signed: " in caplog.text, "the error is told")
    for place in (module, owner_module):
        monkeypatch.setattr(place, "replace_file", real)
    until(lambda: sizes(folder) == [5], "a head once there is room")
    follower.close()


def spoil(folder: Path, trace: Path) -> None:
    """A ledger whose entries do not extend its head."""
    follower = LedgerFollower(folder, SIGNER)
    follower.durable(session_of(trace), 5, 5)
    follower.close()
    (folder / "ledger" / "entries").write_bytes(b"")


def test_a_spoilt_ledger_is_not_opened(folder: Path, trace: Path) -> None:
    """Whoever begins hears of it at once, and the lock is free for whoever looks after it."""
    spoil(folder, trace)
    with pytest.raises(ChainBroken, match="are not there"):
        LedgerFollower(folder, SIGNER)
    lock = take_lock(folder / "ledger")
    assert lock is not None
    os.close(lock)


@pytest.mark.usefixtures("soon")
def test_a_ledger_that_is_spoilt_before_it_is_taken_over(
    folder: Path,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who waits for the owner's place raises the alarm: no session is begun any more, and nobody waits at the end."""
    lock = take_lock(folder / "ledger")
    assert lock is not None
    sink = JsonlSink(folder, signer=SIGNER)
    follower = sink._follower
    assert follower is not None
    follower.check()
    follower.durable(session_of(trace), 5, 5)
    until(lambda: os.listdir(folder / "ledger" / "inbox"), "an entry in the inbox")
    (folder / "ledger" / "head").write_bytes(b"garbage")
    os.close(lock)
    until(lambda: "it is not signed any more" in caplog.text, "an alarm")
    with pytest.raises(SinkError, match="was changed"):
        sink.create("01900000-0000-7000-8000-000000000001")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nobody will sign"))
    sink.close()
    assert caplog.text.count("it is not signed any more") == 1


def test_a_folder_that_cannot_have_a_ledger(tmp_path: Path) -> None:
    """A file in its place is an error that says so."""
    (tmp_path / "ledger").touch()
    with pytest.raises(SinkError, match=r"the ledger in .* cannot be made"):
        LedgerFollower(tmp_path, SIGNER)


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
    """Another process that writes sessions to the same folder."""

    def __init__(self, folder: Path, key: Path) -> None:
        args = [sys.executable, "-c", WRITER, str(folder), str(key)]
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


@pytest.mark.usefixtures("soon")
def test_two_processes(folder: Path, tmp_path: Path) -> None:
    """One signs for both; what the other wrote is signed when it is gone, and it takes over when the owner is."""
    generate_key(tmp_path / "key", SIGNER.name)
    signer = load_signer(tmp_path / "key")

    def covered() -> set[str]:
        note, book = read_head(folder), read_book(folder)
        if note is None or book is None:
            return set()
        head = open_note(note, signer.verifier)
        assert book.leaves().root(head.size) == head.root
        return {book.entry(place).session_id for place in range(head.size)}

    owner = LedgerFollower(folder, signer)
    first, second = Writer(folder, tmp_path / "key"), Writer(folder, tmp_path / "key")
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
    LedgerFollower(folder, signer).close()
    assert covered() == wrote


def test_an_end_does_not_wait_for_ever(
    folder: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An owner that hangs is told of; what was asked is in the inbox, for the next."""
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    lock = take_lock(folder / "ledger")
    assert lock is not None
    follower = LedgerFollower(folder, SIGNER)
    follower.durable(session_of(trace), 5, 5)
    follower.close()
    assert "does not sign; another will" in caplog.text
    os.close(lock)
    LedgerFollower(folder, SIGNER).close()
    assert sizes(folder) == [5]


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
def test_a_forked_child(folder: Path, trace: Path, followers: Followers) -> None:
    """It owns nothing, does not let go of its parent's lock, and what it writes its parent signs."""
    follower = LedgerFollower(folder, SIGNER)
    followers.append(follower)
    other = write_trace(folder)

    def child() -> bool:
        if follower._owner is not None or take_lock(folder / "ledger") is not None:
            return False
        follower.durable(session_of(other), 3, 3)
        follower.close()  # waits for its parent
        return sizes(folder) == [3]

    assert in_a_child(child)
    assert take_lock(folder / "ledger") is None
    follower.durable(session_of(trace), 5, 5)
    follower.close()
    assert sizes(folder) == [3, 5]


def test_no_thread_is_left(folder: Path) -> None:
    """After close there is none."""
    before = threading.active_count()
    LedgerFollower(folder, SIGNER).close()
    assert threading.active_count() == before


def test_trees_of_ended_sessions_are_forgotten(
    folder: Path, trace: Path, followers: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with the sessions: those that ended go, and all of them when there are too many."""
    follower = LedgerFollower(folder, SIGNER)
    followers.append(follower)
    other = write_trace(folder)
    follower.durable(session_of(trace), 5, 5)
    follower.durable(session_of(other), 4, 4)
    follower.ended(session_of(trace))
    until(lambda: set(follower._trees) == {session_of(other)}, "the ended session's tree is forgotten")
    monkeypatch.setattr(module, "MAX_TREES", 0)
    follower.ended(session_of(trace))
    until(lambda: not follower._trees, "all trees are forgotten")
    follower.durable(session_of(other), 6, 2)
    follower.close()
    assert sizes(folder) == [5, 4, 6]


def test_nothing_is_said_when_all_is_well(folder: Path, trace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No line in the log."""
    caplog.set_level(logging.DEBUG)
    for size in (3, 5):
        follower = LedgerFollower(folder, SIGNER)
        follower.durable(session_of(trace), size, size)
        follower.close()
    assert sizes(folder) == [3, 5]
    assert caplog.records == []
