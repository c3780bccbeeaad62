"""The sessions of a database that a report is about: chosen, verified, and read again when they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from cra_middleware._ids import is_id
from cra_middleware.cli.databases import is_database, open_traces
from cra_middleware.cli.output import stop
from cra_middleware.errors import CRAError, SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.evidence.reports import FolderReport
from cra_middleware.evidence.traces import Traces
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import MalformedError, read
from cra_middleware.trace_page import Stored


class Database(NamedTuple):
    """What a report has of one database."""

    report: FolderReport
    sessions: tuple[Stored, ...]
    """Those of which there is something to show."""
    unreadable: tuple[str, ...]
    """Why others cannot be, a sentence each; those that were pruned are left out."""
    head: bytes | None
    """The signed head that lies there; None where no key says whose heads count."""


def databases_in(names: Sequence[str], wanted: Sequence[str], against: Against, stack: ExitStack) -> list[Database]:
    """The databases among ``names``, each open until ``stack`` is closed; the command ends when one cannot be used.

    Args:
        wanted: the sessions to look at, each in one of them; all of them by default.
    """
    found = [name for name in names if is_database(name)]
    if wanted and len(found) < len(names):
        raise stop("--session chooses from a database; of a folder, name the session's file", 2)
    try:
        opened = [stack.enter_context(open_traces(name)) for name in found]
        chosen = _chosen(opened, wanted)
        return [_database(traces, ids, against) for traces, ids in zip(opened, chosen, strict=True)]
    except CRAError as error:
        raise stop(error, 1) from None


def events_in(session: Stored) -> Iterator[Event]:
    """The events of one that verified; the command ends when it changes meanwhile."""
    try:
        for line in session.chunks():
            yield read(line.removesuffix(b"\n"), session.verdict.profile).event
    except (SinkError, MalformedError) as error:
        raise stop(f"session {session.verdict.session_id} is not what it was a moment ago: {error}", 1) from None


def _chosen(opened: Sequence[Traces], wanted: Sequence[str]) -> list[list[str] | None]:
    """Which sessions of each; None for all. Each that is wanted is in one."""
    if not wanted:
        return [None] * len(opened)
    chosen: list[list[str] | None] = []
    left = dict.fromkeys(wanted)
    for name in left:
        if not is_id(name):
            raise stop(f"{name!r} is no session id: those are lower-case UUIDs, as `cra trace verify` names them", 2)
    for traces in opened:
        gone, there = traces.gone(), traces.session_ids()
        for name in left:
            if name in gone:
                raise stop(f"session {name} was pruned: {traces.name} keeps its hashes, and nothing to report", 1)
        chosen.append([name for name in left if name in there])
        left = {name: None for name in left if name not in there}
    if left:
        places = ", ".join(traces.name for traces in opened)
        raise stop(f"{places} holds no session {next(iter(left))}; `cra trace verify` names those that are there", 1)
    return chosen


def _database(traces: Traces, wanted: list[str] | None, against: Against) -> Database:
    if wanted is None:
        report = verify_folder(traces, against)
    else:
        several = [verify_folder(traces, against, only=name) for name in wanted]
        sessions = tuple(session for one in several for session in one.sessions)
        report = FolderReport(traces.name, sessions, problems=several[0].problems if several else ())
    stored, unreadable = [], []
    for session in report.sessions:
        if session.verdict is not None and session.session_id is not None:
            stored.append(Stored(session.verdict, partial(traces.record(session.session_id).lines, 0)))
        elif not session.intact:
            unreadable.append(f"{traces.name}: session {session.session_id}: {session}")
    return Database(report, tuple(stored), tuple(unreadable), None if against.key is None else traces.head())


def only_files(names: Sequence[str]) -> list[str]:
    """Those that are no databases."""
    return [name for name in names if not is_database(name)]
