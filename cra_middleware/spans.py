"""The spans themselves: what of a call, a resolution or a session's event goes onto them.

Needs OpenTelemetry, as ``metrics`` does and nothing else in the core; loaded only where somebody listens.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from cra_middleware.carp.call import Allow, Ask, Decision, ToolCall
from cra_middleware.carp.messages import Resolution
from cra_middleware.observer import Outcome, Owner, Subject
from cra_middleware.trace.event import Sealed

MAX_TEXT = 1024
"""Letters of an untrusted text that go onto a span."""

_logger = logging.getLogger("cra_middleware.telemetry")
_LAST_PART = re.compile(r"[./]")


class Spanned:
    """What calls and resolutions share: a span that is never in anybody's way."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._ended = False
        context = span.get_span_context()
        self.is_recording = span.is_recording()
        self.traceparent: str | None = None
        if context.is_valid:
            self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def running(self) -> AbstractContextManager[object] | None:
        # the exception is ours to describe: the SDK would copy its message and stack into the span
        return trace.use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False)

    def seen(self, events: Sequence[Sealed], /) -> None:
        if self.is_recording:
            quietly(lambda: _add_events(self._span, events))

    def decided(self, decision: Decision, /) -> None:
        return None

    def resolved(self, resolution: Resolution, /) -> None:
        return None

    def turn(self, whose: Owner, /) -> None:
        return None

    def end(self, outcome: Outcome | None, error_type: str | None = None, description: str | None = None, /) -> None:
        if not self._ended:
            self._ended = True
            quietly(lambda: self._finish(outcome, error_type, description))

    def _finish(self, outcome: Outcome | None, error_type: str | None, description: str | None) -> None:
        self._span.end()


class CallSpan(Spanned):
    """The span of one call."""

    def __init__(self, tracer: Tracer, call: ToolCall, subject: Subject, span_id: str, risk_tier: str | None) -> None:
        name = short_name(call.tool_name)
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.agent.name": clean(call.agent_name or subject.agent_id),
            "openinference.span.kind": "TOOL",
            "cra.session.id": subject.session_id,
            "cra.action.id": clean(call.action_id),
            "cra.trace.trace_id": subject.trace_id,
            "cra.trace.span_id": span_id,
        }
        if call.tool_call_id is not None:
            attributes["gen_ai.tool.call.id"] = clean(call.tool_call_id)
        if risk_tier is not None:
            attributes["cra.action.risk_tier"] = risk_tier
        super().__init__(tracer.start_span(f"execute_tool {name}", kind=SpanKind.INTERNAL, attributes=attributes))
        self._head: Sealed | None = None

    def seen(self, events: Sequence[Sealed], /) -> None:
        super().seen(events)
        if events:
            self._head = events[-1]

    def decided(self, decision: Decision, /) -> None:
        if self.is_recording:
            quietly(lambda: self._span.set_attributes(_decision_attributes(decision)))

    def _finish(self, outcome: Outcome | None, error_type: str | None, description: str | None) -> None:
        span = self._span
        attributes: dict[str, AttributeValue] = {"cra.action.outcome": outcome or "unknown"}
        if self._head is not None:
            attributes["cra.trace.head_hash"] = self._head.event_hash
            attributes["cra.trace.head_sequence"] = self._head.sequence
        if error_type is not None:
            code = "cra.policy_denied" if error_type == "policy_denied" else clean(error_type)
            attributes["error.type"] = code
            span.set_status(Status(StatusCode.ERROR, clean(description or code)))
        span.set_attributes(attributes)
        span.end()


class ResolutionSpan(Spanned):
    """The span of one resolution."""

    def __init__(self, tracer: Tracer, subject: Subject, span_id: str) -> None:
        attributes: dict[str, AttributeValue] = {
            "openinference.span.kind": "GUARDRAIL",
            "gen_ai.agent.name": clean(subject.agent_id),
            "cra.session.id": subject.session_id,
            "cra.trace.trace_id": subject.trace_id,
            "cra.trace.span_id": span_id,
        }
        super().__init__(tracer.start_span("carp.resolve", kind=SpanKind.INTERNAL, attributes=attributes))

    def resolved(self, resolution: Resolution, /) -> None:
        attributes: dict[str, AttributeValue] = {
            "cra.carp.decision": resolution.decision.type,
            "cra.carp.resolution_id": resolution.resolution_id,
            "cra.carp.allowed_count": len(resolution.allowed_actions),
            "cra.carp.denied_count": len(resolution.denied_actions),
        }
        quietly(lambda: self._span.set_attributes(attributes))


def clean(text: str) -> str:
    """Untrusted text, fit for a span: short, and without lone surrogates, which would lose the whole export."""
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()


def short_name(tool_name: str) -> str:
    """``gen_ai.tool.name``: the last part of "module.qualname" or "server/tool"."""
    return clean(_LAST_PART.split(tool_name)[-1]) or "tool"


def _decision_attributes(decision: Decision) -> dict[str, AttributeValue]:
    verdict = "allow" if isinstance(decision, Allow) else "require_approval" if isinstance(decision, Ask) else "deny"
    attributes: dict[str, AttributeValue] = {"cra.decision": verdict}
    if decision.policy_id is not None:
        attributes["cra.policy.id"] = clean(decision.policy_id)
    if decision.shadows:
        attributes["cra.policy.shadow_ids"] = [clean(shadow.policy_id) for shadow in decision.shadows]
    return attributes


def session_events(tracer: Tracer, subject: Subject, events: Sequence[Sealed]) -> None:
    """On the span that is current, else on a short one: no span stays open for as long as a session."""
    current = trace.get_current_span()
    if current.is_recording():
        _add_events(current, events)
        return
    attributes: dict[str, AttributeValue] = {
        "gen_ai.agent.name": clean(subject.agent_id),
        "cra.session.id": subject.session_id,
        "cra.trace.trace_id": subject.trace_id,
    }
    span = tracer.start_span("cra.session", kind=SpanKind.INTERNAL, attributes=attributes)
    _add_events(span, events)
    span.end()


def _add_events(span: Span, events: Sequence[Sealed]) -> None:
    for event in events:
        span.add_event(event.event_type, _event_attributes(event), timestamp=event.timestamp_us * 1000)


def _event_attributes(event: Sealed) -> dict[str, AttributeValue]:
    return {
        "cra.trace.event_id": event.event_id,
        "cra.trace.sequence": event.sequence,
        "cra.trace.event_hash": event.event_hash,
        "cra.trace.previous_event_hash": event.previous_event_hash,
    }


class _Here(threading.local):
    is_inside = False


_here = _Here()


def unnested(work: Callable[[], object]) -> None:
    """Do what an SDK takes locks for, unless this thread does so already: then the garbage collector came in the middle
    of it, with a finaliser that makes a call. It would wait for its own thread for ever; nothing is done."""
    if _here.is_inside:
        return
    _here.is_inside = True
    try:
        work()
    finally:
        _here.is_inside = False


def quietly(work: Callable[[], object]) -> None:
    """Do what may fail without consequence."""
    try:
        unnested(work)
    except Exception:  # telemetry is a copy: it may be lost, a call may not
        _logger.exception("a span could not be written")
