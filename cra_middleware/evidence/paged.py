"""What a ledger and its heads say of one session after the other, in memory that does not grow with the ledger.

The same rules as ``what_is_said``, which has all entries at once. Here they are read twice: in their order, for the
tree that the heads are about; and session by session, so that one that shrank is found without remembering the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cra_middleware.errors import SinkError
from cra_middleware.evidence.folder import Against, heads_of, ledger_removed
from cra_middleware.evidence.traces import LedgerEntries, Traces
from cra_middleware.trace.coverage import against_head, no_entries, shrank
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.note import Checkpoint
from cra_middleware.trace.tree import Frontier


class SaidOf(NamedTuple):
    """What is said of one session."""

    entries: tuple[Entry, ...] = ()
    signed_events: int = 0
    """How many of its events the heads cover."""


class PagedLedger:
    """A ledger that is read page by page, and compared with its heads once."""

    def __init__(self, traces: Traces, entries: LedgerEntries | None, against: Against) -> None:
        """Read all of it.

        Raises:
            NoteError: when the head that was held elsewhere is malformed, or not signed by the key.
            SinkError: when it cannot be read.
        """
        heads, problems = heads_of(traces, against)
        self._entries = None if entries is None or entries.is_empty() else entries
        self._covered = 0
        if self._entries is None:
            if heads:
                problems.append(ledger_removed(traces))
        else:
            try:
                self._compare(self._entries, heads, problems)
            except ValueError as error:
                self._entries = None
                problems.append(no_entries(error))
        self.problems = tuple(problems)
        """What is wrong with it or with the heads, a sentence each."""

    def of(self, session_id: str) -> SaidOf:
        """What it says of a session now: it may have got more entries meanwhile.

        Raises:
            SinkError: when it cannot be read, or holds something else than entries.
        """
        if self._entries is None:
            return SaidOf()
        try:
            found = self._entries.about(session_id)
        except ValueError as error:  # just now
            raise SinkError(no_entries(error)) from error
        signed = max((entry.size for place, entry in found if place < self._covered), default=0)
        return SaidOf(tuple(entry for _, entry in found), signed)

    def _compare(self, entries: LedgerEntries, heads: Sequence[tuple[str, Checkpoint]], problems: list[str]) -> None:
        tree, wanted = Frontier(), {head.size for _, head in heads}
        roots = {0: tree.root()}
        for entry in entries.in_order():
            tree.append(entry.leaf())
            if tree.size in wanted:
                roots[tree.size] = tree.root()
        last: Entry | None = None
        for place, entry in entries.by_session():
            if last is not None and last.session_id == entry.session_id and entry.size <= last.size:
                problems.append(shrank(place, entry))
            last = entry
        for name, head in heads:
            why = against_head(name, head, tree.size, roots.get(head.size))
            if why is None:
                self._covered = max(self._covered, head.size)
            else:
                problems.append(why)
