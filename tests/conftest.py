"""What every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from cra_middleware import Atlas, Runtime
from cra_middleware.testing import FrozenClock

settings.register_profile("ci", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

# a shell's background job ignores Ctrl-C, and so would every program that the tests start, and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NOON = "2026-01-05T12:00:00+00:00"
CONFORMANCE = Path(os.environ.get("CRA_CONFORMANCE", Path(__file__).resolve().parents[2] / "shared" / "conformance"))


def manifest(**parts: Any) -> dict[str, Any]:
    """A small manifest: the named parts over actions for tickets and refunds."""
    ids = ("ticket.get", "ticket.list", "ticket.update", "ticket.delete", "refund.create")
    return {
        "atlas_version": "1.0",
        "atlas_id": "com.example.tests",
        "version": "1.0.0",
        "name": "Tests",
        "description": "An Atlas for tests",
        "actions": [{"action_id": name, "name": name, "description": name} for name in ids],
        "policies": [
            {"policy_id": "allow-all", "type": "allow"},
            {"policy_id": "no-delete", "type": "deny", "actions": ["*.delete"], "parameters": {"reason": "Never."}},
        ],
        **parts,
    }


def policies(*extra: dict[str, Any]) -> list[dict[str, Any]]:
    """Allow everything, and ``extra``."""
    return [{"policy_id": "allow-all", "type": "allow"}, *extra]


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(NOON)


@pytest.fixture
def runtime(clock: FrozenClock) -> Any:
    with Runtime(Atlas.from_dict(manifest()), clock=clock) as made:
        yield made


@pytest.fixture
def conformance() -> Path:
    """The shared vectors; absent outside the workplace that holds them."""
    if not CONFORMANCE.is_dir():
        pytest.skip(f"no conformance vectors at {CONFORMANCE}; set CRA_CONFORMANCE to their folder")
    return CONFORMANCE
