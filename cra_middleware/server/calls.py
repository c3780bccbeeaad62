"""Two-phase calls: decided and recorded here, run at the agent or by an executor here, told of once.

A request is known by its idempotency key, or its request id. While nobody knows whether an earlier one was answered
(the process died in between), the trace itself says whether its call was let run: the key is recorded as the call's
``tool_call_id`` where the client gives none.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import orjson

from cra_middleware._clock import parse_us, timestamp_text
from cra_middleware.approvals import ApprovalError
from cra_middleware.attempt import class_words
from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import AuditUnavailable, CallRefused, CRAError, SessionEnded, SinkError
from cra_middleware.local_session import LocalSession
from cra_middleware.server.access import Caller
from cra_middleware.server.book import Answer, ExecutionRow
from cra_middleware.server.faults import Fault, fault_of
from cra_middleware.server.host import Host
from cra_middleware.server.wire import Execute, Execution, Reject, Report
from cra_middleware.trace.let_run import LetRun
from cra_middleware.trace.sink import Query

Executor = Callable[..., object]
DEFAULT_TIMEOUT_SECONDS = 900
"""How long a call may be out when its action does not say."""
REPORTED_BY = "client"
UNKNOWN = ("outcome_unknown", "nobody said in time how it came out")
WAIT_SECONDS = 10.0
"""How long a repeated request waits for the first one's answer."""
KEEP_SECONDS = 86_400
"""How long answers are kept: much longer than a request's time may be off."""
MAX_SWEPT = 200
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,100}", re.ASCII)

_logger = logging.getLogger("cra_middleware.server")


@dataclass(slots=True)
class Begun:
    """Whether an executor was let run: from then on a request must not be made again."""

    is_running: bool = False


class Calls:
    """The calls of all sessions."""

    def __init__(
        self,
        host: Host,
        executors: Mapping[str, Executor] | None = None,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        full: bool = False,
    ) -> None:
        """``full`` says that values may be recorded, and so the words of a tool's error."""
        self._host = host
        self._executors = dict(executors or {})
        self._timeout_us = int(timeout_seconds * 1_000_000)
        self._full = full
        self._pruned_us = 0

    def execute(self, caller: Caller, body: Execute) -> Answer:
        """Authorise a call, or run it; the same request again is given the same answer.

        Raises:
            Fault: when the request itself is not usable, or cannot be answered now.
        """
        self._host.check_time(body.timestamp)
        who, wanted = body.requester, body.execution
        key = wanted.idempotency_key or body.request_id
        digest = _digest([caller.identity, who.model_dump(), wanted.model_dump(exclude={"idempotency_key"})])
        with self._host.owned(caller, who.session_id, who.agent_id) as session:
            known = self._claim(session.id, key, digest)
            if known is not None:
                return known
            begun = Begun()
            try:
                answer, call = self._answered(caller, session, body, key, digest, begun)
                self._host.book.answer(session.id, key, answer, self._now_us(), call)
            except BaseException:  # whatever it was, the request may be made again
                self._host.book.give_back(session.id, key, forget=not begun.is_running)
                raise
            return answer

    def report(self, caller: Caller, execution_id: str, body: Report) -> None:
        """Record how a call came out; the same report again changes nothing.

        Raises:
            Fault: when there is no such call of the caller's, or something else was told of it.
        """
        told = _digest(body.model_dump())
        known = self._host.book.execution(execution_id)
        if known is not None and (known.session_id, known.caller) != (body.session_id, caller.identity):
            raise _no_execution(execution_id)
        if known is not None and known.report is not None:
            _compare(known.report, told, execution_id)
            return
        with self._host.owned(caller, body.session_id) as session:
            call = self._untold(session, execution_id)
            if call is None:
                self._settle(session, execution_id, body, told)
                return
            try:
                session.tell(call, REPORTED_BY, self._error(body), body.duration_ms, body.result_hash)
            except ValueError:  # another one was faster
                self._settle(session, execution_id, body, told)
                return
            self._closed(session.id, call, caller, told)

    def reject(self, caller: Caller, body: Reject) -> CallRefused:
        """Record a call that the agent's framework refused by itself."""
        with self._host.owned(caller, body.session_id) as session:
            call = session.freeze(body.action_id, body.tool_name, body.parameters)
            call = call._replace(tool_call_id=body.tool_call_id, agent_name=body.agent_name)
            return session.reject(call, body.reason)

    def sweep(self) -> None:
        """Close the calls that nobody has told of in time, and forget old answers."""
        now_us = self._now_us()
        for row in self._host.book.overdue(now_us, MAX_SWEPT):
            self._give_up(row)
        for session in self._host.table.open_sessions():
            for call in session.untold:  # the book need not know one that was let run when a process died
                if now_us >= self.deadline_us(call):
                    self._give_up(ExecutionRow(call.execution_id, session.id, "", self.deadline_us(call)))
        if now_us - self._pruned_us > 60_000_000:
            self._pruned_us = now_us
            self._host.book.prune(now_us - KEEP_SECONDS * 1_000_000)

    def deadline_us(self, call: LetRun) -> int:
        """Until when a call may be told of."""
        compiled = self._host.runtime.resolver.actions.get(call.action_id)
        action = None if compiled is None else compiled.action
        if action is not None and "timeout_seconds" in action.model_fields_set:
            return call.approved_us + action.timeout_seconds * 1_000_000
        return call.approved_us + self._timeout_us

    def _claim(self, session_id: str, key: str, digest: str) -> Answer | None:
        """The answer to an earlier request of this key; None when this one is to be answered."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            claim = self._host.book.claim(session_id, key, digest, self._now_us())
            if claim.state == "new":
                return None
            if claim.answer is not None:
                if claim.answer.digest != digest:
                    raise Fault("IDEMPOTENCY_CONFLICT", "this key was used for another call; take a new one")
                waits_for = claim.answer.approval_id
                if waits_for is None or not self._is_decided(waits_for):
                    return claim.answer
                self._host.book.withdraw(session_id, key, waits_for)  # a person has answered meanwhile: decide again
            elif time.monotonic() > until:
                message = "the same request is still being answered; ask again"
                raise Fault("IDEMPOTENCY_CONFLICT", message, recoverable=True, retry_after_seconds=1)
            else:
                time.sleep(0.01)

    def _is_decided(self, approval_id: str) -> bool:
        try:
            approval = self._host.runtime.approvals.get(approval_id)
        except ApprovalError:
            return False
        return approval is None or approval.state != "pending" or self._now_us() >= approval.pending.expires_us

    def _answered(
        self, caller: Caller, session: LocalSession, body: Execute, key: str, digest: str, begun: Begun
    ) -> tuple[Answer, ExecutionRow | None]:
        self._check_resolution(session, body.execution.resolution_id)
        call = self._call(session, body.execution, key)
        if self._host.is_shared:
            session.refresh()  # a process that died, or could not answer, may have let it run
        before = next((let for let in session.untold if _is_of(let, call)), None)
        if before is not None and self._host.book.execution(before.execution_id) is None:
            return self._let(caller, session, body, before, digest)  # let run by a process that died before it answered
        executor = self._executors.get(call.action_id)
        try:
            if executor is not None:
                return self._ran(session, body, call, executor, key, digest, begun), None
            return self._let(caller, session, body, session.let_run(call), digest)
        except (SessionEnded, AuditUnavailable):  # nothing was recorded: the same request may be made again
            raise
        except CallRefused as error:
            fault = fault_of(error)
            text = orjson.dumps(fault.body(body.request_id))
            waits_for = error.approval_id if fault.http_status == 423 else None
            return Answer(digest, fault.http_status, text, waits_for, fault.retry_after_seconds), None

    def _call(self, session: LocalSession, wanted: Execution, key: str) -> ToolCall:
        runtime, tool_name = self._host.runtime, wanted.tool_name or wanted.action_id
        try:
            if wanted.framework is not None and wanted.action_id not in runtime.resolver.actions:
                call = runtime.target_for(wanted.action_id, wanted.framework).call(tool_name, wanted.parameters)
            else:
                call = session.freeze(wanted.action_id, tool_name, wanted.parameters)
        except TypeError as error:
            raise Fault("INVALID_PARAMETERS", str(error)) from error
        return call._replace(
            tool_call_id=wanted.tool_call_id or key, agent_name=wanted.agent_name, distrust=wanted.distrust
        )

    def _let(
        self, caller: Caller, session: LocalSession, body: Execute, let: LetRun, digest: str
    ) -> tuple[Answer, ExecutionRow]:
        deadline_us = self.deadline_us(let)
        result = {"authorized": True, "report_until": timestamp_text(deadline_us)}
        told = self._response(session, body, let) | {"status": "success", "result": result}
        row = ExecutionRow(let.execution_id, session.id, caller.identity, deadline_us)
        return Answer(digest, 200, orjson.dumps(told)), row

    def _ran(
        self,
        session: LocalSession,
        body: Execute,
        call: ToolCall,
        executor: Executor,
        key: str,
        digest: str,
        begun: Begun,
    ) -> Answer:
        """Run an action here. A process that dies meanwhile leaves it as one that nobody knows the outcome of: the
        same request is told so, and never runs it again."""
        let = session.let_run(call)
        head = self._response(session, body, let)
        lost = {"status": "error", "error": {"code": "OUTCOME_UNKNOWN", "message": "the server stopped while it ran"}}
        self._host.book.answer(
            session.id, key, Answer(digest, 200, orjson.dumps(head | lost)), self._now_us(), is_final=False
        )
        begun.is_running = True
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
            session.tell(let, "server", error, max(0, self._host.clock.monotonic_ns() - began_ns) // 1_000_000)
        except (CRAError, ValueError) as failure:  # it has run: its answer comes out all the same
            _logger.error("%s ran, and its outcome is not recorded: %s", call.action_id, failure)
        return Answer(digest, 200, orjson.dumps(head | told))

    def _response(self, session: LocalSession, body: Execute, let: LetRun) -> dict[str, object]:
        return {
            "carp_version": "1.0",
            "execution_id": let.execution_id,
            "request_id": body.request_id,
            "resolution_id": let.resolution_id,
            "timestamp": timestamp_text(self._now_us()),
            "trace_id": session.resolution.trace_id,
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

    def _untold(self, session: LocalSession, execution_id: str) -> LetRun | None:
        for _ in range(2):
            for call in session.untold:
                if call.execution_id == execution_id:
                    return call
            session.refresh()  # another process may have let it run
        return None

    def _settle(self, session: LocalSession, execution_id: str, body: Report, told: str) -> None:
        """What is said of a call that is not out: somebody told of it, or there is none."""
        known = self._host.book.execution(execution_id)
        if known is not None and known.report is not None:
            _compare(known.report, told, execution_id)
            return
        for kind in ("action.executed", "action.failed"):  # it was told of, and the process died before it noted that
            for line in self._host.lines(session.id, Query(event_type=kind)):
                payload = orjson.loads(line)["payload"]
                if payload.get("execution_id") == execution_id:
                    _compare(told if self._says(kind, payload, body) else kind, told, execution_id)
                    return
        raise _no_execution(execution_id)

    def _says(self, kind: str, payload: Mapping[str, object], body: Report) -> bool:
        """Whether a recorded outcome is the one that ``body`` tells of."""
        error = self._error(body)
        if body.duration_ms not in (None, payload.get("duration_ms")):
            return False
        if error is None:
            wanted = ("action.executed", REPORTED_BY, body.result_hash)
            return wanted == (kind, payload.get("reported_by"), payload.get("result_hash"))
        return ("action.failed", *error) == (kind, payload.get("error_code"), payload.get("error_message"))

    def _closed(self, session_id: str, call: LetRun, caller: Caller, told: str) -> None:
        if self._host.book.execution(call.execution_id) is None:
            row = ExecutionRow(call.execution_id, session_id, caller.identity, self.deadline_us(call), told)
            key = f"report {call.execution_id}"
            self._host.book.answer(session_id, key, Answer(told, 200, b""), self._now_us(), row)
        else:
            self._host.book.reported(call.execution_id, told)

    def _error(self, body: Report) -> tuple[str, str] | None:
        if body.status == "success":
            return None
        code, message = (body.error.code, body.error.message) if body.error is not None else ("ToolError", "")
        code = code if _CODE.fullmatch(code) else "ToolError"
        return code, message[:1000] if self._full and message else f"the agent says that the tool raised {code}"

    def _give_up(self, row: ExecutionRow) -> None:
        known = self._host.book.session(row.session_id)
        try:
            if known is not None:
                with self._host.opened(known) as session:
                    call = self._untold(session, row.execution_id)
                    if call is not None:
                        session.tell(call, "server", UNKNOWN)
        except SinkError as error:  # it is tried again
            _logger.error("call %s cannot be closed now: %s", row.execution_id, error)
            return
        except (CRAError, ValueError) as error:  # the session is over or broken, or somebody has told of it just now
            _logger.warning("call %s is closed: %s", row.execution_id, error)
        self._host.book.reported(row.execution_id, UNKNOWN[0])

    def _now_us(self) -> int:
        return self._host.clock.wall_us()


def _is_of(let: LetRun, call: ToolCall) -> bool:
    return (let.action_id, let.tool_call_id) == (call.action_id, call.tool_call_id)


def _digest(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _no_execution(execution_id: str) -> Fault:
    return Fault("EXECUTION_NOT_FOUND", f"no call {execution_id[:64]} of yours waits for a report")


def _compare(known: str, told: str, execution_id: str) -> None:
    if known != told:
        raise Fault("IDEMPOTENCY_CONFLICT", f"another outcome of {execution_id} is recorded already")
