"""``cra trace prune``: what need not be kept any longer goes, and the rest still verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cra_middleware._clock import SystemClock
from cra_middleware.cli.output import Format, FormatOption, complain, emit, say, stop
from cra_middleware.errors import CRAError
from cra_middleware.evidence.pruning import PrunedFiles, older_than, prune_folder
from cra_middleware.keys import load_verifier


def prune_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of traces.")],
    older: Annotated[
        str, typer.Option("--older-than", metavar="SPAN", help="How long events are kept: 30d, 12h or 8w.")
    ],
    key: Annotated[str, typer.Option(metavar="PUB", help="The public key whose signed heads must cover what goes.")],
    head: Annotated[
        Path | None, typer.Option(metavar="HEAD", help="A signed head that was held elsewhere, to check against first.")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Say what would be removed, and remove nothing.")
    ] = False,
    format: FormatOption = Format.text,
) -> None:
    """Remove trace files whose events are all older, of sessions that were ended, verify, and are signed to the end.

    The hashes of removed events stay (FOLDER/<session>.pruned), and so do the ledger and its heads: what is left still
    verifies, and a head that was kept elsewhere still counts. What was removed cannot be shown or proved any more.
    A session that was not ended is kept whole.

    \b
    Look first:  cra trace prune traces/ --older-than 30d --key bot.pub --rehearse
    Then:        cra trace prune traces/ --older-than 30d --key bot.pub --head kept.head

    Exit code: 0, 1 when something old was not removed because it does not verify or is not signed, 2 for wrong usage.
    """
    try:
        before_us = older_than(older, SystemClock().wall_us())
    except ValueError as error:
        raise stop(f"--older-than: {error}", 2) from None
    try:
        kept = None if head is None else head.read_bytes()
        found = prune_folder(folder, load_verifier(key), before_us, kept, is_rehearsal=rehearse)
    except CRAError as error:
        raise stop(error, 1) from None
    except OSError as error:
        raise stop(f"{error.filename or folder} cannot be read: {error.strerror or error}", 1) from None
    if format is Format.json:
        emit({"rehearsal": rehearse, "sessions": [session._asdict() for session in found]})
    else:
        _say(found, rehearse)
    if any(session.why_not for session in found):
        raise typer.Exit(1)


def _say(found: list[PrunedFiles], rehearse: bool) -> None:
    for session in found:
        if session.why_not:
            complain(f"session {session.session_id} is kept: {session.why_not}")
        elif session.files:
            say(f"{session.events} events in {', '.join(session.files)}", lead=f"{session.session_id}:", indent=2)
    removed = [session for session in found if session.files]
    files, events = sum(len(session.files) for session in removed), sum(session.events for session in removed)
    size = sum(session.bytes for session in removed)
    verb = "would be removed" if rehearse else "removed; their hashes are kept"
    say(f"{files} files with {events} events ({size / 1e6:.1f} MB) {verb}")
