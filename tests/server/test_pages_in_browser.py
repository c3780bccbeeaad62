"""The pages in a real browser: a person answers and the agent goes on; nothing foreign runs; what was changed is red.

With ``CRA_SCREENSHOTS=1`` the screenshots of ``docs/page.md`` are made again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cra_middleware._clock import SystemClock
from cra_middleware.server.access import Role, make_key
from cra_middleware.server.places import open_keys, state_folder
from tests.cli.browser import Browser
from tests.cli.conftest import browser as browser
from tests.server.serving import Caller, Process, utc_now

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


def scene(desk: Desk) -> str:
    """A morning at the support desk; the session that has something of everything."""
    agent = desk.agent
    for number in range(3):
        ended = agent.session(agent_id="support-bot", goal=f"Answer ticket {4710 + number}")
        for _ in range(number + 2):
            let = agent.execute(ended, "order.get", agent_id="support-bot", parameters={"order": f"A-{number}"})
            agent.report(ended, let.json()["execution_id"])
        agent.post(f"/v1/sessions/{ended}/end", {"reason": "completed"})
    goal = "Refund order A-17, which arrived broken"
    session_id = agent.session(agent_id="support-bot", goal=goal)
    let = agent.execute(session_id, "order.get", agent_id="support-bot", parameters={"order": "A-17"})
    agent.report(session_id, let.json()["execution_id"])
    agent.execute(session_id, "customer.delete", agent_id="support-bot", parameters={"customer": 311})
    refund = {"order": "A-17", "amount": 250, "currency": "EUR", "note": "Arrived broken; photo seen."}
    agent.execute(session_id, "refund.create", agent_id="support-bot", parameters=refund)
    mailing = agent.session(agent_id="newsletter-bot", goal="Tell customers about the recall")
    mail = {
        "to": "mara@example.com",
        "subject": "Your kettle is recalled",
        "body": "Dear Mara,\nplease stop using it. We send you a new one.",
    }
    agent.execute(mailing, "email.send", agent_id="newsletter-bot", parameters=mail)
    return session_id


SCREENS = {"light": (1100, 800), "dark": (1100, 800), "narrow": (360, 800)}
KEPT = ("approvals-light", "approvals-dark", "approvals-narrow", "session-light", "session-narrow", "atlas-dark")


def test_screenshots(desk: Desk) -> None:
    """Every page is as wide as the screen, also at 360 pixels; with ``CRA_SCREENSHOTS=1`` some are kept."""
    browser = desk.browser
    session_id = scene(desk)
    pages = {
        "approvals": "/",
        "sessions": "/sessions",
        "session": f"/sessions/{session_id}",
        "atlases": "/atlases",
        "atlas": "/atlases/com.example.support",
    }
    for screen, (width, height) in SCREENS.items():
        scheme = "dark" if screen == "dark" else "light"
        desk.login()
        for name, path in pages.items():
            browser.look_like(width, 2 * height - 300 if name == "session" else height, scheme)
            desk.go(path)
            if name == "session":
                browser.wait_for("document.getElementById('overall').dataset.state !== 'waiting'")
            wide = browser.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} pixels wide"
            if os.environ.get("CRA_SCREENSHOTS") == "1" and f"{name}-{screen}" in KEPT:
                IMAGES.mkdir(exist_ok=True)
                (IMAGES / f"page-{name}-{screen}.webp").write_bytes(browser.screenshot())


def evidence(desk: Desk, session_id: str) -> list[str]:
    """What the browser said of a session."""
    desk.go(f"/sessions/{session_id}")
    desk.browser.wait_for("document.getElementById('overall').dataset.state !== 'waiting'")
    found: list[str] = desk.browser.evaluate(
        "[document.getElementById('headline').dataset.state, document.getElementById('overall').dataset.state]"
    )
    return found


def test_hostile_content_is_harmless(desk: Desk) -> None:
    """A tool name and arguments full of markup are letters: nothing runs, nothing is asked of anybody else."""
    browser, agent = desk.browser, desk.agent
    desk.login()
    session_id = agent.session(agent_id=MARKUP, goal=MARKUP)
    body = agent.execution(
        session_id, "refund.create", agent_id=MARKUP, parameters={"amount": 900, "note": MARKUP}, tool_name=MARKUP
    )
    approval_id = agent.post("/v1/execute", body).json()["error"]["details"]["approval_id"]
    browser.wait_for("document.querySelector('article.ask')")  # it came by the script
    shown = text(browser, "article.ask")
    assert "<img src=x: onerror='globalThis.owned = 1'>" in shown
    assert "\\u{202e}gpj.exe" in shown
    assert "\u202e" not in shown
    for path in ("/", f"/approvals/{approval_id}", "/sessions"):
        desk.go(path)
        assert "globalThis.owned = 1" in text(browser, "main")
        assert browser.evaluate("document.images.length + document.querySelectorAll('main script').length") == 0
        assert {address.split("/")[2] for address in browser.requested} == {desk.process.url.split("/")[2]}
    assert evidence(desk, session_id) == ["open", "whole"]
    assert browser.evaluate("String(globalThis.owned)") == "undefined"


def test_a_changed_trace_is_red(desk: Desk) -> None:
    """Changed on the server's disk, the server says so; changed on the way to the browser, the browser does."""
    browser, agent = desk.browser, desk.agent
    desk.login()
    session_id = agent.session(agent_id="support-bot", goal="Refund 250")
    agent.post(f"/v1/sessions/{session_id}/end", {})
    assert evidence(desk, session_id) == ["sealed", "whole"]
    page = str(browser.evaluate("fetch(location.href).then((answer) => answer.text())"))
    for was, is_now in (("Refund 250", "Refund 900"), ("Intact and sealed</h1>", "Intact, and more</h1>")):
        assert was in page
        shown = browser.show(page.replace(was, is_now))
        assert shown.overall[0] == "fault"
    assert browser.show(page).overall[0] == "whole"
    (path,) = desk.folder.glob(f"traces/**/{session_id}*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"Refund 250", b"Refund 900"))
    assert evidence(desk, session_id) == ["broken", "unchecked"]
    red = "rgb(168, 32, 26)"
    assert browser.evaluate("getComputedStyle(document.getElementById('headline')).color") == red


INJECTED = """<script>globalThis.owned = 1</script><img src="/v1/health" onerror="globalThis.owned = 1">
<p id="styled" style="color: rgb(1, 2, 3)">x</p><style>#styled { color: rgb(1, 2, 3) }</style>
<iframe src="/login"></iframe><base href="http://127.0.0.1:1/"><link rel="stylesheet" href="/x.css">
<script src="/waiting"></script></main>"""
WATCH = """globalThis.blocked = [];
document.addEventListener("securitypolicyviolation", (event) => globalThis.blocked.push(event.effectiveDirective));"""
DIRECTIVES = {
    *("script-src-elem", "script-src-attr", "style-src-elem", "style-src-attr", "img-src", "frame-src", "base-uri"),
}


class Between(ThreadingHTTPServer):
    """Somebody between a server and its browser, who adds to what is answered."""

    def __init__(self, url: str, *, keeps_policy: bool) -> None:
        self.url = url
        self.keeps_policy = keeps_policy
        super().__init__(("127.0.0.1", 0), _Adding)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def own_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Adding(BaseHTTPRequestHandler):
    server: Between

    def do_GET(self) -> None:
        found = httpx.get(self.server.url + self.path, headers={"cookie": self.headers.get("cookie", "")}, timeout=20)
        body = found.text.replace("</main>", INJECTED, 1).encode()
        self.send_response(found.status_code)
        for name in ("content-type", *(("content-security-policy",) if self.server.keeps_policy else ())):
            self.send_header(name, found.headers[name])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged."""


def test_the_policy_blocks_what_is_injected(desk: Desk) -> None:
    """On every page: scripts, handlers, styles, an image, a frame, a base; without the policy the same markup runs."""
    browser = desk.browser
    desk.login()
    session_id = scene(desk)
    watching = browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)["identifier"]
    with Between(desk.process.url, keeps_policy=True) as held, Between(desk.process.url, keeps_policy=False) as bare:
        for path in ("/", "/sessions", f"/sessions/{session_id}", "/atlases/com.example.support"):
            browser.go(held.own_url + path)
            assert browser.evaluate("document.querySelectorAll('#styled').length") == 1
            assert set(browser.evaluate("globalThis.blocked")) == DIRECTIVES, path
            assert browser.evaluate("String(globalThis.owned)") == "undefined"
            assert browser.evaluate("getComputedStyle(document.getElementById('styled')).color") != "rgb(1, 2, 3)"
            with pytest.raises(AssertionError, match="TrustedHTML"):
                browser.evaluate("document.body.innerHTML += 'x'")
            browser.go(bare.own_url + path)
            assert browser.evaluate("globalThis.owned") == 1
        held.shutdown()
        bare.shutdown()
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=watching)


def test_by_keyboard_and_without_script(desk: Desk) -> None:
    """The login has the focus; Enter sends it; tabs reach the link to the content, the reason and both answers; a
    reason takes Enter as a new line. Without JavaScript the same works, and the page loads itself again."""
    browser, agent = desk.browser, desk.agent
    session_id = agent.session(agent_id="support-bot")
    wanted = {"amount": 250}
    answer = agent.execute(session_id, "refund.create", agent_id="support-bot", parameters=wanted)
    approval_id = answer.json()["error"]["details"]["approval_id"]
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Network.clearBrowserCookies")
        desk.go(f"/approvals/{approval_id}")
        browser.wait_for("document.activeElement.id === 'key'")  # the focus comes with the first drawing
        browser.call("Input.insertText", text=desk.ann)
        browser.wait_for("document.activeElement.value")
        with browser.loading():
            press(browser, "Enter")
        reached = []
        for _ in range(20):
            press(browser, "Tab")
            name = browser.evaluate("document.activeElement.innerText || document.activeElement.name")
            reached.append(name)
            if name == "reason":
                browser.call("Input.insertText", text="seen")
                press(browser, "Enter")
                browser.call("Input.insertText", text="and kept")
            if name == "Approve":
                break
        assert reached[0] == "To the content"
        assert reached[-2:] == ["reason", "Approve"]
        assert browser.evaluate("document.activeElement.matches(':focus-visible')")
        with browser.loading():
            press(browser, "Enter")
        assert text(browser, ".told").startswith("Approved: refund.create for support-bot, by ann")
        assert browser.evaluate("document.querySelector('noscript meta').content") == "30; url=/"
        desk.go(f"/approvals/{approval_id}")
        assert "seen\\u{a}and kept" in text(browser, ".told")
        desk.go(f"/sessions/{session_id}")
        assert "JavaScript is off" in text(browser, "noscript")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    done = agent.execute(session_id, "refund.create", agent_id="support-bot", parameters=wanted)
    assert done.status_code == 200


def press(browser: Browser, key: str) -> None:
    """A key, pressed and let go."""
    told = {"Enter": {"windowsVirtualKeyCode": 13, "text": "\r"}, "Tab": {"windowsVirtualKeyCode": 9}}[key]
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **told)
    browser.call(
        "Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=told["windowsVirtualKeyCode"]
    )


def test_an_answer_elsewhere_closes_the_question(desk: Desk) -> None:
    """A question that nobody touches leaves; one that a person is writing at stays, and cannot be sent any more."""
    browser, agent = desk.browser, desk.agent
    desk.login()
    session_id = agent.session(agent_id="support-bot")
    ids = []
    for amount in (201, 202):
        answer = agent.execute(session_id, "refund.create", agent_id="support-bot", parameters={"amount": amount})
        ids.append(answer.json()["error"]["details"]["approval_id"])
    browser.wait_for("document.querySelectorAll('article.ask').length === 2")
    browser.evaluate("document.querySelectorAll('textarea')[1].focus()")
    other = Agent(desk.process.url, desk.ann)
    for approval_id in ids:
        assert other.post(f"/v1/approvals/{approval_id}/reject", {}).status_code == 200
    browser.wait_for("document.querySelectorAll('article.ask').length === 1")
    browser.wait_for("document.querySelector('article.ask .told')")
    assert browser.evaluate("document.querySelector('article.ask').id") == f"ask-{ids[1]}"
    assert browser.evaluate("Array.from(document.querySelectorAll('.ask button'), (one) => one.disabled)") == [
        True,
        True,
    ]
    desk.keys.revoke("ann", SystemClock().wall_us())
    browser.wait_for("document.getElementById('lost').innerText.startsWith('Your login has ended')")
