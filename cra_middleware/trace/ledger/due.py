"""Which entries are noted, and which are refused with why: the rules of every ledger, wherever it lies.

- An entry is noted when it says more than the last one about its session, the session still begins with the events of
  that one, and the session is what the entry says it is.
- Several processes may write one session, and each asks for what it has seen. Of what is asked at once the largest
  counts. Who asks for less than was noted is late: that is no fault as long as the session had that event there.
- A session that has fewer events than were noted, or others, was changed: nothing about it is noted any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.ledger.session_tree import SessionTree

TreeOf = Callable[[str], SessionTree]
"""The tree of a session; the same object every time."""
LastAbout = Callable[[str], Entry | None]
"""The last entry about a session."""


class Due(NamedTuple):
    """What is to be done with what was asked."""

    entries: tuple[Entry, ...]
    """To be noted, in this order; at most one a session."""
    refused: tuple[str, ...]
    """Why others are not, a sentence each."""
    unread: Mapping[str, str]
    """Sessions that cannot be read now, each with the reason: what was asked about them has to be asked again."""


def due(asked: Iterable[Entry], last_about: LastAbout, tree_of: TreeOf) -> Due:
    """Judge what was asked, session by session, in the order in which each was first named.

    Raises:
        SinkError: when the ledger cannot be read.
    """
    by_session: dict[str, set[Entry]] = {}
    for entry in asked:
        by_session.setdefault(entry.session_id, set()).add(entry)
    entries: list[Entry] = []
    refused: list[str] = []
    unread: dict[str, str] = {}
    for session_id, several in by_session.items():
        last = last_about(session_id)
        try:
            found = _next(several, last, tree_of(session_id), refused)
        except SinkError as error:
            unread[session_id] = str(error)
            continue
        if found is not None:
            entries.append(found)
    return Due(tuple(entries), tuple(refused), unread)


def _next(several: set[Entry], last: Entry | None, tree: SessionTree, refused: list[str]) -> Entry | None:
    """The largest entry about a session that can be noted.

    Raises:
        SinkError: when the session cannot be read.
    """
    found: Entry | None = None
    for entry in sorted(several, key=_size, reverse=True):
        try:
            known = found or last
            if known is None or entry.size > known.size:
                _reach(tree, entry, last)
                found = entry
            elif entry != known:
                _check_late(tree, entry, known)
        except ChainBroken as error:
            tree.restart()  # what was changed may be put back: nothing wrong is remembered
            refused.append(str(error))
    return found


def _reach(tree: SessionTree, entry: Entry, last: Entry | None) -> None:
    """Grow a tree to what ``entry`` says, through what ``last`` says.

    Raises:
        ChainBroken: when the session is not that.
        SinkError: when it cannot be read.
    """
    if tree.size > entry.size:
        tree.restart()
    if last is not None:
        _pass(tree, last)
    tree.grow(entry.size)
    if tree.entry() != entry:
        raise ChainBroken(f"session {entry.session_id} is not what its writer says it is")
    tree.passed = entry


def _pass(tree: SessionTree, last: Entry) -> None:
    """See that a tree grew, or grows, through what was noted last."""
    if tree.passed == last:
        return
    if tree.size > last.size:  # grown by who asks, before anybody compared
        tree.restart()
    tree.grow(last.size)
    if tree.entry() != last:
        raise ChainBroken(f"session {last.session_id} was changed since its first {last.size} events")
    tree.passed = last


def _check_late(tree: SessionTree, entry: Entry, known: Entry) -> None:
    """See that a session that has more now had what ``entry`` says. Nothing is noted of it."""
    _pass(tree, known)
    there = tree.hash_at(entry.size)
    if there is None:  # so late that it has to be read again
        tree.restart()
        tree.grow(entry.size)
        there = tree.entry().head_hash
        _pass(tree, known)
    if there != entry.head_hash:
        raise ChainBroken(f"session {entry.session_id} is not what its writer says it is")


def _size(entry: Entry) -> int:
    return entry.size
