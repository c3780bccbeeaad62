"""The page: what is known of each session before its rows are made, and the rendering, piece by piece."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cra_middleware.lines import Line, lines_of, read_again
from cra_middleware.trace.chain import Verdict
from cra_middleware.trace_page import wording
from cra_middleware.trace_page.rows import Row, clock, escape, facts_of, pieces_of, plain, rows_of
from cra_middleware.verification import FileReport

Notes = Mapping[str, Sequence[tuple[str, str]]]
"""Proofs by session id, each a label and its text."""

PROVES = {
    "Signed head": "Whoever holds the signing key saw the chain up to that event, exactly as it is here.",
    "Witness": "An independent party saw the chain up to that event, and keeps what it saw.",
}
_BUFFERED = 256
"""Pieces of the template that are joined before they are handed out."""


@dataclass(frozen=True, slots=True)
class _Session:
    """One session as the template sees it."""

    verdict: Verdict
    file: str
    started: str
    facts: tuple[tuple[str, str], ...]
    lines: Callable[[], Iterable[Line]]

    @property
    def id(self) -> str:
        return self.verdict.session_id or "unknown"

    @property
    def agent(self) -> str:
        return dict(self.facts).get("Agent", "")

    @property
    def checked(self) -> bool:
        """Whether the browser can check it."""
        return self.verdict.profile == "cra" and self.verdict.intact and self.verdict.first_sequence == 0

    @property
    def state(self) -> str:
        return "sealed" if self.verdict.sealed else "open" if self.verdict.intact else "broken"

    def rows(self) -> Iterator[Row]:
        return rows_of(self.lines(), self.verdict.profile)


class Stored(NamedTuple):
    """A verified session that is not in a file of its own."""

    verdict: Verdict
    chunks: Callable[[], Iterable[bytes]]
    """Its lines as they are kept, read again each time it is called."""


class Frame(NamedTuple):
    """What a page of one session stands in, where it is a page of a site. The site sends the policy."""

    above: Markup
    """Before the header."""
    style: str
    """Behind the page's own."""
    note: Markup
    """Below the header."""


def render(
    reports: Sequence[FileReport | Stored],
    *,
    made: str,
    version: str,
    unreadable: Sequence[str] = (),
    proofs: Notes | None = None,
    folder_note: str | None = None,
    frame: Frame | None = None,
) -> Iterator[str]:
    """The page about some verified files, as pieces of text; the files are read again while it is rendered.

    Args:
        reports: the verdicts on the files.
        made: when the page is made, as text for people.
        version: of this program.
        unreadable: a sentence for each file that could not be read.
        proofs: what else vouches for a session, by its id. Shown as it is; the browser does not check it.
        folder_note: the signed note of the folder, likewise.
        frame: of a site, and its own policy: the page then names none.

    Raises:
        SinkError: when a file cannot be read any more.
    """
    sessions = [session for report in reports for session in _sessions(report)]
    script = script_text(is_framed=frame is not None)
    style = style_text() + ("" if frame is None else frame.style)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(plain=plain, raw=_raw_markup, note=_note_markup)
    stream = environment.from_string(_part("page.html.jinja")).stream(
        sessions=sessions,
        states=Counter(session.state for session in sessions),
        headline=_headlines(frame is not None)[_overall(sessions, unreadable)],
        overall=_overall(sessions, unreadable),
        unreadable=unreadable,
        made=made,
        version=version,
        proofs=proofs or {},
        proves=PROVES,
        folder_note=folder_note,
        frame=frame,
        manifest=Markup(_json(_manifest(sessions, unreadable))),  # JSON in which no < is left
        script=Markup(script),  # a file of ours
        style=Markup(style),  # a file of ours
        script_hash=csp_hash(script),
        style_hash=csp_hash(style),
    )
    stream.enable_buffering(_BUFFERED)
    return stream


def style_text() -> str:
    """The page's style sheet."""
    return _part("page.css")


def script_text(*, is_framed: bool = False) -> str:
    """The page's script, with what it compares with."""
    return f"const RULES = {_json(wording.rules(_headlines(is_framed)))};\n{_part('page.js')}"


def _headlines(is_framed: bool) -> Mapping[str, str]:
    return wording.HEADLINES_OF_ONE if is_framed else wording.HEADLINES


def csp_hash(text: str) -> str:
    """The source expression that lets this inline text through (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _sessions(report: FileReport | Stored) -> Iterator[_Session]:
    """The sessions of one file; only other profiles have several, and theirs are sorted out in memory."""
    if isinstance(report, Stored):
        yield _session(report.verdict, "", lambda: lines_of(report.chunks(), (report.verdict,)))
        return
    sorted_out: dict[int, list[Line]] = {}
    if len(report.sessions) > 1:
        for line in read_again(report):
            sorted_out.setdefault(id(line.verdict), []).append(line)

    def again(verdict: Verdict) -> Iterable[Line]:
        return sorted_out.get(id(verdict), ()) if sorted_out else read_again(report)

    for verdict in report.sessions:
        yield _session(verdict, plain(Path(report.path).name), partial(again, verdict))


def _session(verdict: Verdict, file: str, lines: Callable[[], Iterable[Line]]) -> _Session:
    first = next(iter(lines()), None)
    fields = first.fields if first is not None and first.fields is not None else {}
    payload, time = fields.get("payload"), fields.get("timestamp")
    facts = facts_of(payload) if isinstance(payload, dict) and fields["event_type"] == "session.started" else []
    started = " ".join(filter(None, clock(time if isinstance(time, str) else "")))
    return _Session(verdict, file, started, tuple(facts), lines)


def _overall(sessions: Iterable[_Session], unreadable: Sequence[str]) -> str:
    states = {session.state for session in sessions}
    return "broken" if "broken" in states or unreadable or not states else "open" if "open" in states else "sealed"


def _manifest(sessions: Iterable[_Session], unreadable: Sequence[str]) -> dict[str, object]:
    """What the script expects to find in the page."""
    return {
        "sessions": [
            {
                "id": session.id,
                "checked": session.checked,
                "events": session.verdict.events,
                "head": session.verdict.head_hash,
                "state": session.state,
                "verdict": plain(str(session.verdict)),
            }
            for session in sessions
        ],
        "unreadable": len(unreadable),
    }


def _raw_markup(text: str) -> Markup:
    """A line as it is, each odd character isolated in an element of its own, with its escape shown before it."""
    return Markup("").join(
        Markup("{}<i data-as='{}'>{}</i>").format(before, escape(odd), odd) if odd else Markup.escape(before)
        for before, odd in pieces_of(text)
    )


def _note_markup(text: str) -> Markup:
    """A text of several lines, each as it is."""
    return Markup("\n").join(map(_raw_markup, text.removesuffix("\n").split("\n")))


def _part(name: str) -> str:
    return files("cra_middleware.trace_page").joinpath(name).read_text(encoding="utf-8")


def _json(value: object) -> str:
    """ASCII JSON that closes no element."""
    return json.dumps(value).replace("<", "\\u003c")
