"""The ledger's entries: 88 bytes that are written and read in one way."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.trace.entry import ENTRY_BYTES, Entry, event_leaf
from cra_middleware.trace.tree import MAX_SIZE

ENTRY = Entry("01900000-0000-7000-8000-00000000000a", 258, "ab" * 32, b"r" * 32)


def test_the_form() -> None:
    """UUID, size, head and root stand one after the other, big-endian; leaves are hashed as RFC 6962 says."""
    data = ENTRY.pack()
    assert data.hex() == "0190000000007000800000000000000a" + "0000000000000102" + "ab" * 32 + "72" * 32
    assert len(data) == ENTRY_BYTES
    assert ENTRY.leaf() == sha256(b"\0" + data).digest()
    assert event_leaf("ab" * 32) == sha256(b"\0" + b"\xab" * 32).digest()


@given(st.binary(min_size=ENTRY_BYTES, max_size=ENTRY_BYTES))
def test_every_entry_comes_back(data: bytes) -> None:
    """What is unpacked packs to the same bytes; only sizes from 1 to 2^63-1 are entries."""
    if 1 <= int.from_bytes(data[16:24], "big") <= MAX_SIZE:
        assert Entry.unpack(data).pack() == data
    else:
        with pytest.raises(ValueError, match="1 to 2"):
            Entry.unpack(data)


@pytest.mark.parametrize(
    "change",
    [
        {"session_id": "01900000-0000-7000-8000-00000000000A"},
        {"session_id": "01900000000070008000" + "0" * 16},
        {"size": 0},
        {"size": -1},
        {"size": MAX_SIZE + 1},
        {"head_hash": "AB" * 32},
        {"head_hash": "ab" * 31},
        {"root": b"r" * 31},
        {"root": b"r" * 33},
    ],
)
def test_what_is_no_entry(change: dict[str, object]) -> None:
    """A field out of its form is not packed."""
    with pytest.raises(ValueError, match="entry"):
        ENTRY._replace(**change).pack()


@pytest.mark.parametrize("data", [b"", ENTRY.pack()[:-1], ENTRY.pack() + b"\0", bytes(ENTRY_BYTES)])
def test_what_cannot_be_unpacked(data: bytes) -> None:
    """Bytes too few or too many, and an entry about no events, are refused."""
    with pytest.raises(ValueError, match="an entry"):
        Entry.unpack(data)
