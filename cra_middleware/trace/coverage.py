"""How far a signed head covers each session of a ledger. Pure: the ledger and the heads are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cra_middleware.trace.entry import Entry
from cra_middleware.trace.ledger.book import LedgerBook
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


def coverage_of(book: LedgerBook, heads: Iterable[tuple[str, Checkpoint]]) -> Coverage:
    """What is covered by heads whose signatures were checked.

    Args:
        heads: each with a name for people (where it came from).
    """
    try:
        entries = list(book)
    except ValueError as error:
        return Coverage({}, {}, Leaves(), (no_entries(error),))
    leaves = Leaves()
    by_session: dict[str, list[Entry]] = {}
    problems: list[str] = []
    for place, entry in enumerate(entries):
        leaves.append(entry.leaf())
        before = by_session.setdefault(entry.session_id, [])
        if before and entry.size <= before[-1].size:
            problems.append(shrank(place, entry))
        before.append(entry)
    covered = 0
    for name, head in heads:
        why = against_head(name, head, len(entries), leaves.root(min(head.size, len(entries))))
        if why is None:
            covered = max(covered, head.size)
        else:
            problems.append(why)
    signed = {entry.session_id: entry.size for entry in entries[:covered]}
    return Coverage({key: tuple(value) for key, value in by_session.items()}, signed, leaves, tuple(problems))


def no_entries(error: ValueError) -> str:
    """That what is in a ledger is something else."""
    return f"the ledger holds something else than entries: {error}"


def shrank(place: int, entry: Entry) -> str:
    """That an entry is about fewer events of its session than one before it."""
    return f"entry {place} of the ledger makes session {entry.session_id} smaller than it was"


def against_head(name: str, head: Checkpoint, count: int, root: bytes | None) -> str | None:
    """Why a head is not one of a ledger of ``count`` entries, or None; ``root`` is that of as many as it covers."""
    if head.size > count:
        return (
            f"{name} covers {head.size} entries of the ledger, and there are {count}: {head.size - count} were removed"
        )
    if root != head.root:
        return (
            f"{name} was signed over other entries than the ledger's first {head.size}: they were "
            "changed, or it is the head of another folder"
        )
    return None
