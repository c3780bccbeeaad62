"""Tries to write into a shared log whose answer never came: what is handed in again must not be written twice.

A try says where it believes the end to be, so it is either kept there, or never. Reading on from there tells. What was
kept and is handed in again is taken for written; what nobody hands in again is an event like another process's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cra_middleware.trace.event import Event, Sealed

MAX_TRIES = 4096
"""Those that are remembered; more than an outage brings while anybody waits."""


class _Try(NamedTuple):
    entries: Sequence[object]
    sealed: Sequence[Sealed]
    missed: int
    """What the first of its events says is missing in the trace; 0: it says nothing of the kind."""
    is_open: bool
    """It may have been kept."""


class _Kept(NamedTuple):
    entry: object
    sealed: Sealed
    event: Event


class Unsure:
    """The tries of one writer; entries are told apart by which object they are."""

    def __init__(self) -> None:
        self._tries: list[_Try] = []
        self._kept: dict[int, _Kept] = {}
        self._wanted: dict[int, tuple[object, int]] = {}
        self._lock = threading.RLock()  # a finaliser may come in the middle

    def want(self, entries: Iterable[object]) -> None:
        """Somebody will hand these in again when they are not kept; to be told as often as ``give_up``."""
        with self._lock:
            for entry in entries:
                _, times = self._wanted.get(id(entry), (entry, 0))
                self._wanted[id(entry)] = (entry, times + 1)

    def give_up(self, entries: Iterable[object]) -> list[Event]:
        """Nobody will any more; those that were kept, and that nobody took for written."""
        left: list[Event] = []
        with self._lock:
            for entry in entries:
                _, times = self._wanted.get(id(entry), (entry, 0))
                if times > 1:
                    self._wanted[id(entry)] = (entry, times - 1)
                    continue
                self._wanted.pop(id(entry), None)
                kept = self._kept.pop(id(entry), None)
                if kept is not None:
                    left.append(kept.event)
        return left

    def tried(self, entries: Sequence[object], sealed: Sequence[Sealed], missed: int, is_open: bool) -> None:
        """A try at the end of the log as we know it; ``is_open`` when it may have been kept."""
        self._tries = [*self._tries[-MAX_TRIES:], _Try(tuple(entries), sealed, missed, is_open)]

    def may_hold(self, entries: Sequence[object]) -> bool:
        """Whether one of these may be kept by a try that nothing was heard of since."""
        names = {id(entry) for entry in entries}
        return any(one.is_open and any(id(entry) in names for entry in one.entries) for one in self._tries)

    def moved(self) -> None:
        """The log goes on behind the end that they were tried at: what was not found is not there."""
        self._tries = []

    def hear(self, events: Iterable[Event], again: Iterable[object], follow: Callable[[Event], None]) -> int:
        """Sort events that were read; how many missing ones those of ours tell of that were kept.

        ``again`` are entries that are handed in again right now, or owed. ``follow`` hears of those that are another's,
        or that nobody wants any more.
        """
        mine = {item.event_id: (one, place) for one in self._tries for place, item in enumerate(one.sealed)}
        again_now = {id(entry) for entry in again}
        missed = 0
        for event in events:
            one, place = mine.get(event.event_id, (None, 0))
            if one is None:
                follow(event)
            elif one.missed and place == 0:
                missed += one.missed
            elif not self._keep(_Kept(one.entries[place], one.sealed[place], event), again_now):
                follow(event)
        return missed

    def has(self, entry: object) -> bool:
        """Whether it was kept by an earlier try."""
        return id(entry) in self._kept

    def claim(self, entry: object) -> Sealed | None:
        """The same, for good: as what it was kept."""
        kept = self._kept.pop(id(entry), None)
        return None if kept is None else kept.sealed

    def _keep(self, kept: _Kept, again_now: set[int]) -> bool:
        with self._lock:
            name = id(kept.entry)
            if name not in again_now and name not in self._wanted:
                return False
            self._kept[name] = kept
            return True
