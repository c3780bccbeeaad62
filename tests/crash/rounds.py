"""How long the crash suite takes: seconds by default, minutes with ``-m slow``, as long as wanted by a variable."""

from __future__ import annotations

import os

import pytest

FACTOR = float(os.environ.get("CRA_CRASH_ROUNDS", "1"))
"""Every number of rounds is multiplied by it."""


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrise ``rounds`` with a few by default, and with ``many`` when slow tests are asked for."""
    slow = pytest.param(round(many * FACTOR), marks=pytest.mark.slow, id="many")
    return pytest.mark.parametrize("rounds", [pytest.param(max(1, round(few * FACTOR)), id="few"), slow])
