"""The pages in a real browser: a person answers and the agent goes on; nothing foreign runs; what was changed is red.

With ``CRA_SCREENSHOTS=1`` the screenshots of ``docs/page.md`` are made again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cra_middleware._clock import SystemClock
from cra_middleware.server.access import Role, make_key
from cra_middleware.server.assembly import open_keys, state_folder
from tests.cli.browser import Browser
from tests.cli.conftest import browser as browser
from tests.server.conftest import Caller, Process

pytestmark = pytest.mark.slow

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
MARKUP = "<img src=x: onerror='globalThis.owned = 1'><script>globalThis.owned = 1</script>\u202egpj.exe\x07\u200b"
SUPPORT: dict[str, Any] = {
    "atlas_version": "1.0",
    "atlas_id": "com.example.support",
    "version": "1.4.0",
    "name": "Support desk",
    "description": "What the support agents may do with orders, refunds and mail.",
    "actions": [
        {"action_id": "order.get", "name": "Get an order", "description": "Look up one order"},
        {"action_id": "order.list", "name": "List orders", "description": "Orders of one customer"},
        {
            "action_id": "refund.create",
            "name": "Refund",
            "description": "Pay money back to a customer",
            "risk_tier": "high",
        },
        {
            "action_id": "email.send",
            "name": "Send mail",
            "description": "Write to a customer",
            "risk_tier": "medium",
        },
        {"action_id": "customer.delete", "name": "Delete", "description": "Forget a customer", "risk_tier": "critical"},
    ],
    "policies": [
        {"policy_id": "reading", "type": "allow", "actions": ["order.*"]},
        {"policy_id": "acting", "type": "allow", "actions": ["refund.create", "email.send"]},
        {
            "policy_id": "large-refunds",
            "type": "require_approval",
            "actions": ["refund.create"],
            "conditions": {"arguments": {"amount": "> 100"}},
            "parameters": {"reason": "Refunds above 100 need a second pair of eyes.", "expires_seconds": 1800},
        },
        {
            "policy_id": "mail-to-customers",
            "type": "require_approval",
            "actions": ["email.send"],
            "parameters": {"reason": "Mail leaves the house.", "approvers": ["team-leads"], "expires_seconds": 7200},
        },
        {
            "policy_id": "never-delete",
            "type": "deny",
            "actions": ["*.delete"],
            "parameters": {"reason": "Only the data protection officer deletes customers."},
        },
        {
            "policy_id": "mail-limit",
            "type": "rate_limit",
            "actions": ["email.send"],
            "parameters": {"max_calls": 20, "window_seconds": 3600, "scope": "agent"},
        },
    ],
}


class Desk:
    """A server as a program, its agents, and a person before it."""

    def __init__(self, folder: Path, browser: Browser) -> None:
        self.keys = open_keys(state_folder(folder / "traces"))
        self.bot = self._made("bot", ("agent",), agent_ids=("*",))
        self.ann = self._made("ann", ("approver", "auditor"), groups=("team-leads",))
        self.process = Process(folder, atlas=SUPPORT)
        self.folder = folder
        self.browser = browser
        self.agent = Agent(self.process.url, self.bot)

    def _made(self, name: str, roles: tuple[Role, ...], **terms: Any) -> str:
        text, key = make_key(name, roles, SystemClock().wall_us(), **terms)
        self.keys.add(key)
        return text

    def go(self, path: str) -> None:
        self.browser.go(self.process.url + path)

    def login(self) -> None:
        self.browser.call("Network.clearBrowserCookies")
        self.go("/login")
        self.browser.evaluate(f"document.getElementById('key').value = {json.dumps(self.ann)}")
        with self.browser.loading():
            self.browser.evaluate("document.querySelector('button.yes').click()")

    def close(self) -> None:
        self.process.stop()
        self.keys.close()


class Agent(Caller):
    """An agent that talks to a server over the network."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(self, {"x-api-key": key})  # type: ignore[arg-type]
        self.url = url

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        return httpx.request(method, self.url + path, json=body, headers=self.headers, timeout=20, **more)

    def now(self) -> str:
        from tests.server.conftest import utc_now

        return utc_now()


@pytest.fixture
def desk(tmp_path: Path, browser: Browser) -> Iterator[Desk]:
    browser.look_like(1180, 800)
    made = Desk(tmp_path, browser)
    yield made
    made.close()


def text(browser: Browser, selector: str) -> str:
    return str(browser.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))


def test_a_person_approves_and_the_agent_goes_on(desk: Desk) -> None:
    """The agent waits and asks again and again; the question appears without a reload; a yes lets the call run."""
    browser, agent = desk.browser, desk.agent
    desk.login()
    assert text(browser, "#none")
    session_id = agent.session(agent_id="support-bot")
    ran = threading.Event()
    statuses: list[int] = []

    def work() -> None:
        for _ in range(200):
            answer = agent.execute(
                session_id, "refund.create", agent_id="support-bot", parameters={"amount": 250, "order": "A-17"}
            )
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                agent.report(session_id, answer.json()["execution_id"])
                ran.set()
                return
            threading.Event().wait(0.2)

    working = threading.Thread(target=work)
    working.start()
    browser.evaluate("globalThis.same = 1")
    browser.wait_for("document.querySelector('article.ask')")
    assert browser.evaluate("globalThis.same") == 1
    assert text(browser, "#live") == "1 new: refund.create, asked by support-bot"
    assert browser.evaluate("document.title") == "(1) Approvals · CRA"
    assert '"amount": 250' in text(browser, ".arguments")
    assert set(statuses) == {423}
    browser.evaluate("document.querySelector('textarea').value = 'seen the receipt'")
    with browser.loading():
        browser.evaluate("document.querySelector('button[value=approve]').click()")
    assert text(browser, ".told").startswith("Approved: refund.create for support-bot, by ann")
    assert ran.wait(20)
    working.join()
    assert agent.kinds(session_id)[-3:] == ["action.requested", "action.approved", "action.executed"]
    desk.go(f"/sessions/{session_id}")
    browser.wait_for("document.getElementById('overall').dataset.state !== 'waiting'")
    assert browser.evaluate("document.getElementById('overall').dataset.state") == "whole"
    assert "approved by ann" in text(browser, ".timeline")
