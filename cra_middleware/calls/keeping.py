"""Keeping what a call leaves in the trace, and what happens to the call when that cannot be done.

A write that may go through a moment later (a full disk, a full queue) is tried again until a deadline, off the event
loop. Then the call is refused, unless the operator chose ``on_audit_failure="allow"``: it goes on, and the trace says
afterwards how many events are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Literal, NamedTuple

from cra_middleware.calls.attempt import Attempt
from cra_middleware.calls.held_request import OvertakenError
from cra_middleware.calls.refusals import unavailable
from cra_middleware.errors import SinkError
from cra_middleware.interceptor import Raised, Wait
from cra_middleware.observer import Observer
from cra_middleware.trace.event import Sealed
from cra_middleware.trace.writer import ChainWriter, Draft

_logger = logging.getLogger("cra_middleware")

Waiting = Generator[Wait, object, None]


class Keeping(NamedTuple):
    """How much a runtime wants of its log."""

    durability: Literal["write_through", "sync"] = "write_through"
    """``sync``: a decision is on the disk before its tool runs."""
    deadline_seconds: float = 1.0
    """How long a write is tried again that may go through."""
    on_failure: Literal["refuse", "allow"] = "refuse"


class Recorder:
    """The writing end of one session, with its operator's terms."""

    def __init__(self, writer: ChainWriter, keeping: Keeping, observer: Observer) -> None:
        self._writer = writer
        self._keeping = keeping
        self._observer = observer

    def keep(self, attempt: Attempt) -> Waiting:
        """Keep what ``attempt`` has noted.

        Raises:
            AuditUnavailable: when it is not kept, and the call must not go on.
        """
        entries = tuple(attempt.unwritten)
        self._writer.want(*entries)
        try:
            sealed = self._writer.write(*entries, only_if=attempt.only_if)
        except SinkError as error:
            sealed = yield from self._keep_later(attempt, error)
        finally:
            self._writer.give_up(*entries)
        attempt.unwritten.clear()
        attempt.operation.seen(sealed)

    def make_durable(self, attempt: Attempt) -> Waiting:
        """In ``sync`` mode: wait until everything that was kept is on the disk.

        Raises:
            AuditUnavailable: when it is not, and the tool must not run; the trace says so.
        """
        if self._keeping.durability != "sync":
            return
        attempt.has_waited = True
        reply = yield Wait(self._writer.flush)
        if not isinstance(reply, Raised):
            return
        if self._keeping.on_failure == "allow" and isinstance(reply.error, SinkError):
            _logger.error("%s runs, and its decision is not on the disk: %s", attempt.call.action_id, reply.error)
            return
        self._writer.owe(self._not_run(attempt))
        raise self._refusal(attempt, reply.error)

    def keep_outcome(self, attempt: Attempt, entry: Draft) -> None:
        """Keep the outcome of a tool that has run, now or with the next write."""
        if attempt.is_unrecorded:  # an outcome without its decision would be no chain
            self._miss(1)
            return
        try:
            attempt.operation.seen(self._writer.write_or_owe(entry))
        except SinkError as failure:
            _logger.error("%s ran, and its outcome waits to be recorded: %s", attempt.call.action_id, failure)

    def keep_now(self, *entries: Draft, only_if: Callable[[], None] | None = None) -> Sequence[Sealed]:
        """Keep events of the session itself; waits here where it has to.

        Raises:
            SinkError: when they are not kept, and the session must not go on.
        """
        try:
            return self._writer.write_until(self._keeping.deadline_seconds, *entries, only_if=only_if)
        except SinkError as error:
            if self._keeping.on_failure != "allow":
                raise
            self._miss(len(entries))
            _logger.error("%d events are not in the trace of session %s: %s", len(entries), self._session_id, error)
            return ()

    def _keep_later(self, attempt: Attempt, error: SinkError) -> Generator[Wait, object, Sequence[Sealed]]:
        failure: BaseException = error
        if error.is_transient and self._keeping.deadline_seconds > 0:
            written: list[Sealed] = []

            def work() -> None:
                deadline = self._keeping.deadline_seconds
                written.extend(self._writer.write_until(deadline, *attempt.unwritten, only_if=attempt.only_if))

            attempt.has_waited = True
            reply = yield Wait(work)
            if not isinstance(reply, Raised):
                return written
            failure = reply.error
            if isinstance(failure, OvertakenError):
                raise failure
            attempt.operation.seen(written)
            if written and written[-1].event_type == "action.approved":  # interrupted, and kept all the same
                self._writer.owe(self._not_run(attempt))
        if self._keeping.on_failure != "allow" or not isinstance(failure, SinkError):
            raise self._refusal(attempt, failure)
        attempt.is_unrecorded = True
        self._miss(len(attempt.unwritten))
        _logger.error("%s goes on unrecorded: %s", attempt.call.action_id, failure)
        return ()

    def _miss(self, events: int) -> None:
        self._writer.miss(events)
        self._observer.missed(events)

    def _not_run(self, attempt: Attempt) -> Draft:
        """The log failed, or the wait for it was cut."""
        why = "nobody saw its decision on the disk"
        return attempt.not_run(self._writer.now_us(), "audit_unavailable", why)

    def _refusal(self, attempt: Attempt, failure: BaseException) -> BaseException:
        attempt.operation.end("denied", "audit_unavailable", "the decision could not be recorded")
        return unavailable(attempt.call, failure) if isinstance(failure, SinkError) else failure

    @property
    def _session_id(self) -> str:
        return self._writer.session_id
