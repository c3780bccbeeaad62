"""Removing what is older than it has to be kept, so that the rest still verifies.

Only whole files of a session that was ended, verifies, and is covered by a signed head to its last event. The hashes of
the removed events are kept, and so is the ledger: the session's tree, and every head over it, can still be computed.
In a database (``pruning_rows``) a session goes as a whole. Where nothing was ever signed, nobody can tell a session
that was pruned from one that somebody hid, so that has to be asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from cra_middleware._clock import parse_us
from cra_middleware.errors import SinkError
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.evidence.reports import SessionReport
from cra_middleware.evidence.traces import FolderTraces, Traces
from cra_middleware.trace.note import VerifierKey
from cra_middleware.trace.profiles import MalformedError, read
from cra_middleware.trace.pruned import pruned_file, pruned_text, read_pruned
from cra_middleware.trace.storage.files import failed, replace_file
from cra_middleware.trace.storage.segments import Segment, read_lines, segments_of
from cra_middleware.trace.tree import HASH_BYTES


class PrunedSession(NamedTuple):
    """What was removed of one session, or why nothing was."""

    session_id: str
    files: tuple[str, ...] = ()
    """None in a database."""
    events: int = 0
    bytes: int = 0
    why_not: str | None = None
    """None also when nothing of it is old enough."""


class _Old(NamedTuple):
    """One file that may go."""

    segment: Segment
    hashes: bytes
    size: int


def prune_folder(
    folder: Path, key: VerifierKey | None, before_us: int, head: bytes | None = None, *, is_rehearsal: bool = False
) -> list[PrunedSession]:
    """Remove the files whose last event is older than ``before_us``; one answer a session.

    Args:
        key: whose signed heads count; None only where nothing was ever signed.
        head: one that was held elsewhere.
        is_rehearsal: only say what would be removed.

    Raises:
        NoteError: when ``head`` is not signed by ``key``.
        SinkError: when a file cannot be read, written or removed; or the place is signed, and there is no key.
    """
    if key is None:
        refuse_signed(FolderTraces(folder))
    report = verify_folder(folder, Against(key, head))
    found: list[PrunedSession] = []
    for session in report.sessions:
        if session.session_id is None or session.verdict is None:
            continue
        why = why_kept(session, bool(report.problems), is_signed=key is not None)
        old = _old_files(folder, session.session_id, before_us)
        if why is not None or not old:
            found.append(PrunedSession(session.session_id, why_not=why if old else None))
            continue
        if not is_rehearsal:
            _remove(folder, session.session_id, old)
        names = tuple(item.segment.path.name for item in old)
        events = sum(len(item.hashes) for item in old) // HASH_BYTES
        found.append(PrunedSession(session.session_id, names, events, sum(item.size for item in old)))
    return found


def why_kept(session: SessionReport, has_problems: bool, *, is_signed: bool) -> str | None:
    """Why a session is not pruned, or None.

    Args:
        has_problems: whether something is wrong with the ledger or the heads.
        is_signed: whether a head has to cover it.
    """
    if not session.intact:
        return str(session)
    if not session.sealed:
        return "it was not ended, and whoever goes on with it needs its beginning"
    if is_signed and (not session.signed or has_problems):
        return "no signed head covers all of it"
    return None


def refuse_signed(traces: Traces) -> None:
    """See that nothing was ever signed in a place.

    Raises:
        SinkError: when something was: then a head has to cover what goes.
    """
    if traces.has_ledger() or traces.head() is not None:
        raise SinkError(f"{traces.name} is signed: name the key whose heads must cover what goes")


def _old_files(folder: Path, session_id: str, before_us: int) -> list[_Old]:
    """The first files of a session that are all older."""
    files = segments_of(folder, session_id)
    old: list[_Old] = []
    for known, following in zip(files, [*files[1:], None], strict=True):
        hashes, last = bytearray(), ""
        for line in read_lines(known.path, None if following is None else following.first - known.first):
            try:
                event = read(line.removesuffix(b"\n"), "cra").event
            except MalformedError:  # the session's verdict says so
                return old
            hashes += bytes.fromhex(event.event_hash)
            last = event.timestamp
        if not last or parse_us(last) >= before_us:
            return old
        old.append(_Old(known, bytes(hashes), known.path.stat().st_size))
    return old


def _remove(folder: Path, session_id: str, old: list[_Old]) -> None:
    """The hashes are on the disk before the first file goes; whatever is left of a try cut short counts once."""
    before = read_pruned(folder, session_id)
    hashes = bytearray(b"" if before is None else before.hashes)
    for item in old:
        place = item.segment.first * HASH_BYTES
        hashes[place:] = item.hashes if len(hashes) <= place + len(item.hashes) else hashes[place:]
    try:
        replace_file(pruned_file(folder, session_id), pruned_text(bytes(hashes)))
        for item in old:
            os.unlink(item.segment.path)
    except OSError as error:
        raise failed(f"session {session_id} cannot be pruned", error) from error


def older_than(text: str, now_us: int) -> int:
    """The time that lies ``30d`` (or ``12h``, ``8w``) before now, in microseconds since 1970.

    Raises:
        ValueError: when ``text`` is no such span.
    """
    units = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not (number.isascii() and number.isdigit()) or not 0 < int(number) < 100_000:
        raise ValueError(f"{text!r} is not a span of time such as 30d, 12h or 8w")
    return now_us - int(number) * units[unit] * 1_000_000
