"""The owner of a ledger: notes what processes want noted, and signs the tree of it.

Order of things: the events are durable before anybody asks for an entry; the entries are durable before the head over
them counts; the head is durable before it is told to anybody. What does not extend what was signed before is never
signed: a session that shrank or was rewritten is refused, and a ledger that does not extend its own head stops. So does
one that does not extend a head that this process knows: an older state of it was put back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.ledger.due import Due, TreeOf, due
from cra_middleware.trace.ledger.place import LedgerHold, LedgerPlace
from cra_middleware.trace.note import Checkpoint, NoteError, Signer, open_note, read_note
from cra_middleware.trace.tree import Frontier

_logger = logging.getLogger("cra_middleware.trace")


class Owner:
    """Holds a ledger, and knows the tree of it."""

    def __init__(
        self, place: LedgerPlace, hold: LedgerHold, signer: Signer, tree_of: TreeOf, known: Checkpoint | None = None
    ) -> None:
        """Read the ledger that is held.

        Args:
            known: a head that this process has signed or seen; the ledger must extend it.

        Raises:
            ChainBroken: when its entries do not extend its last signed head.
            SinkError: when it cannot be read.
        """
        self._name = place.name
        self._hold = hold
        self._signer = signer
        self._tree_of = tree_of
        self._tree = Frontier()
        self.kept = hold.head()
        """The last head that is known to be kept."""
        self.tried: bytes | None = None
        """A head that was signed, and of which nobody knows yet whether it was kept."""
        try:
            self.head = self._read_head(self.kept)
            self._read_entries(known)
        except (ValueError, NoteError) as error:
            raise broken(place, str(error)) from error
        hold.begin(self._tree.size)

    def work(self) -> bytes | None:
        """Note what lies in the inbox, and sign; the new head, or None when there was nothing to note.

        Raises:
            LostError: when somebody else owns the ledger.
            SinkError: when it cannot be written; what lies in the inbox stays there.
        """
        asked = self._hold.asked()
        found = due((entry for one in asked for entry in one.entries), self._hold.last_about, self._tree_of)
        self._say(found)
        head = self._note(found.entries)
        names = [one.name for one in asked if not any(entry.session_id in found.unread for entry in one.entries)]
        try:
            if names:
                self._hold.done(names)
        except SinkError as error:
            if head is None:
                raise
            _logger.error("what was asked is noted, and asked once more: %s", error)
        return head

    def close(self, *, is_forked: bool = False) -> None:
        """Let go of the ledger. A forked child lets go of its copies only."""
        self._hold.close(is_forked=is_forked)

    def _note(self, entries: tuple[Entry, ...]) -> bytes | None:
        signed = 0 if self.head is None else self.head.size
        if not entries and self._tree.size == signed:
            return None
        tree = self._tree.copy()
        for entry in entries:
            tree.append(entry.leaf())
        checkpoint = Checkpoint(self._signer.name, tree.size, tree.root())
        self.tried = self._signer.sign(checkpoint.text())
        self._hold.note(self._tree.size, entries, self.tried)
        for entry in entries:
            self._hold.accept(entry)
        self._tree, self.head, self.kept, self.tried = tree, checkpoint, self.tried, None
        return self.kept

    def _read_head(self, note: bytes | None) -> Checkpoint | None:
        if note is None:
            return None
        head, keys = read_note(note)
        if (self._signer.name, self._signer.key_id) in keys:
            open_note(note, self._signer.verifier)
        else:
            _logger.warning("the last head of %s was signed by another key, of %r", self._name, head.origin)
        return head

    def _read_entries(self, known: Checkpoint | None) -> None:
        """Grow the tree, through the last head and the known one. What was not signed is taken over where it is true.

        Raises:
            ValueError: when it does not grow through them.
        """
        signed = 0 if self.head is None else self.head.size
        roots: dict[int, bytes] = {}
        wanted = {head.size for head in (self.head, known) if head is not None}
        entries = self._hold.entries(signed)
        while self._tree.size < signed and (entry := next(entries, None)) is not None:
            self._add(entry)
            if self._tree.size in wanted:
                roots[self._tree.size] = self._tree.root()
        for head, which in ((self.head, "its last head"), (known, "an earlier head")):
            if head is not None and head.size and roots.get(head.size) != head.root:
                raise ValueError(f"{which} is about {head.size} entries that are not there")
        self._take_unsigned(entries)

    def _take_unsigned(self, entries: Iterator[Entry]) -> None:
        """A crash may have spoiled what was noted and not signed: what is wrong is noted again."""
        for entry in entries:
            found = due([entry], self._hold.last_about, self._tree_of)
            self._say(found)
            if not found.entries:
                return
            self._add(entry)

    def _say(self, found: Due) -> None:
        for why in found.refused:
            _logger.error("not noted in the ledger, and not signed: %s", why)
        for why in found.unread.values():
            _logger.error("not noted in the ledger yet: %s", why)

    def _add(self, entry: Entry) -> None:
        self._tree.append(entry.leaf())
        self._hold.accept(entry)


def broken(place: LedgerPlace, why: str) -> ChainBroken:
    """The alarm about a ledger that was changed."""
    return ChainBroken(
        f"{place.name} was changed ({why}): it is not signed any more. Look at the traces with `cra trace verify`, "
        f"move them away, and begin {place.remedy}"
    )
