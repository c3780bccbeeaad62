"""A folder of traces, or a store: what is whole, sealed, signed up to where, witnessed up to where, and what is gone.

Each session's chain is verified, and compared with what others say of it: the ledger and the signed heads over it,
the note of what had reached the disk, and a copy that telemetry has. Whoever can write the place can change all that
lies in it; a head and a copy count as far as they were held elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from cra_middleware.evidence.reports import FolderReport
from cra_middleware.evidence.session import Progress, Subject, verify_session
from cra_middleware.evidence.traces import Traces, traces_of
from cra_middleware.trace.coverage import Coverage, coverage_of
from cra_middleware.trace.ledger.book import LedgerBook
from cra_middleware.trace.note import Checkpoint, NoteError, VerifierKey, open_note
from cra_middleware.trace.witness import Witness


class Against(NamedTuple):
    """What a folder is compared with."""

    key: VerifierKey | None = None
    """Whose signatures count."""
    head: bytes | None = None
    """A signed head that was held elsewhere."""
    witness: Witness | None = None
    """A copy that was held elsewhere."""


NOTHING = Against()


def verify_folder(
    folder: str | Path | Traces,
    against: Against = NOTHING,
    *,
    only: str | None = None,
    progress: Progress | None = None,
    workers: Executor | None = None,
) -> FolderReport:
    """Verify the sessions in a folder or a store, one after the other, in memory that does not grow with them.

    Args:
        folder: where the traces are; the name of a folder, or whatever reads another place.
        against: what they are compared with.
        only: the id of the one session to look at; what is missing beside it is not told then.
        progress: told the number of bytes read.
        workers: processes that help with large files.

    Raises:
        NoteError: when the head that was held elsewhere is malformed, or not signed by the key.
        SinkError: when the place cannot be read.
    """
    traces = traces_of(folder)
    said = what_is_said(traces, against)
    coverage = said.coverage
    there = traces.session_ids()
    sessions = [
        report
        for name in (sorted(there) if only is None else [only])
        for report in verify_session(
            Subject(traces.record(name), coverage.entries.get(name, ()), coverage.signed.get(name, 0)),
            against.witness,
            progress,
            workers,
        )
    ]
    return FolderReport(
        traces.name,
        tuple(sessions),
        tuple(_missing(there, coverage, against.witness)) if only is None else (),
        said.problems,
        said.head,
    )


class Said(NamedTuple):
    """What ledger and heads say of a place."""

    coverage: Coverage
    problems: tuple[str, ...]
    """What is wrong with them, a sentence each."""
    head: Checkpoint | None
    """The largest head that was signed by the key and fits."""


def what_is_said(traces: Traces, against: Against) -> Said:
    """Read the ledger of a place, and the heads over it.

    Raises:
        NoteError: when the head that was held elsewhere is malformed, or not signed by the key.
        SinkError: when they cannot be read.
    """
    heads, problems = heads_of(traces, against)
    book = traces.book()
    if book is None and heads:
        problems.append(ledger_removed(traces))
    coverage = coverage_of(book or LedgerBook(b""), heads if book is not None else ())
    fits = book is not None and not coverage.problems
    head = max((head for _, head in heads), key=_size, default=None) if fits else None
    return Said(coverage, (*problems, *coverage.problems), head)


def ledger_removed(traces: Traces) -> str:
    """That there is a head, and nothing that it could be about."""
    return f"a signed head covers this {traces.kind}, and its ledger is not there: it was removed"


def heads_of(traces: Traces, against: Against) -> tuple[list[tuple[str, Checkpoint]], list[str]]:
    """The heads whose signature is good, and what is wrong with the one that lies with the traces.

    Raises:
        NoteError: when the head that was held elsewhere is malformed, or not signed by the key.
        SinkError: when the one that lies there cannot be read.
    """
    heads: list[tuple[str, Checkpoint]] = []
    problems: list[str] = []
    if against.key is None:
        return heads, problems
    if against.head is not None:
        heads.append(("the head that was held elsewhere", open_note(against.head, against.key)))
    beside = traces.head()
    if beside is not None:
        try:
            heads.append((f"the head in the {traces.kind}", open_note(beside, against.key)))
        except NoteError as error:
            if against.head is None:  # else it is one of another key: that key's time came before or after this one's
                problems.append(f"the head in the {traces.kind} does not count: {error}")
    return heads, problems


def _size(head: Checkpoint) -> int:
    return head.size


def _missing(there: set[str], coverage: Coverage, witness: Witness | None) -> Iterator[str]:
    for session_id, entries in coverage.entries.items():
        if session_id not in there:
            yield f"session {session_id} is missing: the ledger knows {entries[-1].size} events of it"
    if witness is not None:
        for session_id in sorted(witness.sessions() - there - set(coverage.entries)):
            yield f"session {session_id} is missing: the copy knows {max(witness.of(session_id)) + 1} events of it"
