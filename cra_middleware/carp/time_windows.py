"""Time windows, by the clock on the wall of their zone: start inclusive, end exclusive, may wrap midnight.

A skipped hour does not exist and a repeated one counts twice, as for the person who reads the clock. ``days`` are
those on which the window opened.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from cra_middleware.atlas.manifest import TimeWindow
from cra_middleware.atlas.schedule import DAYS

_DAY_S = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SEARCH_DAYS = 8


def time_window_test(window: TimeWindow) -> Callable[[int], bool]:
    """Whether the window is open at a time, given in microseconds since the epoch."""
    zone = ZoneInfo(window.timezone)
    start, end = _seconds(window.start, 0), _seconds(window.end, _DAY_S)
    days = frozenset(range(7) if window.days is None else (DAYS.index(day) for day in window.days))

    def is_open(now_us: int) -> bool:
        wall = (_EPOCH + timedelta(microseconds=now_us)).astimezone(zone)
        second, day = wall.hour * 3600 + wall.minute * 60 + wall.second, wall.weekday()
        if start < end:
            return start <= second < end and day in days
        return (second >= start and day in days) or (second < end and (day - 1) % 7 in days)

    return is_open


def opens_after(window: TimeWindow, now_us: int) -> int | None:
    """The first time from ``now_us`` on at which the window is open; None when it does not open within eight days."""
    is_open = time_window_test(window)
    if is_open(now_us):
        return now_us
    zone = ZoneInfo(window.timezone)
    wall = (_EPOCH + timedelta(microseconds=now_us)).astimezone(zone)
    for ahead in range(_SEARCH_DAYS + 1):
        day = wall.date() + timedelta(days=ahead)
        for candidate in sorted(_openings(datetime(day.year, day.month, day.day), window, zone)):
            if candidate > now_us and is_open(candidate):
                return candidate
    return None


def _openings(day: datetime, window: TimeWindow, zone: ZoneInfo) -> set[int]:
    """When a window may open on a day: at its start, at midnight, where a skipped hour ends, and both times when the
    clock shows it twice."""
    found: set[int] = set()
    for second in {0, _seconds(window.start, 0)}:
        naive = day + timedelta(seconds=second)
        for fold in (0, 1):
            utc = naive.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc)
            found.add((utc - _EPOCH) // timedelta(microseconds=1))
    for change in _changes(day, zone):
        found.add((change - _EPOCH) // timedelta(microseconds=1))
    return found


def _changes(day: datetime, zone: ZoneInfo) -> list[datetime]:
    """The instants of a day at which the zone's offset changes."""
    low = day.replace(tzinfo=zone).astimezone(timezone.utc)
    high = (day + timedelta(days=1)).replace(tzinfo=zone).astimezone(timezone.utc)
    before = low.astimezone(zone).utcoffset()
    if before == high.astimezone(zone).utcoffset():
        return []
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return [high.replace(microsecond=0)]


def _seconds(text: str | None, default: int) -> int:
    if text is None:
        return default
    hours, minutes, seconds = (int(part) for part in f"{text}:00".split(":")[:3])
    return hours * 3600 + minutes * 60 + seconds
