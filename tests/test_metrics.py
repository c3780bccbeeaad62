"""The numbers, as the SDK's own reader and a collector see them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the telemetry tests need the otel extra")

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from cra_middleware import ActionDenied, Answer, ApprovalRequired, Atlas, CallRefused, Pending, Runtime, governed
from cra_middleware.approvals.approval import Approval, ApprovalError, State
from cra_middleware.approvals.store import MemoryApprovals
from cra_middleware.metrics import MAX_NAMES, OTHER, OVERHEAD_SECONDS, TOOL_SECONDS
from cra_middleware.testing import FailingSink, FrozenClock
from tests.conftest import NOON, manifest, policies
from tests.metered import Metered, metered
from tests.otlp import Collector, attributes, collector

__all__ = ["collector", "metered"]

ATLAS = manifest(
    policies=policies(
        {"policy_id": "no-delete", "type": "deny", "actions": ["*.delete"], "parameters": {"reason": "Never."}},
        {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]},
    )
)


def lookup(ticket_id: str) -> str:
    return ticket_id


def runtime_of(metered: Metered, **terms: Any) -> Runtime:
    return Runtime(terms.pop("atlas", Atlas.from_dict(ATLAS)), meter_provider=metered.provider, **terms)


class Time:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000_000)


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr("cra_middleware.metrics.time", SimpleNamespace(monotonic_ns=made.monotonic_ns))
    return made


def test_every_outcome(metered: Metered) -> None:
    """Each call is one decision; a duration is that of a tool that ran; a failed one says how."""
    with runtime_of(metered) as runtime:
        with runtime.session(agent_id="bot", goal="g") as session:
            session.call("ticket.get", lookup, "T-1")
            asyncio.run(session.acall("ticket.get", _alookup, "T-1"))
            with pytest.raises(ZeroDivisionError):
                session.call("ticket.update", lambda: 1 // 0)
            with pytest.raises(ActionDenied):
                session.call("ticket.delete", lookup, "T-1")
            with pytest.raises(CallRefused):
                session.call("no.such", lookup, "T-1")
            with pytest.raises(ApprovalRequired):
                session.call("refund.create", lookup, "T-1")
        kinds = [event.event_type for event in session.events]
    assert metered.decisions() == {
        "allow": 3,
        "deny/policy_denied": 1,
        "deny/unknown_action": 1,
        "require_approval": 1,
    }
    assert {
        (told["gen_ai.tool.name"], told.get("error.type")): count
        for told, count in ((dict(key), count) for key, count in metered.values("gen_ai.execute_tool.duration").items())
    } == {("lookup", None): 1, ("_alookup", None): 1, ("<lambda>", "ZeroDivisionError"): 1}
    assert {dict(key)["cra.decision"]: count for key, count in metered.values("cra.call.overhead").items()} == {
        "allow": 3,
        "deny": 2,
        "require_approval": 1,
    }
    kept = {dict(key)["cra.trace.event_type"]: count for key, count in metered.values("cra.trace.events").items()}
    assert kept == {kind: kinds.count(kind) for kind in kinds}  # every event once, the session's own too
    assert list(metered.values("cra.trace.dropped").values()) == [0]


async def _alookup(ticket_id: str) -> str:
    return ticket_id


def test_the_boundaries_and_the_scope(metered: Metered) -> None:
    """Seconds, with the buckets of the conventions; under our name, with our version and the schema."""
    with runtime_of(metered) as runtime, runtime.session() as session:
        session.call("ticket.get", lookup, "T-1")
    (duration,) = metered.points("gen_ai.execute_tool.duration")
    (overhead,) = metered.points("cra.call.overhead")
    assert tuple(duration.explicit_bounds) == TOOL_SECONDS
    assert tuple(overhead.explicit_bounds) == OVERHEAD_SECONDS
    data = metered.reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "cra_middleware"
    assert scope.scope.version
    assert scope.scope.schema_url.startswith("https://opentelemetry.io/schemas/")
    units = {metric.name: metric.unit for metric in scope.metrics}
    assert units["gen_ai.execute_tool.duration"] == units["cra.call.overhead"] == "s"


def test_whose_time_it_is(metered: Metered, clockwork: Time) -> None:
    """The tool's time is its duration; what a person takes to answer is neither that nor overhead."""

    def approver(pending: Pending) -> Answer:
        clockwork.takes(600)
        return Answer(True, by="ann")

    def pay(amount: int) -> int:
        clockwork.takes(3)
        return amount

    class Slow(MemoryApprovals):
        def consume(self, approval_id: str, now_us: int) -> bool:
            clockwork.takes(0.25)
            return super().consume(approval_id, now_us)

    with runtime_of(metered, approver=approver, approvals=Slow()) as runtime, runtime.session() as session:
        assert session.call("refund.create", pay, 5) == 5
    (duration,) = metered.points("gen_ai.execute_tool.duration")
    (overhead,) = metered.points("cra.call.overhead")
    assert (duration.sum, overhead.sum) == (3.0, 0.25)
    assert metered.decisions() == {"allow": 1}  # asked about, and then allowed: one decision


def test_streams(metered: Metered, clockwork: Time) -> None:
    """A stream takes until its end, or until its consumer goes away; the wait for its end to be noted is nobody's."""

    @governed("ticket.list")
    def items() -> Iterator[int]:
        for number in range(3):
            clockwork.takes(1)
            yield number

    with runtime_of(metered) as runtime, runtime.session() as session:
        assert list(items()) == [0, 1, 2]
        (whole,) = metered.points("gen_ai.execute_tool.duration")
        assert (whole.count, whole.sum) == (1, 3.0)
        stream = items()
        next(stream)
        stream.close()
        clockwork.takes(100)
        session.call("ticket.get", lookup, "T-1")
        stream = items()
        next(stream)
        clockwork.takes(7)
        session.end()
        del stream
    durations = {
        (point.attributes["gen_ai.tool.name"], point.attributes.get("error.type")): (point.count, point.sum)
        for point in metered.points("gen_ai.execute_tool.duration")
    }
    assert durations == {("items", None): (2, 4.0), ("lookup", None): (1, 0.0), ("items", "session_ended"): (1, 8.0)}
    assert sum(point.sum for point in metered.points("cra.call.overhead")) == 0.0
    assert metered.decisions() == {"allow": 4}


def test_names_are_bounded(metered: Metered) -> None:
    """However many tools and errors somebody makes up, a metric has few of them; a denied call has no name at all."""
    with runtime_of(metered) as runtime, runtime.session() as session:
        for number in range(MAX_NAMES + 50):

            def tool(kind: str) -> None:
                raise type(kind, (LookupError,), {})

            tool.__qualname__ = f"tool{number}"
            with pytest.raises(LookupError):
                session.call("ticket.get", tool, f"Error{number}")
            with pytest.raises(CallRefused):
                session.call(f"made.up{number}", tool, "x")
    for key, most in (("gen_ai.tool.name", MAX_NAMES + 1), ("error.type", MAX_NAMES + 1), ("cra.decision.code", 1)):
        found = {value for name, value in metered.attributes() if name == key}
        assert len(found) == most
        assert (OTHER in found) == (most > 1)


def test_nobody_is_named(metered: Metered) -> None:
    """No session, no agent, no user, no argument: not one of their values is on a metric."""
    secret = "4f5e-secret"
    with runtime_of(metered) as runtime:
        with runtime.session(f"agent-{secret}", f"goal {secret}", subject=f"user-{secret}") as session:
            session.call("ticket.get", lookup, secret)
            with pytest.raises(CallRefused):
                session.call(secret, lookup, secret)
            with pytest.raises(ApprovalRequired):
                session.call("refund.create", lookup, secret)
    told = json.dumps(metered.attributes())
    assert secret not in told
    assert session.id not in told


def test_hostile_names_reach_a_collector(collector: Collector) -> None:
    """A lone surrogate or a huge name in a tool or an error does not lose the export."""
    exporter = OTLPMetricExporter(endpoint=f"{collector.url}/v1/metrics")
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)], shutdown_on_exit=False)

    class BadError(LookupError):
        pass

    def tool(ticket_id: str) -> None:
        raise BadError

    BadError.__qualname__ = "Bad\ud800" + "y" * 5000

    tool.__qualname__ = "no\ud800" + "x" * 5000
    with Runtime(Atlas.from_dict(ATLAS), meter_provider=provider) as runtime, runtime.session() as session:
        with pytest.raises(LookupError):
            session.call("ticket.get", tool, "T")
        with pytest.raises(CallRefused):
            session.call("bad\ud800", lookup, "T")
    provider.shutdown()
    (point,) = collector.points("gen_ai.execute_tool.duration")
    told = attributes(point)
    assert told["gen_ai.tool.name"].startswith("no?")
    assert told["error.type"].startswith("Bad?")
    assert all(len(value) <= 1024 for value in told.values())
    assert sum(point.as_int for point in collector.points("cra.decisions")) == 2


class Hostile:
    """A provider, a meter and every instrument in one, that does what it is told to at one step."""

    def __init__(self, step: str, does: Any) -> None:
        self.step = step
        self.does = does
        self.made: list[str] = []

    def _at(self, step: str) -> Any:
        if step == self.step:
            return self.does()
        return self

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        return self._at("meter")

    def record(self, *args: Any, **kwargs: Any) -> Any:
        return self._at("record")

    def _create(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.made.append(name)
        return self._at("create")

    create_histogram = create_observable_counter = create_observable_gauge = _create


def _raises() -> Any:
    raise RuntimeError("no metrics today")


def _unhashable(step: str, does: Any) -> Any:
    class Unhashable(Hostile):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("nor is it equal to anything")

    return Unhashable(step, does)


@pytest.mark.parametrize("step", ["meter", "create", "record"])
@pytest.mark.parametrize(
    "does", [_raises, lambda: time.sleep(0.01), lambda: None, lambda: "many"], ids=["raises", "slow", "none", "text"]
)
@pytest.mark.parametrize("make", [Hostile, _unhashable])
def test_a_hostile_provider_changes_no_decision(make: Any, step: str, does: Any) -> None:
    """One that raises, waits, or gives nothing usable: every call comes out as without it, and the trace is whole."""
    hostile = make(step, does)
    asked: list[str] = []

    def approver(pending: Pending) -> bool:
        asked.append(pending.action_id)
        return True

    terms: dict[str, Any] = {"meter_provider": hostile, "approver": approver}
    with Runtime(Atlas.from_dict(ATLAS), **terms) as runtime, runtime.session() as session:
        assert session.call("ticket.get", lookup, "T") == "T"
        assert asyncio.run(session.acall("ticket.get", _alookup, "T")) == "T"
        assert session.call("refund.create", lookup, "T") == "T"
        with pytest.raises(ZeroDivisionError):
            session.call("ticket.get", lambda: 1 // 0)
        with pytest.raises(ActionDenied, match="Never"):
            session.call("ticket.delete", lookup, "T")
        assert session.verify().intact
    assert asked == ["refund.create"]
    assert [event.event_type for event in session.events].count("action.denied") == 1


def test_instruments_are_made_once() -> None:
    """However many runtimes and calls there are; two providers have each their own."""
    hostile, other = Hostile("", None), Hostile("", None)
    for provider in (hostile, hostile, other):
        given: Any = provider
        with Runtime(Atlas.from_dict(ATLAS), meter_provider=given) as runtime, runtime.session() as session:
            session.call("ticket.get", lookup, "T")
    names = [
        "gen_ai.execute_tool.duration",
        "cra.call.overhead",
        "cra.decisions",
        "cra.trace.events",
        "cra.trace.dropped",
        "cra.approvals.pending",
    ]
    assert hostile.made == other.made == names


def test_spans_and_metrics_of_one_call(metered: Metered) -> None:
    """With both, the span is current while the tool runs, and its traceparent is in the trace."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    inside: list[bool] = []

    def tool() -> None:
        inside.append(trace.get_current_span().get_span_context().is_valid)

    with runtime_of(metered, tracer_provider=TracerProvider()) as runtime, runtime.session() as session:
        session.call("ticket.get", tool)
        assert "traceparent" in [e for e in session.events if e.event_type == "action.requested"][0].payload
    with runtime_of(metered) as runtime, runtime.session() as session:
        session.call("ticket.get", tool)
    assert inside == [True, False]
    assert metered.decisions() == {"allow": 2}


def test_dropped_events(metered: Metered) -> None:
    """What the trace could not keep is counted at once, before the trace itself can say so."""
    sink = FailingSink()
    terms: dict[str, Any] = {"audit_deadline_seconds": 0, "on_audit_failure": "allow", "trace": sink}
    with runtime_of(metered, **terms) as runtime, runtime.session() as session:
        sink.failing = True
        assert session.call("ticket.get", lookup, "T") == "T"
        assert list(metered.values("cra.trace.dropped").values()) == [3]
        sink.failing = False
        session.call("ticket.get", lookup, "T")
        gaps = [event.payload["count"] for event in session.events if event.event_type == "error.occurred"]
    assert gaps == [3]
    assert metered.decisions() == {"allow": 2}


def test_a_refusal_for_want_of_a_trace(metered: Metered) -> None:
    """A call that was allowed, and whose decision could not be kept, is counted as denied."""
    sink = FailingSink()
    with runtime_of(metered, trace=sink, audit_deadline_seconds=0) as runtime, runtime.session() as session:
        sink.failing = True
        with pytest.raises(CallRefused):
            session.call("ticket.get", lookup, "T")
        sink.failing = False
    assert metered.decisions() == {"deny/audit_unavailable": 1}
    assert metered.points("gen_ai.execute_tool.duration") == []


@pytest.mark.parametrize("kept", ["memory", "file"])
def test_pending_approvals(metered: Metered, tmp_path: Path, kept: str) -> None:
    """Those that wait now, before there is any call; not the answered, not the expired; nothing once it is closed."""
    clock = FrozenClock(NOON)
    terms: dict[str, Any] = {"clock": clock, "approvals": None if kept == "memory" else tmp_path / "questions.db"}

    def waiting() -> list[int]:
        return list(metered.values("cra.approvals.pending").values())

    with runtime_of(metered, **terms) as runtime:
        assert waiting() == [0]
        session = runtime.session(keep=True)
        for amount in (1, 2, 3):
            with pytest.raises(ApprovalRequired):
                session.call("refund.create", lookup, amount)
        assert waiting() == [3]
        runtime.approvals.approve(runtime.approvals.list()[0].pending.approval_id, by="ann")
        assert waiting() == [2]
        if kept == "file":
            with runtime_of(metered, **terms):  # another one with the same file has the same questions
                assert waiting() == [2]
        with runtime_of(metered, clock=clock) as another, another.session() as other:
            with pytest.raises(ApprovalRequired):
                other.call("refund.create", lookup, 1)
            assert waiting() == [3]
        clock.advance(86_401)
        assert waiting() == [0]
        session.detach()
    assert waiting() == []


def test_a_store_that_cannot_be_read(metered: Metered) -> None:
    """Nothing is said of it, and nothing is made up; one that does not count is read."""

    class Foreign:
        """A store of another kind, which only has what every store has."""

        def __init__(self) -> None:
            self.inner = MemoryApprovals()
            self.is_away = False

        def listed(self, state: State | None = None, session_id: str | None = None) -> list[Approval]:
            if self.is_away:
                raise ApprovalError("away")
            return self.inner.listed(state, session_id)

        def __getattr__(self, name: str) -> Any:
            if name == "waiting":
                raise AttributeError(name)
            return getattr(self.inner, name)

    store: Any = Foreign()
    with runtime_of(metered, approvals=store) as runtime, runtime.session() as session:
        with pytest.raises(ApprovalRequired):
            session.call("refund.create", lookup, 1)
        assert list(metered.values("cra.approvals.pending").values()) == [1]
        store.is_away = True
        assert metered.points("cra.approvals.pending") == []
        store.is_away = False


def test_without_a_provider_nothing_is_loaded(tmp_path: Path) -> None:
    """Metrics cost no import where nobody asked for them, and a provider that is set later is found."""
    program = f"""
import json, sys
from cra_middleware import Atlas, Runtime
with Runtime(Atlas.from_dict(json.loads({json.dumps(json.dumps(ATLAS))}))) as runtime, runtime.session() as session:
    session.call("ticket.get", lambda n: n, 1)
    assert not [name for name in sys.modules if name.startswith("opentelemetry.metrics")]
    assert "cra_middleware.metrics" not in sys.modules
    from opentelemetry import metrics
    session.call("ticket.get", lambda n: n, 1)
    assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
    assert "cra_middleware.metrics" not in sys.modules
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    session.call("ticket.get", lambda n: n, 1)
    told = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    print(sorted(metric.name for metric in told))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "'cra.decisions'" in done.stdout


CONFIGURED = """
import json
from cra_middleware import Atlas, Runtime, configure_otel
{before}
provider = configure_otel("my-service", {url!r})
with Runtime(Atlas.from_dict(json.loads({atlas!r}))) as runtime, runtime.session() as session:
    session.call("ticket.get", lambda ticket_id: ticket_id, "T")
{after}
"""


@pytest.mark.parametrize("after", ["provider.shutdown()", "assert provider.force_flush()", ""])
def test_configure_otel_exports_metrics(collector: Collector, after: str) -> None:
    """One line is all a program needs; they are there when the provider is shut down, flushed, or the program ends."""
    _run(CONFIGURED.format(before="", url=collector.url, atlas=json.dumps(ATLAS), after=after))
    assert [point.as_int for point in collector.points("cra.decisions")] == [1]
    assert [attributes(point)["gen_ai.tool.name"] for point in collector.points("gen_ai.execute_tool.duration")] == [
        "<lambda>"
    ]
    assert collector.services == {"my-service"}
    assert [span.name for span in collector.named("execute_tool")] == ["execute_tool <lambda>"]


OWN = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
metrics.set_meter_provider(MeterProvider())
mine = metrics.get_meter_provider()
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (OWN, "assert metrics.get_meter_provider() is mine"),
        ("import os; os.environ['OTEL_METRICS_EXPORTER'] = 'none'", "provider.shutdown()"),
    ],
)
def test_configure_otel_leaves_metrics_alone(collector: Collector, before: str, after: str) -> None:
    """A meter provider that is there already stays, and an operator may do without metrics."""
    _run(CONFIGURED.format(before=before, url=collector.url, atlas=json.dumps(ATLAS), after=after))
    assert collector.metrics == []
    assert collector.named("execute_tool")


def _run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
