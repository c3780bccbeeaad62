"""The only copy of the path of a call: request, decide, (ask,) record, run, record.

``CallPath.flow`` is a generator. It yields what it needs (a person's answer, the tool's run) and is sent the
answer, so the sync and the async drivers of ``interceptor`` share every line. The tool runs once, or the
flow raises ``CallRefused``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress

from cra_middleware.approvals.approval import Approver
from cra_middleware.calls.attempt import Attempt
from cra_middleware.calls.calls_under_way import CallsUnderWay
from cra_middleware.calls.deciding import Deciding
from cra_middleware.calls.desk import Granted, Refused
from cra_middleware.calls.elsewhere import ELSEWHERE, Elsewhere
from cra_middleware.calls.held_request import HeldRequests, OvertakenError
from cra_middleware.calls.keeping import Recorder, Waiting
from cra_middleware.calls.outcomes import Outcomes
from cra_middleware.calls.places import Places
from cra_middleware.calls.running import running
from cra_middleware.calls.setting import Identity, Resolved, Setting
from cra_middleware.carp.call import Allow, Ask, Deny, ToolCall
from cra_middleware.errors import CallRefused, SessionEnded
from cra_middleware.interceptor import AskApproval, Closed, Flow, Raised, Returned, RunTool, Wait, finish_waiting
from cra_middleware.open_call import OpenCall
from cra_middleware.trace.event import Event, Sealed
from cra_middleware.trace.let_run import LetRun, Told, Untold
from cra_middleware.trace.writer import ChainWriter


class CallPath:
    """The calls of one session."""

    def __init__(
        self,
        setting: Setting,
        identity: Identity,
        writer: ChainWriter,
        recorder: Recorder,
        resolved: Callable[[int], Resolved],
        session: object,
        actions: int,
        untold: Untold,
    ) -> None:
        """``resolved`` gives the resolution valid at a time; ``session`` is the current one while a tool runs."""
        self._setting = setting
        self._identity = identity
        self._writer = writer
        self._session = session
        self._recorder = recorder
        self._places = Places(setting.counters)
        self._deciding = Deciding(setting, identity.facts, writer, self._places)
        self._outcomes = Outcomes(writer, self._recorder, self._places, actions)
        self._under_way = CallsUnderWay(setting, identity, writer, resolved, self._outcomes)
        self._elsewhere = Elsewhere(writer, self._recorder, untold)
        self.held = HeldRequests()

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""
        return self._under_way.is_busy

    def flow(
        self,
        call: ToolCall,
        body: object = None,
        *,
        stream: bool = False,
        approver: Approver | None = None,
        only_if: Callable[[], None] | None = None,
    ) -> Flow:
        """The path of one call.

        ``body`` is the governed function that an adapter wraps, if there is one; ``approver`` is asked when the
        runtime has none; ``only_if`` raises when the call must not be decided here any more.

        Raises:
            CallRefused: when the tool must not run, or its decision cannot be recorded.
        """
        attempt = self._under_way.enter(call, stream)
        attempt.only_if = only_if
        try:
            decision = self._deciding.decide(attempt)
            granted: Granted | None = None
            if decision.shadows:
                attempt.shadow(decision.shadows)
            if isinstance(decision, Ask):
                noted = decision.shadows
                granted = yield from self._ask(attempt, decision, approver)
                decision = self._deciding.decide_approved(attempt, granted)
                attempt.shadow([shadow for shadow in decision.shadows if shadow not in noted])
            if isinstance(decision, Allow) and (call.live is not None or granted is not None):
                decision = self._deciding.unless_changed(attempt, decision)
            if isinstance(decision, Allow) and granted is not None:
                decision = self._deciding.unless_used(granted, decision)
            if isinstance(decision, Deny):
                yield from self._deny(attempt, decision, granted.approval_id if granted else None)
            assert isinstance(decision, Allow)  # what was approved is not asked about again
            yield from self._approve(attempt, decision, granted)
            return (yield from self._run(attempt, decision, body))
        except OvertakenError as error:
            attempt.operation.end("denied", "overtaken", str(error))
            raise
        finally:
            self._under_way.leave(attempt)

    def reject(self, call: ToolCall, reason: str, deny: Deny | None = None) -> CallRefused:
        """Record a call that was rejected before it came here, by the framework or as ``deny`` says; the refusal.

        Raises:
            CallRefused: when it cannot be recorded, or the session is over.
        """
        attempt = self._under_way.enter(call, False)
        try:
            deny = deny or Deny("invalid_parameters", f"action:{call.action_id}", reason, None, "invalid_parameters")
            finish_waiting(self._record_denial(attempt, deny, None))
            return attempt.refusal(deny, None)
        finally:
            self._under_way.leave(attempt)

    def let_run(self, call: ToolCall, only_if: Callable[[], None] | None = None) -> LetRun:
        """Authorise a call that another process runs; ``only_if`` raises when it must not be decided here any more.

        Raises:
            CallRefused: when it must not run.
            OvertakenError: from ``only_if``; nothing of the call is kept, or taken up.
        """
        let_run = OpenCall.begin(self.flow(call, only_if=only_if)).returned(ELSEWHERE)
        assert isinstance(let_run, LetRun)
        return let_run

    @property
    def untold(self) -> tuple[LetRun, ...]:
        """The calls that run elsewhere, the oldest first."""
        return self._elsewhere.calls

    @property
    def is_told_of(self) -> bool:
        """Whether somebody tells of such a call at this moment."""
        return self._elsewhere.is_told_of

    def give_up(self, code: str, sentence: str) -> None:
        """Close the calls that run elsewhere, as the session ends: nobody can tell of them any more.

        Raises:
            SinkError: when it cannot be kept.
        """
        for call in self.untold:
            with suppress(ValueError):  # somebody has told of it just now
                self._see(self._elsewhere.tell(call, Told("server", (code, sentence))))
                self._outcomes.count()

    def tell(self, call: LetRun, outcome: Told) -> None:
        """Record the outcome of a call that ran elsewhere.

        Raises:
            SessionEnded: when the session is over.
            SinkError: when it cannot be kept.
            ValueError: when no such call is open.
        """
        if self._under_way.is_closing:
            raise SessionEnded(f"session {self._identity.session_id} is over", action_id=call.action_id)
        self._see(self._elsewhere.tell(call, outcome))
        self._outcomes.count()
        if (
            outcome.by == "server" and outcome.duration_ms is not None
        ):  # it ran in this process, and nobody else measured it
            self._setting.observer.ran(call, outcome.duration_ms, None if outcome.error is None else outcome.error[0])

    def heard(self, event: Event) -> None:
        """Another process wrote this into the session's log."""
        self.held.heard(event)
        self._elsewhere.heard(event)
        if event.event_type in ("action.executed", "action.failed"):
            self._outcomes.count()

    def settle(self) -> None:
        """Write what is owed, and end what was closed in a finaliser.

        Raises:
            SinkError: when it cannot be kept yet.
        """
        self._see(self._writer.settle())
        self._outcomes.settle_late()

    def close(self, when_idle: Callable[[], None]) -> None:
        """Accept no more calls; call ``when_idle`` once, when no tool is running any more (perhaps at once).

        Streams that are open but between two items are recorded as failed, and give no more items.
        """
        self._under_way.close(when_idle)

    def actions_run(self) -> int:
        """How many tools ran; to be asked once, at the end."""
        return self._outcomes.actions_run()

    def _ask(
        self, attempt: Attempt, ask: Ask, approver: Approver | None
    ) -> Generator[AskApproval | Wait, object, Granted]:
        desk = self._setting.desk
        found = yield from desk.settle(attempt, ask, self._writer.now_us, lambda: self._keep(attempt), approver)
        if isinstance(found, Refused):
            if found.is_suspended:
                attempt.operation.end("pending_approval")
            else:
                yield from self._record_denial(attempt, found.deny, found.approval_id)
            raise found.error or attempt.refusal(found.deny, found.approval_id)
        if self._under_way.is_closing:
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
            if attempt.has_waited and attempt.call.changed():
                raise self._changed_at_last(attempt, decision, granted.approval_id if granted else None)
        except BaseException:  # not kept, or interrupted or changed while it waited: the tool does not run
            if self._may_be_let_run(attempt):  # whoever finds it in the trace takes it for decided, and counted
                raise
            self._places.release(decision.reservations)
            if granted is not None:
                self._setting.desk.give_back(granted)
            raise
        if decision.shadows and self._setting.on_shadow is not None:
            for shadow in decision.shadows:
                self._setting.on_shadow(attempt.call, shadow)

    def _may_be_let_run(self, attempt: Attempt) -> bool:
        """Whether a decision that could not be kept is, or may be, in the trace: its connection was lost."""
        return self._writer.may_hold(*attempt.unwritten) or self._elsewhere.has(attempt.execution_id)

    def _changed_at_last(self, attempt: Attempt, decision: Allow, approval_id: str | None) -> CallRefused:
        """Whoever holds the arguments changed them while the decision was being written: it is in the trace already."""
        deny = self._deciding.changed(attempt, decision)
        self._recorder.keep_outcome(attempt, attempt.not_run(self._writer.now_us(), deny.code, deny.reason))
        attempt.operation.end("denied", deny.code, deny.reason)
        return attempt.refusal(deny, approval_id)

    def _run(self, attempt: Attempt, decision: Allow, body: object) -> Generator[RunTool, object, Returned | Raised]:
        wish = running(attempt, body, self._session)
        clock = self._setting.clock
        began_ns = clock.monotonic_ns()
        attempt.is_running = True
        attempt.operation.turn("tool")
        try:
            outcome = yield wish
        except GeneratorExit:
            attempt.operation.turn("nobody")
            self._outcomes.lose(attempt, decision.reservations)
            raise
        assert isinstance(outcome, (Returned, Raised, Closed))
        attempt.operation.turn("nobody" if isinstance(outcome, Closed) else "ours")
        if isinstance(outcome, Returned) and outcome.value is ELSEWHERE:
            self._places.commit(decision.reservations)  # whether it runs, nobody here will see: it stays taken
            let_run = self._elsewhere.add(attempt)
            attempt.operation.end(None)
            return Returned(let_run)
        duration_ms = max(0, (clock.monotonic_ns() - began_ns) // 1_000_000)
        if isinstance(outcome, Closed):
            self._outcomes.close_stream(attempt, outcome, duration_ms, decision.reservations)
            return Returned(None)
        self._outcomes.record(attempt, outcome, duration_ms, decision.reservations)
        return outcome

    def _deny(self, attempt: Attempt, deny: Deny, approval_id: str | None) -> Waiting:
        yield from self._record_denial(attempt, deny, approval_id)
        raise attempt.refusal(deny, approval_id)

    def _record_denial(self, attempt: Attempt, deny: Deny, approval_id: str | None) -> Waiting:
        attempt.deny(deny, approval_id, attempt.requested_us if approval_id is None else self._writer.now_us())
        yield from self._keep(attempt)
        attempt.operation.end("denied", deny.code, deny.reason)
        self._under_way.count_refusal()

    def _see(self, events: Sequence[Sealed]) -> None:
        self._setting.observer.session(self._identity.subject, events)

    def _keep(self, attempt: Attempt) -> Waiting:
        yield from self._recorder.keep(attempt)
        self._outcomes.settle_late()
