"""The owner of a folder's ledger, in an order that no crash can turn around; the rules are in ``test_rules``."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.ledger import folder as module
from cra_middleware.trace.ledger.book import read_book, read_head
from cra_middleware.trace.ledger.folder import take_lock
from cra_middleware.trace.note import Checkpoint, Signer, open_note
from cra_middleware.trace.storage.files import replace_file
from tests.trace.forge import write_trace
from tests.trace.ledger.conftest import SIGNER, Owners, ask, tree_of

GONE = r"was changed \(its last head is about 2 entries that are not there\): it is not signed any more"


def head_in(folder: Path, signer: Signer = SIGNER) -> Checkpoint:
    return open_note(read_head(folder) or b"", signer.verifier)


def noted(folder: Path) -> list[Entry]:
    book = read_book(folder)
    return [] if book is None else list(book)


def waiting(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "ledger" / "inbox"))


@pytest.fixture
def two_heads(folder: Path, trace: Path, owners: Owners) -> Owners:
    """A ledger of two entries, signed after each."""
    owner = owners.new()
    for size in (3, 5):
        ask(trace, size)
        owner.work()
    owners.close()
    return owners


def test_the_order_of_durability(folder: Path, trace: Path, owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries reach the disk before the head that is about them, the head has its name before what asked is removed."""
    steps: list[str] = []

    def name_of(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def record(kind: str, real: Callable[..., object], name: Callable[..., str]) -> Callable[..., object]:
        def call(*args: object) -> object:
            steps.append(f"{kind} {name(*args)}")
            return real(*args)

        return call

    owner = owners.new()
    ask(trace, 3)
    for kind, name in (
        ("pwrite", lambda fd, *rest: name_of(fd)),
        ("fdatasync", name_of),
        ("fsync", name_of),
        ("rename", lambda old, new: os.path.basename(new)),
        ("unlink", lambda path: os.path.basename(path)),
    ):
        monkeypatch.setattr(os, kind, record(kind, getattr(os, kind), name))
    owner.work()
    assert steps == [
        *("pwrite entries", "fdatasync entries", "unlink .head.new"),
        *("fdatasync .head.new", "rename head", "fsync ledger", "unlink a"),
    ]


def test_garbage_in_the_inbox(folder: Path, trace: Path, owners: Owners, caplog: pytest.LogCaptureFixture) -> None:
    """What is no entry is told once, and nobody else's entry waits for it."""
    inbox = folder / "ledger" / "inbox"
    (inbox / "0-short").write_bytes(b"x")
    (inbox / "1-zeros").write_bytes(bytes(ENTRY_BYTES))
    (inbox / "2-empty").touch()
    (inbox / "3-folder").mkdir()
    (inbox / "4-link").symlink_to(trace)
    os.mkfifo(inbox / "5-pipe")
    (inbox / ".6-unfinished.new").write_bytes(b"x")
    (inbox / "7-\x1b[31m").write_bytes(b"x")
    ask(trace, 3, name="8")
    owner = owners.new()
    assert owner.work() is not None
    assert [entry.size for entry in noted(folder)] == [3]
    assert waiting(folder) == [".6-unfinished.new", "3-folder", "4-link"]
    assert caplog.text.count("holds something else") == 3
    assert caplog.text.count("cannot be read") == 2
    assert "\x1b" not in caplog.text
    assert owner.work() is None
    assert caplog.text.count("cannot be read") == 2


def test_a_torn_last_entry(folder: Path, trace: Path, two_heads: Owners, caplog: pytest.LogCaptureFixture) -> None:
    """It did not count yet: its place is taken by the next."""
    with (folder / "ledger" / "entries").open("ab") as file:
        file.write(b"\x01" * (ENTRY_BYTES - 1))
    ask(trace, 7)
    two_heads.new().work()
    assert [entry.size for entry in noted(folder)] == [3, 5, 7]
    assert (folder / "ledger" / "entries").stat().st_size == 3 * ENTRY_BYTES
    assert "did not count yet; they were set aside" in caplog.text


def test_entries_that_nobody_signed_yet(folder: Path, trace: Path, two_heads: Owners) -> None:
    """The last owner died between its entries and its head: they are signed first of all."""
    with (folder / "ledger" / "entries").open("ab") as file:
        file.write(tree_of(trace, 7).entry().pack())
    assert two_heads.new().work() is not None
    assert head_in(folder).size == 3


def test_entries_that_are_gone(folder: Path, two_heads: Owners) -> None:
    """Without their file, too, a head is about what is not there."""
    (folder / "ledger" / "entries").unlink()
    with pytest.raises(ChainBroken, match="its last head is about 2 entries that are not there"):
        two_heads.new()


def full(*args: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["pwrite", "short", "sync_data", "replace_file", "rename"])
def test_a_full_disk(folder: Path, trace: Path, two_heads: Owners, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Nothing is lost: what was asked stays in the inbox, and is noted and signed once there is room."""
    owner = two_heads.new()
    ask(trace, 7)
    with monkeypatch.context() as patch:
        if where == "short":
            patch.setattr(os, "pwrite", lambda fd, data, place, real=os.pwrite: real(fd, data[:40], place))
        else:
            patch.setattr(os if where in ("pwrite", "rename") else module, where, full)
        for _ in range(2):
            with pytest.raises(
                SinkError, match=r"the ledger in .* cannot be written: (the disk is full|No space left)"
            ):
                owner.work()
    assert waiting(folder) == ["a"]
    assert head_in(folder).size == 2
    assert owner.work() is not None
    assert [entry.size for entry in noted(folder)] == [3, 5, 7]
    assert (head_in(folder).size, waiting(folder)) == (3, [])


def test_what_a_failed_try_left_is_taken_away(
    folder: Path, trace: Path, two_heads: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where less is noted the second time: no entry stays that nobody asks for any more."""
    other, owner = write_trace(folder), two_heads.new()
    ask(trace, 7, name="a")
    ask(other, 4, name="b")
    with monkeypatch.context() as patch:
        patch.setattr(module, "sync_data", full)
        with pytest.raises(SinkError):
            owner.work()
    assert len(noted(folder)) == 4
    (folder / "ledger" / "inbox" / "b").unlink()
    owner.work()
    assert [entry.size for entry in noted(folder)] == [3, 5, 7]


@pytest.mark.parametrize("is_forked", [False, True])
def test_whose_the_lock_is(folder: Path, owners: Owners, is_forked: bool) -> None:
    """An owner lets go of it although a forked child has a copy; the child lets go of nothing but its copy."""
    owner = owners.new()
    copy = os.dup(owner._hold._lock)
    owner.close(is_forked=is_forked)
    owners.forget()
    lock = take_lock(folder / "ledger")
    assert (lock is None) == is_forked
    for fd in (copy, lock):
        if fd is not None:
            os.close(fd)


def test_one_owner_at_a_time(folder: Path) -> None:
    """The lock is one for all processes, and free again when its owner is gone."""
    lock = take_lock(folder / "ledger")
    assert lock is not None
    assert take_lock(folder / "ledger") is None
    os.close(lock)
    script = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, folder / "ledger" / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert take_lock(folder / "ledger") is None
        other.kill()
    lock = take_lock(folder / "ledger")
    assert lock is not None
    os.close(lock)


def test_a_lock_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in its place, no folder, a file system without locks: an error that says so, and no descriptor left."""
    with pytest.raises(SinkError, match="lock cannot be opened"):
        take_lock(tmp_path / "nowhere")
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SinkError, match="lock cannot be opened"):
        take_lock(tmp_path)
    (tmp_path / "lock").unlink()

    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    closed: list[int] = []
    monkeypatch.setattr(os, "close", lambda fd, real=os.close: closed.append(fd) or real(fd))
    with pytest.raises(SinkError, match="lock cannot be locked"):
        take_lock(tmp_path)
    assert len(closed) == 1


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the old content until it has the new; what an earlier try left beside it is in nobody's way."""
    path = tmp_path / "head"
    replace_file(path, b"old")
    (tmp_path / ".head.new").write_bytes(b"left over, and longer")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(OSError, match="space"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["head"]
    assert path.stat().st_mode & 0o777 == 0o600
