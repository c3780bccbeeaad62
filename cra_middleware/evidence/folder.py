"""A folder of traces: what is whole, sealed, signed up to where, witnessed up to where, and what is gone.

Each session's chain is verified, and compared with what others say of it: the folder's ledger and the signed heads over
it, the note of what had reached the disk, and a copy that telemetry has. Whoever can write the folder can change all
that lies in it; a head and a copy count as far as they were held elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from cra_middleware._ids import is_id
from cra_middleware.errors import SinkError
from cra_middleware.evidence.reports import FolderReport
from cra_middleware.evidence.session import Progress, Subject, verify_session
from cra_middleware.trace.coverage import Coverage, coverage_of
from cra_middleware.trace.ledger.book import Book, read_book, read_head
from cra_middleware.trace.note import Checkpoint, NoteError, VerifierKey, open_note
from cra_middleware.trace.pruned import SUFFIX as PRUNED
from cra_middleware.trace.sinks.segments import segments_in
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
    folder: str | Path,
    against: Against = NOTHING,
    *,
    only: str | None = None,
    progress: Progress | None = None,
    workers: Executor | None = None,
) -> FolderReport:
    """Verify the sessions in a folder, one after the other, in memory that does not grow with them.

    Args:
        folder: where the traces are.
        against: what they are compared with.
        only: the id of the one session to look at; what is missing beside it is not told then.
        progress: told the number of bytes read.
        workers: processes that help with large files.

    Raises:
        NoteError: when the head that was held elsewhere is malformed, or not signed by the key.
        SinkError: when the folder cannot be read.
    """
    folder = Path(folder)
    heads, problems = _heads(folder, against)
    book = read_book(folder)
    if book is None and heads:
        problems.append("a signed head covers this folder, and its ledger is not there: it was removed")
    coverage = coverage_of(book or Book(b""), heads if book is not None else ())
    files = segments_in(folder)
    there = set(files) | _pruned_in(folder)
    sessions = [
        report
        for name in (sorted(there) if only is None else [only])
        for report in verify_session(
            Subject(folder, name, files.get(name, []), coverage.entries.get(name, ()), coverage.signed.get(name, 0)),
            against.witness,
            progress,
            workers,
        )
    ]
    return FolderReport(
        str(folder),
        tuple(sessions),
        tuple(_missing(there, coverage, against.witness)) if only is None else (),
        (*problems, *coverage.problems),
        None if book is None or coverage.problems else max((head for _, head in heads), key=_size, default=None),
    )


def _heads(folder: Path, against: Against) -> tuple[list[tuple[str, Checkpoint]], list[str]]:
    """The heads whose signature is good, and what is wrong with the one that lies in the folder."""
    heads: list[tuple[str, Checkpoint]] = []
    problems: list[str] = []
    if against.key is None:
        return heads, problems
    if against.head is not None:
        heads.append(("the head that was held elsewhere", open_note(against.head, against.key)))
    beside = read_head(folder)
    if beside is not None:
        try:
            heads.append(("the head in the folder", open_note(beside, against.key)))
        except NoteError as error:
            if against.head is None:  # else it is one of another key: that key's time came before or after this one's
                problems.append(f"the head in the folder does not count: {error}")
    return heads, problems


def _size(head: Checkpoint) -> int:
    return head.size


def _pruned_in(folder: Path) -> set[str]:
    try:
        names = {path.name.removesuffix(PRUNED) for path in folder.iterdir() if path.name.endswith(PRUNED)}
    except OSError as error:
        raise SinkError(f"{folder} cannot be read: {error.strerror}") from error
    return {name for name in names if is_id(name)}


def _missing(there: set[str], coverage: Coverage, witness: Witness | None) -> Iterator[str]:
    for session_id, entries in coverage.entries.items():
        if session_id not in there:
            yield f"session {session_id} is missing: the ledger knows {entries[-1].size} events of it"
    if witness is not None:
        for session_id in sorted(witness.sessions() - there - set(coverage.entries)):
            yield f"session {session_id} is missing: the copy knows {max(witness.of(session_id)) + 1} events of it"
