"""Two-phase calls: decided and recorded here, run at the agent or by an executor here.

A request is known by its idempotency key, or its request id. While nobody knows whether an earlier one was answered
(the process died in between), the trace itself says whether its call was let run: the key is recorded with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import orjson

from cra_middleware._clock import parse_us, timestamp_text
from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.calls.held_request import HeldRequest, OvertakenError
from cra_middleware.calls.refusals import class_words
from cra_middleware.carp.call import ToolCall
from cra_middleware.carp.tags import has_lost, read_tags
from cra_middleware.errors import AuditUnavailable, CallRefused, CRAError, SessionEnded
from cra_middleware.server.access import Caller
from cra_middleware.server.book import USED_UP, Answer, Claim, ExecutionRow
from cra_middleware.server.faults import Fault, fault_of
from cra_middleware.server.host import Host
from cra_middleware.server.reports import Reports
from cra_middleware.server.wire import Execute, Reject, digest_of
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.trace.let_run import LetRun, Told
from cra_middleware.trace.sink import Query

Executor = Callable[..., object]
WAIT_SECONDS = 10.0
"""How long a repeated request waits for the first one's answer."""

_logger = logging.getLogger("cra_middleware.server")


@dataclass(slots=True)
class Asked:
    """One request to execute a call, while it is answered."""

    caller: Caller
    session: LocalSession
    body: Execute
    key: str
    """By which it is known when it comes again."""
    digest: str
    trace_size: int | None
    """How long the trace was when nobody else could answer it any more."""
    held: HeldRequest
    is_running: bool = False
    """An executor was let run: from then on the request must not be made again."""


class Calls:
    """The calls of all sessions."""

    def __init__(self, host: Host, reports: Reports, executors: Mapping[str, Executor] | None = None) -> None:
        """``reports`` hears how they came out; ``executors`` run here what would run at the agent, by action id."""
        self._host = host
        self._reports = reports
        self._executors = dict(executors or {})

    def execute(self, caller: Caller, body: Execute) -> Answer:
        """Authorise a call, or run it; the same request again is given the same answer.

        Raises:
            Fault: when the request itself is not usable, or cannot be answered now.
        """
        self._host.check_time(body.timestamp)
        who, wanted = body.requester, body.execution
        key = wanted.idempotency_key or body.request_id
        digest = digest_of([caller.identity, who.model_dump(), wanted.model_dump(exclude={"idempotency_key"})])
        with self._host.owned(caller, who.session_id, who.agent_id) as session:
            until = time.monotonic() + WAIT_SECONDS
            while True:
                with session.hold(key) as held, suppress(OvertakenError):
                    return self._held(caller, session, body, key, digest, held)
                if time.monotonic() > until:
                    raise _busy()

    def _held(
        self, caller: Caller, session: LocalSession, body: Execute, key: str, digest: str, held: HeldRequest
    ) -> Answer:
        """The answer of who held the request before; else one of our own.

        Raises:
            Fault: as ``execute``.
            OvertakenError: when another process has written of it: it may hold it, or have held it just before.
        """
        claim = self._claim(session.id, key, digest)
        if claim.answer is not None:
            return claim.answer
        asked = Asked(caller, session, body, key, digest, claim.trace_size, held)
        try:
            answer, call = self._answered(asked)
            self._host.book.answer(session.id, key, answer, self._now_us(), call)
        except BaseException:  # whatever it was, the request may be made again
            self._host.book.give_back(session.id, key, forget=not asked.is_running)
            raise
        return answer

    def reject(self, caller: Caller, body: Reject) -> CallRefused:
        """Record a call that the agent's framework refused by itself."""
        with self._host.owned(caller, body.session_id) as session:
            call = session.freeze(body.action_id, body.tool_name, body.parameters)
            call = call._replace(tool_call_id=body.tool_call_id, agent_name=body.agent_name)
            return session.reject(call, body.reason)

    def _claim(self, session_id: str, key: str, digest: str) -> Claim:
        """One with the answer to an earlier request of this key; without it, this one is to be answered."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            claim = self._host.book.claim(session_id, key)
            if claim.state == "new":
                return claim
            if claim.answer is not None:
                if claim.answer == USED_UP:
                    raise _used_up()
                if claim.answer.digest != digest:
                    raise Fault("IDEMPOTENCY_CONFLICT", "this key was used for another call; take a new one")
                waits_for = claim.answer.approval_id
                if waits_for is None or not self._is_decided(waits_for):
                    return claim
                self._host.book.withdraw(session_id, key, waits_for)  # a person has answered meanwhile: decide again
            elif time.monotonic() > until:
                raise _busy()
            else:
                time.sleep(0.01)

    def _is_decided(self, approval_id: str) -> bool:
        try:
            approval = self._host.runtime.approvals.get(approval_id)
        except ApprovalError:
            return False
        return approval is None or approval.state != "pending" or self._now_us() >= approval.pending.expires_us

    def _answered(self, asked: Asked) -> tuple[Answer, ExecutionRow | None]:
        session = asked.session
        self._check_resolution(session, asked.body.execution.resolution_id)
        call = self._call(asked)
        if self._host.is_shared:
            session.refresh(asked.trace_size)  # a process that died, or could not answer, may have let it run
            asked.held.check()  # whoever wrote just now may still answer; what is older is known the next time
        before = self._unanswered(asked, call)
        executor = self._executors.get(call.action_id)
        try:
            if executor is not None and has_lost(call):
                raise session.reject(call, "an argument is an object of the agent's own: the server cannot run it")
            let = before or session.let_run(call, asked.held)
        except (SessionEnded, AuditUnavailable):  # nothing was recorded: the same request may be made again
            raise
        except CallRefused as error:
            fault = fault_of(error)
            text = orjson.dumps(fault.body(asked.body.request_id))
            waits_for = error.approval_id if fault.http_status == 423 else None
            return Answer(asked.digest, fault.http_status, text, waits_for, fault.retry_after_seconds), None
        if executor is not None:
            return self._ran(asked, call, executor, let), None
        return self._let(asked, let), self._row(asked, let)

    def _unanswered(self, asked: Asked, call: ToolCall) -> LetRun | None:
        """What a process let run for this request and did not answer, because it died or was stopped.

        Raises:
            Fault: when that was another call, or one with values that the trace does not show.
        """
        for let in asked.session.untold_of(asked.key):
            if self._host.book.execution(let.execution_id) is not None:
                continue
            if not _is_of(let, call):
                raise _used_up()
            return let
        return None

    def _call(self, asked: Asked) -> ToolCall:
        wanted, runtime = asked.body.execution, self._host.runtime
        tool_name = wanted.tool_name or wanted.action_id
        try:
            if wanted.framework is not None and wanted.action_id not in runtime.resolver.actions:
                call = runtime.target_for(wanted.action_id, wanted.framework).call(tool_name, wanted.parameters)
            else:
                call = asked.session.freeze(wanted.action_id, tool_name, wanted.parameters)
        except TypeError as error:
            raise Fault("INVALID_PARAMETERS", str(error)) from error
        call = read_tags(call) if wanted.tagged else call
        return call._replace(
            tool_call_id=wanted.tool_call_id,
            agent_name=wanted.agent_name,
            distrust=wanted.distrust,
            request_key=asked.key,
        )

    def _let(self, asked: Asked, let: LetRun) -> Answer:
        result = {"authorized": True, "report_until": timestamp_text(self._reports.deadline_us(let))}
        told = self._response(asked, let) | {"status": "success", "result": result}
        return Answer(asked.digest, 200, orjson.dumps(told))

    def _row(self, asked: Asked, let: LetRun) -> ExecutionRow:
        """What keeps one call from being the answer to two requests."""
        deadline_us = self._reports.deadline_us(let)
        return ExecutionRow(let.execution_id, asked.session.id, asked.caller.identity, deadline_us)

    def _ran(self, asked: Asked, call: ToolCall, executor: Executor, let: LetRun) -> Answer:
        """Run an action here. A process that dies meanwhile leaves it as one that nobody knows the outcome of: the
        same request is told so, and never runs it again."""
        session, head = asked.session, self._response(asked, let)
        lost = {"status": "error", "error": {"code": "OUTCOME_UNKNOWN", "message": "the server stopped while it ran"}}
        kept = Answer(asked.digest, 200, orjson.dumps(head | lost))
        self._host.book.answer(session.id, asked.key, kept, self._now_us(), self._row(asked, let), is_final=False)
        asked.is_running = True
        began_ns = self._host.clock.monotonic_ns()
        error: tuple[str, str] | None = None
        told: dict[str, object]
        try:
            value = executor(**call.arguments)
            told = {"status": "success", "result": value if isinstance(value, dict) else {"value": value}}
            orjson.dumps(told)
        except Exception as failure:  # noqa: BLE001  an executor is foreign code; its failure is recorded, and told
            error = class_words(failure)
            told = {"status": "error", "error": {"code": "EXECUTION_ERROR", "message": error[1]}}
        try:
            took_ms = max(0, self._host.clock.monotonic_ns() - began_ns) // 1_000_000
            session.tell(let, Told("server", error, took_ms))
        except (CRAError, ValueError) as failure:  # it has run: its answer comes out all the same
            _logger.error("%s ran, and its outcome is not recorded: %s", call.action_id, failure)
        return Answer(asked.digest, 200, orjson.dumps(head | told))

    def _response(self, asked: Asked, let: LetRun) -> dict[str, object]:
        return {
            "carp_version": "1.0",
            "execution_id": let.execution_id,
            "request_id": asked.body.request_id,
            "resolution_id": let.resolution_id,
            "timestamp": timestamp_text(self._now_us()),
            "trace_id": asked.session.resolution.trace_id,
        }

    def _check_resolution(self, session: LocalSession, resolution_id: str | None) -> None:
        """Refuse a call under a resolution that this session never had, or that has expired."""
        if resolution_id is None or resolution_id == session.resolution.resolution_id:
            return
        for line in self._host.lines(session.id, Query(event_type="carp.resolution.completed")):
            event = orjson.loads(line)
            if event["payload"]["resolution_id"] == resolution_id:
                made_us = parse_us(event["timestamp"])
                if self._now_us() >= made_us + event["payload"]["ttl_seconds"] * 1_000_000:
                    raise Fault("RESOLUTION_EXPIRED", "that resolution has expired; resolve again", recoverable=True)
                return
        raise Fault("RESOLUTION_NOT_FOUND", f"this session has no resolution {resolution_id}")

    def _now_us(self) -> int:
        return self._host.clock.wall_us()


def _is_of(let: LetRun, call: ToolCall) -> bool:
    """Whether ``call`` is the one that was let run; what is hidden in a trace has no digest that could say so."""
    if call.problem is not None or call.distrust is not None:  # such a call is never let run
        return False
    named = let.action_id, let.tool_name, let.tool_call_id, let.agent_name, let.parameters_hash
    return named == (call.action_id, call.tool_name, call.tool_call_id, call.agent_name, call.digest)


def _used_up() -> Fault:
    return Fault("IDEMPOTENCY_CONFLICT", "this key was used for a call that nobody was told of; take a new one")


def _busy() -> Fault:
    message = "the same request is still being answered; ask again"
    return Fault("IDEMPOTENCY_CONFLICT", message, recoverable=True, retry_after_seconds=1)
