"""How other implementations' traces are read, and that they read ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime, verify
from cra_middleware._clock import parse_us, timestamp_text, writable_us
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.profiles import MalformedError, _rust_time, choose, read
from cra_middleware.trace.sinks.memory import MemorySink
from tests.conftest import CONFORMANCE, NOON, manifest
from tests.trace.forge import Event, lines_of, write_trace

RUST_FILE = CONFORMANCE / "cra-core" / "plain.trace.jsonl"
RUST = RUST_FILE.read_bytes().splitlines(keepends=True) if RUST_FILE.is_file() else []
PLACES = range(len(RUST))


def judge(lines: list[bytes]) -> Verdict:
    (verdict,) = verify_lines(lines)
    return verdict


def dumped(event: Event) -> bytes:
    """As the Rust implementation writes it."""
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def with_line(lines: list[bytes], place: int, line: bytes) -> list[bytes]:
    return [*lines[:place], line, *lines[place + 1 :]]


def test_the_rust_trace(conformance: Path) -> None:
    """A trace of the Rust implementation verifies in its own profile, to its seal."""
    report = verify(conformance / "cra-core" / "plain.trace.jsonl")
    (verdict,) = report.sessions
    assert (verdict.profile, str(verdict), verdict.events) == ("cra-core", "INTACT, SEALED", 17)


@pytest.mark.parametrize("place", PLACES)
def test_every_field_of_the_rust_trace(place: int) -> None:
    """No field of any event can be another: not in the envelope, not in the payload, not left out, not added."""
    event = json.loads(RUST[place])
    edits: list[Event] = [{**event, "note": 1}, {**event, "parent_span_id": str(uuid4())}]
    for key, value in event.items():
        edits.append({name: kept for name, kept in event.items() if name != key})
        if key not in ("payload", "sequence"):
            edits += [{**event, key: value[:-1] + ("0" if value[-1] != "0" else "1")}, {**event, key: value + "0"}]
    edits += [
        {**event, "sequence": sequence} for sequence in (event["sequence"] + 1, -1, True, float(event["sequence"]), "1")
    ]
    edits += [{**event, "timestamp": event["timestamp"][:-1] + zone} for zone in ("", "+01:00", "z", "+00:00Z")]
    for key, value in event["payload"].items():
        payload = event["payload"]
        edits.append({**event, "payload": {name: kept for name, kept in payload.items() if name != key}})
        edits += [{**event, "payload": {**payload, key: other}} for other in (None, [value], f"{value} ", 7.5)]
    edits.append({**event, "payload": {**event["payload"], "note": None}})
    for edit in edits:
        verdicts = verify_lines(with_line(RUST, place, dumped(edit)))
        assert not all(verdict.intact for verdict in verdicts), edit
        if len(verdicts) == 1:  # an edited session_id looks like a second session's
            error = verdicts[0].error
            assert error is not None
            assert error.sequence == place
        else:
            assert edit["session_id"] != event["session_id"]


@pytest.mark.parametrize("place", PLACES)
def test_lines_of_the_rust_trace(place: int) -> None:
    """A line removed, repeated or moved is found; the last one missing leaves the chain unsealed."""
    removed = judge(RUST[:place] + RUST[place + 1 :])
    assert removed.intact == (place == len(RUST) - 1)
    assert not removed.sealed
    assert not judge([*RUST[: place + 1], *RUST[place:]]).intact
    assert place == 0 or not judge([RUST[place], *RUST[:place], *RUST[place + 1 :]]).intact
    assert not judge(with_line(RUST, place, RUST[place][:-1])).intact


def instant(text: str) -> tuple[str, str]:
    """A UTC time, however it is written."""
    seconds, _, rest = text.removesuffix("Z").removesuffix("+00:00").partition(".")
    return seconds, rest.rstrip("0")


@pytest.mark.skipif(not RUST, reason="no conformance vectors")
@given(data=st.data())
def test_any_byte_of_the_rust_trace(data: st.DataObject) -> None:
    """A byte that is another one is found, unless the line still means the same event."""
    place = data.draw(st.integers(0, len(RUST) - 1))
    line = bytearray(RUST[place])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[at]))
    chunks = [chunk + b"\n" for chunk in bytes(line).removesuffix(b"\n").split(b"\n")]
    if all(verdict.intact for verdict in verify_lines([*RUST[:place], *chunks, *RUST[place + 1 :]])):
        before, after = (json.loads(text) for text in (RUST[place], bytes(line)))
        assert instant(after.pop("timestamp")) == instant(before.pop("timestamp"))
        assert after == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"sequence":0,', '"sequence":-0,'),
        ('"sequence":0,', '"sequence":00,'),
        ('"sequence":0,', '"sequence":0.0,'),
        ('"sequence":0,', '"sequence":0,"sequence":0,'),
        ('"payload":{', '"payload":{"goal":"x",'),
        ("2026-", "２０２６-"),
        ('T14:20:58.098878793Z"', 'T14:20:58.0988787930Z"'),
        ('"timestamp"', '\ufeff"timestamp"'),
        ("Manage", "\ud800"),
        ("Manage", "\\ud800"),
    ],
)
def test_lax_readings(conformance: Path, old: str, new: str) -> None:
    """What a lax parser would take for the same event is malformed, or has another hash."""
    line = RUST[0].decode().replace(old, new)
    assert line != RUST[0].decode()
    verdict = judge(with_line(RUST, 0, line.encode("utf-8", "surrogatepass")))
    assert verdict.error is not None
    assert verdict.error.sequence == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_other_encodings(conformance: Path, encoding: str) -> None:
    """Only UTF-8 without a byte order mark is JSON here."""
    for profile in ("cra", "cra-core", "appendix-b"):
        with pytest.raises(MalformedError):
            read(RUST[0].decode().strip().encode(encoding), profile)  # type: ignore[arg-type]


def other_session(line: bytes) -> bytes:
    """The first event of another session."""
    event = json.loads(line)
    ids = {key: str(uuid4()) for key in ("event_id", "trace_id", "span_id", "session_id")}
    event.update(ids, timestamp="2026-11-22T14:20:58.5Z")
    payload = json.dumps(event["payload"], sort_keys=True, separators=(",", ":"))
    time, zeros = "2026-11-22T14:20:58.500+00:00", "0" * 64
    text = "".join(("1.0", *ids.values(), "0", time, "session.started", payload, zeros))
    return dumped({**event, "event_hash": sha256(text.encode()).hexdigest()})


def test_many_sessions_in_one_file(conformance: Path, tmp_path: Path) -> None:
    """Foreign files may hold several sessions, each with a verdict, and their names promise nothing."""
    path = tmp_path / f"{uuid4()}.trace.jsonl"
    path.write_bytes(b"".join([*RUST[:3], other_session(RUST[0]), *RUST[3:]]))
    first, second = verify(path).sessions
    assert (str(first), first.events) == ("INTACT, SEALED", 17)
    assert (str(second), second.events) == ("INTACT, NOT SEALED: the end may be missing", 1)

    path.write_bytes(b"".join([*RUST[:3], other_session(RUST[0]), b"garbage\n", *RUST[3:]]))
    first, second = verify(path).sessions
    assert (first.intact, second.intact) == (True, False)  # garbage is the fault of the line before it

    path.write_bytes(b"".join([RUST[0].replace(b"session_id", b"session-id"), *RUST[1:]]))
    (only,) = verify(path).sessions
    assert not only.intact


PUBLISHED_PAYLOADS: list[dict[str, Any]] = [
    {"agent_id": "a", "goal": "Grüße \u2028 \U0001f600 \x7f"},
    {"z": 1, "é": 2.5, "nested": {"b": [1, None, True], "a": "\n"}},
    {"reason": "completed", "duration_ms": 1},
]


def published(timestamp: str = "2026-01-05T12:00:00.123Z") -> list[Event]:
    """A chain by the published pseudo-code: the time as written, payloads with escapes, its own event types."""
    session_id, previous = str(uuid4()), "0" * 64
    events = []
    for sequence, payload in enumerate(PUBLISHED_PAYLOADS):
        event: Event = {
            **dict.fromkeys(("event_id", "trace_id", "span_id", "parent_span_id"), str(uuid4())),
            "trace_version": "1.0",
            "event_id": str(uuid4()),
            "session_id": session_id,
            "sequence": sequence,
            "timestamp": timestamp,
            "event_type": "session.ended" if sequence == 2 else "TOOL_CALL",
            "payload": payload,
            "previous_event_hash": previous,
        }
        if sequence == 0:
            event["parent_span_id"] = None
        text = "".join(
            (
                *(event["trace_version"], event["event_id"], event["trace_id"], event["span_id"]),
                *(event["parent_span_id"] or "", session_id, str(sequence), timestamp, event["event_type"]),
                *(json.dumps(payload, sort_keys=True, separators=(",", ":")), previous),
            )
        )
        event["event_hash"] = previous = sha256(text.encode()).hexdigest()
        events.append(event)
    return events


@pytest.mark.parametrize(
    "timestamp", ["2026-01-05T12:00:00Z", "2026-01-05T12:00:00.123Z", "2026-01-05T12:00:00.1+00:00"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_published_pseudo_code(timestamp: str, ascii_only: bool) -> None:
    """A trace by the published rule verifies, however its JSON spells the text; an edit of it does not."""
    events = published(timestamp)
    lines = [json.dumps(event, ensure_ascii=ascii_only).encode() + b"\n" for event in events]
    verdict = judge(lines)
    assert (verdict.profile, str(verdict)) == ("appendix-b", "INTACT, SEALED")
    for place, event in enumerate(events):
        for edit in (
            {"timestamp": "2026-01-05T12:00:00.12Z"},
            {"event_type": "tool"},
            {"payload": {}},
            {"sequence": 9},
        ):
            edited = judge(with_line(lines, place, dumped({**event, **edit})))
            assert not edited.intact
            assert edited.error is not None
            assert edited.error.sequence == place


@pytest.mark.parametrize(
    ("change", "profile"),
    [
        (lambda event: event, "cra"),
        (lambda event: {**event, "timestamp": event["timestamp"].replace("+00:00", "Z")}, "cra"),
        (lambda event: dict(reversed(event.items())), "cra"),
        (lambda event: {**event, "payload": {}}, "cra"),
        (lambda event: {**event, "payload": {}, "timestamp": "2026-01-05T12:00:00Z"}, "appendix-b"),
        (lambda event: dict(reversed({**event, "payload": {}}.items())), "appendix-b"),
        (
            lambda event: (
                {k: v for k, v in event.items() if k not in ("parent_span_id", "payload")}
                | {"timestamp": "2026-01-05T12:00:00Z"}
            ),
            "cra-core",
        ),
        (lambda event: {**event, "payload": None, "timestamp": None}, "cra"),
        (lambda event: [event], "cra"),
    ],
)
def test_the_choice(tmp_path: Path, change: Callable[[Event], object], profile: str) -> None:
    """The profile is chosen from what the first line looks like; what we wrote is always read as ours."""
    event = json.loads(lines_of(write_trace(tmp_path, calls=0))[0])
    assert choose(json.dumps(change(event), separators=(",", ":")).encode()) == profile


@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_deep_nesting_in_a_foreign_trace(opening: str) -> None:
    """However deep a payload is nested, it is read or refused, at any depth of the stack, and nothing is raised."""
    event = published()[0]
    limit = sys.getrecursionlimit()
    for depth in [*range(limit - 150, limit + 50, 1), 100_000]:
        close = "}" if opening != "[" else "]"
        payload = '{"k":' + opening * depth + "1" + close * depth + "}"
        line = json.dumps({**event, "payload": 0}).replace('"payload": 0', f'"payload":{payload}').encode()
        assert not judge([line + b"\n"]).intact


SECONDS = st.integers(0, parse_us("9999-12-31T23:59:59+00:00") // 1_000_000 - 1)
CLOCKS = st.builds(
    lambda second, micros: second * 1_000_000 + micros,
    SECONDS,
    st.integers(0, 999_999)
    | st.sampled_from([0, 1000, 999_000, 999_999, 500_000, 1])
    | st.integers(0, 999).map(lambda ms: ms * 1000),
)


@given(CLOCKS)
def test_our_time_is_a_fixed_point(us: int) -> None:
    """The Rust implementation renders our timestamp as the same text: the microseconds never end in three zeros."""
    text = timestamp_text(writable_us(us))
    assert _rust_time(text) == text
    assert len(text) == 32
    assert text[23:26] != "000"
    assert parse_us(text) - us in (0, 1)


@pytest.mark.parametrize(
    ("written", "rendered"),
    [
        ("2026-01-05T12:00:00Z", "2026-01-05T12:00:00+00:00"),
        ("2026-01-05T12:00:00.000000000Z", "2026-01-05T12:00:00+00:00"),
        ("2026-01-05T12:00:00.5Z", "2026-01-05T12:00:00.500+00:00"),
        ("2026-01-05T12:00:00.123000+00:00", "2026-01-05T12:00:00.123+00:00"),
        ("2026-01-05T12:00:00.000001Z", "2026-01-05T12:00:00.000001+00:00"),
        ("2026-01-05T12:00:00.1234567Z", "2026-01-05T12:00:00.123456700+00:00"),
    ],
)
def test_rust_times(written: str, rendered: str) -> None:
    """An instant is rendered with 0, 3, 6 or 9 digits, as chrono does."""
    assert _rust_time(written) == rendered


@pytest.mark.parametrize(
    "text",
    [
        *("2026-01-05T12:00:00+01:00", "2026-01-05T12:00:00-00:00", "2026-01-05T12:00:00", "2026-01-05 12:00:00Z"),
        *(
            "2026-01-05T12:00:00.Z",
            "2026-01-05T12:00:00.1234567890Z",
            "2026-01-05T12:00:00z",
            "",
            "２026-01-05T12:00:00Z",
        ),
    ],
)
def test_times_that_are_refused(text: str) -> None:
    """Anything but a UTC time in that form is malformed."""
    with pytest.raises(MalformedError):
        _rust_time(text)


@given(clock=st.lists(CLOCKS, min_size=1, max_size=4), goal=st.text(min_size=1, max_size=20))
def test_our_events_under_the_rust_reading(clock: list[int], goal: str) -> None:
    """A trace written by us hashes the same for us and for the Rust implementation, whatever the clock shows."""

    class Clock(FrozenClock):
        def wall_us(self) -> int:
            return clock[0] if len(clock) == 1 else clock.pop(0)

    sink = MemorySink()
    with Runtime(Atlas.from_dict(manifest()), trace=sink, clock=Clock(NOON)) as runtime:
        with runtime.session(goal=goal) as session:
            session.call("ticket.get", lambda: 1)
        lines = [line.removesuffix(b"\n") for line in session._log.lines()]
    assert len(lines) > 5
    for line in lines:
        ours, theirs = read(line, "cra"), read(line, "cra-core")
        assert ours.computed_hash == theirs.computed_hash == ours.event.event_hash
        assert ours.event == theirs.event


AN_ID = "0c01102f-4628-4045-9d58-c796d35181cd"


@pytest.mark.parametrize(
    "edit",
    [
        *({"sequence": value} for value in (True, -1, 0.0, "0", None)),
        *({key: "0" * 64} for key in ("event_id", "trace_id", "span_id", "session_id")),
        *({"event_id": value} for value in (f"{AN_ID}0", f"{AN_ID}\n", f"{AN_ID}".upper() + "A", None, 1)),
        *({"parent_span_id": value} for value in ("", f"{AN_ID}0", 0, [])),
        *({"event_hash": value} for value in ("0" * 63, "0" * 65, "0" * 64 + "\n", "A" * 64, None)),
        *({"previous_event_hash": value} for value in ("0" * 65, None)),
        *({"trace_version": value} for value in ("1", "1.0 ", "1.1", 1.0)),
        *({"payload": value} for value in (None, [], "{}")),
        *({"event_type": value} for value in (None, 1, "session.begun", "")),
        *({"timestamp": value} for value in (None, 0, "now", "2026-01-05T12:00:00.5+01:00")),
        {"note": 1},
    ],
    ids=str,
)
def test_the_foreign_grammar(conformance: Path, edit: Event) -> None:
    """A foreign event is read by a strict grammar, too, before its hash is believed."""
    event = json.loads(RUST[0])
    read(dumped(event), "cra-core")
    with pytest.raises(MalformedError):
        read(dumped({**event, **edit}), "cra-core")
