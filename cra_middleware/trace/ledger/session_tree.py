"""The tree of one session, grown from its lines as they are kept: what is signed is what is there."""

from __future__ import annotations

import re

from cra_middleware.errors import ChainBroken
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.event import GENESIS
from cra_middleware.trace.ledger.place import SessionLines
from cra_middleware.trace.tree import HASH_BYTES, Frontier

_END = re.compile(rb'"event_hash":"([0-9a-f]{64})","previous_event_hash":"([0-9a-f]{64})"}\n')
_END_BYTES = 14 + 64 + 25 + 64 + 3
REMEMBERED = 256
"""Hashes of the last events that are kept at least, for whoever asks about fewer of them."""


class SessionTree:
    """Grows event by event, and remembers where it stopped reading."""

    def __init__(self, session_id: str, lines: SessionLines) -> None:
        self._session_id = session_id
        self._lines = lines
        self._begin()

    def _begin(self) -> None:
        self._frontier = Frontier()
        self._head_hash = GENESIS
        self._recent = bytearray()
        self.passed: Entry | None = None
        """An entry that this tree was seen to grow through; set by who compared them."""

    @property
    def size(self) -> int:
        """How many events it has."""
        return self._frontier.size

    def entry(self) -> Entry:
        """What the ledger is told about it."""
        return Entry(self._session_id, self.size, self._head_hash, self._frontier.root())

    def hash_at(self, size: int) -> str | None:
        """The event_hash of the last of its first ``size`` events, or None when it is not remembered any more."""
        back = self.size - size + 1
        place = len(self._recent) - back * HASH_BYTES
        return self._recent[place : place + HASH_BYTES].hex() if back >= 1 and place >= 0 else None

    def grow(self, size: int) -> None:
        """Read on until it has ``size`` events.

        Raises:
            ChainBroken: when there are fewer, or they do not go on from what was read before.
            SinkError: when they cannot be read.
        """
        while self.size < size:
            before = self.size
            for line in self._lines.read(before, size):
                self._add(line)
            if self.size == before:
                raise ChainBroken(f"session {self._session_id} has {before} events where {size} were written")

    def restart(self) -> None:
        """Forget everything, and read from the first event again."""
        self._lines.restart()
        self._begin()

    def _add(self, line: bytes) -> None:
        match = _END.fullmatch(line[-_END_BYTES:])
        if match is None or match[2].decode() != self._head_hash:
            raise ChainBroken(f"session {self._session_id} does not go on from event {self.size}: it was changed")
        self._head_hash = match[1].decode()
        self._frontier.append(event_leaf(self._head_hash))
        if len(self._recent) >= 2 * REMEMBERED * HASH_BYTES:
            del self._recent[: REMEMBERED * HASH_BYTES]
        self._recent += bytes.fromhex(self._head_hash)
