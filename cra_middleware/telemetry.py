"""TRACE to OpenTelemetry: one ``execute_tool`` span a call, one ``carp.resolve`` span a resolution, and the numbers.

Telemetry is a copy, and a witness: every TRACE event goes onto its span as a span event with its hash. It never
decides, blocks or raises; TRACE is written first. Without an SDK nothing is made at all. The global providers are
never set behind the user's back: pass ``tracer_provider=`` and ``meter_provider=``, set them yourself, or call
``configure_otel``.

Names follow the GenAI semantic conventions (status: Development), whose Python constants are deprecated, so they
stand here as text.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from cra_middleware.carp.call import ToolCall
from cra_middleware.observer import Operation, Subject, Unobserved
from cra_middleware.trace.event import Sealed
from cra_middleware.trace.let_run import LetRun

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from cra_middleware.metrics import Instruments

INSTRUMENTATION = "cra_middleware"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"

_P = TypeVar("_P")
_T = TypeVar("_T")
_logger = logging.getLogger("cra_middleware.telemetry")
_NOTHING = Unobserved()
_LAST_EXPORT_MILLIS = 5_000
"""How long the end of a program waits for a collector to take its last metrics, beside what its last spans take."""


def configure_otel(service_name: str, endpoint: str | None = None) -> SdkTracerProvider:
    """Export spans and metrics over OTLP/HTTP: sets the global providers for people who have none yet.

    A meter provider that is set already stays, and ``OTEL_METRICS_EXPORTER=none`` leaves metrics out, for a collector
    that takes none. ``shutdown`` and ``force_flush`` of what is returned are those of both.

    Args:
        service_name: what the service is called in the collector.
        endpoint: the collector's base URL, ``http://localhost:4318``; without it, what
            ``OTEL_EXPORTER_OTLP_ENDPOINT`` says, else that default.

    Raises:
        RuntimeError: when a tracer provider is set already, or the ``otel`` extra is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as Provider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RuntimeError("configure_otel needs the OpenTelemetry SDK: pip install 'cra-middleware[otel]'") from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        raise RuntimeError("a tracer provider is set already; pass your own as Runtime(tracer_provider=...)")
    url = None if endpoint is None else endpoint.rstrip("/")
    resource = Resource.create({"service.name": service_name})
    provider = Provider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url and f"{url}/v1/traces")))
    trace.set_tracer_provider(provider)
    if os.environ.get("OTEL_METRICS_EXPORTER") != "none":
        _export_metrics(provider, url and f"{url}/v1/metrics")
    return provider


def _export_metrics(provider: SdkTracerProvider, url: str | None) -> None:
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider as Provider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import SpanProcessor

    if not _is_empty(metrics.get_meter_provider()):
        return
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=url))
    meters = Provider([reader], provider.resource, shutdown_on_exit=False)

    class Alongside(SpanProcessor):
        """Sees no span; lets the tracer provider's end be the meter provider's."""

        def shutdown(self) -> None:
            meters.shutdown(_LAST_EXPORT_MILLIS)

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return meters.force_flush(timeout_millis)

    provider.add_span_processor(Alongside())
    metrics.set_meter_provider(meters)


class Telemetry:
    """The observer of a runtime. Its providers are looked up at each call: they may be set later."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        risk_tier: Callable[[str], str | None],
        *,
        waiting: tuple[object, Callable[[], int]] | None = None,
        decides: bool = True,
    ) -> None:
        """Send spans and metrics to these providers; None: the global one.

        Args:
            tracer_provider: where spans go.
            meter_provider: where metrics go.
            risk_tier: tells a declared action's.
            waiting: where the runtime's questions lie (by its equal another runtime has the same ones), and how many
                wait for a person.
            decides: whether calls are decided in this process: a decision is counted where it is made.
        """
        self._risk_tier = risk_tier
        self._decides = decides
        self._asked = waiting
        self._watched: object = None  # as long as this is held, the questions are counted
        self._tracers = _Lookup(
            tracer_provider, "opentelemetry.trace", "OTEL_PYTHON_TRACER_PROVIDER", _global_tracers, _tracer_of
        )
        self._meters = _Lookup(
            meter_provider, "opentelemetry.metrics", "OTEL_PYTHON_METER_PROVIDER", _global_meters, self._instruments_of
        )

    def begin(self) -> None:
        """Tell of the questions that wait, before there is any call."""
        self._meters.now()

    def close(self) -> None:
        """Tell of them no more."""
        self._asked = self._watched = None

    def call(self, call: ToolCall, subject: Subject, span_id: str, /) -> Operation:
        tracer, instruments = self._tracers.now(), self._meters.now()
        operation: Operation = _NOTHING
        if tracer is not None:
            from cra_middleware.spans import CallSpan

            risk_tier = self._risk_tier(call.action_id)
            operation = _guarded(operation, lambda: CallSpan(tracer, call, subject, span_id, risk_tier))
        if instruments is not None:
            from cra_middleware.metrics import MeasuredCall

            operation = MeasuredCall(operation, instruments, call.tool_name, self._decides)
        return operation

    def resolution(self, subject: Subject, span_id: str, /) -> Operation:
        tracer, instruments = self._tracers.now(), self._meters.now()
        operation: Operation = _NOTHING
        if tracer is not None:
            from cra_middleware.spans import ResolutionSpan

            operation = _guarded(operation, lambda: ResolutionSpan(tracer, subject, span_id))
        if instruments is not None:
            from cra_middleware.metrics import Measured

            operation = Measured(operation, instruments)
        return operation

    def session(self, subject: Subject, events: Sequence[Sealed], /) -> None:
        if not events:
            return
        instruments = self._meters.now()
        if instruments is not None:
            instruments.kept(events)
        tracer = self._tracers.now()
        if tracer is not None:
            from cra_middleware.spans import quietly, session_events

            quietly(lambda: session_events(tracer, subject, events))

    def ran(self, call: LetRun, duration_ms: int, error_type: str | None, /) -> None:
        instruments = self._meters.now()
        if instruments is not None:
            instruments.ran(call.tool_name, duration_ms * 1_000_000, error_type)

    def missed(self, events: int, /) -> None:
        instruments = self._meters.now()
        if instruments is not None:
            instruments.missed(events)

    def _instruments_of(self, provider: MeterProvider) -> Instruments | None:
        if _is_empty(provider):
            return None
        from cra_middleware.metrics import Waiting, instruments_of

        def meter() -> Meter:
            return provider.get_meter(INSTRUMENTATION, _version(), schema_url=SCHEMA_URL)

        instruments = instruments_of(provider, meter)
        if self._asked is not None:
            self._watched = waiting = Waiting(*self._asked)
            instruments.watch(waiting)
        return instruments


class _Lookup(Generic[_P, _T]):
    """What was made of the provider that is in force now; made once of each."""

    def __init__(
        self,
        given: _P | None,
        module: str,
        variable: str,
        in_force: Callable[[], _P],
        make: Callable[[_P], _T | None],
    ) -> None:
        """Nobody has set a provider where neither ``module`` was loaded nor the environment has the ``variable``."""
        self._given = given
        self._module = module
        self._is_named = variable in os.environ  # not asked for each call: that costs more than all the rest
        self._in_force = in_force
        self._make = make
        self._known: tuple[_P, _T | None] | None = None
        self._has_failed = False

    def now(self) -> _T | None:
        """What was made; None where there is no provider, or one that cannot be used."""
        provider = self._given
        if provider is None:
            if self._has_failed or (self._module not in sys.modules and not self._is_named):
                return None  # to look would load OpenTelemetry
            try:
                provider = self._in_force()
            except Exception:  # the environment may name anything: it must not cost a call
                self._has_failed = True
                _logger.exception("telemetry is off: there is no provider as the environment names it")
                return None
        known = self._known
        if known is not None and known[0] is provider:
            return known[1]
        made: _T | None = None
        try:
            made = self._make(provider)
        except Exception:  # a provider may be foreign code: it must not cost a call
            _logger.exception("telemetry is off: its provider cannot be used")
        self._known = (provider, made)
        return made


def _global_tracers() -> TracerProvider:
    from opentelemetry import trace

    return trace.get_tracer_provider()


def _tracer_of(provider: TracerProvider) -> Tracer | None:
    from opentelemetry import trace

    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None  # no SDK, or none set yet
    return provider.get_tracer(INSTRUMENTATION, _version(), schema_url=SCHEMA_URL)


def _global_meters() -> MeterProvider:
    from opentelemetry import metrics

    return metrics.get_meter_provider()


def _is_empty(provider: MeterProvider) -> bool:
    """Whether there is no SDK, or none set yet. The class of the latter has no public name."""
    from opentelemetry import metrics

    return isinstance(provider, metrics.NoOpMeterProvider) or type(provider).__name__ == "_ProxyMeterProvider"


def _version() -> str:
    from importlib.metadata import version

    return version("cra-middleware")


def _guarded(otherwise: Operation, make: Callable[[], Operation]) -> Operation:
    from cra_middleware.spans import unnested

    made = [otherwise]
    try:
        unnested(lambda: made.append(make()))
    except Exception:  # a tracer that fails must not cost a call
        _logger.exception("no span could be started")
    return made[-1]
