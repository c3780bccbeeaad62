"""The path of a call whose decision is made at a server: asked, (paused,) run here, told of.

As in ``call_flow`` the path is one generator for sync and async; only what waits for the network is yielded as
``Wait``. The tool runs once, and only after the server has said that it may.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from cra_middleware._canonical import UnrepresentableError, canonical, digest
from cra_middleware._ids import new_id
from cra_middleware.approvals import Answer, Approver, Pending
from cra_middleware.attempt import ABANDONED, LostOutcomeError, Running, class_words, has_claim
from cra_middleware.carp.call import Allow, Ask, Deny, ToolCall
from cra_middleware.client.connection import Connection, Reply, problem_in
from cra_middleware.client.outcomes import Outcome, Outcomes, Worker
from cra_middleware.client.questions import Questions
from cra_middleware.client.refusals import refusal_of
from cra_middleware.client.wire import execute_body, reject_body
from cra_middleware.errors import (
    ActionDenied,
    ApprovalRejected,
    ApprovalRequired,
    CallRefused,
    RuntimeUnreachable,
    SessionEnded,
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

_BARE = RunTool(None)
_OPAQUE = b'"cra:opaque:'
_UNSEEN = "an argument is an object that cannot be written down, so nobody can approve it"
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
        current: ContextVar[object],
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
        self._current = current
        self._offline = offline
        self._running: dict[int, RemoteAttempt] = {}
        self._unseen: set[tuple[str, str]] = set()
        self._when_idle: Callable[[], None] | None = None
        self.asked: set[str] = set()
        """The questions that its calls were stopped for."""

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""
        return bool(self._running)

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
                path = self._offline(call)
                if path is None:
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
            self._forget(attempt)

    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call that is refused here; returns the refusal.

        Raises:
            CallRefused: when it cannot be recorded.
        """
        if self._is_closing():
            raise self._ended(call)
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
        self._when_idle = when_idle
        for attempt in list(self._running.values()):
            between = attempt.is_stream and attempt.is_running and not attempt.is_inside
            if between and self._running.pop(id(attempt), None) is not None:
                attempt.over = True
                self._tell(attempt, 0, error=(ABANDONED, "the session ended while the stream was open"))
        if not self._running:
            when_idle()

    def _begin(self, call: ToolCall, stream: bool) -> RemoteAttempt:
        if self._is_closing():
            raise self._ended(call)
        attempt = RemoteAttempt(call, self._observer.call(call, self._subject, new_id()), stream)
        self._running[id(attempt)] = attempt
        if self._is_closing():  # asked again after registering, so that an end misses no call
            attempt.operation.end("denied", "session_ended")
            self._forget(attempt)
            raise self._ended(call)
        return attempt

    def _let_run(self, attempt: RemoteAttempt) -> Generator[Wait, object, dict[str, object] | None]:
        """Let the server decide. None: the tool may run here; else what the server's own executor gave.

        Raises:
            CallRefused: when the tool must not run.
        """
        call = attempt.call
        unseen = (call.action_id, call.digest)
        if call.problem is not None or unseen in self._unseen:
            why = f"the arguments cannot be recorded: {call.problem}" if call.problem is not None else _UNSEEN
            raise (yield from self._rejected(attempt, why))
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
                raise RuntimeUnreachable(waited.error.reason, action_id=call.action_id) from waited.error
            attempt.operation.end("denied", type(waited.error).__name__)
            raise waited.error
        try:
            result = self._understood(attempt, asked.request_id, answers[0])
        except ApprovalRequired as refusal:
            attempt.operation.decided(Ask(refusal.policy_id or "default", refusal.reason))
            if _OPAQUE in call.text:
                self._unseen.add(unseen)
                raise ApprovalRejected(
                    _UNSEEN, action_id=call.action_id, policy_id=refusal.policy_id, approval_id=refusal.approval_id
                ) from None
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
        if result is None and call.live is not None and call.changed():
            reason = "the arguments changed after they were decided"
            self._not_run(attempt, reason)
            raise ActionDenied(reason, action_id=call.action_id, code="arguments_changed")
        return result

    def _understood(self, attempt: RemoteAttempt, request_id: str, reply: Reply) -> dict[str, object] | None:
        call = attempt.call
        if reply.problem is not None:
            raise refusal_of(reply.problem, call.action_id)
        told = reply.json()
        result, execution_id = told.get("result"), told.get("execution_id")
        if not isinstance(execution_id, str) or told.get("request_id") != request_id:
            raise _unreadable(call)
        attempt.execution_id = execution_id
        if told.get("status") == "success" and isinstance(result, dict):
            is_let = result.get("authorized") is True and isinstance(result.get("report_until"), str)
            return None if is_let else told
        if told.get("status") == "error":
            return told
        raise _unreadable(call)

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
        """Let a framework that can stop the run do so. What it answers by itself is no yes: that is the server's."""
        attempt.operation.end("pending_approval")
        if refusal.approval_id is None:
            return
        self.asked.add(refusal.approval_id)
        if approver is None or not hasattr(approver, "suspends"):
            return
        found: list[Pending] = []
        yield Wait(lambda: found.append(self._questions.pending(attempt.call, refusal, self._subject)))
        if not found:
            return
        reply = yield AskApproval(found[0], approver)
        if isinstance(reply, (Suspended, Interrupted)):
            raise reply.error
        if isinstance(reply, Answer) and not reply.approved:
            raise ApprovalRejected(
                reply.reason or f"{reply.by} did not approve",
                action_id=attempt.call.action_id,
                policy_id=refusal.policy_id,
                approval_id=refusal.approval_id,
            )

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
        scope: Callable[[], AbstractContextManager[object]] | None = None
        bare = body is None and not attempt.is_stream and not attempt.operation.is_recording
        if not bare or self._current.get() is not self._session or has_claim():
            scope = partial(Running, attempt, body, self._session, self._current)
        began_ns = time.monotonic_ns()
        attempt.is_running = True
        try:
            outcome = yield _BARE if scope is None else RunTool(scope)
        except GeneratorExit:  # the driver was dropped: the tool may have run, and nobody will say
            self._tell(attempt, 0, error=class_words(LostOutcomeError()))
            raise
        assert isinstance(outcome, (Returned, Raised, Closed))
        duration_ms = max(0, (time.monotonic_ns() - began_ns) // 1_000_000)
        if attempt.over:
            return Returned(None) if isinstance(outcome, Closed) else outcome
        if isinstance(outcome, Closed):  # perhaps in a finaliser: nothing but the telling of it
            self._tell(attempt, duration_ms)
            self._worker.soon(partial(_done, partial(attempt.operation.end, "executed")))
            return Returned(None)
        if isinstance(outcome, Raised):
            words = class_words(outcome.error)
            self._tell(attempt, duration_ms, error=words)
            attempt.operation.end("failed", *words)
        else:
            self._tell(attempt, duration_ms, result_hash=_digest(outcome.value))
            attempt.operation.end("executed")
        return outcome

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

    def _forget(self, attempt: RemoteAttempt) -> None:
        known = self._running.pop(id(attempt), None)
        if known is not None and self._when_idle is not None and not self._running:
            self._worker.soon(partial(_done, self._when_idle))  # it waits for the network, and we may be on a loop

    def _is_closing(self) -> bool:
        return self._when_idle is not None

    def _ended(self, call: ToolCall) -> SessionEnded:
        reason = f"session {self._subject.session_id} is over; start a new one"
        return SessionEnded(reason, action_id=call.action_id)


def _unreadable(call: ToolCall) -> CallRefused:
    """The server did answer: it may have run the action itself, so nothing runs here in its stead."""
    return CallRefused("the server's answer cannot be read", action_id=call.action_id, code="server_error")


def _done(work: Callable[[], None]) -> bool:
    work()
    return True


def _digest(value: object) -> str | None:
    try:
        return digest(canonical(value))
    except (UnrepresentableError, RecursionError):
        return None
