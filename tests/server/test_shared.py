"""Two servers on one PostgreSQL database: a session of one is a session of the other."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.server.assembly import assemble
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.sqlite_approvals import SqliteApprovals
from tests.conftest import manifest
from tests.server.serving import Caller, Served, code
from tests.trace.postgres_server import database

psycopg = pytest.importorskip("psycopg")


class Sharing(Served):
    """One of them; what both keep beside the traces is in files of this machine here."""

    def start(self) -> None:
        book, approvals, counters = self.terms["shared"]
        places = {"book": book, "approvals": approvals, "counters": counters}
        self.app = assemble([self.folder / "atlases"], self.terms["url"], keys=self.keys, **places)
        self.service = self.app.state.cra
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.wait(self._lifespan.__aenter__())


def test_two_servers_behave_as_one(tmp_path: Path) -> None:
    """A request is answered the same by both; a call of one is told of at the other; an end counts for both."""
    with database() as where:
        parts = psycopg.conninfo.conninfo_to_dict(where)
        options = quote(str(parts["options"]))
        url = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}?options={options}"
        shared = (
            SqliteBook(tmp_path / "book.db"),
            SqliteApprovals(tmp_path / "approvals.db"),
            SqliteCounters(tmp_path / "counters.db"),
        )
        one = Sharing(tmp_path / "one", manifest(), url=url, shared=shared)
        other = Sharing(tmp_path / "other", manifest(), url=url, shared=shared)
        try:
            here = one.by("bot")
            other.service.routes.guard._keys = one.keys
            there = Caller(other, here.headers)
            name = here.session()
            body = here.execution(name)
            call = here.post("/v1/execute", body).json()
            assert there.post("/v1/execute", body).json() == call
            for _ in range(2):
                assert there.report(name, call["execution_id"]).status_code == 200
                assert here.report(name, call["execution_id"]).status_code == 200
            second = there.execute(name).json()["execution_id"]
            assert here.report(name, second).status_code == 200
            third = here.execute(name).json()["execution_id"]
            assert there.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
            assert code(here.execute(name)) == (409, "SESSION_ALREADY_ENDED")
            assert code(here.report(name, third)) == (409, "SESSION_ALREADY_ENDED")
            assert here.kinds(name).count("action.executed") == 2
            assert here.post(f"/v1/traces/{name}/verify").json()["verdict"] == "INTACT, SEALED"
        finally:
            one.close()
            other.close()
            shared[1].close()
            shared[2].close()
