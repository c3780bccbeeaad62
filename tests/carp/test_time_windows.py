"""Time windows by the clock on the wall, over daylight saving."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware._clock import parse_us
from cra_middleware.atlas.manifest import TimeWindow
from cra_middleware.atlas.words import window_in_words
from cra_middleware.carp.time_windows import opens_after, time_window_test
from cra_middleware.errors import ActionDenied
from cra_middleware.testing import FrozenClock
from tests.conftest import manifest

DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca"]
MINUTE = 60_000_000


def window(**parts: Any) -> TimeWindow:
    return TimeWindow.model_validate(parts)


def reference(made: TimeWindow, us: int) -> bool:
    """What a person with a clock and a calendar would say."""
    wall = datetime.fromtimestamp(us // 1_000_000, timezone.utc).astimezone(ZoneInfo(made.timezone))
    shown, today = wall.strftime("%H:%M:%S"), DAYS[wall.weekday()]
    yesterday = DAYS[wall.weekday() - 1]
    start, end = f"{made.start or '00:00'}:00"[:8], f"{made.end or '24:00'}:00"[:8]
    days = made.days or DAYS
    if start < end:
        return start <= shown < end and today in days
    return (shown >= start and today in days) or (shown < end and yesterday in days)


TIMES = st.tuples(st.integers(0, 23), st.sampled_from([0, 15, 30, 59])).map(lambda t: f"{t[0]:02}:{t[1]:02}")
WINDOWS = st.builds(
    lambda start, end, zone, days: {
        "start": start,
        **({} if start == end else {"end": end}),
        "timezone": zone,
        **({"days": sorted(days)} if days else {}),
    },
    TIMES,
    st.one_of(TIMES, st.just("24:00")),
    st.sampled_from(ZONES),
    st.sets(st.sampled_from(DAYS)),
)
# around the changes of the clocks of 2026, and far away from them
MOMENTS = st.one_of(
    *(
        st.integers(parse_us(day) // MINUTE - 3000, parse_us(day) // MINUTE + 3000).map(lambda minute: minute * MINUTE)
        for day in ("2026-03-29T01:00:00+00:00", "2026-10-25T01:00:00+00:00", "2026-04-04T15:00:00+00:00")
    ),
    st.integers(-(10**15), 4 * 10**15),
)


@given(WINDOWS, MOMENTS)
@example({"start": "02:30", "end": "03:30", "timezone": "Europe/Berlin"}, parse_us("2026-03-29T01:00:00+00:00"))
@example({"start": "02:30", "end": "03:30", "timezone": "Europe/Berlin"}, parse_us("2026-10-25T00:45:00+00:00"))
def test_as_a_person_reads_the_clock(parts: dict[str, Any], us: int) -> None:
    """For any window, at any time."""
    made = window(**parts)
    assert time_window_test(made)(us) is reference(made, us)


@settings(max_examples=60, deadline=None)
@given(WINDOWS, MOMENTS.filter(lambda us: us > 0))
@example({"start": "02:30", "end": "02:45", "timezone": "Europe/Berlin"}, parse_us("2026-10-25T02:50:00+02:00"))
@example({"start": "02:30", "end": "03:30", "timezone": "Europe/Berlin"}, parse_us("2026-03-29T00:00:00+01:00"))
def test_when_it_opens(parts: dict[str, Any], us: int) -> None:
    """The first open time: everything before is closed, and it is exact."""
    made = window(**parts)
    is_open = time_window_test(made)
    opens = opens_after(made, us)
    if opens is None:
        assert not any(reference(made, us + step * 15 * MINUTE) for step in range(8 * 96))
        return
    assert opens >= us
    assert is_open(opens)
    assert opens == us or not is_open(opens - 1)
    assert not any(is_open(at) for at in range(us, opens, 5 * MINUTE))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"start": "09:00", "end": "18:00", "timezone": "Europe/Berlin", "days": DAYS[:5]},
            "mon–fri 09:00–18:00 Europe/Berlin",
        ),
        ({"days": ["sat", "mon"]}, "mon, sat UTC"),
        ({"start": "22:00"}, "22:00–24:00 UTC"),
        ({}, "at any time, UTC"),
    ],
)
def test_in_words(parts: dict[str, Any], words: str) -> None:
    """As people say it."""
    assert window_in_words(window(**parts)) == words


@pytest.mark.parametrize(
    "parts",
    [
        {"timezone": "Europe/Berlim"},
        {"timezone": "../../etc/passwd"},
        {"timezone": ""},
        {"timezone": "Europe"},
        {"start": "09:00", "end": "09:00"},
        {"start": "09:00", "end": "09:00:00"},
        {"start": "24:00"},
        {"start": "9:00"},
        {"end": "24:01"},
        {"days": []},
        {"days": ["Mon"]},
        {"from": "09:00"},
    ],
)
def test_windows_that_never_load(parts: dict[str, Any]) -> None:
    """An unknown zone, an empty window, a day that is none."""
    with pytest.raises(ValueError, match=r"\S"):
        window(**parts)


def test_a_denial_says_when_again() -> None:
    """The nearest miss, in words."""
    hours = {"start": "09:00", "end": "18:00", "timezone": "Europe/Berlin", "days": DAYS[:5]}
    allow = {"policy_id": "office", "type": "allow", "conditions": {"time_window": hours}}
    atlas = Atlas.from_dict(manifest(policies=[allow]))
    for now, again in (
        ("2026-01-06T00:00:00+01:00", "9 h"),
        ("2026-01-09T18:00:00+01:00", "3 days"),
        ("2026-01-06T08:59:30+01:00", "1 min"),
    ):
        with Runtime(atlas, clock=FrozenClock(now)) as runtime, runtime.session() as session:
            with pytest.raises(ActionDenied) as denied:
                session.call("ticket.get", lambda: None)
            assert f"office allows it mon–fri 09:00–18:00 Europe/Berlin; again in {again}" in denied.value.reason
