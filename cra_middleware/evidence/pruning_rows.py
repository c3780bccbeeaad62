"""Removing the sessions of a database that are older than they have to be kept, while servers write others.

What is verified is what is removed: the hashes that stay are those of the events that were read, and the removal, one
transaction a session, goes through only where as many are there, and no process has the session open.
"""

from __future__ import annotations

from collections.abc import Iterator

from cra_middleware._clock import parse_us
from cra_middleware.evidence.folder import Against
from cra_middleware.evidence.paged import PagedLedger
from cra_middleware.evidence.pruning import PrunedSession, refuse_signed, why_kept
from cra_middleware.evidence.session import Subject, verify_session
from cra_middleware.evidence.traces import PrunableStore, StoreTraces
from cra_middleware.trace.event import Event
from cra_middleware.trace.note import VerifierKey
from cra_middleware.trace.profiles import MalformedError, read
from cra_middleware.trace.pruned import Pruned, PrunedError


def prune_rows(
    traces: StoreTraces,
    store: PrunableStore,
    key: VerifierKey | None,
    before_us: int,
    head: bytes | None = None,
    *,
    is_rehearsal: bool = False,
) -> Iterator[PrunedSession]:
    """Remove the sessions whose last event is older than ``before_us``, one after the other; each is told when done.

    Args:
        traces: the same as ``store``, to be verified.
        key: whose signed heads count; None only where nothing was ever signed.
        head: one that was held elsewhere.
        is_rehearsal: only say what would be removed.

    Raises:
        NoteError: when ``head`` is not signed by ``key``.
        SinkError: when the database fails; or it is signed, and there is no key.
    """
    if key is None:
        refuse_signed(traces)
    ledger = PagedLedger(traces, traces.entries(), Against(key, head))
    for session_id, last in store.last_lines():
        if not _is_before(last, before_us):
            continue
        hashes, sizes = bytearray(), [0]

        def hear(event: Event, hashes: bytearray = hashes) -> None:
            hashes += bytes.fromhex(event.event_hash)

        def read_on(size: int, sizes: list[int] = sizes) -> None:
            sizes[0] += size

        said = ledger.of(session_id)
        subject = Subject(traces.record(session_id), said.entries, said.signed_events)
        report = verify_session(subject, progress=read_on, hear=hear)[0]
        if report.verdict is None and report.pruned_events:
            continue  # another process prunes
        if report.verdict is not None and report.verdict.profile != "cra":
            continue  # another implementation's: its hashes are not ours
        why = why_kept(report, bool(ledger.problems), is_signed=key is not None)
        if why is None and not is_rehearsal:
            try:
                why = store.prune(session_id, Pruned(bytes(hashes)))
            except PrunedError:
                continue
        if why is not None:
            yield PrunedSession(session_id, why_not=why)
        else:
            yield PrunedSession(session_id, events=report.total_events, bytes=sizes[0])


def _is_before(line: bytes, before_us: int) -> bool:
    """Whether an event is older; one that cannot be read is taken for old, so that its session's verdict is told."""
    try:
        return parse_us(read(line.removesuffix(b"\n"), "cra").event.timestamp) < before_us
    except (MalformedError, ValueError):
        return True
