"""All pages of one server, put together."""

from __future__ import annotations

from cra_middleware.server.answering import Answering
from cra_middleware.server.archive import Archive
from cra_middleware.server.host import Host
from cra_middleware.server.logins import Logins
from cra_middleware.server.pages.hearing import Hearing
from cra_middleware.server.pages.routes_approvals import add_approval_pages
from cra_middleware.server.pages.routes_atlases import add_atlas_pages
from cra_middleware.server.pages.routes_login import add_login_pages
from cra_middleware.server.pages.routes_sessions import add_session_pages
from cra_middleware.server.pages.showing import Face
from cra_middleware.server.pages.visits import Visits
from cra_middleware.server.routing import Routes


def add_pages(routes: Routes, host: Host, answering: Answering, archive: Archive, logins: Logins) -> None:
    """The pages; ``logins`` keeps who is logged in."""
    visits = Visits(routes.guard, logins, host.clock.wall_us)
    face = Face(host.clock, visits.is_open)
    hearing = Hearing(routes, visits, face)
    add_login_pages(hearing, face, visits)
    add_approval_pages(hearing, face, host, answering)
    add_session_pages(hearing, face, host, answering, archive)
    add_atlas_pages(hearing, face, host)
