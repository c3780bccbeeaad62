"""Events folded to calls: everything from a request to its outcome is one row, in the order in which rows began."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

BEGINS = "action.requested"
ENDS = ("action.denied", "action.executed", "action.failed")
JOINS = ("action.approved", "policy.evaluated", "policy.violated", *ENDS)
"""What belongs to an open call of the same span."""

Part = TypeVar("Part")


@dataclass(slots=True)
class Folded(Generic[Part]):
    """One row: the parts of a call, or one event that belongs to none."""

    parts: list[Part]
    waiting: bool = False
    """Whether it is a call without outcome yet."""


class Calls(Generic[Part]):
    """Takes events one by one, and gives rows as soon as every earlier one is complete."""

    def __init__(self, max_waiting: int = sys.maxsize) -> None:
        """Keep back at most ``max_waiting`` rows for a call that does not end; its later parts then stand alone."""
        self._max_waiting = max_waiting
        self._rows: deque[Folded[Part]] = deque()
        self._open: dict[str, Folded[Part]] = {}

    def joins(self, kind: str, span: str) -> bool:
        """Whether such an event would become part of a call that is open."""
        return kind in JOINS and span in self._open

    def add(self, kind: str, span: str, part: Part) -> None:
        """Take one event."""
        if kind == BEGINS:
            replaced = self._open.get(span)
            if replaced is not None:  # in a broken trace only
                replaced.waiting = False
            self._open[span] = Folded([part], waiting=True)
            self._rows.append(self._open[span])
        elif self.joins(kind, span):
            call = self._open[span]
            call.parts.append(part)
            if kind in ENDS:
                call.waiting = False
                del self._open[span]
        else:
            self.alone(part)

    def alone(self, part: Part) -> None:
        """Take something that is a row of its own."""
        self._rows.append(Folded([part]))

    def ready(self) -> Iterator[Folded[Part]]:
        """The rows that are complete; one that still waits was kept back for too long."""
        while self._rows and (not self._rows[0].waiting or len(self._rows) > self._max_waiting):
            row = self._rows.popleft()
            if row.waiting:
                self._open = {span: other for span, other in self._open.items() if other is not row}
            yield row

    def rest(self) -> Iterator[Folded[Part]]:
        """Every row that is left, at the end of the trace."""
        yield from self._rows
        self._rows.clear()
        self._open.clear()
