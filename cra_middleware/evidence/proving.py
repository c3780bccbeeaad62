"""Making proofs from a folder of traces, or a store: of one event, and of a log that only grew.

What is made here is believed by nobody: ``trace.proof`` verifies it, with the public key and without the traces.
"""

from __future__ import annotations

from pathlib import Path

from cra_middleware.evidence.traces import Record, Traces, traces_of
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.ledger.book import LedgerBook
from cra_middleware.trace.note import Checkpoint, read_note
from cra_middleware.trace.profiles import MalformedError, read
from cra_middleware.trace.proof import Place, ProofError, consistency_document, inclusion_document
from cra_middleware.trace.tree import Leaves


def prove_event(folder: str | Path | Traces, session_id: str, sequence: int) -> bytes:
    """The proof that one event is in the log that the folder's head was signed for.

    Raises:
        NoteError: when the folder's head is none.
        ProofError: when no head covers the event, it is not there, or the folder does not hold what was signed.
        SinkError: when the place cannot be read.
    """
    traces = traces_of(folder)
    book, note, head = _signed(traces)
    place, entry = _covering(book, head, session_id, sequence)
    leaves, line = _events(traces.record(session_id), sequence, entry.size)
    if leaves.root(entry.size) != entry.root:
        raise ProofError(f"session {session_id} is not what the ledger was told of: look at it with `cra trace verify`")
    return inclusion_document(
        line,
        Place(sequence, entry.size, leaves.inclusion(sequence, entry.size)),
        entry,
        Place(place, head.size, book.leaves().inclusion(place, head.size)),
        note,
    )


def prove_growth(folder: str | Path | Traces, old: bytes) -> bytes:
    """The proof that the log of the folder's head begins with the log of ``old``, an earlier signed head of it.

    Raises:
        NoteError: when ``old`` or the folder's head is none.
        ProofError: when the folder does not hold what either was signed for.
        SinkError: when the place cannot be read.
    """
    book, note, head = _signed(traces_of(folder))
    before = read_note(old).head
    if before.size > head.size or book.leaves(before.size).root() != before.root:
        raise ProofError("the folder's log does not begin with the one that this head was signed for")
    return consistency_document(old, note, book.leaves().consistency(before.size, head.size))


def head_of(folder: str | Path | Traces) -> bytes:
    """The signed head that lies in a folder of traces; who signed it is not checked.

    Raises:
        NoteError: when it is none.
        ProofError: when there is none.
        SinkError: when it cannot be read.
    """
    traces = traces_of(folder)
    note = traces.head()
    if note is None:
        raise ProofError(f"{traces.name} has no signed head; give the runtime a signing key (`cra keys generate`)")
    read_note(note)
    return note


def _signed(traces: Traces) -> tuple[LedgerBook, bytes, Checkpoint]:
    note = head_of(traces)
    book = traces.book() or LedgerBook(b"")
    head = read_note(note).head
    try:
        fits = head.size <= len(book) and book.leaves(head.size).root() == head.root
    except ValueError:
        fits = False
    if not fits:
        raise ProofError(
            f"the ledger in {traces.name} is not what its head was signed for: look with `cra trace verify`"
        )
    return book, note, head


def _covering(book: LedgerBook, head: Checkpoint, session_id: str, sequence: int) -> tuple[int, Entry]:
    """The last signed entry about a session, if it covers the event."""
    found: tuple[int, Entry] | None = None
    for place in range(head.size):
        entry = book.entry(place)
        if entry.session_id == session_id:
            found = (place, entry)
    if found is None:
        raise ProofError(f"no signed head covers session {session_id} yet")
    if found[1].size <= sequence:
        raise ProofError(f"the signed head covers events 0 to {found[1].size - 1} of the session, not {sequence}")
    return found


def _events(record: Record, sequence: int, size: int) -> tuple[Leaves, bytes]:
    """The leaves of a session's first ``size`` events, and the line of one of them."""
    leaves, wanted, session_id = Leaves(), b"", record.session_id
    pruned = record.pruned()
    if pruned is not None:
        if sequence < len(pruned):
            raise ProofError(f"event {sequence} was removed by `cra trace prune`; only its hash was kept")
        for place in range(len(pruned)):
            leaves.append(event_leaf(pruned.hash(place)))
    for place, line in enumerate(record.lines(len(leaves)), len(leaves)):
        if place >= size:
            break
        try:
            event, computed_hash = read(line.removesuffix(b"\n"), "cra")
        except MalformedError as error:
            raise ProofError(f"event {place} of session {session_id} cannot be read: {error}") from error
        if event.event_hash != computed_hash:
            raise ProofError(f"event {place} of session {session_id} was changed after it was written")
        leaves.append(event_leaf(event.event_hash))
        if place == sequence:
            wanted = line.removesuffix(b"\n")
    if len(leaves) < size or not wanted:
        raise ProofError(f"session {session_id} has {len(leaves)} events where the ledger knows {size}")
    return leaves, wanted
