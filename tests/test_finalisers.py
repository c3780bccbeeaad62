"""The garbage collector comes while an SDK holds a lock of its own, and what it finalises makes a call, or ends one."""

from __future__ import annotations

import gc
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the telemetry tests need the otel extra")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics._internal import aggregation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from cra_middleware import Atlas, Runtime, governed
from tests.conftest import manifest


@governed("ticket.get")
def items() -> Iterator[int]:
    yield from (1, 2)


@types.coroutine
def waiting() -> Iterator[None]:
    yield


def stream(session: Any) -> Any:
    made = items()
    next(made)
    return made


def coroutine(session: Any) -> Any:
    async def tool() -> None:
        await waiting()

    made = session.acall("ticket.get", tool)
    made.send(None)
    return made


def caller(session: Any) -> Any:
    class Calls:
        def __del__(self) -> None:
            session.call("ticket.get", lambda: 1)

    return Calls()


class Collecting:
    """Collects garbage once, in the middle of what is done under a lock of an SDK's."""

    def __init__(self) -> None:
        self.is_due = False

    def collect(self) -> None:
        if self.is_due:
            self.is_due = False
            gc.collect()


class Locked(SpanExporter):
    """As the SDK's own in memory: exports under a lock."""

    def __init__(self, collecting: Collecting) -> None:
        self._collecting = collecting
        self._lock = threading.Lock()
        self.names: list[str] = []

    def export(self, spans: Any) -> SpanExportResult:
        with self._lock:
            self._collecting.collect()
            self.names.extend(span.name for span in spans)
        return SpanExportResult.SUCCESS


@pytest.fixture
def no_collector() -> Iterator[None]:
    """It comes when a test wants it, and not before."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("left", "where"),
    [
        *((left, where) for left in (stream, coroutine) for where in ("metrics", "spans", "a reader")),
        (caller, "metrics"),
        (caller, "spans"),
    ],
)
def test_garbage_that_is_found_under_a_lock(
    monkeypatch: pytest.MonkeyPatch, where: str, left: Callable[[Any], Any]
) -> None:
    """Nobody waits for a lock of their own thread's; the trace has every call, and telemetry goes on."""
    collecting, reader = Collecting(), InMemoryMetricReader()
    name = "HistogramDataPoint" if where == "a reader" else "bisect_left"
    called = getattr(aggregation, name)

    def under_the_lock(*given: Any, **named: Any) -> Any:
        collecting.collect()
        return called(*given, **named)

    terms: dict[str, Any]
    exporter = Locked(collecting)
    if where != "spans":
        monkeypatch.setattr(aggregation, name, under_the_lock)  # that of one histogram
        terms = {"meter_provider": MeterProvider([reader])}
    else:
        terms = {"tracer_provider": TracerProvider()}
        terms["tracer_provider"].add_span_processor(SimpleSpanProcessor(exporter))
    kinds = list[str]()

    def work() -> None:
        with Runtime(Atlas.from_dict(manifest()), **terms) as runtime, runtime.session("bot") as session:
            session.call("ticket.get", lambda: 1)
            ring: list[Any] = [left(session)]
            ring.append(ring)
            del ring
            collecting.is_due = True
            if where == "a reader":
                reader.get_metrics_data()
            session.call("ticket.get", lambda: 1)
            assert not collecting.is_due
            session.call("ticket.get", lambda: 1)
            kinds.extend(event.event_type for event in session.events)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert kinds.count("action.approved") == 4
    assert kinds.count("action.executed") + kinds.count("action.failed") == 4
    assert kinds.count("action.failed") == (left is coroutine)
    assert exporter.names.count("execute_tool <lambda>") >= (3 if where == "spans" else 0)
