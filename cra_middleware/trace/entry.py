"""The leaves of the two trees that a signed head stands on.

    a session's tree   one leaf an event: the 32 raw bytes of its event_hash
    the ledger's tree  one leaf an entry, which says how far a session's tree had grown when it was noted

An entry is 88 bytes: the session's UUID (16), the number of its events (8, big-endian), the event_hash of the last of
them (32), and the root of the session's tree (32).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cra_middleware._ids import is_id
from cra_middleware.trace.tree import HASH_BYTES, MAX_SIZE, leaf_hash

ENTRY_BYTES = 88
_HASH_TEXT = re.compile(r"[0-9a-f]{64}")


def event_leaf(event_hash: str) -> bytes:
    """The leaf hash of an event in its session's tree; ``event_hash`` is 64 hex digits."""
    return leaf_hash(bytes.fromhex(event_hash))


class Entry(NamedTuple):
    """One line of the ledger: a session had this many events, and this was their tree."""

    session_id: str
    size: int
    """Number of events, at least 1."""
    head_hash: str
    """The event_hash of the last of them, 64 hex digits."""
    root: bytes
    """Of the session's tree, 32 bytes."""

    def pack(self) -> bytes:
        """The 88 bytes.

        Raises:
            ValueError: when a field has not its form.
        """
        if not is_id(self.session_id):
            raise ValueError("the session id of an entry is no lower-case UUID")
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"an entry is about 1 to 2^63-1 events, not {self.size}")
        if not _HASH_TEXT.fullmatch(self.head_hash) or len(self.root) != HASH_BYTES:
            raise ValueError("the head or the root of an entry is no SHA-256")
        session = bytes.fromhex(self.session_id.replace("-", ""))
        return session + self.size.to_bytes(8, "big") + bytes.fromhex(self.head_hash) + self.root

    @classmethod
    def unpack(cls, data: bytes) -> Entry:
        """The entry that was packed as ``data``.

        Raises:
            ValueError: when ``data`` is no entry.
        """
        if len(data) != ENTRY_BYTES:
            raise ValueError(f"an entry has {ENTRY_BYTES} bytes, not {len(data)}")
        size = int.from_bytes(data[16:24], "big")
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"an entry is about 1 to 2^63-1 events, not {size}")
        digits = data[:16].hex()
        session = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        return cls(session, size, data[24:56].hex(), data[56:])

    @classmethod
    def unpack_all(cls, data: bytes) -> tuple[Entry, ...]:
        """The entries that were packed one behind the other.

        Raises:
            ValueError: when ``data`` is something else.
        """
        return tuple(cls.unpack(data[place : place + ENTRY_BYTES]) for place in range(0, len(data), ENTRY_BYTES))

    def leaf(self) -> bytes:
        """Its leaf hash in the ledger's tree.

        Raises:
            ValueError: as ``pack``.
        """
        return leaf_hash(self.pack())
