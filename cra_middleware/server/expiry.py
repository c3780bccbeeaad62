"""Sessions that nobody calls any more: sealed by the server, after a time.

What counts is the last event of a session's trace, whichever server wrote it. It is read only of sessions that were
created longer ago than that time, and of each only when it may have run out: a call costs nothing for it. Several
servers may look at once; the seal goes behind the very event that was looked at, so whoever writes first is right.
"""

from __future__ import annotations

import logging

from cra_middleware._clock import parse_us
from cra_middleware.errors import CRAError
from cra_middleware.server.book import SessionRow
from cra_middleware.server.faults import OVER, Fault
from cra_middleware.server.host import LEFT, Host
from cra_middleware.server.recall import EXPIRED, last_event
from cra_middleware.server.reports import Reports
from cra_middleware.trace.let_run import Told

EXPIRES_SECONDS = 86_400.0
"""After how long without a call a session is over."""
MAX_LOOKED = 200
"""How many sessions are looked at in one go."""
_LONGEST_REST_SECONDS = 60.0
_FOR_EVER_SECONDS = 1e11

_logger = logging.getLogger("cra_middleware.server")


class Expiry:
    """Looks through the open sessions of one host, a part at a time."""

    def __init__(self, host: Host, reports: Reports, seconds: float = EXPIRES_SECONDS) -> None:
        """``seconds`` without a call are allowed; 0 is for ever.

        Raises:
            ValueError: when that is no length of time.
        """
        if not 0 <= seconds < _FOR_EVER_SECONDS:
            raise ValueError("a session expires after a number of seconds, or never (0)")
        self._host = host
        self._reports = reports
        self._span_us = int(seconds * 1_000_000)
        self._rest_us = min(self._span_us // 10, int(_LONGEST_REST_SECONDS * 1_000_000))
        self._behind: tuple[int, str] | None = None
        self._not_before: dict[str, int] = {}  # a session need not be looked at before then
        self._seen: dict[str, int] = {}  # the same, of this pass
        self._rests_until_ns = 0

    def sweep(self) -> None:
        """Look at the next few sessions, and seal those whose time is over. Called about once a second."""
        if not self._span_us or (self._behind is None and self._host.clock.monotonic_ns() < self._rests_until_ns):
            return
        now_us = self._host.clock.wall_us()
        rows = self._host.book.open_before(now_us - self._span_us, self._behind, MAX_LOOKED)
        for row in rows:
            due_us = self._not_before.get(row.session_id, 0)
            again_us = due_us if now_us < due_us else self._looked_at(row, now_us)
            if again_us is not None:
                self._seen[row.session_id] = again_us
        self._behind = (rows[-1].created_us, rows[-1].session_id) if len(rows) == MAX_LOOKED else None
        if self._behind is None:
            self._not_before, self._seen = self._seen, {}
            self._rests_until_ns = self._host.clock.monotonic_ns() + self._rest_us * 1000

    def _looked_at(self, row: SessionRow, now_us: int) -> int | None:
        """When to look at a session again; None when it is over."""
        try:
            return self._stays_until(row, now_us)
        except CRAError as error:
            _logger.error("session %s could not be looked after: %s", row.session_id, error)
            return now_us + self._rest_us

    def _stays_until(self, row: SessionRow, now_us: int) -> int | None:
        last = last_event(self._host.store, row.session_id)
        soon_us = now_us + self._rest_us
        if last is None or self._host.book.children(row.session_id):
            return soon_us
        called_us = max(parse_us(last.timestamp), self._host.book.last_child_end(row.session_id) or 0)
        if now_us < called_us + self._span_us:
            return called_us + self._span_us
        for approval in self._host.runtime.approvals.list(None, row.session_id):
            if approval.state in ("pending", "approved") and now_us < approval.pending.expires_us:
                return min(soon_us, approval.pending.expires_us)
        return None if self._seal(row, last.sequence, now_us) else soon_us

    def _seal(self, row: SessionRow, sequence: int, now_us: int) -> bool:
        """Seal a session whose last event is the one of ``sequence``; whether it is sealed now."""
        with self._host.sealing:
            try:
                with self._host.opened(row) as session:
                    session.refresh()
                    calls = session.untold
                    if any(now_us < self._reports.deadline_us(call) for call in calls):
                        return False
                    for call in calls:
                        session.tell(call, Told("server", LEFT))
                    session.end_behind(sequence + len(calls), "timeout", EXPIRED)
            except Fault as fault:
                if fault.code not in OVER:
                    raise
                return True  # another server was faster
            except ValueError:  # somebody tells of a call at this very moment
                return False
            return self._host.note_seal(row.session_id)
