"""One session: its chain, over all of its files, and what others say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from pathlib import Path
from typing import NamedTuple

from cra_middleware.errors import SinkError
from cra_middleware.evidence.comparison import Comparison
from cra_middleware.evidence.reports import SessionReport
from cra_middleware.evidence.traces import Record
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.event import Event
from cra_middleware.trace.parts import PART_BYTES, Joined, Part, verify_part
from cra_middleware.trace.pruned import Pruned
from cra_middleware.trace.witness import Witness

Progress = Callable[[int], None]
"""Told the number of bytes read."""

Hearer = Callable[[Event], None]
"""Told each event that verified."""

_AHEAD = 4
"""Parts that are verified before the first of them is asked for."""


class Subject(NamedTuple):
    """A session to verify, with what the ledger says of it."""

    record: Record
    entries: tuple[Entry, ...]
    signed_events: int
    """How many of its events the heads cover, if they are those that the ledger was told of."""


def verify_session(
    subject: Subject,
    witness: Witness | None = None,
    progress: Progress | None = None,
    workers: Executor | None = None,
    hear: Hearer | None = None,
) -> list[SessionReport]:
    """The report on one session; several when its file is another implementation's and holds several.

    Args:
        witness: a copy to compare with.
        progress: told the number of bytes read.
        workers: processes that verify parts of a large file; where they do not all say yes, it is read again here.
        hear: told each event that is read here.
    """
    try:
        pruned = subject.record.pruned()
        reports = _verified(subject, pruned, witness, progress, workers, hear)
        if all(report.intact for report in reports) or subject.record.pruned() == pruned:
            return reports
        return _verified(subject, subject.record.pruned(), witness, progress, workers, hear)  # pruned at that moment
    except SinkError as error:
        return [_unreadable(subject, str(error))]


def _verified(
    subject: Subject,
    pruned: Pruned | None,
    witness: Witness | None,
    progress: Progress | None,
    workers: Executor | None,
    hear: Hearer | None,
) -> list[SessionReport]:
    record = subject.record
    try:
        unfit = record.unfit()
        if unfit is not None:
            return [_unreadable(subject, unfit)]
        durable = record.durable()
        comparison = _comparison(subject, witness, pruned)
        verdicts = None
        if workers is not None and witness is None and pruned is None:
            verdicts = _in_parts(subject, comparison, progress, workers)
        if verdicts is None:  # not in parts, or there is something to be said
            comparison = _comparison(subject, witness, pruned)
            verdicts = _in_order(subject, comparison, pruned, progress, hear)
    except SinkError as error:
        return [_unreadable(subject, str(error))]
    if verdicts and verdicts[0].profile != "cra":
        foreign = [SessionReport(verdict.session_id, record.paths, verdict, verdict.events) for verdict in verdicts]
        is_known = comparison.is_known or durable is not None or pruned is not None
        if not is_known:
            return foreign
        if [verdict.session_id for verdict in verdicts] != [record.session_id]:
            return [*foreign, _unreadable(subject, "its file holds other sessions: it was replaced")]
    verdict = verdicts[0] if verdicts else None
    problems: list[str] = []
    if verdict is None or verdict.intact:
        problems = comparison.finish()
        if durable is not None and durable > comparison.size:
            problems.append(
                f"{durable} events had reached the disk, and {comparison.size} are there: its end was removed"
            )
    return [
        SessionReport(
            record.session_id,
            record.paths,
            verdict,
            comparison.size,
            0 if pruned is None else len(pruned),
            0 if problems else min(subject.signed_events, comparison.size),
            comparison.witnessed,
            tuple(problems),
        )
    ]


def _comparison(subject: Subject, witness: Witness | None, pruned: Pruned | None) -> Comparison:
    comparison = Comparison(subject.entries, subject.record.session_id, witness)
    if pruned is not None:
        comparison.take(pruned)
    return comparison


def _in_order(
    subject: Subject,
    comparison: Comparison,
    pruned: Pruned | None,
    progress: Progress | None,
    hear: Hearer | None,
) -> tuple[Verdict, ...]:
    """Every line, from the first that is left to the last; no verdict when nothing is left."""
    if pruned is not None and subject.record.is_gone():
        return ()
    lines = subject.record.lines(0 if pruned is None else len(pruned))
    if progress is not None:
        lines = _counted(lines, progress)

    def add(event: Event) -> None:
        comparison.add(event)
        if hear is not None:
            hear(event)

    return verify_lines(lines, subject.record.session_id, None if pruned is None else pruned.start, add)


def _in_parts(
    subject: Subject, comparison: Comparison, progress: Progress | None, workers: Executor
) -> tuple[Verdict, ...] | None:
    """All parts of one large file at once; None when it is not that, or does not simply verify."""
    path = subject.record.one_file()
    if path is None:
        return None
    joined = Joined(subject.record.session_id)
    try:
        size = path.stat().st_size
        if size < 2 * PART_BYTES:
            return None
        for part in _parts(path, size, comparison.wants_leaves, workers):
            if part is None or not joined.add(part):
                return None
            comparison.take_leaves(part.leaves, part.end)
            if progress is not None:
                progress(part.bytes)
    except (OSError, BrokenExecutor):  # it cannot be read, or a process was killed: what is read here says more
        return None
    return (joined.verdict(),)


def _parts(path: Path, size: int, wants_leaves: bool, workers: Executor) -> Iterator[Part | None]:
    places = range(0, size, PART_BYTES)
    running = []
    for begin in places:
        running.append(workers.submit(verify_part, str(path), begin, min(begin + PART_BYTES, size), wants_leaves))
        if len(running) > _AHEAD:
            yield running.pop(0).result()
    for task in running:
        yield task.result()


def _unreadable(subject: Subject, why: str) -> SessionReport:
    return SessionReport(subject.record.session_id, subject.record.paths, None, 0, problems=(why,))


def _counted(lines: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for line in lines:
        progress(len(line))
        yield line
