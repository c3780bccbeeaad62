"""``cra trace verify``: whole, sealed, signed, witnessed?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cra_middleware.cli.databases import is_database, open_traces, without_password
from cra_middleware.cli.heads import read_held
from cra_middleware.cli.output import Format, FormatOption, complain, emit, say, stop
from cra_middleware.cli.trace_files import LARGE_BYTES, progress_bar, trace_files, try_verify
from cra_middleware.cli.verdicts import in_words, report_of, session_json
from cra_middleware.errors import CRAError, SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.evidence.reports import FolderReport, SessionReport
from cra_middleware.keys import load_verifier
from cra_middleware.trace.note import NoteError
from cra_middleware.trace.storage.segments import SUFFIX, segment_at
from cra_middleware.trace.witness import WitnessError, read_witness


class Require(StrEnum):
    """What a trace must be, beside intact."""

    sealed = "sealed"
    signed = "signed"
    witnessed = "witnessed"


class _Checked(NamedTuple):
    """What was found under one name that was given: about one folder, or one file."""

    sessions: tuple[SessionReport, ...] = ()
    folder: FolderReport | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    """Paths, each with the reason."""


def verify_command(
    files: Annotated[
        list[str],
        typer.Argument(metavar="PLACE", help=f"Trace files, folders of *{SUFFIX}, sqlite:FILE, postgresql://…"),
    ],
    key: Annotated[
        str | None,
        typer.Option(metavar="PUB", help="The public key (a .pub file, or its text) whose signed heads count."),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(metavar="HEAD", help="A signed head of the folder that was held elsewhere. Needs --key."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="SPANS", help="The copy that telemetry has: OTLP as JSON, or the SDK's span.to_json()."),
    ] = None,
    require: Annotated[
        list[Require] | None,
        typer.Option(help="Also fail when a session is not: ended, covered by a signed head, equal to the copy."),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Recompute the hash chain of every session, and say what can be said about it.

    \b
    INTACT     nothing before the last event was changed, moved or removed
    SEALED     and the session was ended: its last events are there too
    SIGNED     a signed head covers it, up to the event that is named
    WITNESSED  a copy held elsewhere agrees, up to the event that is named

    The head that lies beside the traces can be removed together with them. Keep heads elsewhere (`cra trace head`),
    and give one with --head: what it covers and is gone is then named, whole sessions included.

    \b
    Example:  cra trace verify traces/
    Database: cra trace verify postgresql://cra@db/cra
    Signed:   cra trace verify traces/ --key bot.key.pub --head kept.head --require signed
    Copied:   cra trace verify traces/ --against spans.json --require witnessed
    For CI:   cra trace verify --require sealed --format json traces/ > verdicts.json

    Exit code: 0 when all are intact (and what is required), 1 when not, when something is missing, or when a file
    cannot be read, 2 for wrong usage.
    """
    wanted = set(require or ())
    compared = _against(key, head, against, wanted)
    if head is not None and not any(
        is_database(name) or Path(name).is_dir() or segment_at(Path(name)) for name in files
    ):
        raise stop("--head is about a folder of traces, a session's file in it, or a database", 2)
    with _workers(files) as workers:
        checked = [_check(name, compared, workers) for name in files]
    if format is Format.json:
        emit(_as_json(checked))
    else:
        for found in checked:
            _say(found, wanted)
    if not all(_passes(found, wanted) for found in checked):
        raise typer.Exit(1)


def _against(key: str | None, head: Path | None, spans: Path | None, wanted: set[Require]) -> Against:
    if head is not None and key is None:
        raise stop("--head needs --key: the public key that the head was signed for", 2)
    if Require.signed in wanted and key is None:
        raise stop("--require signed needs --key: the public key whose signed heads count", 2)
    if Require.witnessed in wanted and spans is None:
        raise stop("--require witnessed needs --against: the copy to compare with", 2)
    try:
        verifier = None if key is None else load_verifier(key)
        note = None if head is None else read_held(head)
        witness = None if spans is None else read_witness(spans)
    except OSError as error:
        raise stop(f"{head} cannot be read: {error.strerror or error}", 1) from None
    except (CRAError, WitnessError) as error:
        raise stop(error, 1) from None
    return Against(verifier, note, witness)


@contextmanager
def _workers(names: Sequence[str]) -> Iterator[Executor | None]:
    """Processes that help, when there is enough to do for them to be worth their start."""
    names = [name for name in names if not is_database(name)]
    sizes = [Path(path).stat().st_size for path, problem in trace_files(names) if not problem and Path(path).is_file()]
    cores = os.cpu_count() or 1
    if cores == 1 or max(sizes, default=0) < 8 * LARGE_BYTES:
        yield None
        return
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:  # a bar's thread must not be forked
        yield pool


def _check(name: str, against: Against, workers: Executor | None) -> _Checked:
    path = Path(name)
    known = segment_at(path)
    try:
        if is_database(name):
            with open_traces(name) as traces:
                found = verify_folder(traces, against)
            return _Checked(found.sessions, found)
        if path.is_dir():
            return _check_folder(path, against, workers)
        if known is not None and path.is_file():
            with progress_bar(name, path.stat().st_size) as progress:
                folder = verify_folder(path.parent, against, only=known.session_id, progress=progress, workers=workers)
            return _Checked(folder.sessions, folder)
    except (SinkError, NoteError) as error:
        return _Checked(unreadable=((without_password(name), str(error)),))
    except OSError as error:
        return _Checked(unreadable=((name, f"{name} cannot be read: {error.strerror or error}"),))
    return _check_file(name)


def _check_folder(path: Path, against: Against, workers: Executor | None) -> _Checked:
    others = [(name, problem) for name, problem in trace_files([str(path)]) if segment_at(Path(name)) is None]
    size = sum(item.stat().st_size for item in path.iterdir() if item.is_file() and segment_at(item) is not None)
    with progress_bar(str(path), size) as progress:
        folder = verify_folder(path, against, progress=progress, workers=workers)
    foreign = [_Checked(unreadable=((name, why),)) if why else _check_file(name) for name, why in others]
    return _Checked(
        (*folder.sessions, *(session for found in foreign for session in found.sessions)),
        folder,
        tuple(problem for found in foreign for problem in found.unreadable),
    )


def _check_file(name: str) -> _Checked:
    report = try_verify(name)
    if isinstance(report, str):
        return _Checked(unreadable=((name, report),))
    return _Checked(tuple(report_of(name, verdict) for verdict in report.sessions))


def _passes(found: _Checked, wanted: set[Require]) -> bool:
    if found.unreadable or (found.folder is not None and (found.folder.missing or found.folder.problems)):
        return False
    return all(session.intact and not _lacks(session, wanted) for session in found.sessions)


def _lacks(session: SessionReport, wanted: set[Require]) -> list[str]:
    has = {Require.sealed: session.sealed, Require.signed: session.signed, Require.witnessed: session.witnessed}
    return [one.value.upper() for one in Require if one in wanted and not has[one]]


def _say(found: _Checked, wanted: set[Require]) -> None:
    for _, why in found.unreadable:
        complain(why)
    for session in found.sessions:
        say(*in_words(session, _lacks(session, wanted)), lead=f"{_name(session)}:", indent=2)
    if found.folder is not None:
        for sentence in (*found.folder.problems, *found.folder.missing):
            say((f"CHANGED: {sentence}", "bold red"), lead=f"{found.folder.path}:", indent=2)


def _name(session: SessionReport) -> str:
    return session.paths[0] if session.paths else str(session.session_id)


def _as_json(checked: Sequence[_Checked]) -> dict[str, object]:
    files: list[dict[str, object]] = []
    for found in checked:
        files += [{"path": path, "sessions": [], "error": why} for path, why in found.unreadable]
        by_path: dict[str, list[SessionReport]] = {}
        for session in found.sessions:
            by_path.setdefault(_name(session), []).append(session)
        files += [{"path": path, "sessions": list(map(session_json, several))} for path, several in by_path.items()]
    folders = [_folder_json(found.folder) for found in checked if found.folder is not None]
    return {"files": sorted(files, key=lambda item: str(item["path"])), "folders": folders}


def _folder_json(folder: FolderReport) -> dict[str, object]:
    head = folder.head
    shown = None if head is None else {"origin": head.origin, "size": head.size, "root": head.root.hex()}
    return {"path": folder.path, "head": shown, "missing": list(folder.missing), "problems": list(folder.problems)}
