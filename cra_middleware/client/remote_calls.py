"""The path of a call whose decision is made at a server: asked, (paused,) run here, told of.

As in ``call_flow`` the path is one generator for sync and async; only what waits for the network is yielded as
``Wait``. The tool runs once, and only after the server has said that it may.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cra_middleware._canonical import UnrepresentableError, canonical, digest
from cra_middleware._ids import new_id
from cra_middleware.approvals.approval import Answer, ApprovalError, Approver, Pending
from cra_middleware.calls.attempt import LostOutcomeError
from cra_middleware.calls.refusals import class_words
from cra_middleware.calls.running import ABANDONED, ABANDONED_MESSAGE, running
from cra_middleware.calls.under_way import UnderWay
from cra_middleware.carp.call import Allow, Ask, Deny, ToolCall
from cra_middleware.client.answers import Authorised, understood
from cra_middleware.client.connection import Connection, Reply, ServerAway, problem_in
from cra_middleware.client.outcomes import Outcome, Outcomes, Worker
from cra_middleware.client.questions import Questions
from cra_middleware.client.refusals import refusal_of
from cra_middleware.client.wire import MAX_REASON, execute_body, reject_body
from cra_middleware.errors import (
    ActionDenied,
    ApprovalRejected,
    ApprovalRequired,
    CallRefused,
    RuntimeUnreachable,
)
from cra_middleware.interceptor import (
    AskApproval,
    Closed,
    Flow,
    Interrupted,
    Raised,
    Returned,
    RunTool,
    Suspended,
    Wait,
)
from cra_middleware.observer import Observer, Operation, Subject

NOT_RUN = "not_run"
"""The error that is told of a call that was let run, and then was not."""

_logger = logging.getLogger("cra_middleware")


@dataclass(slots=True, eq=False)
class RemoteAttempt:
    """One call on its way."""

    call: ToolCall
    operation: Operation
    is_stream: bool
    execution_id: str = ""
    """The server's name for it, once it is let run."""
    is_running: bool = False
    is_inside: bool = False
    over: bool = False


class RemoteCalls:
    """The calls of one session."""

    def __init__(
        self,
        connection: Connection,
        worker: Worker,
        outcomes: Outcomes,
        subject: Subject,
        observer: Observer,
        session: object,
        offline: Callable[[ToolCall], Callable[..., Flow] | None],
    ) -> None:
        """``offline`` gives the path of a call that may run although the server is not to be reached."""
        self._connection = connection
        self._worker = worker
        self._questions = Questions(connection)
        self._outcomes = outcomes
        self._subject = subject
        self._observer = observer
        self._session = session
        self._offline = offline
        # what is done when it is idle waits for the network, and the last call may leave on a loop
        self._under_way: UnderWay[RemoteAttempt] = UnderWay(
            subject.session_id, lambda idle: worker.soon(partial(_done, idle))
        )
        self.when_refused: Callable[[ToolCall, str], None] | None = None
        """Is told of a call that was refused because the server was not to be reached, and why."""
        self.when_denied: Callable[[ToolCall, CallRefused], None] | None = None
        """Is told of a call that the server itself refused."""
        self.asked: set[str] = set()
        """The questions that its calls were stopped for."""

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
        in_two: bool = False,
    ) -> Flow:
        """The path of one call; ``in_two`` says that its start and its end are told of in two places.

        Raises:
            CallRefused: when the tool must not run.
        """
        attempt = self._begin(call, stream)
        try:
            try:
                let = yield from self._let_run(attempt)
            except RuntimeUnreachable as error:
                path = self._offline(call) if isinstance(error, ServerAway) else None
                if path is None:
                    if self.when_refused is not None:
                        yield Wait(partial(self.when_refused, call, error.reason))
                    else:
                        attempt.operation.decided(Deny("runtime_unreachable", "default", error.reason))
                    attempt.operation.end("denied", error.code, error.reason)
                    raise
                attempt.operation.end(None)
                return (yield from path(call, body, stream=stream, approver=approver))
            except ApprovalRequired as refusal:
                yield from self._pause(attempt, refusal, approver)
                raise
            if let is not None:
                return self._ran_there(attempt, let, stream or in_two)
            return (yield from self._run(attempt, body))
        finally:
            self._under_way.leave(attempt)

    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call that is refused here; returns the refusal.

        Raises:
            CallRefused: when it cannot be recorded.
        """
        self._under_way.check(call)
        try:
            self._outcomes.tell()
            reply = self._connection.ask(
                "POST", "/v1/executions/reject", reject_body(call, self._subject.session_id, reason), again=False
            )
        except RuntimeUnreachable as error:
            raise RuntimeUnreachable(error.reason, action_id=call.action_id) from error
        if reply.problem is not None:
            raise refusal_of(reply.problem, call.action_id)
        problem = problem_in(reply.data)
        if problem is None:
            raise RuntimeUnreachable("the server's answer cannot be read", action_id=call.action_id)
        return refusal_of(problem, call.action_id)

    def close(self, when_idle: Callable[[], None]) -> None:
        """Accept no more calls; call ``when_idle`` once, when no tool is running any more (perhaps at once)."""
        self._under_way.close(when_idle, self._abandon)

    def _abandon(self, attempt: RemoteAttempt) -> None:
        attempt.over = True
        words = (ABANDONED, ABANDONED_MESSAGE)
        self._tell(attempt, 0, error=words)
        attempt.operation.end("failed", *words)

    def _begin(self, call: ToolCall, stream: bool) -> RemoteAttempt:
        self._under_way.check(call)
        attempt = RemoteAttempt(call, self._observer.call(call, self._subject, new_id()), stream)
        self._under_way.enter(attempt)
        return attempt

    def _let_run(self, attempt: RemoteAttempt) -> Generator[Wait, object, dict[str, object] | None]:
        """Let the server decide. None: the tool may run here; else what the server's own executor gave.

        Raises:
            CallRefused: when the tool must not run.
        """
        call = attempt.call
        if call.problem is not None:
            raise (yield from self._rejected(attempt, f"the arguments cannot be recorded: {call.problem}"))
        try:
            asked = execute_body(call, self._subject.session_id, self._subject.agent_id)
        except (TypeError, ValueError, RecursionError) as error:
            raise (
                yield from self._rejected(attempt, f"the arguments cannot be sent ({type(error).__name__})")
            ) from None
        answers: list[Reply] = []

        def work() -> None:
            self._outcomes.tell()  # what came before is in the trace before
            answers.append(self._connection.ask("POST", "/v1/execute", asked.data))

        waited = yield Wait(work)
        if isinstance(waited, Raised) and not answers:
            if isinstance(waited.error, RuntimeUnreachable):
                raise type(waited.error)(waited.error.reason, action_id=call.action_id) from waited.error
            attempt.operation.end("denied", type(waited.error).__name__)
            raise waited.error
        try:
            attempt.execution_id, result = self._understood(call, asked.request_id, answers[0])
        except ApprovalRequired as refusal:
            attempt.operation.decided(Ask(refusal.policy_id or "default", refusal.reason))
            raise
        except RuntimeUnreachable:
            raise
        except CallRefused as refusal:
            attempt.operation.decided(Deny("policy_denied", refusal.policy_id or "default", refusal.reason))
            attempt.operation.end("denied", refusal.code, refusal.reason)
            raise
        attempt.operation.decided(Allow(None))
        if result is None and isinstance(waited, Raised):  # interrupted while it waited
            self._not_run(attempt, "the wait for the decision was interrupted")
            raise waited.error
        if result is None and call.changed():
            reason = "the arguments changed after they were decided"
            self._not_run(attempt, reason)
            raise ActionDenied(reason, action_id=call.action_id, code="arguments_changed")
        return result

    def _understood(self, call: ToolCall, request_id: str, reply: Reply) -> Authorised:
        try:
            return understood(call, request_id, reply)
        except CallRefused as refusal:
            if self.when_denied is not None:
                self.when_denied(call, refusal)
            raise

    def _rejected(self, attempt: RemoteAttempt, reason: str) -> Generator[Wait, object, CallRefused]:
        found: list[CallRefused] = []
        waited = yield Wait(lambda: found.append(self.reject(attempt.call, reason)))
        if isinstance(waited, Raised) and not found:
            attempt.operation.end("denied", type(waited.error).__name__)
            raise waited.error
        attempt.operation.end("denied", found[0].code, found[0].reason)
        return found[0]

    def _pause(
        self, attempt: RemoteAttempt, refusal: ApprovalRequired, approver: Approver | None
    ) -> Generator[AskApproval | Wait, object, None]:
        """Let a framework that can stop the run do so. What it answers by itself is no yes: that is the server's; a no
        is told there, and closes the question."""
        attempt.operation.end("pending_approval")
        if refusal.approval_id is None:
            return
        self.asked.add(refusal.approval_id)
        if approver is None or not hasattr(approver, "suspends"):
            return
        found: list[Pending] = []
        _unless_interrupted(
            (yield Wait(lambda: found.append(self._questions.pending(attempt.call, refusal, self._subject))))
        )
        if not found:
            return
        reply = yield AskApproval(found[0], approver)
        if isinstance(reply, (Suspended, Interrupted)):
            raise reply.error
        if isinstance(reply, Answer) and not reply.approved:
            reason = reply.reason or f"{reply.by} did not approve"
            _unless_interrupted((yield Wait(lambda: self._take_back(attempt, found[0].approval_id, reason))))
            raise ApprovalRejected(
                reason,
                action_id=attempt.call.action_id,
                policy_id=refusal.policy_id,
                approval_id=refusal.approval_id,
            )

    def _take_back(self, attempt: RemoteAttempt, approval_id: str, reason: str) -> None:
        """Close a question with a no, and have the server record that its call is denied for that."""
        try:
            self._questions.answer(approval_id, Answer(False, reason=reason[:MAX_REASON]), 0)
        except ApprovalError as error:  # answered or expired meanwhile; here it was a no all the same
            _logger.warning("approval %s is not taken back: %s", approval_id, error)
            return
        asked = execute_body(attempt.call, self._subject.session_id, self._subject.agent_id)
        with suppress(CallRefused):  # which is what it is recorded for
            reply = self._connection.ask("POST", "/v1/execute", asked.data)
            attempt.execution_id, _ = understood(attempt.call, asked.request_id, reply)
            self._tell(attempt, 0, error=(NOT_RUN, reason))  # the policies changed, and ask nobody any more

    def _ran_there(self, attempt: RemoteAttempt, told: dict[str, object], is_ours: bool) -> Returned:
        """The server ran the action itself; what it gave stands for what the function here would have.

        Raises:
            CallRefused: when that cannot be given on: the function here does not run all the same.
        """
        call = attempt.call
        if told["status"] == "error":
            error = told.get("error")
            reason = str(error.get("message")) if isinstance(error, dict) else "the action failed"
            attempt.operation.end("failed", "server_error", reason)
            raise CallRefused(f"the server ran it, and {reason}", action_id=call.action_id, code="failed_at_server")
        attempt.operation.end("executed")
        if is_ours:
            reason = "the server runs this action by itself, and its result cannot be given here"
            raise CallRefused(reason, action_id=call.action_id, code="ran_at_server")
        result = told["result"]
        assert isinstance(result, dict)
        return Returned(result["value"] if result.keys() == {"value"} else result)

    def _run(self, attempt: RemoteAttempt, body: object) -> Generator[RunTool, object, Returned | Raised]:
        wish = running(attempt, body, self._session)
        began_ns = time.monotonic_ns()
        attempt.is_running = True
        attempt.operation.turn("tool")
        try:
            outcome = yield wish
        except GeneratorExit:  # the driver was dropped: the tool may have run, and nobody will say
            self._tell(attempt, 0, error=class_words(LostOutcomeError()))
            self._end_later(attempt, "failed", LostOutcomeError.__name__)
            raise
        assert isinstance(outcome, (Returned, Raised, Closed))
        attempt.operation.turn("nobody" if isinstance(outcome, Closed) else "ours")
        duration_ms = max(0, (time.monotonic_ns() - began_ns) // 1_000_000)
        if attempt.over:
            return Returned(None) if isinstance(outcome, Closed) else outcome
        if isinstance(outcome, Closed):  # perhaps in a finaliser: nothing but the telling of it
            self._tell(attempt, duration_ms)
            self._end_later(attempt, "executed")
            return Returned(None)
        if isinstance(outcome, Raised):
            words = class_words(outcome.error)
            self._tell(attempt, duration_ms, error=words)
            attempt.operation.end("failed", *words)
        else:
            self._tell(attempt, duration_ms, result_hash=_digest(outcome.value))
            attempt.operation.end("executed")
        return outcome

    def _end_later(
        self, attempt: RemoteAttempt, outcome: Literal["executed", "failed"], error_type: str | None = None
    ) -> None:
        """Where no lock may be taken: an exporter takes some."""
        self._worker.soon(partial(_done, partial(attempt.operation.end, outcome, error_type)))

    def _not_run(self, attempt: RemoteAttempt, reason: str) -> None:
        self._tell(attempt, 0, error=(NOT_RUN, reason))
        attempt.operation.end("denied", NOT_RUN, reason)

    def _tell(
        self,
        attempt: RemoteAttempt,
        duration_ms: int,
        error: tuple[str, str] | None = None,
        result_hash: str | None = None,
    ) -> None:
        body: dict[str, object] = {
            "session_id": self._subject.session_id,
            "status": "success" if error is None else "error",
            "duration_ms": duration_ms,
        }
        if error is not None:
            body["error"] = {"code": error[0][:100] or "error", "message": error[1]}
        elif result_hash is not None:
            body["result_hash"] = result_hash
        self._outcomes.add(Outcome(attempt.execution_id, attempt.call.action_id, body))


def _unless_interrupted(waited: object) -> None:
    if isinstance(waited, Raised) and not isinstance(waited.error, Exception):
        raise waited.error


def _done(work: Callable[[], None]) -> bool:
    work()
    return True


def _digest(value: object) -> str | None:
    try:
        return digest(canonical(value))
    except (UnrepresentableError, RecursionError):
        return None
