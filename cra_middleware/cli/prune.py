"""``cra trace prune``: what need not be kept any longer goes, and the rest still verifies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware._clock import SystemClock
from cra_middleware.cli.databases import open_traces, without_password
from cra_middleware.cli.output import Format, FormatOption, complain, emit, say, stop
from cra_middleware.errors import CRAError
from cra_middleware.evidence.pruning import PrunedSession, older_than, prune_folder
from cra_middleware.evidence.pruning_rows import prune_rows
from cra_middleware.evidence.traces import StoreTraces
from cra_middleware.keys import load_verifier


def prune_command(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="A folder of traces, sqlite:FILE or postgresql://user@host/database.")
    ],
    older: Annotated[
        str, typer.Option("--older-than", metavar="SPAN", help="How long events are kept: 30d, 12h or 8w.")
    ],
    key: Annotated[
        str, typer.Option(metavar="PUB", help="The public key whose signed heads must cover what goes.")
    ] = "",
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Instead of --key, where nothing was ever signed (a SQLite file).")
    ] = False,
    head: Annotated[
        Path | None, typer.Option(metavar="HEAD", help="A signed head that was held elsewhere, to check against first.")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Say what would be removed, and remove nothing.")
    ] = False,
    state: Annotated[
        str, typer.Option(metavar="DIR", envvar="CRA_STATE", help="A server's own files, if not beside the traces.")
    ] = "",
    format: FormatOption = Format.text,
) -> None:
    """Remove traces whose events are all older, of sessions that were ended, verify, and are signed to the end.

    The hashes of removed events stay, and so do the ledger and its heads: what is left still verifies, and a head that
    was kept elsewhere still counts. What was removed cannot be shown or proved any more. A session that was not ended
    is kept whole, and so is one that a process has open. In a folder whole files go (FOLDER/<session>.pruned has their
    hashes), in a database whole sessions, one transaction each, while servers go on.

    With a session's last event goes what a server keeps of it: its place in the lists, answers, questions. Its id is
    not used again. What is killed halfway is done by the next prune.

    \b
    Look first:  cra trace prune traces/ --older-than 30d --key bot.key.pub --rehearse
    Then:        cra trace prune traces/ --older-than 30d --key bot.key.pub --head kept.head
    A fleet:     cra trace prune postgresql://cra@db/cra --older-than 30d --key bot.key.pub
    SQLite:      cra trace prune sqlite:traces.db --older-than 30d --unsigned

    Exit code: 0, 1 when something old was not removed because it does not verify or is not signed, 2 for wrong usage.
    """
    from cra_middleware.server.remains import remains_of

    if bool(key) == unsigned:
        raise stop("name the key whose heads cover what goes: --key PUB, or --unsigned where nothing was signed", 2)
    if unsigned and head is not None:
        raise stop("--head needs the key that signed it: --key PUB", 2)
    try:
        before_us = older_than(older, SystemClock().wall_us())
    except ValueError as error:
        raise stop(f"--older-than: {error}", 2) from None
    found: list[PrunedSession] = []
    try:
        kept = None if head is None else head.read_bytes()
        verifier = load_verifier(key) if key else None
        with open_traces(place) as traces, remains_of(place, state or None) as remains:
            pruned: Iterable[PrunedSession]
            is_database = isinstance(traces, StoreTraces)
            if isinstance(traces, StoreTraces):
                if traces.prunable is None:
                    raise stop(f"{traces.name} keeps its sessions whole", 2)
                pruned = prune_rows(traces, traces.prunable, verifier, before_us, kept, is_rehearsal=rehearse)
            else:
                pruned = prune_folder(Path(place), verifier, before_us, kept, is_rehearsal=rehearse)
            if not rehearse:
                remains.sweep(traces.gone())
            for session in pruned:
                found.append(session)
                if is_database and session.events and not rehearse:
                    remains.add(session.session_id)
                if format is Format.text:
                    _say(session)
            if not rehearse:
                remains.finish(before_us)
    except CRAError as error:
        raise stop(error, 1) from None
    except OSError as error:
        shown = error.filename or without_password(place)
        raise stop(f"{shown} cannot be read: {error.strerror or error}", 1) from None
    if format is Format.json:
        emit({"rehearsal": rehearse, "sessions": [session._asdict() for session in found]})
    else:
        _say_sum(found, rehearse)
    if any(session.why_not for session in found):
        raise typer.Exit(1)


def _say(session: PrunedSession) -> None:
    if session.why_not:
        complain(f"session {session.session_id} is kept: {session.why_not}")
    elif session.files:
        say(f"{session.events} events in {', '.join(session.files)}", lead=f"{session.session_id}:", indent=2)
    elif session.events:
        say(f"{session.events} events", lead=f"{session.session_id}:", indent=2)


def _say_sum(found: list[PrunedSession], rehearse: bool) -> None:
    removed = [session for session in found if session.events]
    files, events = sum(len(session.files) for session in removed), sum(session.events for session in removed)
    size = sum(session.bytes for session in removed)
    verb = "would be removed" if rehearse else "removed; their hashes are kept"
    what = f"{files} files"
    if removed and not files:
        what = "1 session" if len(removed) == 1 else f"{len(removed)} sessions"
    say(f"{what} with {events} events ({size / 1e6:.1f} MB) {verb}")
