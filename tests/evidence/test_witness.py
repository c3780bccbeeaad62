"""A copy that telemetry has, in both forms in which it is kept, and whatever else may be given as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.trace import witness as module
from cra_middleware.trace.witness import Seen, Witness, WitnessError, read_witness
from tests.evidence.scene import Scene, as_otlp_json, as_sdk_json, hashes_of

SESSION, SEQUENCE, HASH = "cra.session.id", "cra.trace.sequence", "cra.trace.event_hash"


def read(tmp_path: Path, text: str | bytes) -> Witness:
    path = tmp_path / "spans.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_witness(path)


def span(session: object, *events: tuple[object, object]) -> dict[str, Any]:
    """As the SDK writes it."""
    attributes = {} if session is None else {SESSION: session}
    return {
        "attributes": attributes,
        "events": [{"attributes": {SEQUENCE: place, HASH: hash_}} for place, hash_ in events],
    }


def otlp(session: str, *events: tuple[int, str]) -> dict[str, Any]:
    """As OTLP writes it: numbers of 64 bits are texts."""
    spans = {
        "attributes": [{"key": SESSION, "value": {"stringValue": session}}],
        "events": [
            {
                "attributes": [
                    {"key": SEQUENCE, "value": {"intValue": str(place)}},
                    {"key": HASH, "value": {"stringValue": hash_}},
                ]
            }
            for place, hash_ in events
        ],
    }
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"scope": {}, "spans": [spans]}]}]}


@pytest.mark.parametrize("form", [as_sdk_json, as_otlp_json])
def test_every_event_of_a_runtime(
    tmp_path: Path, plain: Scene, spans: list[Any], form: Callable[[list[Any]], str]
) -> None:
    """What the OpenTelemetry SDK carries away is the whole of both sessions, event by event."""
    if not spans:
        pytest.skip("needs the otel extra")
    found = read(tmp_path, form(spans))
    assert found.sessions() == {plain.a, plain.b}
    for session_id in (plain.a, plain.b):
        assert found.of(session_id) == {place: {item} for place, item in enumerate(hashes_of(plain, session_id))}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(otlp("s", (0, "a"), (1, "b"))),
        json.dumps(otlp("s", (0, "a"))) + "\n" + json.dumps(otlp("s", (1, "b"))) + "\n",
        json.dumps([span("s", (0, "a")), span("s", (1, "b"))]),
        json.dumps(span("s", (0, "a")), indent=4) + " \t\r\n" + json.dumps(span("s", (1, "b")), indent=4),
        json.dumps(span("s", (0, "a"))) + json.dumps(span("s", ("1", "b"))),
        json.dumps({"batch": {"spans": {"x": [span("s", (0, "a"), (1, "b"))]}}}),
    ],
)
def test_the_forms(tmp_path: Path, text: str) -> None:
    """One document or several, on lines or not, in lists or not."""
    found = read(tmp_path, text)
    assert (found.sessions(), found.of("s")) == ({"s"}, {0: {"a"}, 1: {"b"}})


def test_several_sessions(tmp_path: Path) -> None:
    """Each event belongs to the session of its span; a span event may name another."""
    other = span("s", (1, "b"))
    other["events"][0]["attributes"][SESSION] = "t"
    found = read(tmp_path, json.dumps([span("s", (0, "a")), other, span("t", (0, "c"))]))
    assert (found.of("s"), found.of("t"), found.of("u")) == ({0: {"a"}}, {0: {"c"}, 1: {"b"}}, {})


def test_spans_that_name_no_session(tmp_path: Path) -> None:
    """An event on somebody else's span is known by its place and hash together."""
    found = read(tmp_path, json.dumps([span(None, (3, "a")), span(7, (4, "b"))]))
    assert found.sessions() == set()
    assert [found.saw(*item) for item in ((3, "a"), (4, "b"), (4, "a"), (3, "b"))] == [True, True, False, False]


def test_two_stories() -> None:
    """Two hashes at one place are both remembered."""
    found = Witness(iter([Seen("s", 0, "a"), Seen("s", 0, "b"), Seen("s", 0, "a")]))
    assert found.of("s") == {0: {"a", "b"}}


def test_what_is_passed_over(tmp_path: Path) -> None:
    """Other spans, half events and odd attributes say nothing about a trace."""
    odd = [
        *({"attributes": value} for value in (None, 5, "x", [None, 7, {"key": "k"}, {"key": HASH, "value": 3}])),
        {"attributes": [{"key": HASH, "value": {}}, {"key": SEQUENCE, "value": {"intValue": "1"}}]},
        {"attributes": {HASH: "x"}},
        {"attributes": {SEQUENCE: 3}},
        {"attributes": {SEQUENCE: 3, HASH: 7}},
        {"attributes": {SEQUENCE: None, HASH: "x"}},
        {"attributes": {"events": [{"attributes": {SEQUENCE: 9, HASH: "inside"}}]}},
        *(None, 1.5, True, "text", [[[]]]),
    ]
    found = read(tmp_path, json.dumps([odd, span("s", (0, "a"))]))
    assert (found.sessions(), found.of("s")) == ({"s"}, {0: {"a"}})
    with pytest.raises(WitnessError, match=f"holds no event of a trace: no span event has {HASH}"):
        read(tmp_path, json.dumps(odd))


@pytest.mark.parametrize("text", ["", " \n", "[]", "{}", "null", "7", '"x"', json.dumps(span("s"))])
def test_nothing_in_it(tmp_path: Path, text: str) -> None:
    """A copy without an event of a trace witnesses nothing, and is no copy."""
    with pytest.raises(WitnessError, match="holds no event of a trace"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        b"\xff\xfe",
        b'{"a": "\xff"}',
        "\ufeff{}",
        "{",
        json.dumps(span("s", (0, "a")))[:-1],
        "[" * 200_000,
        '{"a":' * 200_000,
        json.dumps(span("s", (True, "a"))),
        json.dumps(span("s", (1.5, "a"))),
        json.dumps(span("s", (float("nan"), "a"))),
        json.dumps(span("s", (float("inf"), "a"))),
        json.dumps(span("s", ("x", "a"))),
        json.dumps(span("s", ([], "a"))),
        json.dumps(span("s", (-1, "a"))),
        json.dumps(span("s", ("9" * 5000, "a"))),
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_garbage(tmp_path: Path, text: str | bytes) -> None:
    """What is no copy is an error that says so, whatever it is."""
    with pytest.raises(WitnessError, match="is not JSON as a collector or the OpenTelemetry SDK writes it"):
        read(tmp_path, text)


def test_a_huge_sequence(tmp_path: Path) -> None:
    """A number is a number."""
    assert read(tmp_path, json.dumps(span("s", (10**18, "a")))).of("s") == {10**18: {"a"}}


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, a folder, one that is too long: said in a sentence, and never read whole."""
    with pytest.raises(WitnessError, match="nowhere cannot be read: No such file or directory"):
        read_witness(tmp_path / "nowhere")
    with pytest.raises(WitnessError, match="cannot be read: Is a directory"):
        read_witness(tmp_path)
    monkeypatch.setattr(module, "MAX_BYTES", 200)
    assert read(tmp_path, json.dumps(span("s", (0, "a"))).ljust(200)).sessions() == {"s"}
    with pytest.raises(WitnessError, match="is larger than 200 bytes; cut it into parts"):
        read(tmp_path, json.dumps(span("s", (0, "a"))).ljust(201))
    with pytest.raises(WitnessError, match="is larger than 200 bytes"):
        read_witness(Path("/dev/zero"))


def test_text_is_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the locale says."""
    monkeypatch.setattr("locale.getpreferredencoding", lambda *args: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii", raising=False)
    assert read(tmp_path, json.dumps(span("Zürich", (0, "a")), ensure_ascii=False)).sessions() == {"Zürich"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from([HASH, SEQUENCE]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["attributes", "events", "key", "value", "stringValue", "intValue", SESSION, SEQUENCE, HASH]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """It is read, or refused with the one error."""
    try:
        found = read(tmp_path_factory.getbasetemp(), json.dumps(value))
    except WitnessError:
        return
    assert all(place >= 0 for session in found.sessions() for place in found.of(session))
