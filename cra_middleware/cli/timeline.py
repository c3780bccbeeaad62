"""What happened, as rows: a call is one row, from its request to its outcome.

Rows come out in the order in which they began, as soon as every earlier one is complete; so a long trace is
not kept in memory.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from cra_middleware.cli import events
from cra_middleware.cli.lines import Line
from cra_middleware.cli.output import Part, say
from cra_middleware.verification import FileReport

MAX_WAITING = 10_000
"""Rows kept back for a call that does not end; beyond it, its outcome gets a row of its own."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)")
_OUTCOMES = ("action.denied", "action.executed", "action.failed")
_INDENT = 16


@dataclass(slots=True)
class _Row:
    time: str
    words: list[Part]
    proven: bool = True
    waiting: bool = False
    """Whether it is a call without outcome yet."""


class Timeline:
    """Prints the rows of one file."""

    def __init__(self, report: FileReport) -> None:
        self._several = len(report.sessions) > 1
        self._own = report.sessions[0].profile == "cra"
        self._rows: deque[_Row] = deque()
        self._calls: dict[str, _Row] = {}
        self._day = ""
        for verdict in report.sessions:
            say(verdict.session_id or "unknown", lead=("session", "dim"), indent=_INDENT)
        if not self._own:
            say(report.sessions[0].profile, lead=("profile", "dim"), indent=_INDENT)

    def add(self, line: Line) -> None:
        """Take one line; print what is complete."""
        problem = line.break_here
        if problem is not None:
            self._append(_Row("", [(f"BROKEN HERE: {problem.kind}: {problem.message}", "bold red")]))
        if line.fields is None:
            self._append(_Row("", [("unreadable", "red"), f" line {line.number}: {line.excerpt}"], line.proven))
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
            self._append(_Row(clock, [("session started", "bold")]))
        elif self._own:
            self._event(kind, payload, span, clock, line.proven)
        else:
            of = f" session={session}" if self._several else ""
            self._append(_Row(clock, [(kind, "cyan"), *events.generic(payload), (of, "dim")], line.proven))

    def close(self) -> None:
        """Print the rest."""
        for row in self._rows:
            if row.waiting:
                row.words.append((" -> nothing more was recorded", "yellow"))
            _print(row)
        self._rows.clear()
        say()

    def _event(self, kind: str, payload: events.Payload, span: str, clock: str, proven: bool) -> None:
        if kind == "action.requested":
            row = _Row(clock, events.requested(payload), proven, waiting=True)
            replaced = self._calls.get(span)
            if replaced is not None:  # in a broken trace only
                replaced.waiting = False
            self._calls[span] = row
            self._append(row)
            return
        call, step = self._calls.get(span), events.step(kind, payload)
        if call is None or step is None:
            self._append(_Row(clock, events.sentence(kind, payload), proven))
            return
        call.words += [" -> ", *step]
        if call.proven and not proven:
            call.words.append((" (not proven)", "red"))
        if kind in _OUTCOMES:
            call.waiting = False
            del self._calls[span]
            self._flush()

    def _append(self, row: _Row) -> None:
        self._rows.append(row)
        self._flush()

    def _flush(self) -> None:
        while self._rows and (not self._rows[0].waiting or len(self._rows) > MAX_WAITING):
            row = self._rows.popleft()
            if row.waiting:
                row.words.append((" -> (more below)", "dim"))
                self._calls = {span: other for span, other in self._calls.items() if other is not row}
            _print(row)

    def _clock(self, time: str) -> str:
        """The time of day, after a row with the date when that is a new one."""
        match = _TIME.fullmatch(time)
        if match is None:
            return time
        if match[1] != self._day:
            self._day = match[1]
            self._append(_Row("", [(f"{self._day}, UTC", "bold")]))
        return f"{match[2]}.{(match[3] or '').ljust(3, '0')[:3]}"


def _print(row: _Row) -> None:
    doubt = " " if row.proven else "?"
    say(*row.words, lead=(f"{doubt} {row.time}", "dim" if row.proven else "red"), indent=_INDENT)
