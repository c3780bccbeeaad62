"""``cra trace report --html``: the page, written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from cra_middleware._clock import SystemClock
from cra_middleware.cli.output import complain, stop
from cra_middleware.cli.stored_sessions import Database, databases_in, only_files
from cra_middleware.cli.trace_files import trace_files, try_verify
from cra_middleware.errors import CRAError, SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.evidence.reports import FolderReport
from cra_middleware.keys import load_verifier
from cra_middleware.lines import read_again
from cra_middleware.trace.ledger.book import read_head
from cra_middleware.trace.note import VerifierKey
from cra_middleware.trace.storage.segments import SUFFIX, segment_at
from cra_middleware.trace_page import Stored, render
from cra_middleware.verification import FileReport

LIMIT = 20_000
"""Events in one page: about 20 MB, which a phone still opens."""


def write_page(
    names: Sequence[str], out: str, limit: int, key: str | None = None, sessions: Sequence[str] = ()
) -> None:
    """Verify the traces and write the page about them; the command ends when it must not or cannot be written.

    Args:
        sessions: of a database, those to show; all by default.
    """
    with ExitStack() as stack:
        against = Against(None if key is None else _verifier(key))
        _write_page(only_files(names), databases_in(names, sessions, against, stack), out, limit, against)


def _write_page(names: Sequence[str], databases: Sequence[Database], out: str, limit: int, against: Against) -> None:
    from cra_middleware import __version__

    found = [(path, problem or _readable(path)) for path, problem in trace_files(names)]
    _refuse_out(out, [path for path, _ in found])
    reports = [result for _, result in found if isinstance(result, FileReport)]
    stored = [session for database in databases for session in database.sessions]
    unreadable = [result for _, result in found if isinstance(result, str)]
    unreadable += [sentence for database in databases for sentence in database.unreadable]
    _refuse_too_many([*reports, *stored], limit)
    made = datetime.fromtimestamp(SystemClock().wall_us() // 1_000_000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    proofs, note, changed = _proofs([report.path for report in reports], databases, against)
    page = render(
        [*reports, *stored], made=made, version=__version__, unreadable=unreadable, proofs=proofs, folder_note=note
    )
    try:
        if out == "-":
            sys.stdout.flush()
            _write(sys.stdout.buffer, page)
        else:
            _replace(Path(out), page)
    except SinkError as error:  # it was there a moment ago
        raise stop(error, 1) from None
    for sentence in unreadable:
        complain(sentence)
    for sentence in changed:
        complain(sentence)
    broken = [report for report in reports if not report.intact]
    for report in broken:
        complain(f"{report.path}: {' '.join(str(verdict) for verdict in report.sessions)}")
    for session in stored:
        if not session.verdict.intact:
            complain(f"session {session.verdict.session_id}: {session.verdict}")
    if changed:
        raise stop("the traces are not what was signed; the page says so", 1)
    bad = len(broken) + len(unreadable) + sum(not session.verdict.intact for session in stored)
    if bad:
        total = len(found) + sum(len(database.sessions) + len(database.unreadable) for database in databases)
        what = "files and sessions" if databases else "files"
        raise stop(f"{bad} of {total} {what} do not verify; the page says so", 1)


def _verifier(key: str) -> VerifierKey:
    try:
        return load_verifier(key)
    except CRAError as error:
        raise stop(error, 1) from None


def _proofs(
    paths: Sequence[str], databases: Sequence[Database], against: Against
) -> tuple[dict[str, list[tuple[str, str]]], str | None, list[str]]:
    """What heads say of each session, the note of the last folder or database, and what they say against the traces."""
    proofs: dict[str, list[tuple[str, str]]] = {}
    note: str | None = None
    changed: list[str] = []
    try:  # of folders, only a head says more than their files
        signed = paths if against.key is not None else ()
        folders = sorted({Path(path).parent for path in signed if segment_at(Path(path)) is not None})
        told = [(verify_folder(folder, against), read_head(folder)) for folder in folders]
        for report, found in (*told, *((database.report, database.head) for database in databases)):
            note = note if found is None else found.decode(errors="backslashreplace")
            for session in report.sessions:
                is_told = against.key is not None and bool(session.signed_events or session.problems)
                if session.session_id is not None and is_told:
                    proofs[session.session_id] = [("Signed head", str(session))]
            changed += _changed(report)
    except CRAError as error:
        raise stop(error, 1) from None
    if changed:
        note = "\n".join(["CHANGED: the traces are not what was signed.", *changed, "", note or ""])
    return proofs, note, changed


def _changed(report: FolderReport) -> list[str]:
    """What the ledger and the heads say against a folder or a database, and its sessions."""
    return [
        *(f"{report.path}: {sentence}" for sentence in (*report.problems, *report.missing)),
        *(f"session {one.session_id}: {problem}" for one in report.sessions for problem in one.problems),
    ]


def _readable(path: str) -> FileReport | str:
    if not Path(path).is_file() and Path(path).exists():  # it is read twice: first verified, then shown
        return f"{path} is not a plain file; save it as one first"
    return try_verify(path)


def _refuse_out(out: str, inputs: Iterable[str]) -> None:
    if out == "-":
        return
    path = Path(out)
    try:
        if path.name.endswith(SUFFIX) or any(path.exists() and path.samefile(other) for other in inputs):
            raise stop(f"{out} is a trace file, and is not written over; name another file for the page", 2)
    except FileNotFoundError:  # an input that is not there is reported as such
        pass
    if path.exists() and not path.is_file():
        raise stop(f"{out} is not a plain file; name a file for the page, or - for stdout", 2)


def _refuse_too_many(reports: Sequence[FileReport | Stored], limit: int) -> None:
    count = 0
    for report in reports:
        verdicts = (report.verdict,) if isinstance(report, Stored) else report.sessions
        # of what is broken, the verdict counts only what is before the break
        is_intact = all(verdict.intact for verdict in verdicts)
        count += sum(verdict.events for verdict in verdicts) if is_intact else _lines(report)
    if count > limit:
        is_stored = any(isinstance(report, Stored) for report in reports)
        what, how = ("traces", "choose with --session ID") if is_stored else ("files", "name fewer files")
        raise stop(
            f"the {what} hold more than {limit} events ({count}), too many for one page: {how}, or allow "
            f"more with --html-limit {count}",
            2,
        )


def _lines(report: FileReport | Stored) -> int:
    try:
        return sum(1 for _ in (report.chunks() if isinstance(report, Stored) else read_again(report)))
    except SinkError as error:
        raise stop(error, 1) from None


def _replace(path: Path, page: Iterable[str]) -> None:
    """Write ``path`` whole, readable by its owner alone, as traces are."""
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:100]}.", delete=False) as file:
            try:
                _write(file, page)
                file.close()
                os.replace(file.name, path)
            except BaseException:  # half a page is worse than none
                os.unlink(file.name)
                raise
    except OSError as error:
        raise stop(f"{path} cannot be written: {error.strerror or error}", 1) from None


def _write(file: IO[bytes], page: Iterable[str]) -> None:
    for piece in page:
        file.write(piece.encode())
