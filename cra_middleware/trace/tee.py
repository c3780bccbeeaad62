"""One trace in several places: the primary's word counts, the copies follow it.

An event is kept when the primary has kept it, and its ``SinkError`` is the answer. A copy that fails stops no call:
it is logged, marked as behind, and brought up to date from the primary's lines in the background, so that it never
skips an event. A copy is written in the call; put a ``BufferedSink`` round one that is slow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

from cra_middleware.errors import SinkError
from cra_middleware.trace.ledger.backlog import Backlog, TellsBacklog
from cra_middleware.trace.sink import Health, Query, SessionLog, Sink, Torn, TraceStore
from cra_middleware.trace.storage.syncer import Syncer
from cra_middleware.trace.tee_copy import Copy, Original

_logger = logging.getLogger("cra_middleware.trace")


class TeeLog:
    """One session, and its copies."""

    def __init__(self, original: Original, copies: Sequence[Copy], syncer: Syncer) -> None:
        self._original = original
        self._copies = copies
        self._syncer = syncer

    @property
    def durable_events(self) -> int:
        """The primary's."""
        return self._original.log.durable_events

    @property
    def noted_durable(self) -> int | None:
        """The primary's."""
        return self._original.log.noted_durable

    @property
    def witnessed_events(self) -> int:
        """The most events, from the first, that any one copy has made durable; never more than were accepted."""
        known = max((copy.durable_events for copy in self._copies), default=0)
        return min(max(known, self._original.log.witnessed_events), self._original.events)

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._original.append(offset, data, events)
        for copy in self._copies:
            if not copy.append(offset, data, events):
                copy.queue(self._syncer)

    def lines(self) -> Iterator[bytes]:
        return self._original.log.lines()

    def set_aside(self, offset: int, /) -> Torn:
        return self._original.log.set_aside(offset)

    def flush(self) -> None:
        """The primary's; and copies that are behind begin to catch up."""
        self._original.log.flush()
        for copy in self._copies:
            if copy.is_behind:
                copy.queue(self._syncer)

    def close(self) -> None:
        try:
            for copy in self._copies:
                copy.close()
        finally:
            self._original.log.close()


class TeeSink:
    """The sessions of ``primary``, and copies of them."""

    def __init__(self, primary: TraceStore, *copies: Sink, retry_seconds: float = 1.0) -> None:
        """Nothing is started before a copy falls behind.

        Args:
            primary: keeps the events; what it is asked, it answers.
            copies: get every event that ``primary`` has kept.
            retry_seconds: how long a copy that failed is left alone before it is tried again.
        """
        self._primary = primary
        self._copies = copies
        self._syncer = Syncer(retry_seconds)

    def create(self, session_id: str, /) -> SessionLog:
        return self._open(session_id, self._primary.create(session_id), is_new=True)

    def reopen(self, session_id: str, /) -> SessionLog:
        return self._open(session_id, self._primary.reopen(session_id), is_new=False)

    def session_ids(self) -> list[str]:
        return self._primary.session_ids()

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        return self._primary.lines(session_id)

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        return self._primary.find(session_id, query)

    def count(self, session_id: str, /) -> int:
        return self._primary.count(session_id)

    def backlog(self) -> Backlog | None:
        """What waits for a signed head at the sink that signs; None where none does.

        Raises:
            SinkError: when it cannot be read.
        """
        return self._primary.backlog() if isinstance(self._primary, TellsBacklog) else None

    def health(self) -> Health:
        return self._primary.health()

    def close(self) -> None:
        self._syncer.stop()
        for copy in self._copies:
            try:
                copy.close()
            except SinkError as error:  # the primary has it all
                _logger.error("a copy of the traces was not closed well: %s", error)
        self._primary.close()

    def _open(self, session_id: str, log: SessionLog, *, is_new: bool) -> TeeLog:
        original = Original(log, os.getpid())
        copies = [Copy(sink, session_id, original, is_new=is_new) for sink in self._copies]
        return TeeLog(original, copies, self._syncer)
