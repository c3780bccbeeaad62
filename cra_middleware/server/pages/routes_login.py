"""Logging in and out."""

from __future__ import annotations

from cra_middleware.server.faults import Fault
from cra_middleware.server.pages.hearing import Hearing, Turn, way_back
from cra_middleware.server.pages.showing import Face
from cra_middleware.server.pages.visits import Visits
from cra_middleware.server.routing import PUBLIC, Said, retry_after


def add_login_pages(hearing: Hearing, face: Face, visits: Visits) -> None:
    """The pages of logins."""

    def ask(turn: Turn) -> Said:
        back = way_back(turn.query.get("next", "/"))
        if turn.caller is not None:
            return Said(303, None, {"location": back})
        return face.page(turn, "login", back=back, problem="", wanted=visits.wanted)

    def login(turn: Turn) -> Said:
        back = way_back(turn.form.get("next", "/"))
        try:
            ticket = visits.login(turn.form.get("key", "").strip(), turn.address)
        except Fault as fault:
            status, problem = fault.http_status, str(fault)
            said = face.page(turn, "login", status=status, back=back, problem=problem, wanted=visits.wanted)
            return said._replace(headers={**said.headers, **retry_after(fault.retry_after_seconds)})
        visits.end(turn.ticket)
        return Said(303, None, {"location": back, "set-cookie": turn.cookie(ticket)})

    def logout(turn: Turn) -> Said:
        visits.end(turn.ticket)
        return Said(303, None, {"location": "/login", "set-cookie": turn.cookie(None)})

    hearing.add("GET", "/login", PUBLIC, ask)
    hearing.add("POST", "/login", PUBLIC, login)
    hearing.add("POST", "/logout", PUBLIC, logout)
