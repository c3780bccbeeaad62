"""A forked child has one thread: what the others held, nobody will ever let go of there."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something with locks, or descriptors, that a forked child has a copy of."""

    def forked(self) -> None:
        """In the child: get new locks, and let go of what is the parent's. Takes no lock."""
        ...


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def tell_child(thing: Inherited) -> None:
    """Call ``thing.forked()`` in every child that is forked from now on."""
    _inherited.add(thing)


def _after_fork() -> None:
    for thing in list(_inherited):
        thing.forked()


os.register_at_fork(after_in_child=_after_fork)
