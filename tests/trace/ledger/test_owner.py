"""The owner of a ledger signs what extends what was signed, in an order that no crash can turn around."""

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
from cra_middleware.trace.ledger import owner as module
from cra_middleware.trace.ledger.book import read_book, read_head
from cra_middleware.trace.ledger.owner import replace_file, take_lock
from cra_middleware.trace.note import Checkpoint, Signer, open_note
from tests.trace.forge import lines_of, rewrite, write_trace
from tests.trace.ledger.conftest import OTHER, SIGNER, Owners, ask, session_of, tree_of

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


def test_what_is_wanted_is_noted_and_signed(folder: Path, trace: Path, owners: Owners) -> None:
    """The entry, the tree of it, the head; the inbox is empty, and there is nothing more to do."""
    owner = owners.new()
    assert owner.work() is None
    ask(trace, 3)
    note = owner.work()
    assert note == read_head(folder)
    [entry] = noted(folder)
    assert entry == tree_of(trace, 3).entry()
    assert head_in(folder)[:2] == ("example.com/bot", 1)
    assert (waiting(folder), owner.work()) == ([], None)


def test_the_last_word_of_a_session_counts(folder: Path, trace: Path, owners: Owners) -> None:
    """One entry a session and turn, in the order of the inbox files' names."""
    other = write_trace(folder)
    ask(trace, 2, 4, name="b")
    ask(trace, 1, name="a")
    ask(other, 2, name="c")
    owners.new().work()
    assert [(entry.session_id, entry.size) for entry in noted(folder)] == [
        (session_of(trace), 4),
        (session_of(other), 2),
    ]


def test_the_next_owner_goes_on(folder: Path, trace: Path, two_heads: Owners) -> None:
    """With the entries and the head that the last one left."""
    ask(trace, 7)
    two_heads.new().work()
    assert [entry.size for entry in noted(folder)] == [3, 5, 7]
    assert head_in(folder).size == 3


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


def test_a_session_that_shrank_is_not_signed(
    folder: Path, trace: Path, two_heads: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    """No entry with fewer events, or as many; those that are there stay, and others are signed."""
    ask(trace, 4, name="a")
    ask(write_trace(folder), 2, name="b")
    two_heads.new().work()
    assert [entry.size for entry in noted(folder)] == [3, 5, 2]
    assert f"session {session_of(trace)} had 5 events, and now 4" in caplog.text


def test_what_was_signed_is_not_signed_twice(folder: Path, trace: Path, two_heads: Owners) -> None:
    """An entry that is there already is no news, and no fault."""
    ask(trace, 5)
    assert two_heads.new().work() is None
    assert waiting(folder) == []


def test_a_session_that_was_rewritten_is_not_signed(
    folder: Path, trace: Path, two_heads: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files must begin with the events that were signed."""
    trace.write_bytes(b"".join(rewrite(lines_of(trace), lambda events: events[0]["payload"].update(goal="Another"))))
    ask(trace, 7)
    assert two_heads.new().work() is None
    assert [entry.size for entry in noted(folder)] == [3, 5]
    assert f"session {session_of(trace)} was changed since its first 5 events" in caplog.text


@pytest.mark.parametrize("field", ["size", "head_hash", "root", "session_id"])
def test_an_entry_that_the_files_do_not_bear_out(
    folder: Path, trace: Path, owners: Owners, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    """Whoever can write the inbox cannot make the owner sign what is not there."""
    true = tree_of(trace, 3).entry()
    lies = {"size": 4, "head_hash": "0" * 64, "root": bytes(32), "session_id": "0" * 8 + true.session_id[8:]}
    data = true._replace(**{field: lies[field]}).pack()
    (folder / "ledger" / "inbox" / "a").write_bytes(data)
    assert owners.new().work() is None
    assert noted(folder) == []
    expected = "has 0 events where 3" if field == "session_id" else "is not what its writer says it is"
    assert f"not noted in the ledger, and not signed: session {data[:4].hex()}" in caplog.text
    assert expected in caplog.text


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


def first_only(entries: Path) -> None:
    entries.write_bytes(entries.read_bytes()[:ENTRY_BYTES])


def flip(entries: Path) -> None:
    data = entries.read_bytes()
    entries.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (first_only, GONE),
        (flip, GONE),
        (Path.unlink, GONE),
        (lambda path: path.write_bytes(bytes(2 * ENTRY_BYTES)), r"an entry is about 1 to 2\^63-1 events, not 0"),
    ],
)
def test_a_ledger_that_does_not_extend_its_head(
    folder: Path, two_heads: Owners, damage: Callable[[Path], object], why: str
) -> None:
    """Entries that are gone or changed below the last head: nothing is signed any more."""
    damage(folder / "ledger" / "entries")
    before = read_head(folder)
    with pytest.raises(ChainBroken, match=why):
        two_heads.new()
    assert read_head(folder) == before


def own_forgery(head: bytes) -> bytes:
    return head[:-6] + b"AAAA=\n"


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda head: head.replace(b"\n2\n", b"\n1\n"), "does not fit the head: it was changed or forged"),
        (lambda head: b"garbage", "the head is no signed note"),
        (lambda head: b"", "the head is no signed note"),
        (lambda head: b"\xff", "the head is not UTF-8"),
        (lambda head: head * 9000, "the head is longer than"),
        (lambda head: head.replace(b"\n2\n", b"\n-2\n"), "its second line is not a tree size"),
        (
            lambda head: SIGNER.sign(
                "example.com/elsewhere\n" + head.decode().split("\n\n")[0].split("\n", 1)[1] + "\n"
            ),
            "the head is of the log",
        ),
    ],
)
def test_a_head_that_was_forged(folder: Path, two_heads: Owners, forge: Callable[[bytes], bytes], why: str) -> None:
    """A head that is none, or is said to be signed with our key and is not, stops everything."""
    path = folder / "ledger" / "head"
    path.write_bytes(forge(path.read_bytes()))
    with pytest.raises(ChainBroken, match=why):
        two_heads.new()


@pytest.mark.parametrize("new", [OTHER, Signer(SIGNER.name, bytes(32))])
def test_another_key(
    folder: Path, trace: Path, two_heads: Owners, new: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    """A key may be replaced, by one of another name or the same: the last head must fit, and a warning is given."""
    owner = two_heads.new(new)
    assert "was signed by another key, of 'example.com/bot'" in caplog.text
    ask(trace, 7)
    owner.work()
    assert head_in(folder, new)[:2] == (new.name, 3)


def test_another_key_is_no_way_around_the_head(folder: Path, two_heads: Owners) -> None:
    """What another key signed must be there, too."""
    first_only(folder / "ledger" / "entries")
    with pytest.raises(ChainBroken, match=GONE):
        two_heads.new(OTHER)


def test_a_cosigned_head(folder: Path, trace: Path, two_heads: Owners) -> None:
    """A witness may have put its signature under ours."""
    path = folder / "ledger" / "head"
    text, signature = path.read_bytes().decode().split("\n\n")
    path.write_bytes(OTHER.sign(text + "\n") + signature.encode())
    ask(trace, 7)
    assert two_heads.new().work() is not None


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
    copy = os.dup(owner._lock)
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
