"""Scenes are built once and copied: each test may spoil its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evidence.scene import Scene, build


@pytest.fixture(scope="session")
def spans() -> list[Any]:
    """What telemetry saw of the plain scene; empty where there is no SDK."""
    return []


@pytest.fixture(scope="session")
def made_plain(tmp_path_factory: pytest.TempPathFactory, spans: list[Any]) -> Scene:
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ImportError:  # the core is tested without it
        return build(tmp_path_factory.mktemp("plain"), signed=False)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    scene = build(tmp_path_factory.mktemp("plain"), signed=False, tracer_provider=provider)
    spans += exporter.get_finished_spans()
    return scene


@pytest.fixture(scope="session")
def made_signed(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return build(tmp_path_factory.mktemp("signed"), signed=True)


@pytest.fixture
def plain(made_plain: Scene, tmp_path: Path) -> Scene:
    """Two sessions of which nobody signed anything."""
    return made_plain.copy(tmp_path / "plain")


@pytest.fixture
def signed(made_signed: Scene, tmp_path: Path) -> Scene:
    """The same, with a ledger."""
    return made_signed.copy(tmp_path / "signed")
