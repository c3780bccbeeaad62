"""The pages for people: who is let in, what a form needs, what is shown, and that nothing foreign is markup."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest

from cra_middleware.server.pages import routes_sessions, tallies
from cra_middleware.server.pages.hearing import way_back
from cra_middleware.server.pages.visits import SECONDS
from cra_middleware.testing import FrozenClock
from cra_middleware.trace_page import csp_hash
from tests.conftest import NOON, manifest
from tests.server.people import Person, token_of
from tests.server.serving import ASKED, Caller, Serve, Served
from tests.server.test_access import rule_of

HOSTILE = "</script><img src=x onerror='owned()'>\u202egpj\x07\u200b\"'&"
READERS = {"approver", "auditor"}
RULES: dict[str, set[str] | None] = {
    "GET /login": None,
    "POST /login": None,
    "POST /logout": None,
    "GET /": READERS,
    "GET /waiting": READERS,
    "GET /approvals/{approval_id}": READERS,
    "POST /approvals/{approval_id}": {"approver"},
    "GET /sessions": {"auditor"},
    "GET /sessions/{session_id}": {"auditor"},
    "GET /atlases": READERS,
    "GET /atlases/{atlas_id}": READERS,
}


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(NOON)


@pytest.fixture
def served(serve: Serve, clock: FrozenClock) -> Served:
    return serve(manifest(policies=[*manifest()["policies"], ASKED]), clock=clock)


@pytest.fixture
def ann(served: Served) -> Person:
    """Who may do everything here but be an agent."""
    return someone(served, "ann", "approver", "auditor")


def someone(served: Served, name: str, *roles: Any, **terms: Any) -> Person:
    person = Person(served)
    assert person.login(served.key(name, *roles, **terms)).status_code == 303
    return person


def asked(served: Served, **parameters: Any) -> tuple[Caller, str, str]:
    """An agent whose call waits: itself, its session, the question."""
    bot = served.by("bot")
    session_id = bot.session()
    answer = bot.execute(session_id, "refund.create", parameters=parameters or {"amount": 5})
    assert answer.status_code == 423, answer.text
    return bot, session_id, answer.json()["error"]["details"]["approval_id"]


def told(page: Any) -> str:
    """What a page says to its reader, without markup and style."""
    body = page.text[page.text.index("<body") :].split("<script>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


class Markup(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def paths(session_id: str, approval_id: str) -> Iterator[str]:
    yield from ("/", "/sessions", "/atlases", "/atlases/com.example.tests", "/login")
    yield from (f"/sessions/{session_id}", f"/approvals/{approval_id}", "/approvals/none")


def test_every_page_has_its_rule(served: Served) -> None:
    """No page without one, and none that is not listed here."""
    pages = {route.name.removeprefix("page "): rule_of(route) for route in served.app.routes if "page " in route.name}
    assert {name: None if rule is None else set(rule) for name, rule in pages.items()} == RULES  # type: ignore[call-overload]


@pytest.mark.parametrize("role", ["approver", "auditor", "admin"])
def test_roles(served: Served, role: Any) -> None:
    """Each role sees the pages of its own; a page that is not is refused in words."""
    person = someone(served, role, role)
    for name, roles in RULES.items():
        method, path = name.split(" ")
        path = path.format(session_id="x", approval_id="x", atlas_id="x")
        answer = person.get(path) if method == "GET" else None
        if answer is not None:
            needs = answer.status_code == 403 and "needs the role" in answer.text
            assert needs is not (roles is None or role in roles or role == "admin"), name
    bar = told(person.get("/"))
    assert ("Sessions" in bar) is (role != "approver")


def test_nobody_comes_in_without_a_login(served: Served) -> None:
    """A page sends to the login and back; the script is told; a key in a header opens no page."""
    _, session_id, approval_id = asked(served)
    for path in paths(session_id, approval_id):
        if path != "/login":
            answer = Person(served).get(path)
            assert answer.status_code == 303
            assert answer.headers["location"] == f"/login?next={path.replace('/', '%2F')}"
    assert Person(served).get("/waiting").status_code == 401
    key = served.key("ann", "approver", "auditor")
    assert Person(served).get("/", **{"x-api-key": key}).status_code == 303
    person = Person(served)
    assert person.login(key, back=f"/approvals/{approval_id}").headers["location"] == f"/approvals/{approval_id}"


def test_a_login_is_a_cookie_of_this_page_only(served: Served, ann: Person) -> None:
    """Out of scripts' reach, sent by no other site, kept as long as it counts; it opens nothing of the API."""
    person = Person(served)
    answer = person.login(served.key("ann"))
    attributes = answer.headers["set-cookie"].split("; ")[1:]
    assert attributes == ["Path=/", f"Max-Age={SECONDS}", "HttpOnly", "SameSite=Strict"]
    assert served.key("ann")[13:] not in answer.headers["set-cookie"]
    assert Caller(served, {"cookie": person.cookie}).get("/v1/approvals").status_code == 401
    secure = Caller(served, {}).get("https://localhost/login").headers["set-cookie"]
    assert secure.startswith("__Host-cra=")
    assert secure.endswith("; Secure")


@pytest.mark.parametrize("roles", [("agent",), ("agent", "approver"), ("agent", "admin")])
def test_agents_do_not_log_in(served: Served, roles: Any) -> None:
    """Whatever else their key may do."""
    person = Person(served)
    answer = person.login(served.key("robot", *roles))
    assert answer.status_code == 403
    assert "This is an agent's key" in told(answer).replace("&#39;", "'")
    assert person.get("/").status_code == 303


def test_wrong_keys_are_counted(served: Served) -> None:
    """After ten tries the address has to wait, and is told how long."""
    person = Person(served)
    answers = [person.login("cra_00000000_" + "x" * 43) for _ in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert "This key does not count here." in told(answers[0])


def test_what_ends_a_login(served: Served, ann: Person, clock: FrozenClock) -> None:
    """Its time, logging out (also for who kept the cookie), and the key's own end."""
    kept = Person(served)
    kept.cookie = ann.cookie
    assert ann.send("/logout", {"token": token_of(ann.get("/"))}).headers["location"] == "/login"
    assert ann.get("/").status_code == kept.get("/").status_code == 303
    ann.login(served.key("ann"))
    clock.advance(seconds=SECONDS - 1)
    assert ann.get("/").status_code == 200
    clock.advance(seconds=1)
    assert ann.get("/").status_code == 303
    ann.login(served.key("ann"))
    served.keys.revoke("ann", clock.wall_us())
    time.sleep(1.1)  # a key that was just looked up is believed for a second
    assert ann.get("/").status_code == 303


def test_forged_cookies_are_none(served: Served, ann: Person) -> None:
    """Every letter of one counts; what is kept of it, and any part of it, opens nothing."""
    name, _, value = ann.cookie.partition("=")
    forged = Person(served)
    with closing(sqlite3.connect(served.folder / "traces/server/logins.db")) as file:
        digest = file.execute("SELECT digest FROM logins").fetchone()
    other = "A" if value[7] != "A" else "B"
    for wrong in (value[:7] + other + value[8:], value[:-1], f"{value}x", digest[0], "", "....", "%C3." * 3, "A" * 43):
        forged.cookie = f"{name}={wrong}"
        assert forged.get("/").status_code == 303, wrong
    forged.cookie = f"{name}={value}"
    assert forged.get("/").status_code == 200


def test_a_login_outlives_the_server(served: Served, ann: Person) -> None:
    """So does its end; what is kept of it, in a file that its owner alone can read, makes no cookie."""
    kept = Person(served)
    kept.cookie = ann.cookie
    served.stop()
    served.start()
    assert ann.get("/").status_code == 200
    file = served.folder / "traces" / "server" / "logins.db"
    assert file.stat().st_mode & 0o777 == 0o600
    bytes_kept = b"".join(path.read_bytes() for path in file.parent.glob("logins.db*"))
    assert ann.cookie.partition("=")[2].encode() not in bytes_kept
    ann.send("/logout", {"token": token_of(ann.get("/"))})
    served.stop()
    served.start()
    assert kept.get("/").status_code == 303


def test_a_login_is_another_visit(served: Served) -> None:
    """The cookie that a browser had before is nobody's login; the one before that is ended by the next."""
    person = Person(served)
    person.get("/login")
    before = person.cookie
    person.login(served.key("ann", "approver"))
    first, planted = Person(served), Person(served)
    first.cookie, planted.cookie = person.cookie, before
    assert planted.get("/").status_code == 303
    page = person.get("/atlases")
    form = {"token": token_of(page), "key": served.key("eve", "auditor"), "next": "/"}
    assert person.send("/login", form).status_code == 303
    assert "logged in as eve" in told(person.get("/"))
    assert first.get("/").status_code == 303


def test_a_person_says_yes(served: Served, ann: Person) -> None:
    """The agent's identical call runs, once, and the trace names who said so."""
    bot, session_id, approval_id = asked(served)
    assert f'href="/approvals/{approval_id}"' in ann.get("/").text
    assert ann.get("/waiting").json()["waiting"] == [approval_id]
    answer = ann.answer(approval_id, "approve", "seen the receipt\r\nand the photo")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/?answered={approval_id}")
    assert "Approved: refund.create for bot , by ann ." in told(ann.get(answer.headers["location"]))
    assert "exactly this call, once" in told(ann.get(f"/approvals/{approval_id}"))
    assert bot.execute(session_id, "refund.create", parameters={"amount": 5}).status_code == 200
    assert "The call was let run." in told(ann.get(f"/approvals/{approval_id}"))
    assert "approved by ann" in told(ann.get(f"/sessions/{session_id}"))
    assert ann.get("/waiting").json()["waiting"] == []


def test_a_person_says_no(served: Served, ann: Person) -> None:
    """The agent is told the reason; a second answer is told who was first."""
    bot, session_id, approval_id = asked(served)
    ann.answer(approval_id, "reject", "ask Mara first")
    answer = bot.execute(session_id, "refund.create", parameters={"amount": 5})
    assert answer.status_code == 403
    assert "ask Mara first" in answer.json()["error"]["message"]
    token = token_of(ann.get("/"))
    again = ann.send(f"/approvals/{approval_id}", {"token": token, "answer": "approve", "reason": ""})
    assert again.status_code == 409
    assert "rejected already" in told(again)


def test_an_answer_is_one_of_two_words(served: Served, ann: Person) -> None:
    """Nothing else, and a reason that is short enough."""
    _, _, approval_id = asked(served)
    for word, reason in (("", ""), ("yes", ""), ("approve", "x" * 1001)):
        assert ann.answer(approval_id, word, reason).status_code == 400
    assert ann.get("/waiting").json()["waiting"] == [approval_id]


def test_forms_of_others_are_refused(served: Served, ann: Person) -> None:
    """From another site, without the token, with another's, in another shape: nothing is answered."""
    _, _, approval_id = asked(served)
    path = f"/approvals/{approval_id}"
    form = {"token": token_of(ann.get("/")), "answer": "approve"}
    for headers in (
        *({"origin": None}, {"origin": "null"}, {"origin": "http://evil.example"}, {"origin": "http://localhost:1"}),
        *({"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}),
    ):
        assert ann.send(path, form, **headers).status_code == 403, headers
    other = token_of(someone(served, "eve", "approver").get("/atlases"))
    assert len(other) == 64
    for token in ("", "0" * 64, other, "é"):
        assert ann.send(path, {**form, "token": token}).status_code == 403
    assert ann.send(path, form, content_type="text/plain").status_code == 415
    assert ann.send(path, form, content_type="multipart/form-data; boundary=x").status_code == 415
    assert ann.send(path, b"token=%ff").status_code == 400
    assert ann.send(path, f"token={form['token']}&answer=reject&answer=approve".encode()).status_code == 400
    assert ann.send(path, b"&".join(b"a%d=" % n for n in range(99))).status_code == 400
    assert ann.send(path, b"x" * 20_000).status_code == 413
    nobody = Person(served)
    assert nobody.send(path, form).status_code == 403
    assert ann.get("/waiting").json()["waiting"] == [approval_id]
    for path in ("/login", "/logout"):
        assert ann.send(path, {"token": "0" * 64, "key": served.key("ann")}).status_code == 403


def test_who_asked_does_not_answer(served: Served) -> None:
    """Not the key that opened the session, whatever its roles; the page says why, and has no form."""
    key = served.key("boss", "admin", agents=("*",))
    boss = Caller(served, {"x-api-key": key})
    answer = boss.execute(boss.session(), "refund.create", parameters={"amount": 5})
    approval_id = answer.json()["error"]["details"]["approval_id"]
    person = Person(served)
    person.login(key)
    page = person.get(f"/approvals/{approval_id}")
    assert "Who asked may not answer itself." in told(page)
    assert 'value="approve"' not in page.text
    assert person.answer(approval_id, "approve").status_code == 403
    reader = someone(served, "eve", "auditor")
    assert 'value="approve"' not in reader.get(f"/approvals/{approval_id}").text
    assert reader.answer(approval_id, "approve").status_code == 403


def test_named_approvers(serve: Serve) -> None:
    """Who is not among them may say no only; who is, by name or group, may say yes."""
    policy = {**ASKED, "parameters": {"approvers": ["team-leads", "<b>mara</b>"]}}
    served = serve(manifest(policies=[*manifest()["policies"], policy]), clock=FrozenClock(NOON))
    _, _, approval_id = asked(served)
    ann = someone(served, "ann", "approver")
    page = ann.get("/")
    assert "It wants the yes of team-leads or &lt;b&gt;mara&lt;/b&gt;." in told(page)
    assert ('value="approve"' in page.text, 'value="reject"' in page.text) == (False, True)
    assert ann.answer(approval_id, "approve").status_code == 409
    lead = someone(served, "lea", "approver", groups=("team-leads",))
    assert lead.answer(approval_id, "approve").status_code == 303


def test_hostile_content_is_text(serve: Serve) -> None:
    """Markup in every place that an agent or an Atlas can fill is shown as letters, odd characters as escapes."""
    atlas = manifest(policies=[*manifest()["policies"], {**ASKED, "parameters": {"reason": HOSTILE}}])
    atlas |= {"name": HOSTILE, "description": HOSTILE}
    served = serve(atlas, clock=FrozenClock(NOON))
    bot = served.by("bot")
    answer = bot.post("/v1/sessions", {"agent_id": HOSTILE, "goal": HOSTILE})
    session_id = answer.json()["session_id"]
    arguments = {"<img src=x>\u202e": [HOSTILE, {"\u05d0": HOSTILE}, 1, None, True, [], {}], "עברית": "שלום"}
    body = bot.execution(session_id, "refund.create", agent_id=HOSTILE, parameters=arguments, tool_name=HOSTILE)
    approval_id = bot.post("/v1/execute", body).json()["error"]["details"]["approval_id"]
    ann = someone(served, "ann", "approver", "auditor")
    for path in (*paths(session_id, approval_id), f"/approvals/{quote(HOSTILE)}", f"/?answered={quote(HOSTILE)}"):
        page = ann.get(path)
        assert page.status_code in (200, 303, 404), page.text
        elements = Markup(page.text).elements
        assert not [tag for tag, _ in elements if tag in ("img", "iframe", "object", "link", "base")]
        assert sum(tag == "script" for tag, _ in elements) <= 2
        if (
            path != f"/sessions/{session_id}"
        ):  # there the raw line is kept as it is, each odd letter in a box of its own
            assert "\u202e" not in page.text
            assert "\u200b" not in page.text
    shown = ann.get("/").text
    assert '<i class="odd">\\u{202e}</i>' in shown
    assert '<bdi>"עברית"</bdi></span>: <bdi>"שלום"</bdi>'.replace('"', "&#34;") in shown
    ann.answer(approval_id, "reject", HOSTILE)
    assert "<img" not in ann.get(f"/approvals/{approval_id}").text


def test_nothing_else_may_run(served: Served, ann: Person) -> None:
    """Each page's policy lets exactly its own style and script through; no handler, no style attribute, no host."""
    _, session_id, approval_id = asked(served)
    for path in paths(session_id, approval_id):
        page = ann.get(path)
        if page.status_code == 303:
            continue
        policy = page.headers["content-security-policy"]
        style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL)
        script = re.search(r"<script>(.*?)</script>", page.text, re.DOTALL)
        assert style is not None
        assert f"style-src '{csp_hash(style[1])}';" in policy
        assert (
            f"script-src {chr(39) + csp_hash(script[1]) + chr(39) if script else chr(39) + 'none' + chr(39)};" in policy
        )
        assert "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["referrer-policy"] == "same-origin"
        assert page.headers["cache-control"] == "no-store"
        for tag, attributes in Markup(page.text).elements:
            assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
            assert not (attributes.get("href") or "/").startswith(("http:", "//", "javascript:"))


def test_every_field_has_its_label(served: Served, ann: Person) -> None:
    """Labels, one first heading, landmarks, a language, a title, unique ids, no level of headings left out."""
    _, session_id, approval_id = asked(served)
    asked(served, amount=7)
    for path in (*paths(session_id, approval_id), "/login"):
        page = (Person(served) if path == "/login" else ann).get(path)
        elements = Markup(page.text).elements
        names = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(names) == len(set(names))
        labels = {attributes.get("for") for tag, attributes in elements if tag == "label"}
        for tag, attributes in elements:
            if tag in ("input", "textarea") and attributes.get("type") != "hidden":
                assert attributes.get("id") in labels
            for word in (attributes.get("aria-labelledby") or "").split():
                assert word in names
        tags = [tag for tag, _ in elements]
        assert (tags.count("h1"), tags.count("main"), tags.count("title")) == (1, 1, 1), path
        levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels)), (path, levels)
        assert ("html", {"lang": "en"}) in elements


def test_long_arguments_are_answered_where_they_are_read(served: Served, ann: Person) -> None:
    """Not in the list, where nobody would see them all."""
    _, _, approval_id = asked(served, note="x" * 5000 + "END")
    listed, one = ann.get("/"), ann.get(f"/approvals/{approval_id}")
    assert ("END" in listed.text, 'value="approve"' in listed.text) == (False, False)
    assert ("END" in one.text, 'value="approve"' in one.text) == (True, True)


def test_questions_whose_time_is_over(served: Served, ann: Person, clock: FrozenClock) -> None:
    """They leave the list, and their own page says so."""
    _, _, approval_id = asked(served)
    clock.advance(seconds=7 * 3600)
    assert "16 h 59 min left" in told(ann.get("/")).replace("17 h 0 min", "16 h 59 min")
    for _ in range(3):
        clock.advance(seconds=7 * 3600)
        ann.login(served.key("ann"))
    assert ann.get("/waiting").json() == {"waiting": [], "count": 0, "now_ms": clock.wall_us() // 1000}
    page = ann.get(f"/approvals/{approval_id}")
    assert "Nobody answered in time" in told(page)
    assert 'value="approve"' not in page.text
    assert ann.answer(approval_id, "approve").status_code == 409
    _, _, approval_id = asked(served, amount=6)
    ann.answer(approval_id, "approve")
    for _ in range(4):
        clock.advance(seconds=7 * 3600)
    ann.login(served.key("ann"))
    assert "The yes counts no more." in told(ann.get(f"/approvals/{approval_id}"))


def test_a_link_from_elsewhere_finds_the_login(served: Served, ann: Person) -> None:
    """A browser holds a strict cookie back when a link in a chat is followed: the page asks once more by itself."""
    _, _, approval_id = asked(served)
    path = f"/approvals/{approval_id}"
    first = Person(served).get(path + "?a=%22%3E%3Cscript%3E", **{"sec-fetch-site": "cross-site"})
    assert first.status_code == 200
    assert f'content="0; url={path}?a=%22%3E%3Cscript%3E"' in first.text
    assert ann.get(path, **{"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "", "/a\nb", "evil", "/\u202e"],
)
def test_a_login_leads_nowhere_else(path: str) -> None:
    """Only to a page of this server."""
    assert way_back(path) == "/"
    assert way_back("/sessions?state=all") == "/sessions?state=all"


def test_without_keys(serve: Serve) -> None:
    """Nobody logs in, and the page says so; a form still needs its token; only localhost is answered."""
    policy = {**ASKED, "parameters": {"approvers": ["team-leads"]}}
    atlas = manifest(policies=[*manifest()["policies"], policy])
    served = serve(atlas, clock=FrozenClock(NOON), with_keys=False)
    local = Caller(served, {})
    answer = local.execute(local.session(), "refund.create", parameters={"amount": 5})
    approval_id = answer.json()["error"]["details"]["approval_id"]
    person = Person(served)
    page = person.get("/")
    assert "No login: this server has no keys" in told(page)
    assert person.get("/sessions").status_code == 200
    assert Person(served).send(f"/approvals/{approval_id}", {"answer": "approve"}).status_code == 403
    assert person.answer(approval_id, "approve").status_code == 303
    assert "Approved by local" in told(person.get(f"/approvals/{approval_id}"))
    assert Person(served).get("/", host="evil.example").status_code == 403


def test_sessions_are_paged(served: Served, ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first; live and ended ones apart."""
    monkeypatch.setattr(routes_sessions, "PER_PAGE", 2)
    bot = served.by("bot")
    ids = [bot.session(goal=f"goal {number}") for number in range(5)]
    bot.post(f"/v1/sessions/{ids[0]}/end", {})
    first, last = ann.get("/sessions"), ann.get("/sessions?page=3&state=all")
    assert "5 in all" in told(first)
    assert "Page 1 of 3" in told(first)
    assert 'rel="prev"' not in first.text
    assert 'rel="next"' not in last.text
    assert ids[0] in last.text
    assert "ended" in told(last)
    assert ids[0] in ann.get("/sessions?state=ended").text
    assert ids[0] not in ann.get("/sessions?state=active&page=2").text
    for odd in ("page=0", "page=-1", "page=x", "page=99999999999", "state=odd"):
        assert ann.get(f"/sessions?{odd}").status_code == 200


def test_a_changed_trace_is_said_to_be(served: Served, ann: Person) -> None:
    """By the server, which verifies what is kept each time it is looked at."""
    bot = served.by("bot")
    session_id = bot.session()
    bot.post(f"/v1/sessions/{session_id}/end", {})
    assert "Intact and sealed" in told(ann.get(f"/sessions/{session_id}"))
    (path,) = served.folder.glob(f"traces/**/{session_id}*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"goal":"Help"', b'"goal":"Harm"', 1))
    page = ann.get(f"/sessions/{session_id}")
    assert "This is not what was recorded" in told(page)
    assert '<h1 id="headline" data-state="broken">' in page.text


def test_long_sessions_have_no_timeline_here(served: Served, ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their page says how to make a report; one that is not there is not found."""
    monkeypatch.setattr(routes_sessions, "MAX_EVENTS", 3)
    session_id = served.by("bot").session()
    assert "A page holds at most 3 events" in told(ann.get(f"/sessions/{session_id}"))
    assert ann.get("/sessions/01a21890-0ecf-7484-8e26-b07389ed90c9").status_code == 404


def test_how_often_rules_fired(served: Served, ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the traces, each event once however often one looks; an approver, who reads none, is not told."""
    monkeypatch.setattr(tallies, "SESSIONS", 2)
    bot, session_id, approval_id = asked(served)
    path = "/atlases/com.example.tests"

    def fired() -> dict[str, str]:
        rows = re.findall(r"<tr>.*?</tr>", ann.get(path).text)
        cells = [re.sub("<[^>]*>", " ", row).split() for row in rows]
        return {(row[1] if row[0] in ("allow", "deny", "ask") else row[0]): row[-1] for row in cells}

    page = told(ann.get(path))
    assert "Counted from the traces of 1 session" in page
    assert "1 asked" in page
    assert fired()["refund.create"] == "1"
    ann.answer(approval_id, "approve")
    for _ in range(3):
        bot.execute(session_id, "ticket.get")
    bot.execute(session_id, "ticket.delete")
    bot.execute(session_id, "refund.create", parameters={"amount": 5})
    page = told(ann.get(path))
    assert "allow allow-all *; always – 4 let run" in page
    assert "deny no-delete *.delete; always Never. 1 refused" in page
    assert "ask ask refund.create; always – 1 asked" in page
    bot.post(f"/v1/sessions/{session_id}/end", {})
    for _ in range(2):
        assert told(ann.get(path)) == page
    assert "Fired" not in told(someone(served, "lea", "approver").get(path))
    for _ in range(2):
        bot.session()
    assert "Counted from the traces of the latest 2 sessions" in told(ann.get(path))
    assert "never" in told(ann.get(path))
