"""The trace files that a command is given: found, verified, and read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cra_middleware.cli.databases import refuse_database
from cra_middleware.cli.output import complain, stop
from cra_middleware.errors import SinkError
from cra_middleware.trace.event import Event
from cra_middleware.trace.ledger.book import FOLDER
from cra_middleware.trace.storage.segments import SUFFIX, segment_at
from cra_middleware.verification import FileReport, read_events, verify

LARGE_BYTES = 8 * 1024 * 1024
"""From here on a bar shows how far the verification is."""


def trace_files(names: Sequence[str]) -> list[tuple[str, str | None]]:
    """The files named, and those in the folders named, each with the reason not to open it, if there is one.

    Of a session that has several files, the first stands for all of them.
    """
    found: list[tuple[str, str | None]] = []
    for name in names:
        refuse_database(name, "this")
        folder = Path(name)
        try:
            if not folder.is_dir():
                found.append((name, None))
                continue
            inside = sorted(item for item in folder.iterdir() if item.name.endswith(SUFFIX))
        except OSError as error:
            found.append((name, f"{name} cannot be read: {error.strerror or error}"))
            continue
        if not inside and not (folder / FOLDER / "entries").exists():  # a ledger tells what is gone
            raise stop(f"{name} has no *{SUFFIX} files; name the folder that traces are written to", 2)
        for item in _first_files(inside):  # a pipe or a device planted there would never end
            found.append((str(item), None if item.is_file() else f"{item} is not a plain file"))
    return found


def _first_files(paths: Sequence[Path]) -> Iterator[Path]:
    firsts: dict[str, int] = {}
    for known in filter(None, map(segment_at, paths)):
        firsts[known.session_id] = min(known.first, firsts.get(known.session_id, known.first))
    for path in paths:
        found = segment_at(path)
        if found is None or found.first == firsts[found.session_id]:
            yield path


def try_verify(path: str) -> FileReport | str:
    """The verdicts on a file, or why it cannot be read."""
    try:
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        with progress_bar(path, size) as progress:
            return verify(path, progress)
    except (SinkError, OSError) as error:
        return str(error) if isinstance(error, SinkError) else f"{path} cannot be read: {error.strerror or error}"


@contextmanager
def progress_bar(path: str, size: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr, when the file is large and somebody looks."""
    if size <= LARGE_BYTES or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(path, total=size)
        waiting = 0

        def advance(count: int) -> None:
            nonlocal waiting
            waiting += count
            if waiting >= 1 << 18:
                bar.update(task, advance=waiting)
                waiting = 0

        yield advance


def intact_files(names: Sequence[str]) -> tuple[list[FileReport], int]:
    """The files that verify, and how many do not; those are named on stderr."""
    found: list[FileReport] = []
    broken = 0
    for path, problem in trace_files(names):
        report = problem or try_verify(path)
        if isinstance(report, str):
            complain(report)
        elif not report.intact:
            complain(f"{path}: {' '.join(str(verdict) for verdict in report.sessions)}; not used")
        else:
            found.append(report)
            continue
        broken += 1
    return found, broken


def events_of(report: FileReport) -> Iterator[Event]:
    """The events of a file that verified; the command ends when it changes meanwhile."""
    try:
        yield from read_events(report.path)
    except SinkError as error:
        raise stop(error, 1) from None


def sessions_of(reports: Sequence[FileReport]) -> list[list[Event]]:
    """Every session in some files, whole."""
    sessions: dict[str, list[Event]] = {}
    for report in reports:
        for event in events_of(report):
            sessions.setdefault(event.session_id, []).append(event)
    return list(sessions.values())
