"""The page in a real browser: a good one turns green, an edited one turns red, and nothing else runs or leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, FileReport, Runtime
from cra_middleware._canonical import canonical
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.chain import Verdict
from cra_middleware.trace.event import GENESIS, seal
from cra_middleware.trace_page import render
from tests.cli.browser import Browser, Shown
from tests.cli.conftest import an_id, foreign
from tests.cli.test_html_report import HOSTILE, page_of, record
from tests.conftest import NOON, manifest

Edit = Callable[[str], str]


@pytest.fixture
def page(recorded: Path) -> str:
    """The page of two sessions."""
    return page_of(recorded, record(recorded.parent / "more", "billing-bot"))


def states(shown: Shown) -> list[str]:
    return [shown.overall[0], *(state for state, _ in shown.sessions)]


def test_a_good_page_is_checked_and_green(browser: Browser, page: str) -> None:
    """Every session says how many events were checked; nothing was asked of any network."""
    shown = browser.show(page)
    assert shown.overall == [
        "whole",
        "Checked in your browser: 29 events in 2 sessions, every chain whole, every table made from it.",
    ]
    assert shown.sessions == [
        ["whole", "Checked in your browser: 21 events, chain whole."],
        ["whole", "Checked in your browser: 8 events, chain whole."],
    ]
    assert [address.split(":")[0] for address in shown.requested] == ["file"]


def test_hostile_content_does_not_run(browser: Browser, tmp_path: Path) -> None:
    """Markup in agent ids, goals, arguments and notes is text; the page is green all the same."""
    path = record(tmp_path, HOSTILE, HOSTILE, HOSTILE + "x" * 100_000)
    shown = browser.show(page_of(path, proofs={path.name[:36]: [(HOSTILE, HOSTILE)]}, folder_note=HOSTILE))
    assert states(shown) == ["whole", "whole"]
    assert shown.owned == "undefined"
    assert len(shown.requested) == 1


@pytest.mark.parametrize(
    "markup",
    ["<script>globalThis.owned = 1</script>", "<img src=x: onerror='globalThis.owned = 1'>"],
    ids=["script", "handler"],
)
def test_an_injected_script_does_not_run(browser: Browser, page: str, markup: str) -> None:
    """The policy lets only the page's own script run."""
    assert browser.show(page.replace("<main>", f"<main>{markup}", 1)).owned == "undefined"
    without = re.sub(r"<meta http-equiv[^>]*>", "", page)
    assert browser.show(without.replace("<main>", f"<main>{markup}", 1)).owned == "1"  # it is the policy that stops it


def test_an_edited_byte_in_any_embedded_line_turns_its_session_red(browser: Browser, tmp_path: Path) -> None:
    """Forty copies of a session, each with another byte of its lines changed: none stays green."""
    count = 40
    page = page_of(*(record(tmp_path / str(number)) for number in range(count)))
    head, *sections = page.split('<section class="session"')
    for number, section in enumerate(sections):
        spots = [range(*match.span(1)) for match in re.finditer(r'<pre class="line">(.*?)</pre>', section)]
        places = [place for spot in spots for place in spot]
        place = places[(number * 2 + 1) * len(places) // (count * 2)]
        other = "1" if section[place] != "1" else "2"
        sections[number] = section[:place] + other + section[place + 1 :]
    shown = browser.show('<section class="session"'.join([head, *sections]))
    assert states(shown) == ["fault"] * (count + 1)
    assert all(re.search(r"recorded: (a line|event|its|a row|row|the) ", text) for _, text in shown.sessions)


def swap(old: str, new: str) -> Edit:
    """Replaces a text that is there, at its last place."""

    def edit(page: str) -> str:
        before, found, after = page.rpartition(old)
        assert found, old
        return before + new + after

    return edit


def rows_of(page: str) -> list[str]:
    return re.findall(r"<tbody class=.*?</tbody>\n", page, re.DOTALL)


def drop_row(page: str) -> str:
    return page.replace(rows_of(page)[5], "", 1)


def swap_rows(page: str) -> str:
    one, other = rows_of(page)[5:7]
    return page.replace(one + other, other + one)


def repeat_row(page: str) -> str:
    return page.replace(rows_of(page)[5], rows_of(page)[5] * 2, 1)


def bare_row(page: str) -> str:
    """A row that no line stands behind."""
    return page.replace(rows_of(page)[5], re.sub(r"<details>.*</details>", "", rows_of(page)[5]), 1)


def last_event(page: str) -> str:
    """The end of the second session removed, with every word of it that a careful forger would mend."""
    page = page.replace(rows_of(page)[-1], "", 1)
    return swap(">INTACT, SEALED<", ">INTACT, NOT SEALED: the end may be missing<")(page)


EDITS: dict[str, Edit] = {
    "reason": swap(">Never.", ">Always."),
    "decision": swap(">deny<", ">allow<"),
    "outcome": swap("failed: ValueError", "ran, 1 ms"),
    "look": swap('<tbody class="deny">', '<tbody class="allow">'),
    "time": swap("12:00:00.000</td>", "12:00:00.001</td>"),
    "action": swap('"Action">ticket.delete', '"Action">ticket.get'),
    "caption": swap(" · action.denied · ", " · action.approved · "),
    "hidden": swap('<tbody class="deny">', '<tbody class="deny" hidden>'),
    "row dropped": drop_row,
    "rows swapped": swap_rows,
    "row repeated": repeat_row,
    "row without lines": bare_row,
    "last event": last_event,
    "agent": swap("<dd>bot</dd>", "<dd>bat</dd>"),
    "summary": swap('"Agent">bot<', '"Agent">bat<'),
    "verdict": swap(">INTACT, SEALED<", ">INTACT, NOT SEALED: the end may be missing<"),
    "manifest's head": lambda page: re.sub(r'"head": "(.)', lambda m: '"head": "' + "10"[m[1] == "1"], page, count=1),
    "manifest's count": swap('"events": 8,', '"events": 7,'),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_session_turns_red(browser: Browser, page: str, edit: Edit) -> None:
    """What is shown must be made from the lines: an edit turns its session and the whole page red, and no other."""
    edited = edit(page)
    assert edited != page
    found = states(browser.show(edited))
    assert found[0] == "fault"
    assert sorted(found[1:]) == ["fault", "whole"]


def drop_session(page: str) -> str:
    head, _, other = page.split('<section class="session"')
    return head + '<section class="session"' + other


def drop_session_and_summary(page: str) -> str:
    return re.sub(r'<tr><th scope="row".*?</tr>\n', "", drop_session(page), count=1, flags=re.DOTALL)


def swap_sessions(page: str) -> str:
    head, one, other = page.split('<section class="session"')
    other, end = other.split("</main>")
    return '<section class="session"'.join([head, other, one]) + "</main>" + end


@pytest.mark.parametrize(
    "edit",
    [
        *(drop_session, drop_session_and_summary, swap_sessions),
        swap("Every session is intact and sealed</h1>", "All good</h1>"),
        swap("<dt>Broken</dt><dd>0", "<dt>Broken</dt><dd>1"),
        swap('"unreadable": 0', '"unreadable": 1'),
        swap('<script type="application/json" id="manifest">', '<script type="application/json" id="other">'),
        swap('{"sessions"', '{"sessions'),
    ],
    ids=["dropped", "dropped twice", "swapped", "headline", "counts", "unreadable", "no manifest", "no json"],
)
def test_an_edited_page_turns_red(browser: Browser, page: str, edit: Edit) -> None:
    """A session that was removed or moved, and edited words at the top, turn the whole page red."""
    assert browser.show(edit(page)).overall[0] == "fault"


def test_the_break_is_named_and_marked(browser: Browser, page: str) -> None:
    """The sentence says which event, and its row is marked."""
    shown = browser.show(swap("&#34;reason&#34;:&#34;Never.", "&#34;reason&#34;:&#34;Always.")(page))
    assert "event 8 was changed after it was written" in shown.sessions[0][1]
    assert len(shown.marked) == 1
    assert "ticket.delete" in shown.marked[0]


def test_a_mark_that_shows_something_else_turns_red(browser: Browser, tmp_path: Path) -> None:
    """An odd character's escape must be its own."""
    page = page_of(record(tmp_path, argument="\u202e"))
    assert states(browser.show(page)) == ["whole", "whole"]
    assert states(browser.show(swap("data-as='\\u{202e}'", "data-as='a lie'")(page))) == ["fault", "fault"]


def test_what_the_browser_does_not_check_is_never_green(browser: Browser, recorded: Path, tmp_path: Path) -> None:
    """Other profiles and broken traces say that they are not checked, and the page as a whole is not green."""
    (tmp_path / "other.jsonl").write_bytes(b"".join(foreign(1, [{"a": 1}])))
    whole = page_of(tmp_path / "other.jsonl", recorded)
    shown = browser.show(whole)
    assert states(shown) == ["unchecked", "unchecked", "whole"]
    assert "checks whole sessions of our own profile only" in shown.sessions[0][1]
    recorded.write_bytes(recorded.read_bytes().replace(b"Never.", b"Always."))
    shown = browser.show(page_of(recorded))
    assert states(shown) == ["unchecked", "unchecked"]
    assert "was broken when the page was made" in shown.sessions[0][1]


def test_a_recovered_trace_is_whole_and_says_so(browser: Browser, tmp_path: Path) -> None:
    """The verdict in the browser counts the torn bytes, too."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, clock=FrozenClock(NOON)) as runtime:
        session = runtime.session(keep=True)
    path = tmp_path / f"{session.id}.trace.jsonl"
    with path.open("ab") as file:
        file.write(b'{"torn":')
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, clock=FrozenClock(NOON)) as runtime:
        runtime.resume(session.id).end()
    page = page_of(path)
    assert "RECOVERED (8 torn bytes set aside)" in page
    assert states(browser.show(page)) == ["whole", "whole"]


def test_without_webcrypto_nothing_is_green(browser: Browser, page: str) -> None:
    """A browser without WebCrypto says so plainly."""
    added = browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="Object.defineProperty(globalThis, 'crypto', {value: undefined})",
    )
    try:
        shown = browser.show(page)
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
    assert states(shown) == ["unchecked"] * 3
    assert "no WebCrypto" in shown.overall[1]


def test_without_javascript_the_page_says_so(browser: Browser, page: str) -> None:
    """With scripts off the page still shows everything, says that nothing was checked, and shows no green."""
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.load(page)
        text = browser.evaluate("document.body.innerText")
        seen = browser.evaluate("Array.from(document.querySelectorAll('.check'), (note) => note.dataset.state)")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "JavaScript is off, so nothing is checked" in text
    assert "Never." in text
    assert set(seen) == {"waiting", "unchecked"}


def test_a_phone_needs_no_scrolling_sideways(browser: Browser, page: str) -> None:
    """At 360 pixels, nothing is wider than the screen, with every detail open."""
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    try:
        browser.show(page)
        width = browser.evaluate(
            "document.querySelectorAll('details').forEach((one) => { one.open = true; });"
            "document.documentElement.scrollWidth"
        )
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
    assert width == 360


def test_print_opens_every_detail(browser: Browser, page: str) -> None:
    """What is folded on the screen is on paper."""
    browser.show(page)
    browser.call("Page.printToPDF")
    assert browser.evaluate("Array.from(document.querySelectorAll('details')).every((one) => one.open)") is True


STARTED = ("session.started", {"agent_id": "a", "goal": "g"})
NOTE = ("error.occurred", {"error_code": "e", "message": "m"})
ENDED = ("session.ended", {"reason": "completed", "duration_ms": 1})


@pytest.mark.parametrize(
    ("events", "change", "words"),
    [
        ((STARTED, NOTE, ENDED), {}, "chain whole"),
        ((STARTED, NOTE, ENDED), {1: {"sequence": 7}}, "event 1 is missing"),
        ((STARTED, NOTE, ENDED), {1: {"session_id": an_id(8)}}, "event 1 belongs to another session"),
        ((STARTED, NOTE, ENDED), {1: {"event_id": an_id(100)}}, "event 1 has the id of another event"),
        ((STARTED, NOTE, ENDED), {1: {"event_type": "error.invented"}}, "event 1: its type is not one"),
        ((STARTED, NOTE, ENDED), {1: {"payload": '{"a":}'}}, "event 1: its payload is not JSON"),
        ((STARTED, NOTE, ENDED), {1: {"timestamp": "2026-01-05T12:00:00.001000+00:00"}}, "a line is not an event"),
        ((STARTED, NOTE, ENDED), {0: {"previous": "1" * 64}}, "event 0 does not follow"),
        ((STARTED, NOTE, ENDED), {1: {"previous": "1" * 64}}, "event 1 does not follow"),
        ((NOTE, ENDED), {}, "event 0: session.started must be the first"),
        ((STARTED, STARTED, ENDED), {}, "event 1: session.started must be the first"),
        ((STARTED, ENDED, ENDED), {}, "after the session's end, event 1"),
    ],
)
def test_a_forger_who_knows_the_hash_rule_meets_the_other_rules(
    browser: Browser, tmp_path: Path, events: Any, change: dict[int, dict[str, Any]], words: str
) -> None:
    """Lines whose hashes are right, in a page that calls them intact: the script applies every rule by itself."""
    head, lines = GENESIS, []
    for sequence, (kind, payload) in enumerate(events):
        time = f"2026-01-05T12:00:00.{sequence:03d}001+00:00"
        names = ("event_id", "trace_id", "span_id", "parent_span_id", "session_id", "sequence", "timestamp")
        values = (an_id(100 + sequence), an_id(1), an_id(3), None, an_id(2), sequence, time)
        fields: dict[str, Any] = dict(zip(names, values, strict=True))
        fields |= {"event_type": kind, "payload": canonical(payload).decode(), "previous": head}
        fields |= change.get(sequence, {})
        line, head = seal(**fields)
        lines.append(line)
    path = tmp_path / "forged.jsonl"
    path.write_text("".join(lines), encoding="utf-8", newline="")
    verdict = Verdict(an_id(2), "cra", len(lines), intact=True, sealed=True, head_hash=head)
    shown = browser.show("".join(render([FileReport(str(path), (verdict,))], made="now", version="0")))
    assert words in shown.sessions[0][1]
