"""Waiting for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

LATE = 1000.0
"""Seconds that no test waits."""


def until(condition: Callable[[], object], what: str) -> None:
    """Look again and again, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"not within a minute: {what}"
        time.sleep(0.005)
