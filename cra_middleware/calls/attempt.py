"""One call on its way: its ids, and what it leaves in the trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import orjson

from cra_middleware._canonical import UnrepresentableError, canonical, digest
from cra_middleware.calls.refusals import REFUSALS
from cra_middleware.calls.running import ABANDONED, ABANDONED_MESSAGE
from cra_middleware.carp.call import Allow, Ask, Deny, Shadow, ToolCall, decision_view
from cra_middleware.errors import (
    ActionDenied,
    CallRefused,
    SinkError,
)
from cra_middleware.interceptor import Closed, Raised, Returned
from cra_middleware.observer import Operation, Subject
from cra_middleware.policies import Epoch
from cra_middleware.trace import payloads
from cra_middleware.trace.commitments import Commitment
from cra_middleware.trace.event import EventType
from cra_middleware.trace.let_run import LetRun, Told
from cra_middleware.trace.redact import Shown
from cra_middleware.trace.writer import Draft

MAX_RECORDED_BYTES = 1024 * 1024
"""A value whose canonical text is longer is not recorded, only its digest."""
UNKEPT = '"cra:redacted:unkept"'
"""Stands for a result whose personal values could not be kept."""
_logger = logging.getLogger("cra_middleware")


class LostOutcomeError(Exception):
    """Nobody said how a tool that may have run came out; only ever recorded, never raised."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One call on its way."""

    call: ToolCall
    subject: Subject
    epoch: Epoch
    """The policies it was asked under."""
    span_id: str
    parent_span_id: str
    execution_id: str
    resolution_id: str
    operation: Operation
    requested_us: int
    """When it was asked for; every decision about it is made as of then."""
    is_stream: bool
    full: bool
    """Whether values may be recorded."""
    keep: Callable[[Sequence[Commitment]], None] | None = None
    """Puts personal values into the sidecar of this session's subject."""
    parameters_hash: str = ""  # as it is recorded: of what is shown
    shown: Shown | None = None
    """The arguments without what is hidden; None when nothing has to be."""
    unwritten: list[Draft] = field(default_factory=list)
    is_running: bool = False
    """The tool has been let run."""
    is_inside: bool = False
    """One of a stream's steps is being taken."""
    has_waited: bool = False
    """Others had time to run since its arguments were looked at."""
    is_unrecorded: bool = False
    """Something of it is missing in the trace, and so must be what would follow."""
    only_if: Callable[[], None] | None = None
    """Raises when it must not be decided here any more; asked before anything of it is kept."""
    over: bool = False
    """The end of the session has recorded its outcome: nothing may follow."""

    def request(self) -> None:
        """Note ``action.requested``, once the personal values in it are kept.

        Raises:
            SinkError: when they cannot be.
        """
        call = self.call
        text, hashed = call.text, call.digest
        if self.epoch.redactor is not None:
            self.shown = self.epoch.redactor.shown(call.action_id, text)
            hashed = hashed if self.shown.text is text else digest(self.shown.text)
            text = self.shown.text
        self.parameters_hash = hashed
        full = self.full and call.problem is None and len(text) <= MAX_RECORDED_BYTES
        if full and self.shown is not None:
            self._keep(self.shown)
        payload = payloads.requested(
            call.action_id,
            self.execution_id,
            hashed,
            self.resolution_id,
            call.tool_name,
            call.tool_call_id,
            call.agent_name,
            self.operation.traceparent,
            call.request_key,
            text.decode() if full else None,
        )
        self._note("action.requested", payload, self.requested_us)

    def ask(self, ask: Ask) -> None:
        """Note that a person has to approve."""
        self._evaluated(ask.policy_id, "deny", "require_approval")

    def shadow(self, shadows: Sequence[Shadow]) -> None:
        """Note what would have happened, had every policy been enforced."""
        for shadow in shadows:
            self._evaluated(shadow.policy_id, "allow", "shadow_deny")

    def _evaluated(self, policy_id: str, result: str, effect: str) -> None:
        payload = {"policy_id": policy_id, "result": result, "effect": effect, "action_id": self.call.action_id}
        self._note("policy.evaluated", payloads.render(payload), self.requested_us)

    def approve(self, decision: Allow, approver: str | None, approval_id: str | None, now_us: int) -> None:
        """Note ``action.approved``."""
        payload = payloads.approved(
            self.call.action_id, self.execution_id, self.resolution_id, decision.policy_id, approval_id, approver
        )
        self._note("action.approved", payload, now_us)

    def deny(self, deny: Deny, approval_id: str | None, now_us: int) -> None:
        """Note ``action.denied``, and the violation it stands for."""
        action_id = self.call.action_id
        if deny.violation is not None:
            violated = {
                "policy_id": deny.policy_id,
                "violation_type": deny.violation,
                "action_id": action_id,
                "details": {"reason": deny.reason},
            }
            self._note("policy.violated", payloads.render(violated), now_us)
        retry = deny.retry_after_seconds
        denied = payloads.denied(
            action_id, self.execution_id, deny.reason, deny.code, deny.policy_id, retry, approval_id
        )
        self._note("action.denied", denied, now_us)

    def outcome(self, outcome: Returned | Raised | Closed, duration_ms: int, now_us: int) -> Draft:
        """``action.executed`` or ``action.failed``."""
        try:
            return self._outcome(outcome, duration_ms, now_us)
        except BaseException:  # noqa: BLE001  a metaclass, a __str__, an items() of the tool's may raise anything
            return self._failed("UnreadableOutcome", "what the tool gave could not be read", duration_ms, now_us)

    def _outcome(self, outcome: Returned | Raised | Closed, duration_ms: int, now_us: int) -> Draft:
        if isinstance(outcome, Raised):
            name = type(outcome.error).__name__
            return self._failed(name, self._message(outcome.error), duration_ms, now_us)
        result = self._result(outcome.value) if self.full and isinstance(outcome, Returned) else None
        payload = payloads.executed(
            self.call.action_id, self.execution_id, duration_ms, self.resolution_id, outcome.item_count, result
        )
        return self._entry("action.executed", payload, now_us)

    def abandon(self, now_us: int) -> Draft:
        """The outcome of a stream that its session did not wait for."""
        self.over = True
        self.operation.end("failed", ABANDONED, ABANDONED_MESSAGE)
        return self._failed(ABANDONED, ABANDONED_MESSAGE, 0, now_us)

    def not_run(self, now_us: int, code: str, why: str) -> Draft:
        """The outcome of a call that was let run, and then could not be."""
        return self._failed(code, f"the tool did not run: {why}", 0, now_us)

    def let_run(self, now_us: int) -> LetRun:
        """What the outcome of a call needs that runs elsewhere."""
        call = self.call
        return LetRun(
            self.span_id,
            self.parent_span_id,
            self.execution_id,
            call.action_id,
            self.resolution_id,
            call.tool_name,
            call.tool_call_id,
            call.agent_name,
            self.parameters_hash,
            call.request_key,
            now_us,
        )

    def shown_arguments(self) -> Mapping[str, object]:
        """The arguments, for a person to look at: a copy, as they are decided about once more after the answer."""
        return MappingProxyType({key: decision_view(value) for key, value in self.call.arguments.items()})

    def recorded_arguments(self) -> Mapping[str, object]:
        """The arguments, without what must not be kept."""
        recorded: dict[str, object] = orjson.loads(self.call.text if self.shown is None else self.shown.text)
        return MappingProxyType(recorded)

    def refusal(self, deny: Deny, approval_id: str | None) -> CallRefused:
        """The refusal of a call that was denied."""
        return REFUSALS.get(deny.code, ActionDenied)(
            deny.reason,
            action_id=self.call.action_id,
            policy_id=deny.policy_id,
            code=deny.code,
            retry_after_seconds=deny.retry_after_seconds,
            approval_id=approval_id,
        )

    def _keep(self, shown: Shown) -> None:
        if shown.commitments and self.keep is not None:
            self.keep(shown.commitments)

    def _result(self, value: object) -> str | None:
        """What the tool gave, as it may be recorded."""
        text = _recordable(value)
        if text is None or self.epoch.redactor is None:
            return text
        try:
            shown = self.epoch.redactor.shown(self.call.action_id, text.encode(), "result")
            if len(shown.text) > MAX_RECORDED_BYTES:
                return None
            self._keep(shown)
        except SinkError as error:  # the tool has run: that is recorded, and its value is not
            _logger.error("the result of %s is not recorded: %s", self.call.action_id, error)
            return UNKEPT
        return shown.text.decode()

    def _message(self, error: BaseException) -> str:
        """Our own words; the tool's only where values may be recorded, and where they cannot repeat a hidden one."""
        ours = f"the tool raised {type(error).__name__}"
        if not self.full or (self.shown is not None and self.shown.by_place):
            return ours
        try:
            text = str(error)
        except Exception:  # noqa: BLE001  a tool's own __str__ may fail, and its error must still come out as it is
            return ours
        return (text if self.epoch.redactor is None else self.epoch.redactor.plain(text))[:1000]

    def _failed(self, code: str, message: str, duration_ms: int, now_us: int) -> Draft:
        payload = {
            "action_id": self.call.action_id,
            "execution_id": self.execution_id,
            "duration_ms": duration_ms,
            "error_code": code,
            "error_message": message,
        }
        return self._entry("action.failed", payloads.render(payload), now_us)

    def _note(self, event_type: EventType, payload: str, now_us: int) -> None:
        self.unwritten.append(Draft(self.span_id, self.parent_span_id, event_type, payload, now_us))

    def _entry(self, event_type: EventType, payload: str, now_us: int) -> Draft:
        return Draft(self.span_id, self.parent_span_id, event_type, payload, now_us)


def told(call: LetRun, outcome: Told, now_us: int) -> Draft:
    """The outcome of a call that ran elsewhere."""
    payload: dict[str, object] = {
        "action_id": call.action_id,
        "execution_id": call.execution_id,
        "duration_ms": outcome.duration_ms,
    }
    if outcome.error is not None:
        payload |= {"error_code": outcome.error[0], "error_message": outcome.error[1]}
        return Draft(call.span_id, call.parent_span_id, "action.failed", payloads.render(payload), now_us)
    result = {"result_hash": outcome.result_hash, "reported_by": outcome.by}
    payload |= {"resolution_id": call.resolution_id, **result}
    return Draft(call.span_id, call.parent_span_id, "action.executed", payloads.render(payload), now_us)


def _recordable(value: object) -> str | None:
    try:
        text = canonical(value)
    except (UnrepresentableError, RecursionError):
        return None
    return text.decode() if len(text) <= MAX_RECORDED_BYTES else None
