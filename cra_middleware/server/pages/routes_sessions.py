"""Sessions, live and past, and the timeline of one."""

from __future__ import annotations

from functools import partial
from typing import cast

from cra_middleware import __version__
from cra_middleware.server.access import Role
from cra_middleware.server.answering import Answering
from cra_middleware.server.archive import Archive
from cra_middleware.server.book import State
from cra_middleware.server.faults import Fault
from cra_middleware.server.host import Host
from cra_middleware.server.pages.hearing import Hearing, Turn
from cra_middleware.server.pages.showing import HTML, Face, moment, policy
from cra_middleware.server.routing import Rule, Said
from cra_middleware.trace_page import Stored, render, script_text, style_text

AUDITORS: Rule = frozenset[Role]({"auditor"})
PER_PAGE = 25
MAX_EVENTS = 5000
"""Of one page: about 5 MB."""
_STATES = ("all", "active", "ended")


def add_session_pages(hearing: Hearing, face: Face, host: Host, answering: Answering, archive: Archive) -> None:
    """The pages of sessions."""

    def listed(turn: Turn) -> Said:
        asked = turn.query.get("state", "all")
        state = cast(State, asked if asked in _STATES else "all")
        page = turn.whole_number("page", 1, 1_000_000)
        rows, total = host.listed(turn.person, state, PER_PAGE, (page - 1) * PER_PAGE)
        pages = max(1, -(-total // PER_PAGE))
        return face.page(turn, "sessions", rows=rows, total=total, state=state, states=_STATES, page=page, pages=pages)

    def one(turn: Turn) -> Said:
        session_id = turn.path["session_id"]
        row = host.readable(turn.person, session_id)
        count = archive.count(session_id)
        if count > MAX_EVENTS:
            return face.page(turn, "long", row=row, count=count, most=MAX_EVENTS)
        if count == 0:
            raise Fault("SESSION_NOT_FOUND", f"the trace of session {session_id} is not here")
        verdict = archive.verify(turn.person, session_id)
        asked = answering.listed(turn.person, "pending", session_id)
        frame = face.frame(turn, face.part("note", row=row, asked=asked))
        lines = partial(host.store.lines, session_id)
        made = moment(host.clock.wall_us())
        text = "".join(render([Stored(verdict, lines)], made=made, version=__version__, frame=frame))
        return Said(
            200, text.encode(errors="replace"), policy(style_text() + frame.style, script_text(is_framed=True)), HTML
        )

    hearing.add("GET", "/sessions", AUDITORS, listed)
    hearing.add("GET", "/sessions/{session_id}", AUDITORS, one)
