"""``hours`` and ``outside``: exactly one of them holds, always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware._clock import parse_us
from cra_middleware.atlas.manifest import TimeWindow
from cra_middleware.atlas.schedule import DAYS, Schedule, parse_schedule
from cra_middleware.carp.time_windows import time_window_test

MONDAY = parse_us("2026-01-05T00:00:00+00:00")
QUARTER = 15 * 60_000_000
TIMES = st.sampled_from(["00:00", "00:15", "06:00", "09:00", "12:30", "18:00", "23:45", "24:00"])


@given(
    st.sets(st.sampled_from(DAYS), min_size=1),
    TIMES.filter(lambda time: time != "24:00"),
    TIMES,
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
)
def test_inside_or_outside(days: set[str], start: str, end: str, zone: str) -> None:
    """Every quarter of an hour of a week is in exactly one window."""
    if start == end:
        return
    schedule = Schedule(tuple(day for day in DAYS if day in days), start, end, zone)
    windows = [schedule.inside(), *schedule.outside()]
    tests = [time_window_test(TimeWindow.model_validate(window)) for window in windows]
    for step in range(7 * 96):
        assert sum(test(MONDAY + step * QUARTER) for test in tests) == 1, step


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("mon-fri 09:00-18:00 Europe/Berlin", (("mon", "tue", "wed", "thu", "fri"), "09:00", "18:00", "Europe/Berlin")),
        ("9:00-18:00", (DAYS, "09:00", "18:00", "UTC")),
        ("fri-mon", (("mon", "fri", "sat", "sun"), "00:00", "24:00", "UTC")),
        ("Mon,WED 22:00-06:00", (("mon", "wed"), "22:00", "06:00", "UTC")),
        ("mon-tue,sat Asia/Tokyo", (("mon", "tue", "sat"), "00:00", "24:00", "Asia/Tokyo")),
    ],
)
def test_how_it_is_written(text: str, schedule: tuple[object, ...]) -> None:
    """Days, times, zone."""
    assert tuple(parse_schedule(text)) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UTC",
        "mon-xyz",
        "mon 25:00-26:00",
        "mon 09:00",
        "mon-fri 09:00-18:00 Europe/Berlin now",
        "24:00-06:00",
        "mon-fri 09:00-18:00 Mars/Olympus",
        "09:00-18:00 mon",
        "12:00-12:00",
    ],
)
def test_what_is_no_schedule(text: str) -> None:
    """Each says what to write."""
    with pytest.raises(ValueError, match=r"mon-fri 09:00-18:00 Europe/Berlin"):
        parse_schedule(text)
