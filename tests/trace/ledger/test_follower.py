"""What is a folder's only about its followers; the rest is in ``test_following``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cra_middleware.errors import SinkError
from cra_middleware.trace.ledger import folder as folder_module
from cra_middleware.trace.ledger import follower as module
from cra_middleware.trace.ledger.book import read_book, read_head
from cra_middleware.trace.ledger.folder import FolderPlace
from cra_middleware.trace.ledger.follower import LedgerFollower
from cra_middleware.trace.ledger.owner import Owner
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import open_note
from tests.trace.ledger.conftest import SIGNER, session_of
from tests.trace.ledger.waiting import LATE, until

Followers = list[LedgerFollower]


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
    follower = LedgerFollower(FolderPlace(folder), SIGNER)
    follower.close()
    follower._stopped = False
    follower._heard.append(("s", events, events))
    if over:
        follower._over.append("s")
    assert follower._is_due(seconds) is due
    follower._stopped = True
    assert follower._is_due(seconds)
    follower._heard.clear()


@pytest.mark.slow
def test_what_cannot_be_read_now_is_tried_again(folder: Path, trace: Path) -> None:
    """A session whose file could not be opened (too many are open) is signed with the next head."""
    follower = LedgerFollower(FolderPlace(folder), SIGNER)
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
    follower = LedgerFollower(FolderPlace(folder), SIGNER)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    real = folder_module.replace_file
    for place in (folder_module,):
        monkeypatch.setattr(place, "replace_file", full)
    follower.durable(session_of(trace), 5, 5)
    until(lambda: "no head could be signed: " in caplog.text, "the error is told")
    for place in (folder_module,):
        monkeypatch.setattr(place, "replace_file", real)
    until(lambda: sizes(folder) == [5], "a head once there is room")
    follower.close()


@pytest.mark.usefixtures("soon")
def test_two_complaints_in_turn_are_told_once_each(
    folder: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where neither the traces nor the ledger can be used, the log is not filled with it."""
    follower = LedgerFollower(FolderPlace(folder), SIGNER)
    tries: list[int] = []

    def away(*_: object) -> None:
        tries.append(1)
        raise SinkError("it is away")

    monkeypatch.setattr(Owner, "work", away)
    monkeypatch.setattr(SessionTree, "grow", away)
    follower.durable(session_of(trace), 5, 5)
    until(lambda: len(tries) > 9, "it is tried again")
    told = [record.getMessage() for record in caplog.records]
    assert sorted(message.partition(":")[0] for message in told) == ["no head could be signed", "not signed yet"]
    monkeypatch.undo()
    until(lambda: sizes(folder) == [5], "a head once both can be used")
    follower.close()


def test_a_folder_that_cannot_have_a_ledger(tmp_path: Path) -> None:
    """A file in its place is an error that says so."""
    (tmp_path / "ledger").touch()
    with pytest.raises(SinkError, match=r"the ledger in .* cannot be made"):
        LedgerFollower(FolderPlace(tmp_path), SIGNER)
