"""``cra trace report --html``: the page, written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from cra_middleware._clock import SystemClock
from cra_middleware.cli.output import complain, stop
from cra_middleware.cli.trace_files import trace_files, try_verify
from cra_middleware.errors import CRAError, SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.keys import load_verifier
from cra_middleware.lines import read_again
from cra_middleware.trace.ledger.book import read_head
from cra_middleware.trace.sinks.segments import SUFFIX, segment_at
from cra_middleware.trace_page import render
from cra_middleware.verification import FileReport

LIMIT = 20_000
"""Events in one page: about 20 MB, which a phone still opens."""


def write_page(names: Sequence[str], out: str, limit: int, key: str | None = None) -> None:
    """Verify the files and write the page about them; the command ends when it must not or cannot be written."""
    from cra_middleware import __version__

    found = [(path, problem or _readable(path)) for path, problem in trace_files(names)]
    _refuse_out(out, [path for path, _ in found])
    reports = [result for _, result in found if isinstance(result, FileReport)]
    unreadable = [result for _, result in found if isinstance(result, str)]
    _refuse_too_many(reports, limit)
    made = datetime.fromtimestamp(SystemClock().wall_us() // 1_000_000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    proofs, note, changed = _proofs([report.path for report in reports], key)
    page = render(reports, made=made, version=__version__, unreadable=unreadable, proofs=proofs, folder_note=note)
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
    if changed:
        raise stop("the traces are not what was signed; the page says so", 1)
    if broken or unreadable:
        raise stop(f"{len(broken) + len(unreadable)} of {len(found)} files do not verify; the page says so", 1)


def _proofs(paths: Sequence[str], key: str | None) -> tuple[dict[str, list[tuple[str, str]]], str | None, list[str]]:
    """What signed heads say of each session, the note of the (last) folder, and what they say against the traces."""
    proofs: dict[str, list[tuple[str, str]]] = {}
    note: str | None = None
    changed: list[str] = []
    if key is None:
        return proofs, note, changed
    try:
        against = Against(load_verifier(key))
        for folder in sorted({Path(path).parent for path in paths if segment_at(Path(path)) is not None}):
            report = verify_folder(folder, against)
            found = read_head(folder)
            note = note if found is None else found.decode(errors="backslashreplace")
            changed += [f"{folder}: {sentence}" for sentence in (*report.problems, *report.missing)]
            for session in report.sessions:
                if session.session_id is not None and (session.signed_events or session.problems):
                    proofs[session.session_id] = [("Signed head", str(session))]
                changed += [f"session {session.session_id}: {problem}" for problem in session.problems]
    except CRAError as error:
        raise stop(error, 1) from None
    if changed:
        note = "\n".join(["CHANGED: the traces are not what was signed.", *changed, "", note or ""])
    return proofs, note, changed


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


def _refuse_too_many(reports: Iterable[FileReport], limit: int) -> None:
    count = 0
    for report in reports:
        # of a broken file, the verdict counts only what is before the break
        count += sum(verdict.events for verdict in report.sessions) if report.intact else _lines(report)
    if count > limit:
        raise stop(
            f"the files hold more than {limit} events ({count}), too many for one page: name fewer files, or allow "
            f"more with --html-limit {count}",
            2,
        )


def _lines(report: FileReport) -> int:
    try:
        return sum(1 for _ in read_again(report))
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
