"""What happened, as rows: a call is one row, from its request to its outcome.

Rows come out in the order in which they began, as soon as every earlier one is complete; so a long trace is
not kept in memory.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cra_middleware.cli import events
from cra_middleware.cli.output import Part, say
from cra_middleware.lines import Line
from cra_middleware.trace.calls import BEGINS, Calls, Folded
from cra_middleware.verification import FileReport

MAX_WAITING = 10_000
"""Rows kept back for a call that does not end; beyond it, its outcome gets a row of its own."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)")
_INDENT = 16


class _Piece(NamedTuple):
    time: str
    words: list[Part]
    proven: bool = True


class Timeline:
    """Prints the rows of one file."""

    def __init__(self, report: FileReport) -> None:
        self._several = len(report.sessions) > 1
        self._own = report.sessions[0].profile == "cra"
        self._calls: Calls[_Piece] = Calls(MAX_WAITING)
        self._day = ""
        for verdict in report.sessions:
            say(verdict.session_id or "unknown", lead=("session", "dim"), indent=_INDENT)
        if not self._own:
            say(report.sessions[0].profile, lead=("profile", "dim"), indent=_INDENT)

    def add(self, line: Line) -> None:
        """Take one line; print what is complete."""
        problem = line.break_here
        if problem is not None:
            self._append(_Piece("", [(f"BROKEN HERE: {problem.kind}: {problem.message}", "bold red")]))
        if line.fields is None:
            self._append(_Piece("", [("unreadable", "red"), f" line {line.number}: {line.excerpt}"], line.proven))
            return
        payload = line.fields["payload"]
        assert isinstance(payload, dict)
        kind, time, span, session = (
            events.text(line.fields.get(key)) for key in ("event_type", "timestamp", "span_id", "session_id")
        )
        begins = self._own and kind == "session.started" and line.place == 0 and line.proven
        if begins:
            for name, value in events.facts(payload).items():
                say(value, lead=(name, "dim"), indent=_INDENT)
            say()
        clock = self._clock(time)
        if begins:
            self._append(_Piece(clock, [("session started", "bold")]))
        elif self._own:
            self._event(kind, payload, span, clock, line.proven)
        else:
            of = f" session={session}" if self._several else ""
            self._append(_Piece(clock, [(kind, "cyan"), *events.generic(payload), (of, "dim")], line.proven))

    def close(self) -> None:
        """Print the rest."""
        for row in self._calls.rest():
            _print(row, " -> nothing more was recorded", "yellow")
        say()

    def _event(self, kind: str, payload: events.Payload, span: str, clock: str, proven: bool) -> None:
        if kind == BEGINS:
            words = events.requested(payload)
        elif self._calls.joins(kind, span):
            words = [" -> ", *(events.step(kind, payload) or ())]
        else:
            words = events.sentence(kind, payload)
        self._calls.add(kind, span, _Piece(clock, words, proven))
        self._flush()

    def _append(self, piece: _Piece) -> None:
        self._calls.alone(piece)
        self._flush()

    def _flush(self) -> None:
        for row in self._calls.ready():
            _print(row, " -> (more below)", "dim")

    def _clock(self, time: str) -> str:
        """The time of day, after a row with the date when that is a new one."""
        match = _TIME.fullmatch(time)
        if match is None:
            return time
        if match[1] != self._day:
            self._day = match[1]
            self._append(_Piece("", [(f"{self._day}, UTC", "bold")]))
        return f"{match[2]}.{(match[3] or '').ljust(3, '0')[:3]}"


def _print(row: Folded[_Piece], unfinished: str, style: str) -> None:
    first, *steps = row.parts
    words = list(first.words)
    for step in steps:
        words += step.words
        if first.proven and not step.proven:
            words.append((" (not proven)", "red"))
    if row.waiting:
        words.append((unfinished, style))
    doubt = " " if first.proven else "?"
    say(*words, lead=(f"{doubt} {first.time}", "dim" if first.proven else "red"), indent=_INDENT)
