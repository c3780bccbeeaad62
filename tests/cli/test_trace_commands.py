"""``cra trace verify`` and ``cra trace show``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime, verify
from cra_middleware.cli import timeline
from cra_middleware.lines import read_again
from cra_middleware.testing import FrozenClock
from tests.cli.conftest import Cra, foreign, rewrite
from tests.conftest import NOON, manifest

SESSION_KEYS = {
    *("session_id", "events", "profile", "intact", "sealed", "error"),
    *("signed_events", "witnessed_events", "problems"),
}


def test_verify_says_it_in_the_verdicts_words(cra: Cra, recorded: Path) -> None:
    """One line per session: path, verdict, number of events."""
    ran = cra("trace", "verify", recorded)
    count = recorded.read_bytes().count(b"\n")
    assert (ran.code, ran.stdout, ran.stderr) == (0, f"{recorded}:  INTACT, SEALED ({count} events)\n", "")


def test_verify_json(cra: Cra, recorded: Path) -> None:
    """The exact shape: files, their sessions, and for each the verdict."""
    session = {
        "session_id": recorded.name.removesuffix(".trace.jsonl"),
        "events": recorded.read_bytes().count(b"\n"),
        "profile": "cra",
        "intact": True,
        "sealed": True,
        "signed_events": 0,
        "witnessed_events": 0,
        "problems": [],
        "error": None,
    }
    folder = {"path": str(recorded.parent), "head": None, "missing": [], "problems": []}
    ran = cra("trace", "verify", recorded, "--format", "json")
    assert ran.code == 0
    assert ran.json == {"files": [{"path": str(recorded), "sessions": [session]}], "folders": [folder]}


def test_an_unsealed_trace(cra: Cra, recorded: Path) -> None:
    """Without its last event it is intact, and says that the end may be missing; --require sealed makes that exit 1."""
    rewrite(recorded, lambda lines: lines.pop())
    ran = cra("trace", "verify", recorded)
    assert ran.code == 0
    assert "INTACT, NOT SEALED: the end may be missing (" in ran.stdout
    required = cra("trace", "verify", recorded, "--require", "sealed")
    assert required.code == 1
    assert "required: SEALED" in required.stdout
    assert cra("trace", "verify", recorded, "--require", "witnessed").code == 2


def test_a_sealed_trace_passes_the_requirement(cra: Cra, recorded: Path) -> None:
    """--require sealed is content with an ended session."""
    assert cra("trace", "verify", recorded, "--require", "sealed").code == 0


def test_a_tampered_trace(cra: Cra, recorded: Path) -> None:
    """Exit 1; the kind, the event and a message, in words and in JSON; no event behind it is counted."""
    rewrite(
        recorded, lambda lines: lines.__setitem__(5, lines[5].replace(b"bot", b"bat").replace(b"ticket", b"tucket"))
    )
    ran = cra("trace", "verify", recorded, "--format", "json")
    assert ran.code == 1
    [session] = ran.json["files"][0]["sessions"]
    assert session.keys() == SESSION_KEYS
    assert (session["intact"], session["sealed"], session["events"]) == (False, False, 5)
    assert session["error"].keys() == {"kind", "sequence", "message"}
    assert (session["error"]["kind"], session["error"]["sequence"]) == ("hash_mismatch", 5)
    assert "BROKEN at event 5: hash_mismatch: " in cra("trace", "verify", recorded).stdout


def test_one_bad_file_among_good_ones(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """Every file gets its line, and one that is broken makes exit 1."""
    (tmp_path / "empty.trace.jsonl").touch()
    ran = cra("trace", "verify", recorded, tmp_path / "empty.trace.jsonl")
    assert ran.code == 1
    assert "INTACT, SEALED" in ran.stdout
    assert "empty.trace.jsonl:  BROKEN at event 0: truncated: there are no events" in ran.stdout


def test_a_file_that_cannot_be_read(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """Its message goes to stderr, in JSON into its entry; the other files are verified; exit 1."""
    nowhere = tmp_path / "nowhere"
    ran = cra("trace", "verify", nowhere, recorded)
    assert ran.code == 1
    assert "INTACT" in ran.stdout
    assert ran.stderr == f"cra: {nowhere} cannot be read: No such file or directory\n"
    as_json = cra("trace", "verify", nowhere, recorded, "--format", "json")
    assert (as_json.code, as_json.stderr) == (1, "")
    first, second = as_json.json["files"]
    assert first == {
        "path": str(nowhere),
        "sessions": [],
        "error": f"{nowhere} cannot be read: No such file or directory",
    }
    assert second["sessions"][0]["intact"]


def test_a_name_too_long_is_no_crash(cra: Cra) -> None:
    """The system's refusal to look at a path is a file that cannot be read."""
    for command in ("verify", "show"):
        ran = cra("trace", command, "x" * 5000)
        assert ran.code == 1
        assert "cannot be read" in ran.stderr


def test_a_folder_means_the_traces_in_it(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """Its *.trace.jsonl files in order of name, and nothing else in it; without any, exit 2."""
    folder = recorded.parent
    (folder / "0.trace.jsonl").write_bytes(recorded.read_bytes())
    (folder / "notes.txt").write_text("not a trace")
    ran = cra("trace", "verify", folder, "--format", "json")
    assert [item["path"] for item in ran.json["files"]] == [str(folder / "0.trace.jsonl"), str(recorded)]
    (tmp_path / "empty").mkdir()
    none = cra("trace", "verify", recorded, tmp_path / "empty")
    assert (none.code, none.stdout) == (2, "")
    assert "has no *.trace.jsonl files" in none.stderr


def test_a_pipe_planted_in_a_folder_is_not_opened(cra: Cra, recorded: Path) -> None:
    """What is no plain file in a trace folder is reported, and not waited for."""
    os.mkfifo(recorded.parent / "pipe.trace.jsonl")
    (recorded.parent / "dangling.trace.jsonl").symlink_to("nowhere")
    (recorded.parent / "folder.trace.jsonl").mkdir()
    ran = cra("trace", "verify", recorded.parent)
    assert ran.code == 1
    assert ran.stderr.count("is not a plain file") == 3
    assert "INTACT, SEALED" in ran.stdout


def test_a_recovered_trace_says_so(cra: Cra, recorded: Path, tmp_path: Path) -> None:
    """A torn end that was set aside is told with its bytes and digest."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path / "t", clock=FrozenClock(NOON)) as runtime:
        session = runtime.session(keep=True)
    path = tmp_path / "t" / f"{session.id}.trace.jsonl"
    with path.open("ab") as file:
        file.write(b'{"torn":')
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path / "t", clock=FrozenClock(NOON)) as runtime:
        runtime.resume(session.id).end()
    [entry] = cra("trace", "verify", path, "--format", "json").json["files"][0]["sessions"]
    assert entry.keys() == SESSION_KEYS | {"recovered"}
    assert entry["recovered"]["bytes"] == 8
    assert len(entry["recovered"]["sha256"]) == 64
    assert "RECOVERED (8 torn bytes set aside)" in cra("trace", "verify", path).stdout


def test_show_tells_each_call_as_one_story(cra: Cra, recorded: Path) -> None:
    """The session's facts on top, then what happened with each call grouped, then the verdict; exit 0."""
    ran = cra("trace", "show", recorded)
    assert ran.code == 0
    rows = ran.stdout.splitlines()
    assert rows[:3] == [
        f"session         {recorded.name.removesuffix('.trace.jsonl')}",
        "agent           bot",
        "goal            Answer ticket 42",
    ]
    assert "external id     thread-7" in rows
    assert "                2026-01-05, UTC" in rows
    calls = [row.removeprefix("  12:00:00.000  ") for row in rows if "requested" in row]
    tool, broken = "(tests.cli.conftest.look)", "(tests.cli.conftest.boom)"
    assert calls == [
        f"ticket.get {tool} requested -> approved [allow-all] -> executed in 0 ms",
        f"ticket.delete {tool} requested -> denied: Never. [no-delete]",
        f"refund.create {tool} requested -> a person must approve [ask-refund] -> nothing more was recorded",
        f"ticket.list {tool} requested -> approved [allow-all] -> executed in 0 ms",
        f"ticket.list {tool} requested -> rate_limit violated [slow-list] -> denied: policy slow-list limits how often "
        "an agent may call ticket.list [slow-list], again in 60.0 s",
        f"ticket.update {broken} requested -> approved [allow-all] -> failed after 0 ms: ValueError: "
        "the tool raised ValueError",
    ]
    assert rows[-3].endswith("session ended: completed, after 0 ms, 3 actions ran")
    count = recorded.read_bytes().count(b"\n")
    assert rows[-1] == f"INTACT, SEALED ({count} events)"


def test_show_json_has_the_verdict_and_the_events(cra: Cra, recorded: Path) -> None:
    """One document: the verdict as verify gives it, and the events as they stand in the file."""
    ran = cra("trace", "show", recorded, "--format", "json")
    assert ran.code == 0
    assert ran.json.keys() == {"verdict", "events"}
    assert ran.json["verdict"].keys() == {"intact", "sealed", "sessions"}
    assert ran.json["verdict"]["sessions"][0].keys() == SESSION_KEYS
    assert ran.json["events"] == [json.loads(line) for line in recorded.read_bytes().splitlines()]


def test_show_marks_where_a_trace_breaks(cra: Cra, recorded: Path) -> None:
    """Everything readable is shown; the break is marked; what follows has a ? in front; exit 1."""
    rewrite(
        recorded, lambda lines: lines.__setitem__(8, lines[8].replace(b"Never.", b"Maybe.").replace(b"dele", b"delu"))
    )
    ran = cra("trace", "show", recorded)
    assert ran.code == 1
    rows = ran.stdout.splitlines()
    mark = next(index for index, row in enumerate(rows) if "BROKEN HERE: hash_mismatch: event 8" in row)
    body = rows[rows.index("                2026-01-05, UTC") + 1 : -2]
    assert all(row.startswith("  ") for row in rows[rows.index(body[0]) : mark])
    assert all(row.startswith("? ") for row in rows[mark + 1 : -2])
    assert rows[-1].startswith("BROKEN at event 8: hash_mismatch")


def test_a_step_behind_the_break_is_not_passed_off_as_proven(cra: Cra, recorded: Path) -> None:
    """A call that began before the break and ended behind it says which part is not proven."""
    at = next(i for i, line in enumerate(recorded.read_bytes().splitlines()) if b'"action.executed"' in line)
    rewrite(recorded, lambda lines: lines.__setitem__(at, lines[at].replace(b'"duration_ms":0', b'"duration_ms":9')))
    shown = cra("trace", "show", recorded).stdout
    assert "approved [allow-all] -> executed in 9 ms (not proven)\n" in shown


def test_show_of_lines_that_cannot_be_read(cra: Cra, recorded: Path) -> None:
    """A line that is no event is shown as it begins, with its number; JSON has it as unreadable."""
    rewrite(recorded, lambda lines: lines.insert(3, b'{"a":\xff\x1b\n'))
    ran = cra("trace", "show", recorded)
    assert ran.code == 1
    assert 'unreadable line 4: {"a":\\xff\\x1b\n' in ran.stdout
    assert "BROKEN at event 3: malformed_event" in ran.stdout
    document = cra("trace", "show", recorded, "--format", "json").json
    assert document["events"][3] == {"line": 4, "unreadable": '{"a":\\xff\x1b'}


def test_show_of_a_torn_trace(cra: Cra, recorded: Path) -> None:
    """A file cut in the middle of an event is shown up to there."""
    recorded.write_bytes(recorded.read_bytes()[:-50])
    ran = cra("trace", "show", recorded)
    assert ran.code == 1
    assert "requested -> approved [allow-all] -> executed" in ran.stdout
    assert "BROKEN HERE: truncated" in ran.stdout


def test_show_of_an_empty_file(cra: Cra, tmp_path: Path) -> None:
    """No events is not intact: exit 1, in both formats."""
    (tmp_path / "t").touch()
    ran = cra("trace", "show", tmp_path / "t")
    assert ran.code == 1
    assert "there are no events" in ran.stdout
    as_json = cra("trace", "show", tmp_path / "t", "--format", "json")
    assert (as_json.code, as_json.json["events"]) == (1, [])


def test_show_needs_one_plain_file(cra: Cra, tmp_path: Path) -> None:
    """A folder is wrong usage; a pipe, which cannot be read twice, and a missing file are exit 1."""
    folder = cra("trace", "show", tmp_path)
    assert (folder.code, folder.stdout) == (2, "")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nowhere"):
        ran = cra("trace", "show", tmp_path / name)
        assert (ran.code, ran.stdout) == (1, ""), name
        assert ran.stderr, name


def test_other_profiles_are_shown_generically(cra: Cra, tmp_path: Path) -> None:
    """Events of other implementations are shown as key=value, and the profile is named."""
    path = tmp_path / "other.jsonl"
    path.write_bytes(b"".join(foreign(1, [{"agent_id": "a 1", "n": 1}, {"list": [1]}])))
    verified = cra("trace", "verify", path)
    assert (
        "INTACT, NOT SEALED: the end may be missing (2 events, profile appendix-b, session 00000000-" in verified.stdout
    )
    ran = cra("trace", "show", path)
    assert ran.code == 0
    assert "profile         appendix-b\n" in ran.stdout
    assert '  12:00:00.500  session.started agent_id="a 1" n=1\n' in ran.stdout
    assert "  12:00:00.500  session.started list=[1]\n" in ran.stdout


def test_the_reference_implementation_is_read(cra: Cra, conformance: Path) -> None:
    """A trace written by the Rust implementation verifies, and is shown."""
    path = conformance / "cra-core" / "plain.trace.jsonl"
    assert "INTACT, SEALED (17 events, profile cra-core, session " in cra("trace", "verify", path).stdout
    ran = cra("trace", "show", path)
    assert ran.code == 0
    assert "policy.evaluated action_id=resource.get result=Allow" in ran.stdout


def test_several_sessions_in_one_file(cra: Cra, tmp_path: Path) -> None:
    """Each has its line and its verdict; show marks the break of each, and says whose event it is."""
    one, two = foreign(1, [{"n": 1}, {"n": 2}]), foreign(2, [{"n": 3}, {"n": 4}])
    path = tmp_path / "both.jsonl"
    path.write_bytes(b"".join((one[0], two[0], two[1].replace(b'"n": 4', b'"n": 5'), one[1])))
    verified = cra("trace", "verify", path)
    assert [("INTACT" in row, "BROKEN" in row) for row in verified.stdout.splitlines()] == [
        (True, False),
        (False, True),
    ]
    rows = cra("trace", "show", path).stdout.splitlines()
    mark = next(index for index, row in enumerate(rows) if "BROKEN HERE" in row)
    assert rows[mark + 1].startswith("? 12:00:00.500  session.started n=5 session=00000000-0000-0000-0000-000000000002")
    assert rows[mark + 2].startswith("  12:00:00.500  session.started n=2 session=00000000-0000-0000-0000-000000000001")


@pytest.mark.parametrize("limit", [3, 10_000])
def test_no_event_is_lost_when_a_call_never_ends(
    cra: Cra, recorded: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows wait for a call's outcome only so long; the outcome then gets a row of its own."""
    monkeypatch.setattr(timeline, "MAX_WAITING", limit)
    shown = cra("trace", "show", recorded).stdout
    for words in ("executed in", "denied: Never.", "a person must approve", "failed after", "rate_limit violated"):
        assert words in shown
    assert ("(more below)" in shown) == (limit == 3)


def test_a_call_inside_a_call_is_told_whole(cra: Cra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that could wait no longer takes no other call's outcome away."""
    monkeypatch.setattr(timeline, "MAX_WAITING", 1)
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, clock=FrozenClock(NOON)) as runtime:
        with runtime.session() as session:
            session.call("ticket.get", lambda: session.call("ticket.list", lambda: 1))
        rows = cra("trace", "show", tmp_path / f"{session.id}.trace.jsonl").stdout.splitlines()
    inner = next(row for row in rows if "ticket.list" in row)
    assert inner.endswith("requested -> approved [allow-all] -> executed in 0 ms")
    assert sum("ticket.get" in row for row in rows) == 2


def test_a_first_line_that_is_no_event_spoils_the_whole_file(cra: Cra, tmp_path: Path) -> None:
    """Where nothing tells what the rest belongs to, it is one broken chain, marked once, at its first line."""
    path = tmp_path / "both.jsonl"
    one, two = foreign(1, [{"n": 1}, {"n": 2}]), foreign(2, [{"n": 3}])
    path.write_bytes(b"".join((one[0].replace(b'"event_id": "0', b'"event_id": "x'), *two, one[1])))
    rows = cra("trace", "show", path).stdout.splitlines()
    marks = [index for index, row in enumerate(rows) if "BROKEN HERE" in row]
    events = [row for row in rows if "session.started" in row]
    assert len(marks) == 1
    assert [row[0] for row in events] == ["?", "?", "?"]


def test_events_written_after_the_verification_are_left_out(recorded: Path) -> None:
    """What a living session adds between the two readings is not shown: nothing has vouched for it."""
    whole = recorded.read_bytes()
    rewrite(recorded, lambda lines: lines.pop())
    report = verify(recorded)
    recorded.write_bytes(whole)
    assert len(list(read_again(report))) == report.sessions[0].events == whole.count(b"\n") - 1
