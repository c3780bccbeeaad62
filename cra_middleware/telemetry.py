"""TRACE to OpenTelemetry: one ``execute_tool`` span a call, one ``carp.resolve`` span a resolution.

Telemetry is a copy, and a witness: every TRACE event goes onto its span as a span event with its hash. It never
decides, blocks or raises; TRACE is written first. Without an SDK nothing is made at all. The global provider is
never set behind the user's back: pass ``tracer_provider=``, set one yourself, or call ``configure_otel``.

Attribute names follow the GenAI semantic conventions (status: Development), whose Python constants are
deprecated, so they stand here as text.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cra_middleware.carp.call import ToolCall
from cra_middleware.observer import Operation, Subject, Unobserved
from cra_middleware.trace.event import Sealed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.trace import Tracer, TracerProvider

INSTRUMENTATION = "cra_middleware"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"

_logger = logging.getLogger("cra_middleware.telemetry")
_NOTHING = Unobserved()
_NAMED = "OTEL_PYTHON_TRACER_PROVIDER"


def configure_otel(service_name: str, endpoint: str | None = None) -> SdkTracerProvider:
    """Export spans over OTLP/HTTP: sets the global tracer provider for people who have none yet.

    Args:
        service_name: what the service is called in the collector.
        endpoint: the collector's base URL, ``http://localhost:4318``; without it, what
            ``OTEL_EXPORTER_OTLP_ENDPOINT`` says, else that default.

    Raises:
        RuntimeError: when a provider is set already, or the ``otel`` extra is not installed.
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
    url = None if endpoint is None else endpoint.rstrip("/") + "/v1/traces"
    provider = Provider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    trace.set_tracer_provider(provider)
    return provider


class Telemetry:
    """The observer of a runtime. Its tracer is looked up at each call: a provider may be set later."""

    def __init__(self, provider: TracerProvider | None, risk_tier: Callable[[str], str | None]) -> None:
        """Send spans to ``provider`` (None: the global one); ``risk_tier`` tells a declared action's."""
        self._provider = provider
        self._risk_tier = risk_tier
        self._known: tuple[TracerProvider, Tracer] | None = None

    def call(self, call: ToolCall, subject: Subject, span_id: str, /) -> Operation:
        tracer = self._tracer()
        if tracer is None:
            return _NOTHING
        from cra_middleware.spans import CallSpan

        return _guarded(CallSpan, tracer, call, subject, span_id, self._risk_tier(call.action_id))

    def resolution(self, subject: Subject, span_id: str, /) -> Operation:
        tracer = self._tracer()
        if tracer is None:
            return _NOTHING
        from cra_middleware.spans import ResolutionSpan

        return _guarded(ResolutionSpan, tracer, subject, span_id)

    def session(self, subject: Subject, events: Sequence[Sealed], /) -> None:
        tracer = self._tracer()
        if tracer is not None:
            from cra_middleware.spans import quietly, session_events

            quietly(lambda: session_events(tracer, subject, events))

    def _tracer(self) -> Tracer | None:
        if self._provider is None and "opentelemetry.trace" not in sys.modules and _NAMED not in os.environ:
            return None  # nobody has set a provider, and to look would load OpenTelemetry
        from opentelemetry import trace

        provider = self._provider or trace.get_tracer_provider()
        known = self._known
        if known is not None and known[0] is provider:
            return known[1]
        if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            return None  # no SDK, or none set yet
        from importlib.metadata import version

        tracer = provider.get_tracer(INSTRUMENTATION, version("cra-middleware"), schema_url=SCHEMA_URL)
        self._known = (provider, tracer)
        return tracer


def _guarded(make: Callable[..., Operation], *args: object) -> Operation:
    try:
        return make(*args)
    except Exception:  # a tracer that fails must not cost a call
        _logger.exception("no span could be started")
        return _NOTHING
