"""``cra trace report --html``: what is in the page, and when there is none."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime, verify
from cra_middleware.lines import read_again
from cra_middleware.testing import FrozenClock
from cra_middleware.trace_page import render, rows
from cra_middleware.trace_page.wording import MAX_TEXT
from tests.cli.conftest import Cra, foreign, rewrite, script
from tests.conftest import NOON, manifest

HOSTILE = (
    "<script>globalThis.owned = 1</script></script></pre></td>--><img src=x onerror='globalThis.owned = 1'>"
    "\"'&lt;{goal}\u202eabc\u2028\x00\x1b[31m\x85\u00a0\U000e0041\ufeff"
)


class Reader(HTMLParser):
    """The elements of a page, and the text of those asked for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "i"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag != "i":
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


def record(folder: Path, agent: str = "bot", goal: str = "Answer", argument: object = 1) -> Path:
    """The trace of one ended session with one call, values included."""
    with Runtime(Atlas.from_dict(manifest()), trace=folder, clock=FrozenClock(NOON), record="full") as runtime:
        with runtime.session(agent, goal) as session:
            session.call("ticket.get", lambda amount: amount, argument)
        return folder / f"{session.id}.trace.jsonl"


def page_of(*files: Path, **more: Any) -> str:
    given = {"made": "now", "version": "0", **more}
    return "".join(render([verify(file) for file in files], **given))


def manifest_of(page: str) -> Any:
    [text] = re.findall(r'<script type="application/json" id="manifest">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_page_tells_each_call(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """Actions, decisions, reasons, policies, codes and outcomes are in the page; it is private; exit 0."""
    out = tmp_path / "report.html"
    ran = cra("trace", "report", recorded.parent, "--html", out)
    assert (ran.code, ran.stdout, ran.stderr) == (0, "", "")
    assert out.stat().st_mode & 0o777 == 0o600
    text = out.read_text()
    for words in (
        *("Every session is intact and sealed", "INTACT, SEALED", "Answer ticket 42", "ticket.delete", "Never."),
        *("code policy_denied", "policy slow-list", "code rate_limit_exceeded", "again in 60 s", "asked"),
        *("did not run: waited for a person", "failed: ValueError", "policy allow-all", "thread-7", "cra-middleware 0"),
    ):
        assert words in text
    assert set(os.listdir(tmp_path)) == {"traces", "report.html"}


def test_the_embedded_lines_are_the_files_bytes(recorded: Path) -> None:
    """Each line of the trace stands in the page once, byte for byte."""
    assert sorted(Reader(page_of(recorded)).texts["pre"]) == sorted(recorded.read_text().splitlines())


def test_hostile_content_stays_text(tmp_path: Path) -> None:
    """No content makes an element, closes one, or turns the direction of a row; raw lines keep it as it is."""
    path = record(tmp_path, HOSTILE, HOSTILE, HOSTILE)
    page = page_of(path, unreadable=[HOSTILE], proofs={path.name[:36]: [(HOSTILE, HOSTILE)]}, folder_note=HOSTILE)
    reader = Reader(page)
    allowed = {
        *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "noscript", "script"),
        *("h1", "h2", "h3", "h4", "p", "b", "code", "pre", "i", "span", "a", "ul", "li", "dl", "dt", "dd", "div"),
        *("table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
    }
    assert {tag for tag, _ in reader.tags} <= allowed
    assert sum(tag == "script" for tag, _ in reader.tags) == 2
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert reader.texts["script"][0].count("owned") == 0
    for tag in ("td", "dd", "th", "li", "h4"):
        assert not [text for text in reader.texts[tag] if "\u202e" in text or "\x1b" in text or "\x00" in text]
    assert "\\u{202e}abc\\u{2028}" in "".join(reader.texts["dd"])
    assert page.replace("<i data-as='\\u{202e}'>\u202e</i>", "").count("\u202e") == 0


def test_proofs_are_shown_with_what_they_prove(recorded: Path) -> None:
    """Notes come with a word of what they prove, and of who checks them."""
    page = page_of(recorded, proofs={recorded.name[:36]: [("Signed head", "note-1"), ("Else", "note-2")]})
    assert all(word in page for word in ("Signed head", "note-1", "signing key", "Else", "note-2"))
    assert "Your browser does not check these" in page
    assert "Signed note of the folder" not in page
    assert "note-3" in page_of(recorded, folder_note="note-3")


def test_the_policy_lets_only_our_own_script_and_style_run(recorded: Path) -> None:
    """The hashes in the policy are those of the inline texts; nothing else is allowed; no address is in the page."""
    page = page_of(recorded)
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    [code] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    told = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, code)]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{told[0]}'; script-src 'sha256-{told[1]}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "http:" not in page
    assert "https:" not in page
    assert " style=" not in page


def test_the_manifest_names_every_session(recorded: Path, tmp_path: Path) -> None:
    """Ids, event counts, head hashes and verdicts are there for the script to expect."""
    other = record(tmp_path / "more")
    told = manifest_of(page_of(recorded, other))
    assert [entry["id"] for entry in told["sessions"]] == [recorded.name[:36], other.name[:36]]
    last = json.loads(recorded.read_text().splitlines()[-1])
    assert told["sessions"][0]["events"] == last["sequence"] + 1
    assert told["sessions"][0]["head"] == last["event_hash"]
    assert told["sessions"][0]["verdict"] == "INTACT, SEALED"
    assert all(entry["checked"] for entry in told["sessions"])


def test_long_values_are_cut_with_a_note(recorded: Path) -> None:
    """A value is cut to what a person reads, and how much is missing is said; exactly at the limit it is whole."""
    assert rows.plain("x" * MAX_TEXT) == "x" * MAX_TEXT
    assert rows.plain("x" * 1_000_000) == "x" * MAX_TEXT + f" … ({1_000_000 - MAX_TEXT} more characters)"
    rewrite(recorded, lambda lines: lines.append(b"z" * 1_000_000 + b"\n"))
    page = page_of(recorded)
    assert len(page) < 250_000
    assert "more characters)" in page


def test_broken_and_foreign_traces_are_shown_and_not_vouched_for(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """The place of the break, what cannot be read and other profiles are in the page; exit 1 names the files."""
    rewrite(recorded, lambda lines: lines.__setitem__(7, lines[7].replace(b"ticket", b"tocket")) or lines.append(b"?"))
    (recorded.parent / "two.trace.jsonl").write_bytes(b"".join(foreign(1, [{"a": "<b>"}]) + foreign(2, [{"a": 1}])))
    os.mkfifo(recorded.parent / "pipe.trace.jsonl")
    ran = cra("trace", "report", recorded.parent, "--html", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    assert ran.code == 1
    assert "2 of 3 files do not verify; the page says so" in ran.stderr
    for words in (
        *("Not everything here is intact", "BROKEN at event 7: hash_mismatch", "BROKEN HERE", "not proven"),
        *("unreadable", "appendix-b", "is not a plain file", "{&#34;a&#34;: &#34;&lt;b&gt;&#34;}"),
    ):
        assert words in page
    told = manifest_of(page)
    assert [entry["checked"] for entry in told["sessions"]] == [False] * 3
    assert told["unreadable"] == 1


def test_events_of_several_foreign_sessions_are_sorted_out(tmp_path: Path) -> None:
    """Each session of a mixed file shows its own events."""
    one, two = foreign(1, [{"a": "the-first"}, {"a": "the-third"}]), foreign(2, [{"a": "the-second"}])
    (tmp_path / "mixed.jsonl").write_bytes(one[0] + two[0] + one[1])
    sections = page_of(tmp_path / "mixed.jsonl").split('<section class="session"')[1:]
    assert [[word in section for word in ("the-first", "the-second", "the-third")] for section in sections] == [
        [True, False, True],
        [False, True, False],
    ]


def test_a_call_without_outcome_says_so(recorded: Path) -> None:
    """A call that was allowed and has no outcome is not shown as one that ran."""
    rewrite(recorded, lambda lines: lines.__delitem__(slice(6, None)))
    told = list(rows.rows_of(read_again(verify(recorded)), "cra"))
    assert (told[-1].decision, told[-1].outcome) == ("allow", "nothing more was recorded")


@pytest.mark.parametrize("number", [0, -0.0, 1, 60.0, 1.5, 0.1, 123456789.125, 2**53 - 1, True])
def test_numbers_are_written_as_a_browser_does(number: float) -> None:
    """What Python and JavaScript write differently is brought to JavaScript's form."""
    [text] = rows._filled(["{n}"], {"n": number})
    assert text == {-0.0: "0", 60.0: "60", True: "true"}.get(number, repr(number)) or (text, number) == ("1", 1)


@pytest.mark.parametrize("number", [2**53, -(2**60), 1e16, 1e-5, float("inf"), float("nan")])
def test_numbers_that_have_two_forms_are_not_written(number: float) -> None:
    """No writer of ours records such a number, and both sides call it out of range."""
    assert list(rows._filled(["{n} s"], {"n": number})) == ["a number out of range s"]


def test_too_many_events_are_refused(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """Beyond the limit nothing is written, and the sentence says what to do; a broken file's lines count, too."""
    out = tmp_path / "out.html"
    ran = cra("trace", "report", recorded, "--html", out, "--html-limit", 20)
    assert ran.code == 2
    assert "name fewer files, or allow more with --html-limit 21" in ran.stderr
    assert not out.exists()
    rewrite(recorded, lambda lines: lines.__setitem__(0, b"{}\n"))
    assert cra("trace", "report", recorded, "--html", out, "--html-limit", 20).code == 2
    assert cra("trace", "report", recorded, "--html", out, "--html-limit", 21).code == 1
    assert out.exists()


def test_a_trace_is_not_written_over(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """Neither an input by any name, nor a file named like a trace, nor a folder or pipe is replaced."""
    plain, link = tmp_path / "copy.jsonl", tmp_path / "link"
    shutil.copy(recorded, plain)
    link.symlink_to(plain)
    os.mkfifo(tmp_path / "pipe")
    before = plain.read_bytes()
    for out in (plain, link, tmp_path / "new.trace.jsonl", tmp_path, tmp_path / "pipe"):
        ran = cra("trace", "report", plain, "--html", out)
        assert ran.code == 2, out
        assert "name a" in ran.stderr
    assert plain.read_bytes() == before
    assert not (tmp_path / "new.trace.jsonl").exists()


def test_a_page_that_cannot_be_written_leaves_nothing(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """A missing folder is one sentence; an earlier page is replaced whole."""
    ran = cra("trace", "report", recorded, "--html", tmp_path / "none" / "out.html")
    assert ran.code == 1
    assert "cannot be written" in ran.stderr
    (tmp_path / "out.html").write_text("before")
    assert cra("trace", "report", recorded, "--html", tmp_path / "out.html").code == 0
    assert "before</" not in (tmp_path / "out.html").read_text()[:20]


@pytest.mark.slow
def test_the_page_goes_to_stdout(recorded: Path) -> None:
    """With - the page is on stdout, as UTF-8 whatever the terminal is; --format json beside it is refused."""
    path = record(recorded.parent, "Zürich 日本")
    ran = script("trace", "report", recorded, path, "--html", "-", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert ran.code == 0
    assert ran.stdout.startswith("<!doctype html>")
    assert "Zürich 日本" in ran.stdout
    assert script("trace", "report", recorded, "--html", "-", "--format", "json").code == 2
