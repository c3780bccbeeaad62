"""Reading a ledger: nothing in it is believed, and nothing in its place keeps anybody waiting."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.errors import SinkError
from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.ledger.book import MAX_INBOX_BYTES, LedgerBook, read_book, read_head, read_inbox_file
from cra_middleware.trace.note import MAX_NOTE_BYTES
from cra_middleware.trace.tree import Leaves

IDS = [f"01900000-0000-7000-8000-{number:012x}" for number in range(3)]


def entry(session: int, size: int) -> Entry:
    return Entry(IDS[session], size, f"{size:064x}", bytes([session]) * 32)


def packed(*entries: Entry) -> bytes:
    return b"".join(item.pack() for item in entries)


def test_entries_in_their_order() -> None:
    """As many as there are whole ones, and their tree."""
    entries = [entry(0, 1), entry(1, 4), entry(0, 9)]
    book = LedgerBook(packed(*entries))
    leaves = Leaves()
    for item in entries:
        leaves.append(item.leaf())
    assert (len(book), list(book), book.entry(1)) == (3, entries, entries[1])
    assert book.leaves().root() == leaves.root()


@pytest.mark.parametrize("torn", [1, 87])
def test_a_torn_entry_does_not_count(torn: int) -> None:
    """What was cut short at the end is told by its bytes only."""
    book = LedgerBook(packed(entry(0, 1), entry(1, 2))[: ENTRY_BYTES + torn])
    assert (len(book), list(book)) == (1, [entry(0, 1)])
    assert book.last_about(IDS[1]) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=12))
def test_the_last_entry_about_a_session(rows: list[tuple[int, int]]) -> None:
    """It is the one nearest to the end, for every session."""
    book = LedgerBook(packed(*(entry(*row) for row in rows)))
    for number, session_id in enumerate(IDS):
        sizes = [size for session, size in rows if session == number]
        found = book.last_about(session_id)
        assert (None if found is None else found.size) == (sizes[-1] if sizes else None)


def test_an_id_inside_of_another_entry() -> None:
    """The bytes of an id inside of hashes are no entry about it."""
    inside = bytes.fromhex(IDS[0].replace("-", ""))
    hostile = Entry(IDS[1], 2, (inside * 2).hex(), inside + inside)
    assert LedgerBook(packed(hostile)).last_about(IDS[0]) is None
    assert LedgerBook(packed(entry(0, 3), hostile)).last_about(IDS[0]) == entry(0, 3)


def test_bytes_that_are_no_entry() -> None:
    """A size of 0 is no entry's: whoever looks at it hears so."""
    book = LedgerBook(packed(entry(0, 1)) + bytes.fromhex(IDS[1].replace("-", "")) + bytes(72))
    with pytest.raises(ValueError, match="not 0"):
        list(book)
    with pytest.raises(ValueError, match="not 0"):
        book.leaves()
    with pytest.raises(ValueError, match="not 0"):
        book.last_about(IDS[1])
    assert book.last_about(IDS[0]) == entry(0, 1)


def test_no_ledger(tmp_path: Path) -> None:
    """A folder without one has no book and no head; an empty one has a book without entries."""
    assert (read_book(tmp_path), read_head(tmp_path)) == (None, None)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "entries").touch()
    book = read_book(tmp_path)
    assert book is not None
    assert len(book) == 0


def test_no_more_than_is_needed_is_read(tmp_path: Path) -> None:
    """Of a head that is too long one byte more than it may have; of an inbox file a whole number of entries."""
    (tmp_path / "ledger").mkdir()
    for name in ("head", "big"):
        with (tmp_path / "ledger" / name).open("wb") as file:
            file.truncate(1 << 30)
    assert len(read_head(tmp_path) or b"") == MAX_NOTE_BYTES + 1
    assert len(read_inbox_file(tmp_path / "ledger" / "big")) == MAX_INBOX_BYTES
    assert MAX_INBOX_BYTES % ENTRY_BYTES == 0
    assert read_inbox_file(tmp_path / "nothing") == b""


@pytest.mark.parametrize("read", [read_head, read_book])
def test_what_is_no_plain_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A link is not followed, a folder is an error without a descriptor left open, a pipe is empty."""
    name = "head" if read is read_head else "entries"
    place = tmp_path / "ledger" / name
    place.mkdir(parents=True)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with pytest.raises(SinkError, match=f"{name} cannot be read: Is a directory"):
        read(tmp_path)
    assert len(os.listdir("/proc/self/fd") if before else []) == len(before)
    place.rmdir()
    place.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(packed(entry(0, 1)))
    with pytest.raises(SinkError, match=f"{name} cannot be read"):
        read(tmp_path)
    place.unlink()
    os.mkfifo(place)
    found = read(tmp_path)
    assert found == b"" or (isinstance(found, LedgerBook) and len(found) == 0)
