"""``hours`` and ``outside`` of a rule: ``mon-fri 09:00-18:00 Europe/Berlin``, and all the time that is not.

Days, times and zone, in this order; days or times may be left out, and the zone is UTC unless it is named. Times
may wrap midnight; days are then those on which the window opens.
"""

from __future__ import annotations

import re
from typing import NamedTuple, get_args

from pydantic import JsonValue, ValidationError

from cra_middleware.atlas.manifest import Day, TimeWindow

DAYS: tuple[Day, ...] = get_args(Day)
_TIMES = re.compile(r"([0-9]{1,2}:[0-9]{2})-([0-9]{1,2}:[0-9]{2})")
_EXAMPLE = "write for example: mon-fri 09:00-18:00 Europe/Berlin"
Window = dict[str, JsonValue]


class Schedule(NamedTuple):
    """Days and times of a zone."""

    days: tuple[Day, ...]
    start: str
    end: str
    zone: str

    def inside(self) -> Window:
        """The window itself."""
        return self._window(self.days, self.start, self.end)

    def outside(self) -> list[Window]:
        """Windows that are open exactly when it is not; they do not overlap."""
        rest = tuple(day for day in DAYS if day not in self.days)
        windows: list[Window] = []
        if self.start < self.end:
            if not rest and self.start > "00:00" and self.end < "24:00":
                return [self._window(DAYS, self.end, self.start)]
            if self.start > "00:00":
                windows.append(self._window(self.days, "00:00", self.start))
            if self.end < "24:00":
                windows.append(self._window(self.days, self.end, "24:00"))
            if rest:
                windows.append(self._window(rest, "00:00", "24:00"))
            return windows
        windows.append(self._window(DAYS, self.end, self.start))
        if rest:
            windows.append(self._window(rest, self.start, self.end))
        return windows

    def _window(self, days: tuple[Day, ...], start: str, end: str) -> Window:
        window: Window = {}
        if start != "00:00" or end != "24:00":
            window |= {"start": start, "end": end}
        window["timezone"] = self.zone
        if days != DAYS:
            window["days"] = list(days)
        return window


def parse_schedule(text: str) -> Schedule:
    """Read ``hours`` or ``outside``.

    Raises:
        ValueError: when it is none; the message says what to write.
    """
    words = text.split()
    days: tuple[Day, ...] = DAYS
    start, end, zone = "00:00", "24:00", "UTC"
    named = False
    if words and _TIMES.fullmatch(words[0]) is None and words[0][:3].lower() in DAYS:
        days, named = _days(words.pop(0)), True
    times = _TIMES.fullmatch(words[0]) if words else None
    if times is not None:
        start, end, named = times[1].zfill(5), times[2].zfill(5), True
        words.pop(0)
    if words:
        zone = words.pop(0)
    if words or not named:
        raise ValueError(f"{text[:80]!r} names no days and times; {_EXAMPLE}")
    try:
        TimeWindow(start=start, end=end, timezone=zone)
    except ValidationError as error:
        raise ValueError(
            f"{text[:80]!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}; {_EXAMPLE}"
        ) from None
    return Schedule(days, start, end, zone)


def _days(text: str) -> tuple[Day, ...]:
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part[:20]!r} is no day; {_EXAMPLE}")
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        found.update((begin + step) % 7 for step in range(length + 1))
    return tuple(day for place, day in enumerate(DAYS) if place in found)
