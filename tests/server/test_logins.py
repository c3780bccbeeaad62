"""Logins at the page: one contract in memory, a file and a database; by tokens; at one server and so at all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.server.access import Caller as Who
from cra_middleware.server.logins import Login, LoginError, Logins, MemoryLogins
from cra_middleware.server.postgres_logins import PostgresLogins
from cra_middleware.server.sqlite_logins import SqliteLogins
from cra_middleware.server.tokens import JwtTokens
from tests.conftest import manifest
from tests.cutting_proxy import CuttingProxy
from tests.server.people import Person, token_of
from tests.server.serving import ASKED, Caller, Serve
from tests.server.test_access import OneKey, claims
from tests.server.test_access import provider as provider
from tests.trace.postgres_server import database

jwt = pytest.importorskip("jwt")
MARA = Who("m\0ra\ud800", "token:i m\0ra\ud800", frozenset({"approver", "auditor"}), ("m",), ("*",), ("leads",), 90)


@pytest.fixture(params=["memory", "file", "database"])
def logins(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Logins]:
    if request.param == "database":
        with database() as conninfo, closing(PostgresLogins(conninfo)) as shared:
            yield shared
    else:
        with closing(MemoryLogins() if request.param == "memory" else SqliteLogins(tmp_path / "logins.db")) as own:
            yield own


def test_logins_are_kept(logins: Logins) -> None:
    """As they were, until they are removed; the next one forgets those that are over."""
    by_key, by_token = Login("a", 50, "cra_00000000"), Login("b", 90, caller=MARA)
    logins.add(by_key, 10)
    logins.add(by_token, 49)
    assert [logins.find(digest) for digest in ("a", "b", "c")] == [by_key, by_token, None]
    logins.remove("b")
    logins.remove("b")
    assert logins.find("b") is None
    logins.add(Login("d", 90), 50)
    assert logins.find("a") is None
    logins.close()
    assert logins.find("d") == Login("d", 90)


def test_a_database_that_cannot_be_used() -> None:
    """It says so, without the password."""
    with pytest.raises(LoginError, match="cannot be used") as failed:
        PostgresLogins("postgresql://u:secret@127.0.0.1:1/none")
    assert "secret" not in str(failed.value)


def test_a_lost_answer_is_done_once() -> None:
    """Wherever the connection breaks, also behind the commit: it is kept, and removed, all the same."""
    with database() as conninfo:
        proxy = CuttingProxy("127.0.0.1", 5432)
        with closing(PostgresLogins(conninfo.replace("port=5432", f"port={proxy.port}"))) as logins:
            for answers in range(5):
                proxy.lose_after(answers)
                logins.add(Login(f"a{answers}", 50), 10)
                proxy.lose_after(answers)
                logins.remove("a0")
                proxy.lose_after(None)
            assert proxy.lost >= 6
            assert [logins.find(f"a{answers}") is None for answers in range(5)] == [True] + [False] * 4


def by_token(private: Any, **more: Any) -> str:
    return str(jwt.encode(claims(sub="mara", roles=["approver"], groups=["team-leads"], **more), private, "RS256"))


def test_a_person_logs_in_with_a_token(provider: tuple[Any, JwtTokens], serve: Serve) -> None:
    """Without any key: roles and groups are its claims, its answer is recorded in the name of its subject."""
    private, tokens = provider
    policy = {**ASKED, "parameters": {"approvers": ["team-leads"]}}
    served = serve(manifest(policies=[*manifest()["policies"], policy]), with_keys=False, tokens=tokens)
    bot = Caller(served, {"authorization": "Bearer " + jwt.encode(claims(), private, "RS256")})
    session_id = bot.session()
    refused = bot.execute(session_id, "refund.create")
    mara = Person(served)
    assert "Your token" in mara.get("/login").text
    answer = mara.login(f" {by_token(private)}\n")
    assert answer.status_code == 303
    assert 0 < int(answer.headers["set-cookie"].partition("Max-Age=")[2].partition(";")[0]) <= 600
    assert mara.answer(refused.json()["error"]["details"]["approval_id"], "approve").status_code == 303
    assert mara.get("/sessions").status_code == 403
    served.stop()
    served.start()
    assert "logged in as" in mara.get("/").text
    assert bot.execute(session_id, "refund.create").status_code == 200
    granted = bot.get(f"/v1/traces/{session_id}?event_type=action.approved").json()["events"]
    assert [event["payload"]["approver"] for event in granted] == ["mara"]
    kept = b"".join(path.read_bytes() for path in (served.folder / "traces/server").glob("logins.db*"))
    assert by_token(private).partition(".")[2].encode() not in kept


def test_tokens_that_open_no_page(provider: tuple[Any, JwtTokens], serve: Serve) -> None:
    """An agent's, one without a role, one that is over or of somebody else; each a failed login where it does not
    count."""
    private, tokens = provider
    served = serve(tokens=tokens)
    person = Person(served)
    assert "Your key or token" in person.get("/login").text
    now = int(time.time())
    for roles in (["agent"], ["agent", "admin"], [], ["king"]):
        assert person.login(jwt.encode(claims(roles=roles), private, "RS256")).status_code == 403
    for wrong in (
        *(by_token(private, exp=now - 5), by_token(private, iss="https://other.example"), by_token(private)[:-9]),
        *(jwt.encode(claims(roles=["admin"]), "s" * 64, "HS256"), "x", "é\u202e"),
    ):
        assert person.login(wrong).status_code == 401, wrong
    assert person.get("/").status_code == 303
    assert person.login(served.key("ann", "auditor")).status_code == 303


def test_a_login_ends_with_its_token(provider: tuple[Any, JwtTokens], serve: Serve) -> None:
    """And when another provider's tokens count, or none."""
    private, tokens = provider
    served = serve(tokens=tokens)
    mara, ann = Person(served), Person(served)
    mara.login(by_token(private))
    ann.login(served.key("ann", "auditor"))
    public = tokens._keys.get_signing_key_from_jwt("")
    other = JwtTokens(OneKey(public), issuer="https://new.example", audience="cra")
    for counting, status in ((other, 303), (None, 303), (tokens, 200)):
        served.stop()
        served.terms["tokens"] = counting
        served.start()
        assert (mara.get("/").status_code, ann.get("/").status_code) == (status, 200)
    now_us = served.service.host.clock.wall_us()
    login = mara_login(served)
    served.service.logins.add(login._replace(ends_us=now_us), now_us - 1)
    assert mara.get("/").status_code == 303


def mara_login(served: Any) -> Login:
    """The one that is kept of her, taken out."""
    (found,) = (
        login
        for digest in digests(served)
        if (login := served.service.logins.find(digest)) is not None and login.caller is not None
    )
    served.service.logins.remove(found.digest)
    assert json.dumps(found.caller.groups) == '["team-leads"]'
    return Login(*found)


def digests(served: Any) -> list[str]:
    with served.service.logins._file.transaction(writes=False) as connection:
        return [digest for (digest,) in connection.execute("SELECT digest FROM logins")]


def test_one_login_at_two_servers(serve: Serve) -> None:
    """Logged in at one is logged in at both, a form of one is a form of the other, logged out is logged out."""
    with database() as conninfo, closing(PostgresLogins(conninfo)) as here, closing(PostgresLogins(conninfo)) as there:
        one, other = serve(logins=here), serve(logins=there)
        other.service.routes.guard._keys = one.keys
        ann = Person(one)
        page = ann.get("/login")
        ann.caller = Caller(other, {})
        assert ann.send("/login", {"token": token_of(page), "key": one.key("ann", "auditor")}).status_code == 303
        kept = Person(other)
        kept.cookie = ann.cookie
        for server in (one, other):
            ann.caller = Caller(server, {})
            page = ann.get("/")
            assert page.status_code == 200
        ann.caller = Caller(one, {})
        assert ann.send("/logout", {"token": token_of(page)}).status_code == 303
        assert kept.get("/").status_code == 303
