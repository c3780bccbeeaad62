"""The lines of a verified trace, read again for display: leniently, and each with what the verifier said about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cra_middleware.trace.chain import Problem, Verdict
from cra_middleware.trace.profiles import MAX_LINE_BYTES, MalformedError, read
from cra_middleware.verification import FileReport, trace_lines

_EXCERPT = 120


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a trace."""

    number: int
    """Counted from 1, as editors do."""
    verdict: Verdict
    """On the line's session."""
    place: int
    """Of the line in its session's chain, from 0."""
    fields: dict[str, object] | None
    """What the line says; None when it is not readable as JSON with a payload."""
    excerpt: str
    """The beginning of a line that cannot be read."""
    raw: bytes
    """The line as it stands in the file, without newline; of one that is too long, the first part."""

    @property
    def proven(self) -> bool:
        """Whether the line is before the place where its chain breaks."""
        return self.verdict.error is None or self.place < self.verdict.error.sequence

    @property
    def break_here(self) -> Problem | None:
        """What is wrong, when this is the line where the chain breaks."""
        error = self.verdict.error
        return error if error is not None and self.place == error.sequence else None

    def as_json(self) -> dict[str, object]:
        """The event as it stands in the file, or where an unreadable line is and how it begins."""
        return {"line": self.number, "unreadable": self.excerpt} if self.fields is None else self.fields


def read_again(report: FileReport) -> Iterator[Line]:
    """Every line that ``report`` is about; lines that a living session added since are left out.

    Raises:
        SinkError: when the file cannot be read.
    """
    yield from lines_of(trace_lines(Path(report.path)), report.sessions)


def lines_of(chunks: Iterable[bytes], sessions: Sequence[Verdict]) -> Iterator[Line]:
    """Every one of ``chunks``, each a line with its newline, that the verdicts on ``sessions`` are about."""
    profile = sessions[0].profile
    verdicts = iter(sessions)
    chains: dict[str, tuple[Verdict, int]] = {}
    key = ""
    for number, chunk in enumerate(chunks, 1):
        line = chunk.removesuffix(b"\n") if len(chunk) <= MAX_LINE_BYTES else b""
        if profile != "cra" and "" not in chains:  # the rule by which the verifier told the sessions apart
            with suppress(MalformedError):
                key = read(line, profile).event.session_id
        if key not in chains:
            verdict = next(verdicts, None)
            if verdict is None:
                return
            chains[key] = (verdict, 0)
        verdict, place = chains[key]
        if verdict.error is None and place >= verdict.events:
            continue
        chains[key] = (verdict, place + 1)
        fields = _fields(line)
        excerpt = "" if fields is not None else chunk[:_EXCERPT].rstrip(b"\n").decode(errors="backslashreplace")
        yield Line(number, verdict, place, fields, excerpt, chunk.removesuffix(b"\n"))


def _fields(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line, parse_constant=str)
        json.dumps(value)  # what cannot be written again cannot be shown
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("payload"), dict) else None
