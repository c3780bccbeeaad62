"""The last event of a session: when it may be written, and what it says of those before it."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from cra_middleware.calls.call_flow import CallPath
from cra_middleware.calls.keeping import Recorder
from cra_middleware.calls.setting import Identity, Setting
from cra_middleware.errors import SinkError
from cra_middleware.sessions.session import EndReason
from cra_middleware.trace.event import EventType, Sealed
from cra_middleware.trace.shared import EndedElsewhereError
from cra_middleware.trace.writer import ChainWriter

_REST_SECONDS = 0.001
_logger = logging.getLogger("cra_middleware")


class Record(Protocol):
    """Keeps one event about the session itself."""

    def __call__(
        self, event_type: EventType, payload: dict[str, object], only_if: Callable[[], None] | None = None, /
    ) -> Sequence[Sealed]: ...


class _NotLastError(Exception):
    """Something else was recorded before a session's last event could be."""


class Sealing:
    """Seals one session, once its calls are over."""

    def __init__(
        self,
        setting: Setting,
        identity: Identity,
        writer: ChainWriter,
        recorder: Recorder,
        calls: CallPath,
        record: Record,
    ) -> None:
        self._setting = setting
        self._identity = identity
        self._writer = writer
        self._recorder = recorder
        self._calls = calls
        self._record = record
        self._began_ns = setting.clock.monotonic_ns()
        self.ended_us: int | None = None
        """When the last event was written; None while it was not."""

    def seal(
        self,
        reason: EndReason,
        error: str | None,
        behind: int | None,
        has_open_children: Callable[[], bool],
        left: tuple[str, str] | None = None,
    ) -> None:
        """Write the last event; only directly behind event ``behind``, and below it nothing open, where that is given.
        Of calls that run elsewhere ``left`` is recorded: a code and a sentence; without it they stay as they are.

        Where that cannot be, the session stays unsealed, and the log says why.
        """
        try:
            owed = self._recorder.keep_now()  # tried again where it may go through
            self._setting.observer.session(self._identity.subject, owed)
            self._calls.settle()
            self._write(reason, error, behind, has_open_children, left)
            self._forget()
        except (_NotLastError, EndedElsewhereError) as failure:
            _logger.info("session %s is not sealed here: %s", self._identity.session_id, failure)
        except SinkError as failure:
            _logger.error("session %s ends unsealed: %s", self._identity.session_id, failure)

    def _write(
        self,
        reason: EndReason,
        error: str | None,
        behind: int | None,
        has_open_children: Callable[[], bool],
        left: tuple[str, str] | None,
    ) -> None:
        """Its counts are those of the whole chain, whoever wrote it."""
        duration_ms = max(0, (self._setting.clock.monotonic_ns() - self._began_ns) // 1_000_000)
        for asked in itertools.count():
            if left is not None:
                self._calls.give_up(*left)
            events = self._writer.end.sequence
            if behind is not None and (events != behind + 1 or has_open_children()):
                raise _NotLastError("something else was recorded first")
            counts = {"event_count": events + 1, "action_count": self._calls.actions_run() - asked}

            def is_last(events: int = events) -> None:
                is_out = left is not None and bool(self._calls.untold)
                if self._writer.end.sequence != events or is_out or self._calls.is_told_of:
                    raise _NotLastError

            payload: dict[str, object] = {"reason": reason, "duration_ms": duration_ms, "error": error, **counts}
            try:
                sealed = self._record("session.ended", payload, is_last)
            except _NotLastError:
                time.sleep(_REST_SECONDS)  # who tells of a call now is to have the time
                continue
            self.ended_us = sealed[-1].timestamp_us if sealed else None
            return

    def _forget(self) -> None:
        """Nobody need answer for this session any more, nor know what only it and those below it have spent."""
        session_id = self._identity.session_id
        self._setting.desk.close(session_id)
        if self._identity.facts.root_session_id == session_id:
            try:
                self._setting.counters.forget(session_id)
            except Exception as failure:  # noqa: BLE001  a foreign store: the session is sealed all the same
                _logger.error("what session %s has spent stays counted: %s", session_id, failure)
