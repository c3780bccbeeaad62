"""Spans and metrics of a command that runs on, where the environment says to where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cra_middleware.telemetry import configure_otel

_PLACES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")


@contextmanager
def exporting(service_name: str, complain: Callable[[str], None]) -> Iterator[None]:
    """They go out while it is entered; ``complain`` is told why they cannot, and may raise.

    ``OTEL_SERVICE_NAME`` comes before ``service_name``: an operator knows which of several it is.
    """
    if not any(os.environ.get(name) for name in _PLACES):
        yield
        return
    try:
        provider = configure_otel(os.environ.get("OTEL_SERVICE_NAME") or service_name)
    except RuntimeError as error:
        complain(str(error))
        yield
        return
    try:
        yield
    finally:
        provider.shutdown()
