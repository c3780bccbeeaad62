"""Logging in and out."""

from __future__ import annotations

from cra_middleware.server.faults import Fault
from cra_middleware.server.pages.hearing import Hearing, Turn, way_back
from cra_middleware.server.pages.showing import Face
from cra_middleware.server.pages.visits import Visits
from cra_middleware.server.routing import PUBLIC, Said


def add_login_pages(hearing: Hearing, face: Face, visits: Visits) -> None:
    """The pages of logins."""

    def ask(turn: Turn) -> Said:
        back = way_back(turn.query.get("next", "/"))
        if turn.caller is not None:
            return Said(303, None, {"location": back})
        return face.page(turn, "login", back=back, problem="")

    def login(turn: Turn) -> Said:
        back = way_back(turn.form.get("next", "/"))
        try:
            ticket = visits.login(turn.form.get("key", "").strip(), turn.address)
        except Fault as fault:
            said = face.page(turn, "login", status=fault.http_status, back=back, problem=str(fault))
            wait = fault.retry_after_seconds
            more = {} if wait is None else {"retry-after": str(max(1, -int(-wait // 1)))}
            return said._replace(headers={**said.headers, **more})
        visits.end(turn.ticket)
        return Said(303, None, {"location": back, "set-cookie": turn.cookie(ticket)})

    def logout(turn: Turn) -> Said:
        visits.end(turn.ticket)
        return Said(303, None, {"location": "/login", "set-cookie": turn.cookie(None)})

    hearing.add("GET", "/login", PUBLIC, ask)
    hearing.add("POST", "/login", PUBLIC, login)
    hearing.add("POST", "/logout", PUBLIC, logout)
