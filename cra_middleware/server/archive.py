"""The traces that a server holds: read, verified, added to by name, and taken over from an agent that was offline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import orjson

from cra_middleware._clock import parse_us
from cra_middleware.errors import SinkError
from cra_middleware.server.access import Caller
from cra_middleware.server.book import SessionRow
from cra_middleware.server.faults import Fault
from cra_middleware.server.host import Host
from cra_middleware.server.recall import GIVEN
from cra_middleware.server.wire import Note
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.profiles import read
from cra_middleware.trace.sink import Query


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
        return verify_lines(self._host.store.lines(session_id), session_id)[0]

    def note(self, caller: Caller, session_id: str, note: Note) -> None:
        """Record something about a session itself."""
        with self._host.owned(caller, session_id) as session:
            session.note(note.error_code, note.message)

    def upload(self, caller: Caller, session_id: str, data: bytes) -> SessionRow:
        """Take over a whole, sealed session that was recorded elsewhere.

        Raises:
            Fault: when it does not verify, is not of an agent the caller may be, or is known.
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
        known = metadata if isinstance(metadata, dict) else {}
        row = SessionRow(
            *(session_id, agent_id, caller.identity, str(first.payload["goal"]), parse_us(first.timestamp)),
            ended_us=parse_us(last.timestamp),
            metadata=orjson.dumps(known.get(GIVEN) or {}).decode(),
        )
        if self._host.session_row(session_id) is not None or not self._host.book.add_session(row):
            raise Fault("SESSION_ALREADY_EXISTS", f"session {session_id} is known")
        try:
            log = self._host.store.create(session_id)
        except SinkError as error:
            raise Fault("SESSION_ALREADY_EXISTS", f"session {session_id} cannot be begun here") from error
        try:
            log.append(0, data, len(lines))
            log.flush()
        finally:
            log.close()
        return row


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
