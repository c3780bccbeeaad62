"""Spans as a collector sees them: parsed from the OTLP protobuf that a real exporter sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the telemetry tests need the otel extra")

from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from cra_middleware import ActionDenied, ApprovalRequired, Atlas, Runtime, governed
from tests.conftest import manifest, policies
from tests.otlp import Collector, attributes, collector

__all__ = ["collector"]


@pytest.fixture
def provider(collector: Collector) -> Iterator[TracerProvider]:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{collector.url}/v1/traces")))
    yield made
    made.shutdown()


ATLAS = manifest(
    policies=policies(
        {"policy_id": "no-delete", "type": "deny", "actions": ["*.delete"], "parameters": {"reason": "Never."}},
        {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]},
    )
)


def lookup(ticket_id: str) -> str:
    return ticket_id


def test_spans_of_every_outcome(collector: Collector, provider: TracerProvider, tmp_path: Path) -> None:
    """Executed, failed, denied and pending calls: one span each, with the TRACE events and their hashes on it."""
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path, tracer_provider=provider) as runtime:
        with runtime.session(agent_id="bot", goal="g") as session:
            session.call("ticket.get", lookup, "T-1")
            with pytest.raises(ZeroDivisionError):
                session.call("ticket.update", lambda: 1 // 0)
            with pytest.raises(ActionDenied):
                session.call("ticket.delete", lookup, "T-1")
            with pytest.raises(ApprovalRequired):
                session.call("refund.create", lookup, "T-1")
        events = {event.event_id: event for event in session.events}
    good, failed, denied, pending = collector.named("execute_tool")
    assert good.name == "execute_tool lookup"
    found = attributes(good)
    assert found["gen_ai.operation.name"] == "execute_tool"
    assert found["openinference.span.kind"] == "TOOL"
    assert (found["cra.session.id"], found["cra.action.id"]) == (session.id, "ticket.get")
    assert (found["cra.action.outcome"], found["cra.decision"], found["cra.policy.id"]) == (
        "executed",
        "allow",
        "allow-all",
    )
    assert good.status.code == 0
    assert attributes(failed)["error.type"] == "ZeroDivisionError"
    assert (failed.status.code, attributes(failed)["cra.action.outcome"]) == (2, "failed")
    assert not [event for event in failed.events if event.name == "exception"]
    assert attributes(denied)["error.type"] == "cra.policy_denied"
    assert (denied.status.code, denied.status.message) == (2, "Never.")
    assert (pending.status.code, attributes(pending)["cra.action.outcome"]) == (0, "pending_approval")
    witnessed = set()
    for _, span in collector.spans:
        for item in span.events:
            copy = attributes(item)
            kept = events[copy["cra.trace.event_id"]]
            assert copy["cra.trace.event_hash"] == kept.event_hash
            assert copy["cra.trace.sequence"] == kept.sequence
            assert copy["cra.trace.previous_event_hash"] == kept.previous_event_hash
            assert item.name == kept.event_type
            witnessed.add(kept.event_id)
    assert witnessed == events.keys()  # the copy is a whole witness
    last = [event for event in events.values() if event.span_id == attributes(good)["cra.trace.span_id"]][-1]
    assert attributes(good)["cra.trace.head_hash"] == last.event_hash


def test_resolution_span(collector: Collector, provider: TracerProvider) -> None:
    """A resolution is a span of its own, never an error."""
    with Runtime(Atlas.from_dict(ATLAS), tracer_provider=provider) as runtime, runtime.session() as session:
        pass
    (span,) = collector.named("carp.resolve")
    found = attributes(span)
    assert found["cra.carp.resolution_id"] == session.resolution.resolution_id
    assert (found["openinference.span.kind"], found["cra.carp.decision"], span.status.code) == (
        "GUARDRAIL",
        "partial",
        0,
    )
    assert [item.name for item in span.events][0] == "carp.request.received"


def test_traceparent_is_hashed_and_spans_nest(collector: Collector, provider: TracerProvider) -> None:
    """The span's traceparent is inside action.requested, and what the tool does nests below the span."""
    tracer = provider.get_tracer("tool")

    def tool() -> str:
        with tracer.start_as_current_span("inside"):
            return "ok"

    async def atool() -> str:
        await asyncio.sleep(0)
        with tracer.start_as_current_span("ainside"):
            return "ok"

    with Runtime(Atlas.from_dict(ATLAS), tracer_provider=provider) as runtime, runtime.session() as session:
        with tracer.start_as_current_span("outer"):
            session.call("ticket.get", tool)
            asyncio.run(session.acall("ticket.get", atool))
        parents = [event.payload["traceparent"] for event in session.events if event.event_type == "action.requested"]
    spans = collector.named("execute_tool")
    assert [f"00-{span.trace_id.hex()}-{span.span_id.hex()}-0" for span in spans] == [parent[:-1] for parent in parents]
    assert {int(parent[-1]) & 1 for parent in parents} == {1}
    inner = [collector.named("inside")[0], collector.named("ainside")[0]]
    assert [span.parent_span_id for span in inner] == [span.span_id for span in spans]
    (outer,) = collector.named("outer")
    assert {span.parent_span_id for span in spans} == {outer.span_id}


def test_generators_nest_at_each_step(collector: Collector, provider: TracerProvider) -> None:
    """A stream's span is current inside the tool, and not in the consumer between two items."""

    @governed("ticket.list")
    def items() -> Iterator[int]:
        for number in range(3):
            assert otel.get_current_span().get_span_context().is_valid
            yield number

    with Runtime(Atlas.from_dict(ATLAS), tracer_provider=provider) as runtime, runtime.session():
        for _ in items():
            assert not otel.get_current_span().get_span_context().is_valid
    (span,) = collector.named("execute_tool")
    assert attributes(span)["cra.action.outcome"] == "executed"


def test_hostile_names_do_not_lose_the_batch(collector: Collector, provider: TracerProvider) -> None:
    """Lone surrogates and huge names are made fit, and the call is exported."""
    with (
        Runtime(Atlas.from_dict(ATLAS), tracer_provider=provider) as runtime,
        runtime.session(agent_id="bot") as session,
    ):
        with pytest.raises(ActionDenied):
            session.call("no\ud800" + "x" * 10_000, lookup, "T")
    (span,) = collector.named("execute_tool")
    assert len(attributes(span)["cra.action.id"]) <= 1024
    assert attributes(span)["error.type"] == "unknown_action"


class Broken:
    """A provider whose every span raises."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no spans today")


def test_a_broken_tracer_costs_no_call() -> None:
    """Telemetry never raises into a call, and the trace is whole."""
    broken: Any = Broken()
    with Runtime(Atlas.from_dict(ATLAS), tracer_provider=broken) as runtime, runtime.session() as session:
        assert session.call("ticket.get", lookup, "T") == "T"
        assert session.verify().intact


class Closed:
    """A provider that gives no tracer at all."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no tracers today")


def test_a_provider_that_fails_costs_no_call() -> None:
    """Nor is it asked again for every call."""
    closed: Any = Closed()
    with Runtime(Atlas.from_dict(ATLAS), tracer_provider=closed) as runtime, runtime.session() as session:
        assert session.call("ticket.get", lookup, "T") == "T"
        assert session.verify().intact


def test_an_environment_that_names_no_provider_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the variables that OpenTelemetry looks at."""
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "nobody")
    monkeypatch.setenv("OTEL_PYTHON_METER_PROVIDER", "nobody")
    with Runtime(Atlas.from_dict(ATLAS)) as runtime, runtime.session() as session:
        assert session.call("ticket.get", lookup, "T") == "T"


def test_a_collector_that_is_down_costs_no_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Export failures stay in the exporter."""
    provider = TracerProvider()
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint="http://127.0.0.1:9/v1/traces", timeout=0.2))
    )
    with Runtime(Atlas.from_dict(ATLAS), tracer_provider=provider) as runtime, runtime.session() as session:
        assert session.call("ticket.get", lookup, "T") == "T"
    provider.shutdown()


def test_sampled_out_and_no_sdk() -> None:
    """Unsampled spans record nothing but keep their traceparent; without a provider there is none."""
    with Runtime(Atlas.from_dict(ATLAS), tracer_provider=TracerProvider(sampler=ALWAYS_OFF)) as runtime:
        with runtime.session() as session:
            session.call("ticket.get", lookup, "T")
            requested = [event for event in session.events if event.event_type == "action.requested"]
            assert int(str(requested[0].payload["traceparent"])[-2:], 16) & 1 == 0
    with Runtime(Atlas.from_dict(ATLAS)) as runtime, runtime.session() as session:
        session.call("ticket.get", lookup, "T")
        requested = [event for event in session.events if event.event_type == "action.requested"]
        assert "traceparent" not in requested[0].payload


def test_configure_otel_exports_in_one_line(collector: Collector, tmp_path: Path) -> None:
    """``configure_otel(name, endpoint)`` is all a program needs; a second provider is refused."""
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        f"""
import json
from cra_middleware import Atlas, Runtime, configure_otel
provider = configure_otel("my-service", {collector.url!r})
with Runtime(Atlas.from_dict(json.loads({__import__("json").dumps(__import__("json").dumps(ATLAS))}))) as runtime:
    with runtime.session() as session:
        session.call("ticket.get", lambda ticket_id: ticket_id, "T")
try:
    configure_otel("again")
except RuntimeError as error:
    print(error)
provider.shutdown()
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=True)
    assert "already" in done.stdout
    assert [span.name for span in collector.named("execute_tool")] == ["execute_tool <lambda>"]
    assert {scope.name for scope, _ in collector.spans} == {"cra_middleware"}
