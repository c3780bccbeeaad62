"""The only copy of the path of a call: request, decide, (ask,) record, run, record.

``CallPath.flow`` is a generator. It yields what it needs (a person's answer, the tool's run) and is sent the
answer, so the sync and the async drivers of ``interceptor`` share every line. The tool runs once, or the
flow raises ``CallRefused``.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial

from cra_middleware._ids import new_id
from cra_middleware.approvals import Approver
from cra_middleware.attempt import Attempt, LostOutcomeError, Running, class_words, has_claim, unavailable
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, ToolCall
from cra_middleware.carp.quota import CountersError, Reservation
from cra_middleware.desk import OTHERS_ARE_ASKED, Granted, Refused
from cra_middleware.elsewhere import ELSEWHERE, Elsewhere
from cra_middleware.errors import CallRefused, SessionEnded, SinkError
from cra_middleware.interceptor import AskApproval, Closed, Flow, Raised, Returned, RunTool, Wait, finish_waiting
from cra_middleware.keeping import Recorder, Waiting
from cra_middleware.observer import Operation, Outcome
from cra_middleware.policies import Epoch
from cra_middleware.setting import Identity, Resolved, Setting
from cra_middleware.trace.event import Event
from cra_middleware.trace.let_run import LetRun, Untold
from cra_middleware.trace.payloads import render
from cra_middleware.trace.writer import ChainWriter, Entry

_logger = logging.getLogger("cra_middleware")
_BARE = RunTool(None)
MAX_REFUSALS = 10_000
"""Refused calls of one session; an agent that goes on after them is in a loop, and is not heard any more."""


_Taken = tuple[Reservation, ...]


class CallPath:
    """The calls of one session."""

    def __init__(
        self,
        setting: Setting,
        identity: Identity,
        writer: ChainWriter,
        resolved: Callable[[int], Resolved],
        session: object,
        current: ContextVar[object],
        actions: int,
        untold: Untold,
    ) -> None:
        """``resolved`` gives the resolution valid at a time; ``current`` holds ``session`` while a tool runs."""
        self._setting = setting
        self._identity = identity
        self._subject = identity.subject
        self._writer = writer
        self._recorder = Recorder(writer, setting.keeping)
        sidecar = setting.sidecar
        self._keep_personal = None if sidecar is None else partial(sidecar.keep, identity.data_subject)
        self._resolved = resolved
        self._session = session
        self._current = current
        self._ran = itertools.count(actions)
        self._refused = itertools.count(1)
        self._is_silenced = False
        self._late: deque[tuple[Operation, tuple[Outcome, str | None], _Taken]] = deque()
        self._running: dict[str, Attempt] = {}
        self._elsewhere = Elsewhere(writer, self._recorder, untold)
        self._when_idle: Callable[[], None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""
        return bool(self._running)

    def flow(
        self, call: ToolCall, body: object = None, *, stream: bool = False, approver: Approver | None = None
    ) -> Flow:
        """The path of one call.

        ``body`` is the governed function that an adapter wraps, if there is one; ``approver`` is asked when the
        runtime has none.

        Raises:
            CallRefused: when the tool must not run, or its decision cannot be recorded.
        """
        attempt = self._begin(call, stream)
        try:
            decision = self._decide(attempt, attempt.epoch, attempt.requested_us, approved=False)
            granted: Granted | None = None
            if decision.shadows:
                attempt.shadow(decision.shadows)
            if isinstance(decision, Ask):
                noted = decision.shadows
                granted = yield from self._ask(attempt, decision, approver)
                decision = self._decide_approved(attempt, granted)
                attempt.shadow([shadow for shadow in decision.shadows if shadow not in noted])
            if isinstance(decision, Allow) and call.live is not None:
                decision = self._unchanged(attempt, decision)
            if isinstance(decision, Allow) and granted is not None:
                decision = self._used(granted, decision)
            if isinstance(decision, Deny):
                yield from self._deny(attempt, decision, granted.approval_id if granted else None)
            assert isinstance(decision, Allow)  # what was approved is not asked about again
            yield from self._approve(attempt, decision, granted)
            return (yield from self._run(attempt, decision, body))
        finally:
            self._forget(attempt)

    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call that the framework itself rejected before its tool ran; returns the refusal.

        Raises:
            CallRefused: when it cannot be recorded, or the session is over.
        """
        attempt = self._begin(call, False)
        try:
            deny = Deny("invalid_parameters", f"action:{call.action_id}", reason, None, "invalid_parameters")
            finish_waiting(self._record_denial(attempt, deny, None))
            return attempt.refusal(deny, None)
        finally:
            self._forget(attempt)

    @property
    def untold(self) -> tuple[LetRun, ...]:
        """The calls that run elsewhere, the oldest first."""
        return self._elsewhere.calls

    def tell(
        self, call: LetRun, by: str, error: tuple[str, str] | None, duration_ms: int | None, result_hash: str | None
    ) -> None:
        """Record the outcome of a call that ran elsewhere.

        Raises:
            SessionEnded: when the session is over.
            SinkError: when it cannot be kept.
            ValueError: when no such call is open.
        """
        if self._is_closing():
            raise SessionEnded(f"session {self._identity.session_id} is over", action_id=call.action_id)
        self._elsewhere.tell(call, by, error, duration_ms, result_hash)
        next(self._ran)

    def heard(self, event: Event) -> None:
        """Another process wrote this into the session's log."""
        self._elsewhere.heard(event)
        if event.event_type in ("action.executed", "action.failed"):
            next(self._ran)

    def settle(self) -> None:
        """Write what is owed, and end what was closed in a finaliser.

        Raises:
            SinkError: when it cannot be kept yet.
        """
        self._writer.settle()
        self._settle_late()

    def close(self, when_idle: Callable[[], None]) -> None:
        """Accept no more calls; call ``when_idle`` once, when no tool is running any more (perhaps at once).

        Streams that are open but between two items are recorded as failed, and give no more items.
        """
        self._when_idle = when_idle
        for attempt in list(self._running.values()):
            between = attempt.is_stream and attempt.is_running and not attempt.is_inside
            if between and self._running.pop(attempt.execution_id, None) is not None:
                next(self._ran)
                self._writer.owe(attempt.abandon(self._writer.now_us()))
        if not self._running:
            when_idle()

    def actions_run(self) -> int:
        """How many tools ran; to be asked once, at the end."""
        return next(self._ran)

    def _begin(self, call: ToolCall, stream: bool) -> Attempt:
        now_us = self._writer.now_us()
        if self._is_silenced:
            reason = f"session {self._identity.session_id} had {MAX_REFUSALS} calls refused and takes no more"
            raise SessionEnded(reason, action_id=call.action_id)
        if self._is_closing():
            raise self._ended(call)
        try:
            resolved = self._resolved(now_us)
        except SinkError as error:
            raise unavailable(call, error) from error
        span_id, execution_id = new_id(), new_id()
        attempt = Attempt(
            call,
            self._subject,
            resolved.epoch,
            span_id,
            resolved.span_id,
            execution_id,
            resolved.resolution_id,
            self._setting.observer.call(call, self._subject, span_id),
            now_us,
            stream,
            self._setting.options.full,
            self._keep_personal,
        )
        self._running[execution_id] = attempt
        if self._is_closing():  # asked again after registering, so that an end misses no call
            attempt.operation.end("denied", "session_ended")
            self._forget(attempt)
            raise self._ended(call)
        try:
            attempt.request()
        except SinkError as error:
            attempt.operation.end("denied", "audit_unavailable", "personal values could not be kept")
            self._forget(attempt)
            raise unavailable(call, error) from error
        return attempt

    def _decide(self, attempt: Attempt, epoch: Epoch, now_us: int, approved: bool) -> Decision:
        setting, facts = self._setting, self._identity.facts
        try:
            decision = epoch.resolver.decide(attempt.call, facts, now_us, setting.counters, approved)
        except Exception as error:  # a policy or a counter store that breaks must deny, not pass
            _logger.exception("the policy decision failed; the call is denied")
            decision = Deny("policy_error", "default", f"the policies could not be evaluated ({type(error).__name__})")
        attempt.operation.decided(decision)
        return decision

    def _decide_approved(self, attempt: Attempt, granted: Granted) -> Decision:
        """Decide again, as of now: a window must not be passed by waiting, nor a policy by changing it."""
        epoch, now_us = self._setting.policies.epoch, self._writer.now_us()
        why = "the policies changed"
        if epoch.policy_digest == attempt.epoch.policy_digest:
            decision = self._decide(attempt, epoch, now_us, approved=False)
            if not isinstance(decision, Ask):  # nobody needs to be asked any more
                return decision
            if granted.satisfies(decision):
                return self._decide(attempt, epoch, now_us, approved=True)
            why = OTHERS_ARE_ASKED
        self._setting.desk.void(granted, why)
        deny = Deny("approval_expired", "default", f"{why}, since a person was asked; call again")
        attempt.operation.decided(deny)
        return deny

    def _unchanged(self, attempt: Attempt, decision: Allow) -> Decision:
        """The decision, unless the caller's objects are no longer what was decided."""
        if not attempt.call.changed():
            return decision
        self._release(decision.reservations)
        deny = Deny(
            "arguments_changed", decision.policy_id or "default", "the arguments changed after they were decided"
        )
        attempt.operation.decided(deny)
        return deny

    def _used(self, granted: Granted, decision: Allow) -> Decision:
        """The decision, unless the yes it stands on is gone."""
        deny = self._setting.desk.use(granted, self._writer.now_us())
        if deny is not None:
            self._release(decision.reservations)
        return deny or decision

    def _ask(
        self, attempt: Attempt, ask: Ask, approver: Approver | None
    ) -> Generator[AskApproval | Wait, object, Granted]:
        desk = self._setting.desk
        found = yield from desk.settle(
            attempt, ask, attempt.epoch, self._writer.now_us, lambda: self._keep(attempt), approver
        )
        if isinstance(found, Refused):
            if found.is_suspended:
                attempt.operation.end("pending_approval")
            else:
                yield from self._record_denial(attempt, found.deny, found.approval_id)
            raise found.error or attempt.refusal(found.deny, found.approval_id)
        if self._is_closing():
            deny = Deny("session_ended", ask.policy_id, "the session ended while a person was asked")
            yield from self._deny(attempt, deny, found.approval_id)
        return found

    def _approve(self, attempt: Attempt, decision: Allow, granted: Granted | None) -> Waiting:
        if granted is None:
            attempt.approve(decision, None, None, attempt.requested_us)
        else:
            attempt.approve(decision, granted.by, granted.approval_id, self._writer.now_us())
        try:
            yield from self._keep(attempt)
            yield from self._recorder.make_durable(attempt)
        except BaseException:  # not kept, or interrupted while it waited: the tool does not run
            self._release(decision.reservations)
            if granted is not None:
                self._setting.desk.give_back(granted)
            raise
        if decision.shadows and self._setting.on_shadow is not None:
            for shadow in decision.shadows:
                self._setting.on_shadow(attempt.call, shadow)

    def _run(self, attempt: Attempt, decision: Allow, body: object) -> Generator[RunTool, object, Returned | Raised]:
        scope: Callable[[], AbstractContextManager[object]] | None = None
        bare = body is None and not attempt.is_stream and not attempt.operation.is_recording
        if not bare or self._current.get() is not self._session or has_claim():
            scope = partial(Running, attempt, body, self._session, self._current)
        clock = self._setting.clock
        began_ns = clock.monotonic_ns()
        attempt.is_running = True
        try:
            outcome = yield _BARE if scope is None else RunTool(scope)
        except GeneratorExit:  # the driver was dropped: the tool may have run, and nobody will say
            next(self._ran)
            self._writer.owe(attempt.outcome(Raised(LostOutcomeError()), 0, self._writer.now_us()))
            self._late.append((attempt.operation, ("failed", LostOutcomeError.__name__), decision.reservations))
            raise
        assert isinstance(outcome, (Returned, Raised, Closed))
        if isinstance(outcome, Returned) and outcome.value is ELSEWHERE:
            self._commit(decision.reservations)  # whether it runs, nobody here will see: what it takes up stays taken
            let_run = self._elsewhere.add(attempt)
            attempt.operation.end(None)
            return Returned(let_run)
        duration_ms = max(0, (clock.monotonic_ns() - began_ns) // 1_000_000)
        if isinstance(outcome, Closed):
            self._close_stream(attempt, outcome, duration_ms, decision.reservations)
            return Returned(None)
        self._commit(decision.reservations)
        if not attempt.over:
            self._record_outcome(attempt, outcome, duration_ms)
        return outcome

    def _close_stream(self, attempt: Attempt, outcome: Closed, duration_ms: int, taken: _Taken) -> None:
        """A consumer that goes away may do so in a finaliser, in the middle of anything: no lock may be taken
        there, so what is to be done is owed, and done with the next write."""
        if not attempt.over:
            next(self._ran)
            self._writer.owe(attempt.outcome(outcome, duration_ms, self._writer.now_us()))
        self._late.append((attempt.operation, ("executed", None), taken))

    def _record_outcome(self, attempt: Attempt, outcome: Returned | Raised, duration_ms: int) -> None:
        next(self._ran)
        operation, error = attempt.operation, outcome.error if isinstance(outcome, Raised) else None
        self._recorder.keep_outcome(attempt, attempt.outcome(outcome, duration_ms, self._writer.now_us()))
        if error is None:
            operation.end("executed")
        else:
            operation.end("failed", *class_words(error))

    def _deny(self, attempt: Attempt, deny: Deny, approval_id: str | None) -> Waiting:
        yield from self._record_denial(attempt, deny, approval_id)
        raise attempt.refusal(deny, approval_id)

    def _record_denial(self, attempt: Attempt, deny: Deny, approval_id: str | None) -> Waiting:
        attempt.deny(deny, approval_id, attempt.requested_us if approval_id is None else self._writer.now_us())
        yield from self._keep(attempt)
        attempt.operation.end("denied", deny.code, deny.reason)
        if next(self._refused) == MAX_REFUSALS:
            self._is_silenced = True
            message = f"{MAX_REFUSALS} calls of this session were refused; it takes no more"
            _logger.error("session %s: %s", self._identity.session_id, message)
            payload = render({"error_code": "too_many_refusals", "message": message})
            span_id = self._identity.span_id
            self._writer.owe(Entry(span_id, None, "error.occurred", payload, self._writer.now_us()))

    def _keep(self, attempt: Attempt) -> Waiting:
        yield from self._recorder.keep(attempt)
        self._settle_late()

    def _settle_late(self) -> None:
        """End the calls that ended where no lock could be taken."""
        while self._late:
            operation, outcome, taken = self._late.popleft()
            self._commit(taken)
            operation.end(*outcome)

    def _forget(self, attempt: Attempt) -> None:
        known = self._running.pop(attempt.execution_id, None)
        if known is not None and self._when_idle is not None and not self._running:
            self._when_idle()

    def _is_closing(self) -> bool:
        return self._when_idle is not None

    def _commit(self, taken: _Taken) -> None:
        for reservation in taken:
            try:
                self._setting.counters.commit(reservation)
            except CountersError as error:  # the tool has run; the place stays taken until its window closes
                _logger.error("a call that ran could not be counted: %s", error)

    def _release(self, taken: _Taken) -> None:
        for reservation in taken:
            try:
                self._setting.counters.release(reservation)
            except CountersError as error:
                _logger.error("a call that did not run stays counted: %s", error)

    def _ended(self, call: ToolCall) -> SessionEnded:
        reason = f"session {self._identity.session_id} is over; start a new one"
        return SessionEnded(reason, action_id=call.action_id)
