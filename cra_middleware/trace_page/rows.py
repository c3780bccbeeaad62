"""Lines of a trace as rows to show: one for each call, one for each event outside calls.

The page's script makes the same rows from the embedded lines (``page.js``); a change here is a change there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cra_middleware.lines import Line
from cra_middleware.trace.calls import Calls, Folded
from cra_middleware.trace.profiles import Profile
from cra_middleware.trace_page import wording

MAX_UNCHECKED = 20_000
"""Bytes of a line that are embedded where the browser does not check it."""

_KEY = re.compile(r"\{([a-z_.]+)\}")
_ODD = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in wording.ODD) + "]")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d\.\d{3})\d{3}\+00:00", re.ASCII)


class Raw(NamedTuple):
    """One event as it stands in the file."""

    number: str
    """Its sequence number, or where an unreadable line is."""
    caption: str
    text: str


class Row(NamedTuple):
    """One row of the timeline; a cell's lines are separated by newlines."""

    time: str
    what: str
    decision: str
    why: str
    outcome: str
    look: str
    events: tuple[Raw, ...]


class _Piece(NamedTuple):
    entry: str
    """Of ``wording.EVENTS``."""
    time: str
    payload: Mapping[str, object]
    raw: Raw | None
    proven: bool


def rows_of(lines: Iterable[Line], profile: Profile) -> Iterator[Row]:
    """The rows of one session, as soon as each is complete."""
    day = ""
    for folded in _folded(lines, profile):
        row, day = _row(folded, day)
        yield row


def facts_of(started: Mapping[str, object]) -> list[tuple[str, str]]:
    """What a payload of ``session.started`` says about the session, by name."""
    return [(name, text) for name, template in wording.FACTS for text in _filled((template,), started)]


def plain(text: str) -> str:
    """``text``, cut when it is long, with what a reader could not see written as an escape."""
    if len(text) > wording.MAX_TEXT:
        text = f"{text[: wording.MAX_TEXT]} … ({len(text) - wording.MAX_TEXT} more characters)"
    return _ODD.sub(lambda match: escape(match[0]), text)


def escape(char: str) -> str:
    """A character that cannot be seen, as text."""
    return f"\\u{{{ord(char):x}}}"


def pieces_of(text: str) -> list[tuple[str, str]]:
    """``text`` as pairs of what can be shown as it is, and the odd character behind it."""
    places = [match.start() for match in _ODD.finditer(text)]
    starts = [0, *(place + 1 for place in places)]
    return [(text[start:end], text[end : end + 1]) for start, end in zip(starts, [*places, len(text)], strict=True)]


def clock(time: str) -> tuple[str, str]:
    """Day and time of day of a timestamp in our form; of any other, no day and the text itself."""
    match = _TIME.fullmatch(time)
    return ("", plain(time)) if match is None else (match[1], match[2])


def _folded(lines: Iterable[Line], profile: Profile) -> Iterator[Folded[_Piece]]:
    calls: Calls[_Piece] = Calls()
    for line in lines:
        problem = line.break_here
        if problem is not None:
            calls.alone(_Piece("broken", "", {"message": f"{problem.kind}: {problem.message}"}, None, True))
        if profile == "cra" and line.fields is not None:
            kind, span = (_string(line.fields, key) for key in ("event_type", "span_id"))
            calls.add(kind, span, _piece(line, profile))
        else:
            calls.alone(_piece(line, profile))
        yield from calls.ready()
    yield from calls.rest()


def _piece(line: Line, profile: Profile) -> _Piece:
    text = _embedded(line, profile)
    if line.fields is None:
        return _Piece("unreadable", "", {}, Raw(f"line {line.number}", "unreadable", text), True)
    kind, time, event_hash = (_string(line.fields, key) for key in ("event_type", "timestamp", "event_hash"))
    payload = line.fields["payload"]
    assert isinstance(payload, dict)
    number = _value(line.fields.get("sequence")) or "?"
    raw = Raw(plain(number), f"{plain(kind)} · {plain(event_hash)}", text)
    entry = _entry(kind, payload)
    if profile != "cra" or entry not in wording.EVENTS:
        entry, payload = "foreign", {"event": kind, "payload": json.dumps(payload, ensure_ascii=False)}
    return _Piece(entry, time, payload, raw, line.proven)


def _embedded(line: Line, profile: Profile) -> str:
    """The line whole, as the browser needs it for the hash; where it does not check, a part is enough."""
    if profile == "cra" and line.verdict.error is None:
        return line.raw.decode(errors="replace")  # it verified; what is not UTF-8 now was changed since
    text = line.raw.decode(errors="backslashreplace")
    rest = len(text) - MAX_UNCHECKED
    return text if rest <= 0 else f"{text[:MAX_UNCHECKED]} … ({rest} more characters)"


def _entry(kind: str, payload: Mapping[str, object]) -> str:
    special = f"{kind}:{payload.get('effect')}"
    return special if special in wording.EVENTS else kind


def _row(folded: Folded[_Piece], day: str) -> tuple[Row, str]:
    """The row of a call or event, and its day; a day is shown where it is a new one."""
    columns: dict[wording.Column, list[str]] = {column: [] for column in wording.COLUMNS}
    look = "other"
    for place, piece in enumerate(folded.parts):
        table = wording.EVENTS[piece.entry]
        for column, lines in columns.items():
            if column != "what" or place == 0:
                lines += [text for text in _filled(table.get(column, ()), piece.payload) if text not in lines]
        look = table.get("look", (look,))[0]
    if folded.waiting and not columns["outcome"]:
        columns["outcome"].append(wording.UNFINISHED.get(look, wording.UNFINISHED[""]))
    if not all(piece.proven for piece in folded.parts):
        columns["what"].insert(0, "not proven")
        look = "fault"
    date, time = clock(folded.parts[0].time)
    shown = f"{date}\n{time}" if date and date != day else time
    what, decision, why, outcome = ("\n".join(lines) for lines in columns.values())
    events = tuple(piece.raw for piece in folded.parts if piece.raw is not None)
    return Row(shown, what, decision, why, outcome, look, events), date or day


def _filled(templates: Iterable[str], payload: Mapping[str, object]) -> Iterator[str]:
    """The templates of which every key is there."""
    for template in templates:
        values = {key: _value(_at(payload, key)) for key in _KEY.findall(template)}
        if all(values.values()):
            yield _KEY.sub(lambda match, known=values: plain(known[match[1]]), template)  # type: ignore[misc]


def _at(payload: Mapping[str, object], path: str) -> object:
    value: object = payload
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _value(value: object) -> str:
    """A payload's value as text, the same as the script writes it; nothing for what has no short text."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float() if not value:
            return "0"
        case int() | float() if not wording.MIN_FRACTION <= abs(value) < wording.MAX_NUMBER:
            return "a number out of range"
        case int() | float():
            return str(int(value)) if value == int(value) else repr(value)
        case list():
            return ", ".join(filter(None, map(_value, value)))
        case _:
            return ""


def _string(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""
