"""One session against what others say of it, event by event: the ledger, and a copy that telemetry has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cra_middleware.trace.chain import Start
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.event import Event
from cra_middleware.trace.pruned import Pruned
from cra_middleware.trace.tree import HASH_BYTES, Frontier
from cra_middleware.trace.witness import Witness


class Comparison:
    """Follows one session from its first event, and collects what does not fit."""

    def __init__(self, entries: Sequence[Entry], session_id: str, witness: Witness | None) -> None:
        self._entries = {entry.size: entry for entry in entries}
        self._seen: Mapping[int, set[str]] = witness.of(session_id) if witness is not None else {}
        self._witness = witness
        self._tree = Frontier()
        self.size = 0
        """How many events there were so far."""
        self.witnessed = 0
        """How many of them, from the first, the copy agrees with."""
        self.problems: list[str] = []

    @property
    def is_known(self) -> bool:
        """Whether the ledger or the copy knows the session."""
        return bool(self._entries or self._seen)

    @property
    def wants_leaves(self) -> bool:
        """Whether the ledger knows the session."""
        return bool(self._entries)

    def take(self, pruned: Pruned) -> None:
        """The hashes of events that are not there any more."""
        for place in range(len(pruned)):
            self._add(pruned.hash(place))

    def add(self, event: Event) -> None:
        """An event that verified."""
        self._add(event.event_hash)

    def take_leaves(self, leaves: bytes, end: Start) -> None:
        """Events that verified elsewhere, up to ``end``; ``leaves`` are their leaf hashes, where they are wanted."""
        if not self._entries:
            self.size = end.sequence
        for place in range(0, len(leaves), HASH_BYTES):
            self.size += 1
            self._grow(leaves[place : place + HASH_BYTES])

    def _add(self, event_hash: str) -> None:
        place = self.size
        self.size += 1
        seen = self._seen.get(place)
        if seen is not None and seen != {event_hash}:
            self._say(f"the copy saw another event {place}")
        elif seen is not None or (self._witness is not None and self._witness.saw(place, event_hash)):
            self.witnessed = place + 1
        if self._entries:
            self._grow(event_leaf(event_hash))

    def _grow(self, leaf: bytes) -> None:
        self._tree.append(leaf)
        entry = self._entries.get(self.size)
        if entry is not None and (entry.root != self._tree.root() or event_leaf(entry.head_hash) != leaf):
            self._say(f"its first {self.size} events are not those that the ledger was told of")

    def finish(self) -> list[str]:
        """What others say against it, the whole of it looked at."""
        largest = max(self._entries, default=0)
        if largest > self.size:
            self._say(f"the ledger knows {largest} events, and {self.size} are there: its end was removed")
        seen = max(self._seen, default=-1) + 1
        if seen > self.size:
            self._say(f"the copy knows {seen} events, and {self.size} are there: its end was removed")
        return self.problems

    def _say(self, problem: str) -> None:
        if len(self.problems) < 3:  # what follows from the first says nothing new
            self.problems.append(problem)
