"""Every way to change a trace is found, and named for what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime, Session, ToolCall, verify
from cra_middleware.errors import InvalidParameters, SinkError
from cra_middleware.interceptor import run_generator
from cra_middleware.testing import FrozenClock
from cra_middleware.trace import chain
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.profiles import MalformedError, choose, read
from tests.conftest import NOON, manifest
from tests.trace.forge import Event, compact, hash_of, line_of, lines_of, parse, reseal, rewrite, write_trace

KINDS = {"invalid_genesis", "chain_broken", "sequence_gap", "hash_mismatch", "malformed_event", "truncated", "forked"}
REQUESTED, APPROVED, EXECUTED, DENIED = 4, 5, 6, 11  # places of the first calls' events
UNSEALED = "INTACT, NOT SEALED: the end may be missing"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a sealed trace; index 0 is session.started, the last is session.ended."""
    return lines_of(write_trace(tmp_path_factory.mktemp("trace"), calls=2))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The shortest trace there is."""
    return lines_of(write_trace(tmp_path_factory.mktemp("small"), calls=0))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Another session's trace."""
    return lines_of(write_trace(tmp_path_factory.mktemp("stranger")))


def judge(lines: list[bytes] | bytes) -> Verdict:
    """The verdict on a file with these bytes."""
    data = lines if isinstance(lines, bytes) else b"".join(lines)
    chunks = data.split(b"\n")
    (verdict,) = verify_lines([chunk + b"\n" for chunk in chunks[:-1]] + ([chunks[-1]] if chunks[-1] else []))
    return verdict


def fault(lines: list[bytes] | bytes) -> tuple[str, int]:
    """Kind and place of what is wrong."""
    verdict = judge(lines)
    assert verdict.error is not None
    assert not verdict.intact
    assert not verdict.sealed
    assert verdict.events == verdict.error.sequence
    assert str(verdict).startswith(f"BROKEN at event {verdict.error.sequence}: {verdict.error.kind}: ")
    return verdict.error.kind, verdict.error.sequence


def with_line(lines: list[bytes], place: int, line: bytes) -> list[bytes]:
    return [*lines[:place], line, *lines[place + 1 :]]


def test_a_whole_trace(trace: list[bytes], small: list[bytes]) -> None:
    """What was written as one chain verifies as one chain, to its end; rewriting it as it was changes no byte."""
    for lines in (trace, small):
        verdict = judge(lines)
        events = parse(lines)
        assert (verdict.intact, verdict.sealed, verdict.profile, verdict.events) == (True, True, "cra", len(lines))
        assert (verdict.session_id, verdict.head_hash) == (events[0]["session_id"], events[-1]["event_hash"])
        assert str(verdict) == "INTACT, SEALED"
        assert reseal(events) == lines


@given(data=st.data())
def test_any_byte_changed(trace: list[bytes], data: st.DataObject) -> None:
    """No byte of a trace can be another one; the fault is found in the event that was changed."""
    whole = bytearray(b"".join(trace))
    place = data.draw(st.integers(0, len(whole) - 1))
    number = whole[:place].count(b"\n")
    whole[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    kind, sequence = fault(bytes(whole))
    assert kind in KINDS
    assert sequence == number


def test_every_byte_changed(small: list[bytes]) -> None:
    """As above, at every place of a small trace."""
    whole = b"".join(small)
    number = 0
    for place, byte in enumerate(whole):
        for other in {byte ^ 1, ord("0"), ord('"'), ord(" "), ord("\n"), 0xFF} - {byte}:
            kind, sequence = fault(whole[:place] + bytes((other,)) + whole[place + 1 :])
            assert (kind in KINDS, sequence) == (True, number), (place, other)
        number += byte == ord("\n")


def test_every_cut(small: list[bytes]) -> None:
    """A file cut at any byte is torn there; cut between two events, it says that its end may be missing."""
    whole = b"".join(small)
    for place in range(1, len(whole)):
        number = whole[:place].count(b"\n")
        if whole[place - 1 : place] == b"\n":
            assert str(judge(whole[:place])) == UNSEALED
        else:
            assert fault(whole[:place]) == ("truncated", number)


@given(data=st.data())
def test_any_splice(trace: list[bytes], data: st.DataObject) -> None:
    """Any run of bytes replaced by any other is found, unless all that it does is to take whole events off the end."""
    whole = b"".join(trace)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    edited = whole[:start] + data.draw(st.binary(max_size=40) | st.sampled_from(trace)) + whole[stop:]
    verdict = judge(edited)
    if edited == whole:
        assert verdict.sealed
    elif verdict.intact:
        assert whole.startswith(edited)
        assert edited.endswith(b"\n")
        assert not verdict.sealed
    else:
        assert verdict.error is not None


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage(chunks: list[bytes]) -> None:
    """No bytes make the verifier raise, and none but a trace are intact."""
    assert not judge(b"\n".join(chunks)).intact


def test_a_line_removed(trace: list[bytes]) -> None:
    """Any line but the last is missed at its own place."""
    for place in range(len(trace) - 1):
        expected = "invalid_genesis" if place == 0 else "chain_broken"
        assert fault(trace[:place] + trace[place + 1 :]) == (expected, place)


def test_the_last_lines_removed(trace: list[bytes]) -> None:
    """Whole lines taken off the end leave an intact chain that is not sealed, and the verdict says what that means."""
    for kept in range(1, len(trace)):
        verdict = judge(trace[:kept])
        assert (str(verdict), verdict.intact, verdict.sealed) == (UNSEALED, True, False)


def test_two_lines_swapped(trace: list[bytes]) -> None:
    """A line that was moved is found where it is first missed."""
    for left in range(len(trace)):
        for right in range(left + 1, len(trace)):
            lines = list(trace)
            lines[left], lines[right] = lines[right], lines[left]
            assert fault(lines) == ("invalid_genesis" if left == 0 else "chain_broken", left)


def test_a_line_repeated(trace: list[bytes]) -> None:
    """A line that stands there a second time is found, wherever it was put."""
    for place in range(len(trace)):
        for target in range(place + 1, len(trace) + 1):
            kind, sequence = fault([*trace[:target], trace[place], *trace[target:]])
            assert (kind, sequence) == ("chain_broken", target)


def test_a_line_of_another_session(trace: list[bytes], stranger: list[bytes]) -> None:
    """A line of another trace, put in or put in place of one, is found; so is a whole trace behind another."""
    for place in range(1, len(trace) + 1):
        foreign = stranger[min(place, len(stranger) - 1)]
        assert fault([*trace[:place], foreign, *trace[place:]]) == ("malformed_event", place)
    assert fault(trace + stranger) == ("malformed_event", len(trace))
    assert fault(with_line(trace, 3, stranger[3])) == ("malformed_event", 3)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "truncated", "no events"),
        (b"\n", "malformed_event", "the line is empty"),
        (b"\0" * 500, "truncated", "torn"),
        (b"\0" * 500 + b"\n", "malformed_event", "zeros"),
        (b"{}\n", "malformed_event", "not an event"),
        (b"null\n", "malformed_event", "not an event"),
        (b"[1,\n", "malformed_event", "not JSON"),
        (b'{"a":NaN}\n', "malformed_event", "not JSON"),
        (b"\xff\xfe\n", "malformed_event", "not JSON"),
    ],
)
def test_no_trace_at_all(data: bytes, kind: str, words: str) -> None:
    """A file without events is not intact, and the message says what is there instead."""
    verdict = judge(data)
    assert fault(data) == (kind, 0)
    assert words in str(verdict)


def test_file_names(tmp_path: Path, small: list[bytes], stranger: list[bytes]) -> None:
    """A file whose name promises another session is not intact; a name that promises nothing may hold any."""
    path = tmp_path / f"{uuid4()}.trace.jsonl"
    path.write_bytes(b"".join(small))
    report = verify(path)
    assert (report.intact, report.sealed) == (False, False)
    assert (error := report.sessions[0].error) is not None
    assert (error.kind, error.sequence) == ("malformed_event", 0)
    assert error.message.startswith("belongs to session")
    for name in ("copy.trace.jsonl", f"{uuid4()}.jsonl", f"{uuid4()}".upper() + ".trace.jsonl"):
        assert verify(path.rename(tmp_path / name)).sealed
        path = tmp_path / name


def test_empty_files(tmp_path: Path) -> None:
    """An empty file is not intact, and is told by the session that its name promises."""
    session_id = str(uuid4())
    path = tmp_path / f"{session_id}.trace.jsonl"
    path.touch()
    (verdict,) = verify(path).sessions
    assert (verdict.session_id, verdict.intact, verdict.events) == (session_id, False, 0)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """No file, or a folder, is an error of its own kind, not a verdict."""
    for path in (tmp_path, tmp_path / "none.trace.jsonl", tmp_path / "none" / "none"):
        with pytest.raises(SinkError, match="cannot be read"):
            verify(path)


def test_progress(tmp_path: Path) -> None:
    """Who waits for a long verification is told of every byte."""
    path = write_trace(tmp_path)
    seen: list[int] = []
    assert verify(path, seen.append).sealed
    assert sum(seen) == path.stat().st_size


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("written", [1, 2, 3])
def test_forks(trace: list[bytes], shared: int, written: int) -> None:
    """Two writers that went on from the same event are told apart from an edit, however much each of them wrote."""
    other = [{**event, "event_id": str(uuid4())} for event in parse(trace[shared : shared + 2])]
    second = reseal(parse(trace[:shared]) + other)[shared:]
    assert fault(trace[: shared + written] + second) == ("forked", shared + written)
    assert fault(trace[: shared + written] + second + trace[shared + written :]) == ("forked", shared + written)


def test_an_edited_copy_is_no_fork(trace: list[bytes]) -> None:
    """An event at a taken place whose own hash does not fit is no second writer's."""
    edited = json.loads(trace[2]) | {"event_id": str(uuid4())}
    assert fault([*trace[:4], line_of(edited), *trace[4:]]) == ("chain_broken", 4)


@pytest.mark.parametrize("step", [-1, 1, 1000])
def test_sequences(trace: list[bytes], step: int) -> None:
    """Numbers with a gap or a repetition are found although every hash fits."""
    for place in range(len(trace)):

        def shift(events: list[Event], place: int = place) -> None:
            for event in events[place:]:
                event["sequence"] += step

        if place + step >= 0:
            lines = rewrite(trace, shift, renumber=False)
            assert fault(lines) == ("sequence_gap", place)


def test_an_edit_with_its_own_hash(trace: list[bytes]) -> None:
    """An edit that also mends the event's own hash is found at the next event's link."""
    for place in range(len(trace) - 1):
        event = json.loads(trace[place])
        event["timestamp"] = event["timestamp"].replace("2026", "2025")
        event["event_hash"] = hash_of(event)
        assert fault(with_line(trace, place, line_of(event))) == ("chain_broken", place + 1)


def test_the_places(trace: list[bytes]) -> None:
    """The tables below count on these places."""
    kinds = [event["event_type"] for event in parse(trace)]
    places = {REQUESTED: "requested", APPROVED: "approved", EXECUTED: "executed", DENIED: "denied"}
    assert {place: kinds[place] for place in places} == {place: f"action.{kind}" for place, kind in places.items()}


def at(events: list[Event], kind: str, number: int = 0) -> int:
    """Where the event of that kind is."""
    return [place for place, event in enumerate(events) if event["event_type"] == kind][number]


def _drop(kind: str) -> Callable[[list[Event]], object]:
    return lambda events: events.pop(at(events, kind))


def _again(kind: str, behind: str, number: int = 0) -> Callable[[list[Event]], object]:
    def change(events: list[Event]) -> None:
        copy = {**events[at(events, kind)], "event_id": str(uuid4())}
        events.insert(at(events, behind, number) + 1, copy)

    return change


def _set(kind: str, **fields: object) -> Callable[[list[Event]], object]:
    return lambda events: events[at(events, kind)].update(fields)


def _payload(kind: str, **fields: object) -> Callable[[list[Event]], object]:
    return lambda events: events[at(events, kind)]["payload"].update(fields)


def _replay_a_call(events: list[Event]) -> None:
    start = at(events, "action.requested")
    copies = [{**event, "event_id": str(uuid4())} for event in events[start : start + 3]]
    events[start + 3 : start + 3] = copies


def _deny_after_approval(events: list[Event]) -> None:
    approved = events[at(events, "action.approved")]
    payload = {"action_id": "a", "reason": "r", "execution_id": approved["payload"]["execution_id"]}
    events.insert(
        at(events, "action.approved") + 1,
        {**approved, "event_id": str(uuid4()), "event_type": "action.denied", "payload": payload},
    )


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        (_drop("action.approved"), APPROVED, "action.executed is out of order"),
        (_drop("action.requested"), REQUESTED, "action.approved is out of order"),
        (_again("action.executed", "action.executed"), EXECUTED + 1, "action.executed is out of order"),
        (_again("action.approved", "action.approved"), APPROVED + 1, "action.approved is out of order"),
        (_again("action.requested", "action.requested"), REQUESTED + 1, "action.requested is out of order"),
        (_again("action.failed", "action.executed"), EXECUTED + 1, "action.failed is out of order"),
        (_again("action.denied", "action.denied"), DENIED + 1, "action.denied is out of order"),
        (_replay_a_call, EXECUTED + 1, "action.requested is out of order"),
        (_deny_after_approval, APPROVED + 1, "action.denied is out of order"),
        (_again("carp.request.received", "session.ended"), -1, "an event after session.ended"),
        (_again("session.ended", "session.ended"), -1, "an event after session.ended"),
        (_again("session.started", "session.started"), 1, "session.started must be the first"),
        (_drop("session.started"), 0, "session.started must be the first"),
        (_payload("action.executed", note="x"), EXECUTED, "unknown key 'note'"),
        (_payload("action.requested", parameters=[]), REQUESTED, "parameters has the wrong type"),
        (_payload("session.started", goal=None), 0, "goal has the wrong type"),
        (_payload("session.ended", event_count=True), -1, "event_count has the wrong type"),
        (lambda events: events[REQUESTED]["payload"].pop("parameters_hash"), REQUESTED, "lacks parameters_hash"),
        (_set("action.executed", event_type="action.completed"), EXECUTED, "event_type is not one of the protocol's"),
        (_set("action.executed", event_type="Action.executed"), EXECUTED, "not an event in the exact form"),
        (_set("action.executed", payload=[1]), EXECUTED, "not an event in the exact form"),
        (_set("action.executed", trace_version="1.1"), EXECUTED, "not an event in the exact form"),
        (_set("action.executed", trace_version="1.00"), EXECUTED, "not an event in the exact form"),
        (_set("action.executed", parent_span_id=""), EXECUTED, "not an event in the exact form"),
        (_set("action.executed", span_id="A" * 36), EXECUTED, "not an event in the exact form"),
        (_set("action.executed", timestamp="2026-01-05T12:00:00.000001Z"), EXECUTED, "not an event in the exact form"),
        (
            _set("action.executed", timestamp="2026-01-05T12:00:00.1234567+00:00"),
            EXECUTED,
            "not an event in the exact form",
        ),
        (_set("action.executed", timestamp="2026-01-05T12:00:00.123000+00:00"), EXECUTED, "ends in three zeros"),
        (_set("action.executed", timestamp="2026-02-30T12:00:00.000001+00:00"), EXECUTED, "is no time"),
        (_set("action.executed", timestamp="2026-01-05T12:00:60.000001+00:00"), EXECUTED, "is no time"),
        (lambda events: events[EXECUTED].update(event_id=events[2]["event_id"]), EXECUTED, "occurs twice"),
    ],
)
def test_rewrites(trace: list[bytes], change: Callable[[list[Event]], object], where: int, words: str) -> None:
    """A rewrite with every hash computed anew is refused where the story or the form is not ours."""
    lines = rewrite(trace, change)
    kind, sequence = fault(lines)
    assert (kind, sequence) == ("malformed_event", where % len(lines))
    assert words in str(judge(lines))


def test_calls_without_an_execution_id(trace: list[bytes]) -> None:
    """The id is optional in a request, but what ran must have one that was requested and approved."""

    def change(events: list[Event]) -> None:
        for event in events[REQUESTED:EXECUTED]:
            event["payload"].pop("execution_id")

    assert fault(rewrite(trace, change)) == ("malformed_event", EXECUTED)


def _encoded(line: bytes, encoding: str) -> bytes:
    return line[:-1].decode().encode(encoding) + b"\n"


RESHAPED: dict[str, Callable[[bytes], bytes]] = {
    "leading space": lambda line: b" " + line,
    "trailing space": lambda line: line[:-1] + b" \n",
    "crlf": lambda line: line[:-1] + b"\r\n",
    "space after a colon": lambda line: line.replace(b'":', b'": ', 1),
    "leading zero": lambda line: line.replace(b'"sequence":', b'"sequence":0'),
    "sequence as text": lambda line: line.replace(b'"sequence":0', b'"sequence":"0"').replace(
        b'"sequence":3', b'"sequence":"3"'
    ),
    "sequence as float": lambda line: line.replace(b',"timestamp"', b'.0,"timestamp"'),
    "upper-case hash": lambda line: (
        line[:-120] + line[-120:].upper().replace(b"PREVIOUS_EVENT_HASH", b"previous_event_hash")
    ),
    "duplicate key": lambda line: line.replace(b'"sequence":', b'"sequence":0,"sequence":'),
    "duplicate key at the end": lambda line: line[:-2] + b',"trace_version":"1.0"}\n',
    "duplicate payload key": lambda line: line.replace(b'"payload":{', b'"payload":{"agent_id":"x","action_id":"x",'),
    "unknown key": lambda line: line[:-2] + b',"note":1}\n',
    "reordered": lambda line: (
        json.dumps(dict(reversed(json.loads(line).items())), separators=(",", ":")) + "\n"
    ).encode(),
    "sorted": lambda line: (compact(json.loads(line)) + "\n").encode(),
    "parent left out": lambda line: line.replace(b'"parent_span_id":null,', b"").replace(
        b'"parent_span_id":"', b'"parent":"'
    ),
    "escaped": lambda line: line.replace(b'"session_id"', b'"session\\u005fid"'),
    "byte order mark": lambda line: b"\xef\xbb\xbf" + line,
    "utf-16": lambda line: _encoded(line, "utf-16-le"),
    "two events": lambda line: line[:-1] + line,
    "a list": lambda line: b"[" + line[:-1] + b"]\n",
    "a nul": lambda line: line[:-1] + b"\0\n",
    "time with z": lambda line: line.replace(b'+00:00","event_type"', b'Z","event_type"'),
    "other zone": lambda line: line.replace(b'+00:00","event_type"', b'-00:00","event_type"'),
}


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("form", RESHAPED)
def test_reshaped_lines(trace: list[bytes], form: str, place: int) -> None:
    """The envelope is not hashed, so its form is checked byte by byte: the same JSON in other bytes is malformed."""
    line = RESHAPED[form](trace[place])
    assert line != trace[place]
    kind, sequence = fault(with_line(trace, place, line))
    assert kind in ("malformed_event", "hash_mismatch")
    assert sequence == place
    if place == 3:
        assert kind == "malformed_event"


def test_the_first_line_cannot_choose_laxer_rules(trace: list[bytes]) -> None:
    """A first event with its keys in another order is still read by our rules, and found out."""
    for form in ("reordered", "sorted"):
        verdict = judge(with_line(trace, 0, RESHAPED[form](trace[0])))
        assert (verdict.profile, verdict.intact) == ("cra", False)


@pytest.mark.parametrize(
    "payload",
    [
        '{"sha256":"x","message":"m","error_code":"e"}',
        '{"error_code":"e","message":"m", "sha256":"x"}',
        '{"error_code":"e","message":"\\u006d"}',
        '{"error_code":"e","message":"\\/"}',
        '{"error_code":"e","message":"m","message":"m"}',
        '{"count":01,"error_code":"e","message":"m"}',
        '{"count":-0,"error_code":"e","message":"m"}',
        '{"count":1.0,"error_code":"e","message":"m"}',
        '{"count":NaN,"error_code":"e","message":"m"}',
        '{"error_code":"e","message":"\\ud800"}',
        '{"error_code":"e","message":"m"},"payload":{"error_code":"e","message":"m"}',
        '{"error_code":"e","message":"m"}} ',
        '{"error_code":"e","message":"\t"}',
    ],
)
def test_payloads_that_are_not_canonical(trace: list[bytes], payload: str) -> None:
    """A payload must be the one text of its value, although the hash of any other text could be computed too."""
    head = parse(trace[:3])
    event: dict[str, Any] = {**head[2], "event_type": "error.occurred", "sequence": 3, "event_id": str(uuid4())}
    event["previous_event_hash"] = head[2]["event_hash"]
    event["event_hash"] = hash_of(event, payload)
    assert fault([*trace[:3], line_of(event, payload)]) == ("malformed_event", 3)


def test_a_payload_cannot_close_its_line(tmp_path: Path) -> None:
    """Text that looks like the rest of an event stays text."""
    end = '"},"event_hash":"' + "0" * 64 + '","previous_event_hash":"' + "0" * 64 + '"}'
    path = write_trace(tmp_path, goal=end)
    assert str(verify(path).sessions[0]) == "INTACT, SEALED"
    assert parse(lines_of(path))[0]["payload"]["goal"] == end


@pytest.mark.parametrize("goal", ["a\u2028b\u2029c\u0085d\x1ce", "é\U0001f600\x7f", "cra:int:1", '"\\\n\r\0'])
def test_any_text_in_a_payload(tmp_path: Path, goal: str) -> None:
    """Lines end at the newline byte and nowhere else, whatever a payload holds."""
    path = write_trace(tmp_path, goal=goal)
    data = path.read_bytes()
    report = verify(path)
    assert report.sealed
    assert report.sessions[0].events == data.count(b"\n")


def _nested() -> object:
    value: object = 1
    for _ in range(250):
        value = {"k": value}
    return value


@pytest.mark.parametrize("result", [orjson.Fragment(b"1\n2"), _nested(), {"k": [_nested()]}, "\u2028\n", float("nan")])
def test_recorded_values_cannot_break_the_chain(tmp_path: Path, result: object) -> None:
    """Where values are recorded, whatever a tool takes or returns leaves a trace that verifies."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, record="full") as runtime:
        with runtime.session() as session:
            assert session.call("ticket.get", lambda: result) is result
            assert session.verify().intact
        with runtime.session() as session:
            with suppress(InvalidParameters):  # as an argument, the deepest of them is refused
                session.call("ticket.update", lambda value: None, result)
            assert session.verify().intact


def test_ambiguity_vectors(conformance: Path) -> None:
    """Fields without separators: two readings with one hash, of which the grammar takes at most one."""
    vectors = json.loads((conformance / "canonical-vectors.json").read_text())["ambiguity_vectors"]
    assert len(vectors) == 6
    for vector in vectors:
        lines = []
        for name in ("record_a", "record_b"):
            event = vector[name]
            assert hash_of(event, compact(event["payload"])) == vector["same_event_hash"], vector["name"]
            lines.append(json.dumps({**event, "event_hash": vector["same_event_hash"]}).encode())
        profile = choose(lines[0])
        assert read(lines[0], profile).computed_hash == vector["same_event_hash"]
        for reading in ("cra", "cra-core", "appendix-b"):
            with pytest.raises(MalformedError):
                read(lines[1], reading)  # type: ignore[arg-type]
        assert not judge(lines[1] + b"\n").intact


@pytest.mark.parametrize(
    "shift",
    [
        lambda event: event.update(sequence=int(f"{event['sequence']}2"), timestamp=event["timestamp"][1:]),
        lambda event: event.update(parent_span_id=None, session_id=event["parent_span_id"] + event["session_id"]),
        lambda event: event.update(trace_version="1.", event_id="0" + event["event_id"]),
        lambda event: event.update(timestamp=event["timestamp"] + "a", event_type=event["event_type"][1:]),
        lambda event: event.update(span_id=event["span_id"] + "0", parent_span_id=event["parent_span_id"][1:]),
    ],
    ids=["sequence", "parent", "version", "timestamp", "span"],
)
def test_shifted_fields(trace: list[bytes], shift: Callable[[Event], object]) -> None:
    """A character moved from one field of our own to the next is refused by the grammar, whatever the hash says."""
    lines = rewrite(trace, lambda events: shift(events[EXECUTED]), renumber=False)
    assert fault(lines) == ("malformed_event", EXECUTED)


def test_open_calls_beyond_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Calls that nobody answers never break a chain, however many; what was forgotten may still have its outcome."""
    monkeypatch.setattr(chain, "MAX_OPEN", 6)
    clock = FrozenClock(NOON)
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, clock=clock) as runtime, runtime.session() as session:
        streams = [stream_in(session, number) for number in range(20)]
        for stream in streams:
            next(stream)
        for stream in streams:
            stream.close()
    (verdict,) = verify(tmp_path / f"{session.id}.trace.jsonl").sessions
    assert str(verdict) == "INTACT, SEALED"


def stream_in(session: Session, number: int) -> Generator[object, object, object]:
    """A governed stream that is open until it is closed."""

    def numbers() -> Generator[object, object, object]:
        yield number
        return None

    call = ToolCall.freeze("ticket.get", "numbers", {})
    return run_generator(session.flow(call, stream=True), numbers)
