"""A meter provider of the SDK that can be asked what it was told."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the telemetry tests need the otel extra")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

Attributes = frozenset[tuple[str, Any]]


class Metered:
    """One provider, and its reader."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self.reader.get_metrics_data()
        scopes = [] if data is None else [scope for told in data.resource_metrics for scope in told.scope_metrics]
        metrics = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
        return [point for metric in metrics for point in metric.data.data_points]

    def values(self, name: str) -> dict[Attributes, Any]:
        """What was counted, or how often something was measured, by its attributes."""
        return {
            frozenset(point.attributes.items()): point.count if hasattr(point, "count") else point.value
            for point in self.points(name)
        }

    def decisions(self) -> dict[str, int]:
        """Calls by verdict, and the denied ones by code, too."""
        return {
            "/".join(str(point.attributes[key]) for key in sorted(point.attributes)): point.value
            for point in self.points("cra.decisions")
        }

    def attributes(self) -> list[tuple[str, Any]]:
        """Every attribute of every metric."""
        data = self.reader.get_metrics_data()
        assert data is not None
        return [
            item
            for told in data.resource_metrics
            for scope in told.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            for item in point.attributes.items()
        ]


@pytest.fixture
def metered() -> Metered:
    return Metered()
