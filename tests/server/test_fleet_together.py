"""The page and the Atlases of two servers as programs: a login, and a rule, that is known to one is known to both."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.browser import Browser
from tests.cli.conftest import browser as browser
from tests.server.alternating import alternating
from tests.server.fleet import Agent, Fleet, fleet_in
from tests.server.test_pages_in_browser import SUPPORT, text
from tests.server.test_shared_atlases import OTHER

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with fleet_in(tmp_path, SUPPORT) as made:
        yield made


HOW = ("goes on", "resumed")  # at a server that had the session open, and at one that had not


def token_of(page: httpx.Response) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page.text)
    assert found is not None, page.text
    return found[1]


def test_one_login_at_two_servers(fleet: Fleet) -> None:
    """A form of one is sent to the other; who logs in, answers and logs out does so at both, also after a restart."""
    ann = fleet.key("ann", "--role", "approver", "--role", "auditor")
    bot = Agent(fleet, fleet.key("bot", "--role", "agent", "--agent", "*"), 1)
    fleet.start_all(2)
    session_id = bot.session()
    asked = bot.execute(session_id, "refund.create", amount=250)
    path = f"/approvals/{asked.json()['error']['details']['approval_id']}"
    here, there = fleet.urls
    with httpx.Client() as person:
        cookies = person.cookies

        def send(url: str, path: str, **form: str) -> httpx.Response:
            return person.post(url + path, data=form, headers={"origin": url})

        token = token_of(person.get(here + "/login"))
        assert send(there, "/login", token=token, key=ann).headers["location"] == "/"
        stolen = dict(cookies)
        for url in (here, there):
            assert person.get(url + "/sessions").status_code == 200
        token = token_of(person.get(here + path))
        assert send(there, path, token="0" * 64, answer="approve", reason="").status_code == 403
        assert send(there, path, token=token, answer="approve", reason="").status_code == 303
        assert bot.execute(session_id, "refund.create", amount=250).status_code == 200
        fleet.processes[0].terminate()
        assert fleet.processes[0].wait(30) == 0
        fleet.start(0)
        fleet.wait(0)
        assert person.get(here + "/sessions").status_code == 200
        assert send(here, "/logout", token=token).headers["location"] == "/login"
    for url in (here, there):
        assert httpx.get(url + "/sessions", cookies=stolen).status_code == 303


def test_failed_logins_at_two_servers(fleet: Fleet) -> None:
    """Ten in a minute, of the API and the page together, wherever they are sent to."""
    ann = fleet.key("ann", "--role", "approver")
    fleet.start_all(2)
    wrong = Agent(fleet, "cra_00000000_" + "x" * 43, 1)
    statuses = [wrong.at(number % 2, "GET", "/v1/approvals").status_code for number in range(8)]
    with httpx.Client() as person:
        for number in range(8):
            url = fleet.urls[number % 2]
            form = {"token": token_of(person.get(url + "/login")), "key": "cra_00000000_x"}
            statuses.append(person.post(url + "/login", data=form, headers={"origin": url}).status_code)
    assert statuses == [401] * 10 + [429] * 6
    assert httpx.get(fleet.urls[1] + "/v1/approvals", headers={"x-api-key": ann}).status_code == 200


def test_an_atlas_at_two_servers(fleet: Fleet) -> None:
    """Posted at one, a call at the other is soon decided by it, and by the same digest; a server that starts has it."""
    boss = Agent(fleet, fleet.key("boss", "--role", "admin", "--agent", "*"), 1)
    fleet.start_all(2)
    session_id = boss.session()

    def status(number: int) -> int:
        return boss.at(number, "POST", "/v1/execute", boss.body(session_id, "mail.send")).status_code

    assert [status(number) for number in (0, 1)] == [404, 404]
    assert boss.at(0, "POST", "/v1/atlases", OTHER).status_code == 201
    assert status(0) == 200
    until = time.monotonic() + 30
    while status(1) != 200:
        assert time.monotonic() < until, "the other never took it over"
        time.sleep(0.05)
    fleet.start()
    fleet.wait(2)
    assert status(2) == 200
    sessions = [boss.at(number, "POST", "/v1/sessions", {"agent_id": "b", "goal": "g"}) for number in range(3)]
    traces = [boss.ask("GET", f"/v1/traces/{answer.json()['session_id']}?limit=1").json() for answer in sessions]
    (digest,) = {trace["events"][0]["payload"]["metadata"]["policy_digest"] for trace in traces}
    told = [event["payload"]["message"] for event in boss.events(session_id, "error.occurred")]
    assert (
        {f"goes on under the policies {digest}"} <= set(told) <= {f"{how} under the policies {digest}" for how in HOW}
    )
    assert boss.at(2, "DELETE", "/v1/atlases/com.example.other").status_code == 204
    while {status(0), status(1)} != {404}:
        assert time.monotonic() < until, "the others never put it out of force"
        time.sleep(0.05)
    assert [path.name for path in fleet.atlases.iterdir()] == ["tests.json"]


def test_a_browser_behind_a_balancer(fleet: Fleet, browser: Browser) -> None:
    """A person logs in, sees the question appear, answers it, reads the session and logs out: no two requests that
    follow each other reach the same server."""
    ann = fleet.key("ann", "--role", "approver", "--role", "auditor", "--group", "team-leads")
    agent = Agent(fleet, fleet.key("bot", "--role", "agent", "--agent", "*"), 1)
    fleet.start_all(2)
    with alternating(fleet.urls) as (url, had):
        browser.look_like(1180, 800)
        browser.call("Network.clearBrowserCookies")
        browser.go(url + "/login")
        browser.evaluate(f"document.getElementById('key').value = {json.dumps(ann)}")
        with browser.loading():
            browser.evaluate("document.querySelector('button.yes').click()")
        assert text(browser, "#none")
        session_id = agent.session()
        assert agent.execute(session_id, "refund.create", amount=250).status_code == 423
        browser.wait_for("document.querySelector('article.ask')")
        with browser.loading():
            browser.evaluate("document.querySelector('button[value=approve]').click()")
        assert text(browser, ".told").startswith("Approved: refund.create for bot, by ann")
        assert agent.execute(session_id, "refund.create", amount=250).status_code == 200
        browser.go(f"{url}/sessions/{session_id}")
        browser.wait_for("document.getElementById('overall').dataset.state !== 'waiting'")
        assert browser.evaluate("document.getElementById('overall').dataset.state") == "whole"
        for path in ("/sessions", "/atlases", "/"):
            browser.go(url + path)
            assert "logged in as ann" in text(browser, ".bar")
        with browser.loading():
            browser.evaluate("document.querySelector('form.who button').click()")
        for _ in range(2):
            browser.go(url + "/sessions")
            assert browser.evaluate("location.pathname") == "/login"
        assert min(had) >= 6
