"""The traces that a server holds: read, verified, added to by name, and taken over from an agent that was offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import orjson

from cra_middleware._clock import parse_us
from cra_middleware.errors import SinkError
from cra_middleware.server.access import Caller
from cra_middleware.server.book import SessionRow
from cra_middleware.server.faults import Fault
from cra_middleware.server.host import Host
from cra_middleware.server.recall import CREATOR, GIVEN
from cra_middleware.server.wanted import MAX_METADATA_BYTES
from cra_middleware.server.wire import MAX_GOAL, MAX_NAME, Note
from cra_middleware.sessions.session import OFFLINE_OF
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.profiles import read
from cra_middleware.trace.pruned import KeepsHashes, PrunedError
from cra_middleware.trace.sink import MovedError, Query, SessionLog, TraceStore


class Archive:
    """The traces of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def page(
        self, caller: Caller, session_id: str, event_type: str | None, after: int | None, limit: int
    ) -> Sequence[bytes]:
        """Lines of a trace: at most ``limit``, those behind sequence ``after``.

        Raises:
            Fault: when there is no such session.
        """
        self._host.readable(caller, session_id)
        query = Query(event_type, 0 if after is None else after + 1)
        return list(islice(self._host.lines(session_id, query), limit))

    def is_quiet(self, session_id: str, after: int | None) -> bool:
        """Whether nothing can be behind ``after``, without looking: nobody but this process writes."""
        session = None if self._host.is_shared or after is None else self._host.table.peek(session_id)
        return session is not None and after is not None and session.accepted_sequence <= after

    def count(self, session_id: str) -> int:
        """How many events a trace has."""
        return self._host.store.count(session_id)

    def verify(self, caller: Caller, session_id: str) -> Verdict:
        """Verify a trace from the bytes that are kept.

        Raises:
            Fault: when there is no such session.
        """
        self._host.readable(caller, session_id)
        store = self._host.store
        pruned = store.read_pruned(session_id) if isinstance(store, KeepsHashes) else None
        return verify_lines(store.lines(session_id), session_id, None if pruned is None else pruned.start)[0]

    def note(self, caller: Caller, session_id: str, note: Note) -> None:
        """Record something about a session itself."""
        with self._host.owned(caller, session_id) as session:
            session.note(note.error_code, note.message)

    def upload(self, caller: Caller, session_id: str, data: bytes) -> SessionRow:
        """Take over a whole, sealed session that was recorded elsewhere; told again, it is the same one.

        Its trace is durable before it is in the index, so no list names what is not there. A try that was cut short
        leaves a trace in no list: the same bytes, handed in again, finish it.

        Raises:
            Fault: when it does not verify, is not the caller's to hand in, another of its id is known, or it is being
                written.
            SinkError: when it cannot be kept now; the caller hands it in again.
        """
        lines = data.splitlines(keepends=True) if b"\r" not in data else [data]
        verdicts = verify_lines(lines, session_id)
        verdict = verdicts[0] if len(verdicts) == 1 else None
        if verdict is None or verdict.error is not None or verdict.session_id != session_id or verdict.profile != "cra":
            raise Fault("TRACE_CHAIN_INTEGRITY_ERROR", f"not taken: {verdict or 'it holds several sessions'}")
        if not verdict.sealed or not data.endswith(b"\n"):
            raise Fault("TRACE_CHAIN_INTEGRITY_ERROR", "only a session that has ended is taken")
        first, last = (read(line.rstrip(b"\n"), "cra").event for line in (lines[0], lines[-1]))
        agent_id = str(first.payload["agent_id"])
        if not caller.may_be(agent_id):
            raise Fault("FORBIDDEN", "this key may not speak for that agent")
        metadata = first.payload.get("metadata")
        said = metadata if isinstance(metadata, dict) else {}
        now_us = self._host.clock.wall_us()
        row = SessionRow(
            *(session_id, agent_id, caller.identity, str(first.payload["goal"])),
            created_us=min(now_us, parse_us(first.timestamp)),  # another clock may be ahead, or be said to be
            ended_us=min(now_us, parse_us(last.timestamp)),
            metadata=_given(said),
        )
        if len(agent_id) > MAX_NAME or len(row.goal) > MAX_GOAL or len(row.metadata) > MAX_METADATA_BYTES:
            raise Fault("INVALID_TRACE_EVENT", "session.started says more than a session may be begun with")
        known = self._host.book.session(session_id)
        if known is None or not known.creator:  # at most its trace was looked at: that does not say whose it is
            self._check_source(caller, said)
        elif known.ended_us is None or known[:4] != row[:4]:
            raise _known(session_id)
        elif self._is_kept(session_id, data):
            return known
        try:
            self._take(session_id, data, len(lines), goes_on=CREATOR not in said)
        except PrunedError as error:
            self._host.book.forget([session_id])
            raise _known(session_id) from error
        return self._list(row)

    def _check_source(self, caller: Caller, metadata: Mapping[str, object]) -> None:
        """What a server writes names who opened it; a trace that does is not handed in: it would be taken for one."""
        if CREATOR in metadata:
            raise Fault("FORBIDDEN", "a trace that a server wrote is not handed in")
        stood_in_for = metadata.get(OFFLINE_OF)
        row = self._host.session_row(stood_in_for) if isinstance(stood_in_for, str) else None
        if row is not None and row.creator != caller.identity:
            raise Fault("FORBIDDEN", "it stands in for a session that another key opened")

    def _is_kept(self, session_id: str, data: bytes) -> bool:
        """Whether a session that is listed holds these bytes. What is listed is durable: nobody is waited for."""
        try:
            return _common(self._host.store.lines(session_id), data) == len(data)
        except SinkError:
            return False

    def _take(self, session_id: str, data: bytes, events: int, *, goes_on: bool) -> None:
        """Keep ``data``; a try that was cut short is gone on with where it ends.

        Args:
            goes_on: whether what lies there may be such a try: never where a server recorded the session itself.

        Raises:
            Fault: when another session is there, or somebody else is at it.
            PrunedError: when it was there.
            SinkError: when it cannot be kept.
        """
        log = self._opened(session_id)
        try:
            end = _common(log.lines(), data)
            if end is None or (end < len(data) and not goes_on):
                self._host.session_row(session_id)  # what is there may be in no list yet
                raise _known(session_id)
            if end == len(data):
                log.set_aside(end)  # sets nothing aside, and makes durable what a process has left that died
            log.append(end, data[end:], events)
            log.flush()
        except MovedError as error:
            raise _busy(session_id) from error
        finally:
            log.close()

    def _opened(self, session_id: str) -> SessionLog:
        store = self._host.store
        try:
            return store.create(session_id)
        except PrunedError:
            raise
        except SinkError:
            if not _is_there(store, session_id):
                raise
        try:
            return store.reopen(session_id)
        except PrunedError:
            raise
        except SinkError as error:
            raise _busy(session_id) from error

    def _list(self, row: SessionRow) -> SessionRow:
        """Put a session whose trace is kept into the index."""
        book = self._host.book
        if book.add_session(row):
            return row
        known = book.session(row.session_id)
        if known is not None and known.creator == row.creator:
            return known
        if known is not None and known.creator:  # handed in by two, and the other was faster
            raise _known(row.session_id)
        book.forget([row.session_id])
        book.add_session(row)
        return row


def _known(session_id: str) -> Fault:
    return Fault("SESSION_ALREADY_EXISTS", f"there is another session {session_id} already")


def _busy(session_id: str) -> Fault:
    message = f"session {session_id} is being written by another; hand it in again"
    return Fault("STORAGE_LOCKED", message, recoverable=True, retry_after_seconds=1)


def _is_there(store: TraceStore, session_id: str) -> bool:
    try:
        store.lines(session_id)
    except SinkError:
        return False
    return True


def _common(lines: Iterator[bytes], data: bytes) -> int | None:
    """How many bytes of ``data`` a log's lines hold, whole ones; None when they hold something else."""
    end = whole = 0
    for line in lines:
        if not data.startswith(line, end):
            return None
        end += len(line)
        if line.endswith(b"\n"):
            whole = end
    return whole


def _given(metadata: Mapping[str, object]) -> str:
    found = metadata.get(GIVEN)
    return orjson.dumps(found if isinstance(found, dict) else {}).decode()


def verdict_json(verdict: Verdict) -> dict[str, object]:
    """The published shape; ``verdict`` beside it says what ``valid`` alone does not."""
    told: dict[str, object] = {
        "valid": verdict.intact,
        "event_count": verdict.events,
        "errors": [],
        "verdict": str(verdict),
        "sealed": verdict.sealed,
        "recovered": verdict.recovered is not None,
        "head_hash": verdict.head_hash,
    }
    if verdict.error is not None:
        problem = verdict.error
        told["errors"] = [{"sequence": problem.sequence, "error": problem.kind, "details": problem.message}]
    return told
