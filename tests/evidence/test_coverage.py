"""What heads cover: pure, from entries and heads whose signatures were checked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.trace.coverage import coverage_of
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.ledger.book import LedgerBook
from cra_middleware.trace.note import Checkpoint
from cra_middleware.trace.tree import EMPTY_ROOT, Leaves

IDS = [f"01900000-0000-7000-8000-{number:012x}" for number in range(3)]


def entry(session: int, size: int) -> Entry:
    return Entry(IDS[session], size, f"{size:064x}", bytes([session]) * 32)


def book_of(*entries: Entry) -> LedgerBook:
    return LedgerBook(b"".join(item.pack() for item in entries))


def head(entries: list[Entry], size: int) -> Checkpoint:
    leaves = Leaves()
    for item in entries:
        leaves.append(item.leaf())
    return Checkpoint("example.com/bot", size, leaves.root(size))


ENTRIES = [entry(0, 3), entry(1, 2), entry(0, 5), entry(1, 9)]


def test_no_head_covers_nothing() -> None:
    """The entries are told by session, in their order."""
    found = coverage_of(book_of(*ENTRIES), ())
    assert found.entries == {IDS[0]: (ENTRIES[0], ENTRIES[2]), IDS[1]: (ENTRIES[1], ENTRIES[3])}
    assert (found.signed, found.problems, len(found.leaves)) == ({}, (), 4)


@given(st.integers(0, 4), st.integers(0, 4))
def test_the_largest_head_counts(first: int, second: int) -> None:
    """Of each session so much is covered as its last entry before that head says."""
    heads = [("a", head(ENTRIES, first)), ("b", head(ENTRIES, second))]
    found = coverage_of(book_of(*ENTRIES), heads)
    expected = {item.session_id: item.size for item in ENTRIES[: max(first, second)]}
    assert (found.signed, found.problems) == (expected, ())


def test_a_head_over_more_than_there_is() -> None:
    """Entries were removed: it says how many, and covers nothing; another head still does."""
    heads = [("the one", head(ENTRIES, 4)), ("the other", head(ENTRIES, 1))]
    found = coverage_of(book_of(*ENTRIES[:2]), heads)
    assert found.problems == ("the one covers 4 entries of the ledger, and there are 2: 2 were removed",)
    assert found.signed == {IDS[0]: 3}


def test_a_head_over_others() -> None:
    """Of as many entries or fewer, but not these."""
    found = coverage_of(book_of(*ENTRIES), [("the one", head([entry(2, 1)], 1))])
    assert found.problems == (
        "the one was signed over other entries than the ledger's first 1: they were changed, or it is the head of "
        "another folder",
    )
    assert found.signed == {}


def test_a_session_that_gets_smaller() -> None:
    """No owner writes such entries."""
    for size in (5, 4):
        found = coverage_of(book_of(entry(0, 5), entry(1, 1), entry(0, size)), ())
        assert found.problems == (f"entry 2 of the ledger makes session {IDS[0]} smaller than it was",)


def test_an_empty_ledger() -> None:
    """A head over nothing fits it, and covers nothing."""
    found = coverage_of(book_of(), [("the one", Checkpoint("o", 0, EMPTY_ROOT))])
    assert (found.entries, found.signed, found.problems) == ({}, {}, ())


def test_garbage() -> None:
    """Bytes that are no entry make the whole ledger worth nothing."""
    found = coverage_of(LedgerBook(ENTRIES[0].pack() + bytes(88)), [("the one", head(ENTRIES, 1))])
    assert (found.entries, found.signed) == ({}, {})
    assert found.problems == (
        "the ledger holds something else than entries: an entry is about 1 to 2^63-1 events, not 0",
    )
