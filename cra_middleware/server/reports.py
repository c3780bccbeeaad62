"""How let-run calls came out: told of once by who ran them, or closed when nobody did in time."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping

import orjson

from cra_middleware.errors import CRAError, SinkError
from cra_middleware.server.access import Caller
from cra_middleware.server.book import USED_UP, Answer, ExecutionRow
from cra_middleware.server.faults import Fault
from cra_middleware.server.host import Host
from cra_middleware.server.wire import Report, digest_of
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.trace.let_run import LetRun, Told
from cra_middleware.trace.sink import Query

DEFAULT_TIMEOUT_SECONDS = 900
"""How long a call may be out when its action does not say."""
REPORTED_BY = "client"
UNKNOWN = ("outcome_unknown", "nobody said in time how it came out")
KEEP_SECONDS = 86_400
"""How long answers are kept: much longer than a request's time may be off."""
MAX_SWEPT = 200
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,100}", re.ASCII)

_logger = logging.getLogger("cra_middleware.server")


class Reports:
    """The outcomes of all sessions' calls."""

    def __init__(
        self,
        host: Host,
        run_here: Collection[str] = (),
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        full: bool = False,
    ) -> None:
        """``run_here`` are the actions that the server runs itself, so that nobody else tells of them; ``full`` says
        that values may be recorded, and so the words of a tool's error."""
        self._host = host
        self._run_here = frozenset(run_here)
        self._timeout_us = int(timeout_seconds * 1_000_000)
        self._full = full
        self._pruned_us = 0

    def report(self, caller: Caller, execution_id: str, body: Report) -> None:
        """Record how a call came out; the same report again changes nothing.

        Raises:
            Fault: when there is no such call of the caller's, or something else was told of it.
        """
        told = digest_of(body.model_dump())
        known = self._host.book.execution(execution_id)
        if known is not None and (known.session_id, known.caller) != (body.session_id, caller.identity):
            raise _no_execution(execution_id)
        if known is not None and known.report is not None:
            _compare(known.report, told, execution_id)
            return
        with self._host.owned(caller, body.session_id) as session:
            call = self._untold(session, execution_id)
            if call is not None and call.action_id in self._run_here:
                raise _no_execution(execution_id)  # it runs here, and here is known how it came out
            if call is None:
                self._settle(session, execution_id, body, told)
                return
            try:
                session.tell(call, Told(REPORTED_BY, self._error(body), body.duration_ms, body.result_hash))
            except ValueError:  # another one was faster
                self._settle(session, execution_id, body, told)
                return
            self._closed(session.id, call, caller, told)

    def sweep(self) -> None:
        """Close the calls that nobody has told of in time, and forget old answers."""
        now_us = self._now_us()
        for row in self._host.book.overdue(now_us, MAX_SWEPT):
            self._give_up(row)
        for session in self._host.table.open_sessions():
            for call in session.untold:  # the book need not know one that was let run when a process died
                if now_us >= self.deadline_us(call) and self._use_up(session.id, call):
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

    def _untold(self, session: LocalSession, execution_id: str) -> LetRun | None:
        for _ in range(2):
            call = session.untold_call(execution_id)
            if call is not None:
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
        if not self._host.book.reported(call.execution_id, told):
            row = ExecutionRow(call.execution_id, session_id, caller.identity, self.deadline_us(call), told)
            key = f"report {call.execution_id}"
            self._host.book.answer(session_id, key, Answer(told, 200, b""), self._now_us(), row)

    def _error(self, body: Report) -> tuple[str, str] | None:
        if body.status == "success":
            return None
        code, message = (body.error.code, body.error.message) if body.error is not None else ("ToolError", "")
        code = code if _CODE.fullmatch(code) else "ToolError"
        return code, message[:1000] if self._full and message else f"the agent says that the tool raised {code}"

    def _use_up(self, session_id: str, call: LetRun) -> bool:
        """Whether a call may be closed. Where nobody was told of it, the same request is not decided again: its key is
        used up; while the request is answered, somebody may be told yet."""
        book, key = self._host.book, call.request_key
        if key is None or book.execution(call.execution_id) is not None:
            return True
        claim = book.claim(session_id, key)
        if claim.state == "new":
            row = ExecutionRow(call.execution_id, session_id, "", self.deadline_us(call))
            try:
                book.answer(session_id, key, USED_UP, self._now_us(), row)
            except BaseException:  # whatever it was, it is tried again
                book.give_back(session_id, key)
                raise
        return claim.state != "running"

    def _give_up(self, row: ExecutionRow) -> None:
        known = self._host.book.session(row.session_id)
        try:
            if known is not None:
                with self._host.opened(known) as session:
                    call = self._untold(session, row.execution_id)
                    if call is not None:
                        session.tell(call, Told("server", UNKNOWN))
        except SinkError as error:  # it is tried again
            _logger.error("call %s cannot be closed now: %s", row.execution_id, error)
            return
        except (CRAError, ValueError) as error:  # the session is over or broken, or somebody has told of it just now
            _logger.warning("call %s is closed: %s", row.execution_id, error)
        self._host.book.reported(row.execution_id, UNKNOWN[0])

    def _now_us(self) -> int:
        return self._host.clock.wall_us()


def _no_execution(execution_id: str) -> Fault:
    return Fault("EXECUTION_NOT_FOUND", f"no call {execution_id[:64]} of yours waits for a report")


def _compare(known: str, told: str, execution_id: str) -> None:
    if known != told:
        raise Fault("IDEMPOTENCY_CONFLICT", f"another outcome of {execution_id} is recorded already")
