"""How far a signed head covers each session of a ledger. Pure: the ledger and the heads are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cra_middleware.trace.entry import Entry
from cra_middleware.trace.ledger.book import Book
from cra_middleware.trace.note import Checkpoint
from cra_middleware.trace.tree import Leaves


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a ledger says about the sessions of a folder, and what heads say about the ledger."""

    entries: Mapping[str, tuple[Entry, ...]]
    """Of each session, in their order."""
    signed: Mapping[str, int]
    """How many events of each session the heads cover."""
    leaves: Leaves
    problems: tuple[str, ...]
    """What the heads say against the ledger."""


def coverage_of(book: Book, heads: Iterable[tuple[str, Checkpoint]]) -> Coverage:
    """What is covered by heads whose signatures were checked.

    Args:
        heads: each with a name for people (where it came from).
    """
    try:
        entries = list(book)
    except ValueError as error:
        return Coverage({}, {}, Leaves(), (f"the ledger holds something else than entries: {error}",))
    leaves = Leaves()
    by_session: dict[str, list[Entry]] = {}
    problems: list[str] = []
    for place, entry in enumerate(entries):
        leaves.append(entry.leaf())
        before = by_session.setdefault(entry.session_id, [])
        if before and entry.size <= before[-1].size:
            problems.append(f"entry {place} of the ledger makes session {entry.session_id} smaller than it was")
        before.append(entry)
    covered = 0
    for name, head in heads:
        if head.size > len(entries):
            problems.append(
                f"{name} covers {head.size} entries of the ledger, and there are {len(entries)}: "
                f"{head.size - len(entries)} were removed"
            )
        elif leaves.root(head.size) != head.root:
            problems.append(
                f"{name} was signed over other entries than the ledger's first {head.size}: they were "
                "changed, or it is the head of another folder"
            )
        else:
            covered = max(covered, head.size)
    signed = {entry.session_id: entry.size for entry in entries[:covered]}
    return Coverage({key: tuple(value) for key, value in by_session.items()}, signed, leaves, tuple(problems))
