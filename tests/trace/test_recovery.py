"""Going on with a session: what a crash leaves is set aside and recorded; what a person did is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

from cra_middleware import Atlas, Runtime, verify
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.testing import FailingSink, FrozenClock
from cra_middleware.trace.chain import Recovery, Verdict
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.recovery import reopen
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from tests.conftest import NOON, manifest
from tests.trace.forge import hash_of, line_of, lines_of, parse, reseal


def opened(folder: Path, clock: FrozenClock | None = None, **parts: object) -> Runtime:
    """A process of its own, as far as the trace can tell."""
    return Runtime(Atlas.from_dict(manifest(**parts)), trace=folder, clock=clock)


def detached(folder: Path, noted: int | None = None) -> Path:
    """A session that ran a tool and was let go of, and its file; ``noted`` events are said to have reached the disk."""
    with opened(folder, FrozenClock(NOON)) as runtime:
        session = runtime.session(agent_id="bot", goal="Answer", context={"team": "a"}, risk_tier="high")
        session.call("ticket.get", lambda: None)
        session.detach()
    note(folder / f"{session.id}.trace.jsonl", noted)
    return folder / f"{session.id}.trace.jsonl"


def note(path: Path, noted: int | None) -> None:
    """Say how many events of a session have reached the disk."""
    side = path.with_name(path.name.replace(".trace.jsonl", ".durable"))
    if noted is None:
        side.unlink(missing_ok=True)
    else:
        side.write_bytes(b"%020d\n" % noted)


def session_of(path: Path) -> str:
    return path.name.removesuffix(".trace.jsonl")


def resumed(path: Path) -> None:
    """Another process goes on with it: one call, and the end."""
    with opened(path.parent, FrozenClock(NOON)) as runtime:
        session = runtime.resume(session_of(path))
        session.call("ticket.list", lambda: None)
        session.end()


def verdict_on(path: Path) -> Verdict:
    (verdict,) = verify(path).sessions
    return verdict


def quarantined(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.glob("*.torn")}


def refused(path: Path, words: str) -> None:
    """It cannot be resumed; nothing is changed, nothing is moved, and the lock is free again."""
    before = path.read_bytes()
    for _ in range(2):
        with opened(path.parent) as runtime, pytest.raises(ChainBroken, match=words):
            runtime.resume(session_of(path))
    assert path.read_bytes() == before
    assert quarantined(path) == {}


def test_detach_and_resume(tmp_path: Path) -> None:
    """A session that was let go of is the same session afterwards: one chain, its counts, one seal."""
    path = detached(tmp_path)
    assert str(verdict_on(path)) == "INTACT, NOT SEALED: the end may be missing"
    with opened(tmp_path, FrozenClock(NOON)) as runtime:
        session = runtime.resume(session_of(path), context={"team": "a"})
        assert (session.facts.agent_id, session.facts.risk_tier, session.facts.context) == (
            "bot",
            "high",
            {"team": "a"},
        )
        session.call("ticket.list", lambda: None)
        assert runtime.resume(session.id) is session
        session.end()
    assert str(verdict_on(path)) == "INTACT, SEALED"
    events = parse(lines_of(path))
    assert {event["trace_id"] for event in events} == {events[0]["trace_id"]}
    assert events[-1]["payload"] == {
        "reason": "completed",
        "duration_ms": 0,
        "action_count": 2,
        "event_count": len(events),
    }
    assert "error.occurred" not in [event["event_type"] for event in events]


def test_resumed_by_the_same_runtime(tmp_path: Path) -> None:
    """The runtime that let go of a session may take it up again itself."""
    with opened(tmp_path) as runtime:
        session = runtime.session()
        session.detach()
        again = runtime.resume(session.id)
        assert again is not session
        again.end()
    assert str(verdict_on(tmp_path / f"{session.id}.trace.jsonl")) == "INTACT, SEALED"


def test_resumed_again_and_again(tmp_path: Path) -> None:
    """A chain may be left and taken up any number of times."""
    path = detached(tmp_path)
    for _ in range(4):
        with opened(tmp_path) as runtime:
            session = runtime.resume(session_of(path))
            session.call("ticket.get", lambda: None)
            session.detach()
        assert verdict_on(path).intact
    resumed(path)
    assert str(verdict_on(path)) == "INTACT, SEALED"
    assert parse(lines_of(path))[-1]["payload"]["action_count"] == 6


def recovered(path: Path, torn: bytes, offset: int) -> None:
    """After a resume, ``torn`` lies in the quarantine, and the chain says so and is whole."""
    assert quarantined(path) == {f"{path.name}.{offset}.torn": torn}
    digest = sha256(torn).hexdigest()
    verdict = verdict_on(path)
    assert verdict.recovered == Recovery(len(torn), digest)
    assert str(verdict) == f"INTACT, SEALED, RECOVERED ({len(torn)} torn bytes set aside)"
    (note,) = (event for event in parse(lines_of(path)) if event["event_type"] == "error.occurred")
    assert note["payload"]["error_code"] == "torn_tail_recovered"
    assert (note["payload"]["bytes"], note["payload"]["sha256"]) == (len(torn), digest)


def test_a_torn_last_line_of_every_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the last write was cut short, its part is set aside whole, and the chain is ready to go on."""
    path = detached(tmp_path)
    lines = lines_of(path)
    whole, last = b"".join(lines[:-1]), lines[-1]
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # what costs the time, and nobody pulls the plug here
    sink = JsonlSink(tmp_path)
    for length in range(len(last)):
        torn = last[:length]
        path.write_bytes(whole + torn)
        log = sink.reopen(session_of(path))
        found = reopen(log, session_of(path))
        log.close()
        assert found.torn == ((length, sha256(torn).hexdigest()) if torn else None)
        assert (found.end.sequence, found.end.offset) == (len(lines) - 1, len(whole))
        assert path.read_bytes() == whole
        assert list(quarantined(path).values()) == ([torn] if torn else [])
        for file in tmp_path.glob("*.torn"):
            file.unlink()
    sink.close()


@pytest.mark.parametrize("length", [1, 100, 500, -1])
def test_a_torn_last_line(tmp_path: Path, length: int) -> None:
    """A session whose last write was cut short goes on, and its trace says what was set aside."""
    path = detached(tmp_path)
    *lines, last = lines_of(path)
    path.write_bytes(b"".join(lines) + last[:length])
    resumed(path)
    recovered(path, last[:length], len(b"".join(lines)))


def edited(line: bytes, **changes: object) -> bytes:
    return line_of({**json.loads(line), **changes})


@pytest.mark.parametrize(
    "tail",
    [
        b"garbage",
        b"\0" * 4096,
        b"\0" * 4096 + b"\n",
        b"garbage\n",
        b"\n",
        b"{}\n",
        b"garbage\nmore\n\n\0\0",
        b"\xff\xfe\n\n\n",
        b"[" * 100_000 + b"\n",
        b'{"trace_version":"1.0","event_id":"\n',
    ],
    ids=lambda tail: repr(tail[:10]) + str(len(tail)),
)
def test_a_torn_end(tmp_path: Path, tail: bytes) -> None:
    """Bytes that never were an event, with or without newlines, are set aside and recorded with size and SHA-256."""
    path = detached(tmp_path)
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(tail)
    assert not verdict_on(path).intact
    resumed(path)
    recovered(path, tail, offset)


def test_a_torn_end_larger_than_a_line(tmp_path: Path) -> None:
    """What is too long to be a line is set aside whole, too."""
    path = detached(tmp_path)
    offset = path.stat().st_size
    tail = b"x" * (2 * MAX_LINE_BYTES + 5) + b"\n" + b"y"
    with path.open("ab") as file:
        file.write(tail)
    resumed(path)
    recovered(path, tail, offset)


def test_torn_twice(tmp_path: Path) -> None:
    """Two crashes are two records, and the verdict adds them up."""
    path = detached(tmp_path)
    for tail in (b"first crash", b"second"):
        with path.open("ab") as file:
            file.write(tail)
        with opened(tmp_path) as runtime:
            runtime.resume(session_of(path)).detach()
    resumed(path)
    verdict = verdict_on(path)
    assert verdict.sealed
    assert verdict.recovered == Recovery(len(b"first crashsecond"), sha256(b"second").hexdigest())
    assert sorted(quarantined(path).values()) == [b"first crash", b"second"]


def test_a_crash_before_the_record(tmp_path: Path) -> None:
    """Torn bytes that were moved, but whose record was not kept, are recorded by the next one who resumes."""
    path = detached(tmp_path)
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn")
    with opened(tmp_path) as runtime:  # moves the bytes, and dies
        log = runtime._sink.reopen(session_of(path))
        assert log.set_aside(offset).size == 4
        log.close()
    with path.open("ab") as file:
        file.write(b"again")  # and the next one dies in the middle of the record
    resumed(path)
    recovered(path, b"tornagain", offset)


def test_no_room_to_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the record of the torn bytes cannot be kept, the resume fails, and a later one records them."""
    path = detached(tmp_path)
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as runtime, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(SinkError):
            runtime.resume(session_of(path))
    resumed(path)
    recovered(path, b"torn", offset)


@pytest.mark.parametrize("name", ["fsync", "ftruncate"])
def test_a_tail_that_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """When the torn bytes cannot be copied or cut, the file stays as it is, and the session is not opened."""
    path = detached(tmp_path)
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn")
    before = path.read_bytes()

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with opened(tmp_path) as runtime, monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        with pytest.raises(SinkError, match="cannot be moved"):
            runtime.resume(session_of(path))
    assert path.read_bytes() == before
    resumed(path)
    recovered(path, b"torn", offset)


def test_a_link_in_place_of_the_quarantine(tmp_path: Path) -> None:
    """A link planted where the quarantine will be is not followed."""
    path = detached(tmp_path)
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / f"{path.name}.{path.stat().st_size}.torn").symlink_to(target)
    with path.open("ab") as file:
        file.write(b"torn")
    with opened(tmp_path) as runtime, pytest.raises(SinkError, match="cannot be moved"):
        runtime.resume(session_of(path))
    assert target.read_bytes() == b"precious"
    assert path.read_bytes().endswith(b"torn")


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: line.replace(b'"duration_ms":0', b'"duration_ms":1'),
        lambda line: line.replace(b"T12:", b"T13:"),
        lambda line: edited(line, event_type="session.ended"),
        lambda line: edited(line, sequence=99),
        lambda line: edited(line, event_id=str(uuid4())),
        lambda line: edited(line, session_id=str(uuid4())),
        lambda line: edited(line, previous_event_hash="0" * 64),
        lambda line: edited(line, event_hash="f" * 64),
        lambda line: edited(line, payload={"action_id": "ticket.get"}),
    ],
)
def test_an_edited_last_line(tmp_path: Path, edit: Callable[[bytes], bytes]) -> None:
    """A last line that is a complete event, but not the one that was written, is no torn end: it is refused."""
    path = detached(tmp_path)
    *before, last = lines_of(path)
    assert edit(last) != last
    path.write_bytes(b"".join([*before, edit(last)]))
    refused(path, "was changed at event")


def test_a_last_line_out_of_order(tmp_path: Path) -> None:
    """A whole event with all hashes right, but no place in the story, is refused as well."""
    path = detached(tmp_path)
    lines = lines_of(path)
    again = {**json.loads(lines[-1]), "event_id": str(uuid4()), "sequence": len(lines)}
    again["previous_event_hash"] = again["event_hash"]
    again["event_hash"] = hash_of(again)
    path.write_bytes(b"".join([*lines, line_of(again)]))
    refused(path, "was changed at event")


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: b"garbage\n",
        lambda line: b"",
        lambda line: b"\0" * len(line),
        lambda line: line[:-1],
        lambda line: line[:50] + b"\n",
        lambda line: line.replace(b"T12:", b"T13:"),
        lambda line: line + line,
        lambda line: b"x" * (MAX_LINE_BYTES + 10) + b"\n",
    ],
    ids=["garbage", "removed", "zeros", "joined", "cut", "edited", "repeated", "too long"],
)
@pytest.mark.parametrize("place", [0, 1, 4])
def test_damage_in_the_middle(tmp_path: Path, damage: Callable[[bytes], bytes], place: int) -> None:
    """Damage with whole events behind it is nothing that a crash does: refused, and left as it is."""
    path = detached(tmp_path)
    lines = lines_of(path)
    lines[place] = damage(lines[place])
    path.write_bytes(b"".join(lines))
    refused(path, "damaged|was changed|no whole event")


def test_an_edit_with_a_torn_end_behind_it(tmp_path: Path) -> None:
    """A torn end does not hide an edit before it."""
    path = detached(tmp_path)
    lines = lines_of(path)
    lines[-1] = lines[-1].replace(b"T12:", b"T13:")
    path.write_bytes(b"".join(lines) + b"torn")
    refused(path, "was changed")


def test_an_ended_session(tmp_path: Path) -> None:
    """What was sealed stays sealed, and keeps even what someone put behind it."""
    path = detached(tmp_path)
    resumed(path)
    refused(path, "was ended")
    with path.open("ab") as file:
        file.write(b"garbage")
    refused(path, "was ended")


@pytest.mark.parametrize("data", [b"", b"garbage", b"\0\0\0\n", b"\n"])
def test_no_whole_event(tmp_path: Path, data: bytes) -> None:
    """A file without an event has nothing to go on from."""
    path = tmp_path / f"{uuid4()}.trace.jsonl"
    path.write_bytes(data)
    refused(path, "no whole event|damaged|was changed")


def test_a_missing_session(tmp_path: Path) -> None:
    """A session that is not there is told apart from one that is broken."""
    with opened(tmp_path) as runtime, pytest.raises(SinkError, match="there is no"):
        runtime.resume(str(uuid4()))
    with Runtime(Atlas.from_dict(manifest())) as runtime, pytest.raises(SinkError, match="no session"):
        runtime.resume(str(uuid4()))


def test_another_profile(tmp_path: Path, conformance: Path) -> None:
    """Another implementation's trace can be verified, but only its own runtime goes on with it."""
    data = (conformance / "cra-core" / "plain.trace.jsonl").read_bytes()
    path = tmp_path / f"{json.loads(data.splitlines()[0])['session_id']}.trace.jsonl"
    path.write_bytes(b"".join(data.splitlines(keepends=True)[:-1]))
    assert verdict_on(path).intact
    refused(path, "no whole event")


def test_another_session_in_the_file(tmp_path: Path) -> None:
    """A file that was renamed is not the session that its name says."""
    path = detached(tmp_path)
    refused(path.rename(tmp_path / f"{uuid4()}.trace.jsonl"), "was changed at event 0")


def test_a_clock_that_went_back(tmp_path: Path) -> None:
    """After a resume under an earlier clock, the last timestamp is repeated until the clock has caught up."""
    path = detached(tmp_path)
    last = parse(lines_of(path))[-1]["timestamp"]
    count = len(lines_of(path))
    clock = FrozenClock("2020-01-01T00:00:00+00:00")
    with opened(tmp_path, clock) as runtime:
        session = runtime.resume(session_of(path))
        session.call("ticket.list", lambda: clock.advance(-3600))
        clock.advance(100 * 365 * 86_400)
        session.end()
    times = [event["timestamp"] for event in parse(lines_of(path))[count:]]
    assert set(times[:-1]) == {last}
    assert times[-1] > "2100"
    assert verdict_on(path).sealed


def test_changed_policies(tmp_path: Path) -> None:
    """Resuming under other policies is recorded; under the same ones it is not."""
    path = detached(tmp_path)
    with opened(tmp_path, policies=[{"policy_id": "all", "type": "allow"}]) as runtime:
        session = runtime.resume(session_of(path))
        digest = runtime.policy_digest
        assert session.call("ticket.delete", lambda: "gone") == "gone"
    (note,) = (event["payload"] for event in parse(lines_of(path)) if event["event_type"] == "error.occurred")
    assert note == {"error_code": "policy_changed", "message": f"resumed under the policies {digest}"}
    verdict = verdict_on(path)
    assert (verdict.sealed, verdict.recovered) == (True, None)


def test_other_notes(tmp_path: Path) -> None:
    """Only the record of torn bytes makes a chain a recovered one."""
    with opened(tmp_path) as runtime, runtime.session() as session:
        session.note("events_dropped", "m", count=1, bytes=3, sha256="x")
    assert str(verdict_on(tmp_path / f"{session.id}.trace.jsonl")) == "INTACT, SEALED"


def test_in_memory() -> None:
    """The same rules hold where traces are kept in memory."""
    sink = MemorySink()
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        session = runtime.session()
        session.detach()
    log = sink.reopen(session.id)
    log.append(sum(map(len, log.lines())), b"torn", 1)
    log.close()
    failing = FailingSink(sink)
    with Runtime(Atlas.from_dict(manifest()), trace=failing) as runtime:
        again = runtime.resume(session.id)
        again.end()
        verdict = again.verify()
    assert verdict.recovered == Recovery(4, sha256(b"torn").hexdigest())
    assert verdict.sealed


def test_a_rewritten_story_resumes_as_told(tmp_path: Path) -> None:
    """A whole file written anew verifies, as the security page says: only something held elsewhere would tell."""
    path = detached(tmp_path)
    path.write_bytes(b"".join(reseal(parse(lines_of(path)[:4]))))
    resumed(path)
    assert verdict_on(path).sealed
