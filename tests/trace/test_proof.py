"""Proofs that stand alone: each says one thing, and no part of it can be another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.errors import TraceError
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.note import Checkpoint, NoteError, Signer
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.proof import (
    MAX_PATH,
    MAX_PROOF_BYTES,
    Place,
    ProofError,
    consistency_document,
    inclusion_document,
    verify_consistency_proof,
    verify_inclusion_proof,
)
from cra_middleware.trace.tree import Leaves
from tests.trace.forge import lines_of, parse, reseal, write_trace

SIGNER = Signer("example.com/bot", bytes(range(32)))
KEY = SIGNER.verifier
Document = dict[str, Any]


class Log:
    """Sessions of real traces in a ledger of their own."""

    def __init__(self, sessions: list[list[bytes]]) -> None:
        self.sessions = [[line.rstrip(b"\n") for line in lines] for lines in sessions]
        self.trees: list[Leaves] = []
        self.entries: list[Entry] = []
        self.ledger = Leaves()
        for lines in self.sessions:
            events, tree = parse(lines), Leaves()
            for event in events:
                tree.append(event_leaf(event["event_hash"]))
            self.trees.append(tree)
            self.note(Entry(events[0]["session_id"], len(tree), events[-1]["event_hash"], tree.root()))

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.ledger.append(entry.leaf())

    def head(self, size: int | None = None, signer: Signer = SIGNER) -> bytes:
        size = len(self.ledger) if size is None else size
        return signer.sign(Checkpoint(signer.name, size, self.ledger.root(size)).text())

    def proof(self, session: int, index: int, entry: int | None = None) -> bytes:
        entry = session if entry is None else entry
        size, whole = self.entries[entry].size, len(self.ledger)
        return inclusion_document(
            self.sessions[session][index],
            Place(index, size, self.trees[session].inclusion(index, size)),
            self.entries[entry],
            Place(entry, whole, self.ledger.inclusion(entry, whole)),
            self.head(),
        )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder = tmp_path_factory.mktemp("traces")
    return Log([lines_of(write_trace(folder, calls, goal='Größe "1"\u2028')) for calls in (1, 2, 0)])


def changed(proof: bytes, change: Callable[[Document], object]) -> bytes:
    document = json.loads(proof)
    change(document)
    return json.dumps(document).encode()


def test_every_event_is_proved(log: Log) -> None:
    """The proof of each event of each session verifies, and gives the event, where it stands, and the head."""
    for session, lines in enumerate(log.sessions):
        for index, line in enumerate(lines):
            proven = verify_inclusion_proof(log.proof(session, index), KEY)
            assert proven.event.event_hash == json.loads(line)["event_hash"]
            assert (proven.session_id, proven.sequence) == (log.entries[session].session_id, index)
            assert proven.head == Checkpoint("example.com/bot", 3, log.ledger.root())


def test_the_document(log: Log) -> None:
    """The document has the promised form, and holds the exact line."""
    document = json.loads(log.proof(1, 2))
    assert list(document) == ["kind", "event", "session", "ledger", "head"]
    assert document["kind"] == "cra-inclusion/1"
    assert document["event"].encode() == log.sessions[1][2]
    assert list(document["session"]) == ["index", "size", "path"]
    assert list(document["ledger"]) == ["index", "size", "entry", "path"]
    assert bytes.fromhex(document["ledger"]["entry"]) == log.entries[1].pack()
    assert document["head"].encode() == log.head()


def test_a_session_that_grew(log: Log) -> None:
    """An older entry about a session proves the events that it had then, its last one included."""
    lines = log.sessions[1]
    old = Log([[line + b"\n" for line in lines]])
    hashes = [event["event_hash"] for event in parse(lines)]
    old.note(Entry(old.entries[0].session_id, 3, hashes[2], old.trees[0].root(3)))
    for index in range(3):
        assert verify_inclusion_proof(old.proof(0, index, entry=1), KEY).sequence == index


def test_no_byte_can_change(log: Log) -> None:
    """A proof with any byte changed or taken out is refused, or says the same in other white space."""
    proof = log.proof(2, 0)
    proven = verify_inclusion_proof(proof, KEY)
    same = 0
    for place, byte in enumerate(proof):
        before, after = proof[:place], proof[place + 1 :]
        for middle in (b"", bytes([byte ^ 1]), bytes([byte ^ 0x20]), bytes([byte ^ 0x80]), b" "):
            try:
                found = verify_inclusion_proof(before + middle + after, KEY)
            except (ProofError, NoteError):
                continue
            assert found == proven
            assert chr(byte).isspace()
            same += 1
    assert same > 0


OTHER_ID = "01900000-0000-7000-8000-00000000000a"


def put(*path: str, value: object) -> Callable[[Document], object]:
    """Set one field, however deep."""

    def change(document: Document) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[Document], object]:
    def change(document: Document) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


HEX = "ab" * 32
MALFORMED: list[tuple[Callable[[Document], object], str]] = [
    *((drop(key), "the keys kind, event, session, ledger, head") for key in ("event", "session", "ledger", "head")),
    (drop("kind"), "not a proof of the kind cra-inclusion/1"),
    (put("kind", value="cra-inclusion/2"), "not a proof of the kind"),
    (put("kind", value=["cra-inclusion/1"]), "not a proof of the kind"),
    (put("note", value=1), "and no others"),
    (put("session", "note", value=1), "session is not an object with the keys"),
    (put("session", value=[]), "session is not an object with the keys"),
    (put("ledger", value=None), "ledger is not an object with the keys"),
    *((drop("ledger", key), "ledger is not an object") for key in ("index", "size", "entry", "path")),
    *(
        (put(part, "index", value=value), f"{part}.index is no place")
        for part in ("session", "ledger")
        for value in ("1", True, None, -1, 1.0, 10**30, [1], 99)
    ),
    *((put("session", "size", value=value), "session.index is no place") for value in (0, "9", False, 9.0, {})),
    *(
        (put("session", "path", value=value), "the path of session is not a list")
        for value in (None, HEX, {}, [HEX] * 129)
    ),
    *(
        (put("ledger", "path", value=[value]), "the path of ledger holds something else")
        for value in (HEX.upper(), HEX[:-1], HEX + "0", HEX + "\n", 1, None, [HEX], "\u0661" * 64)
    ),
    *((put("ledger", "entry", value=value), "not 176 lower-case hex") for value in (1, "", HEX * 3, "AB" * 88, None)),
    (put("ledger", "entry", value="00" * 88), "ledger.entry is none: an entry is about 1 to"),
    *((put("event", value=value), "event is not a text") for value in (1, None, {}, ["x"])),
    (put("session", value={"index": 0, "size": True, "path": []}), "session.index is no place"),
    (put("event", value="\ud800"), "half a character"),
    (put("event", value="{}"), "event cannot be read: JSON, but not an event"),
    (put("event", value=""), "event cannot be read: the line is empty"),
    (put("event", value="[" * 100_000), "event cannot be read"),
    (put("event", value=" " * (MAX_LINE_BYTES + 1)), "event is longer than"),
    (put("head", value=1), "head is not a text"),
    (put("head", value="\udfff"), "half a character"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED, ids=lambda _: "")
def test_malformed_proofs(log: Log, change: Callable[[Document], object], message: str) -> None:
    """A part that has not its form is named."""
    with pytest.raises(ProofError, match=message) as caught:
        verify_inclusion_proof(changed(log.proof(1, 3), change), KEY)
    assert isinstance(caught.value, TraceError)
    assert (caught.value.code, caught.value.http_status) == ("proof_invalid", 422)
    assert "\n" not in str(caught.value)


def test_what_is_no_document(log: Log) -> None:
    """Bytes that are not one JSON object, or could be read in two ways, are refused; so is too much of anything."""
    proof = log.proof(1, 3)
    for data in (
        *(
            b"",
            b"null",
            b"[]",
            b"[" * 100_000,
            b"\xff",
            b"{",
            proof[:-3],
            proof + b"{}",
            b'{"kind":NaN}',
            b'{"a":"\xed\xa0\x80"}',
        ),
        *(b"\xef\xbb\xbf" + proof, proof.decode().encode("utf-16"), b'{"kind":' + b"9" * 5000 + b"}"),
        proof.replace(b'"kind"', b'"kind": "cra-inclusion/1", "kind"'),
        proof.replace(b'"size": 3', b'"size": 3, "size": 3'),
        proof.replace(b'"index": 1', b'"index": -0'),
    ):
        assert data != proof
        with pytest.raises(ProofError, match="cannot be read"):
            verify_inclusion_proof(data, KEY)
    with pytest.raises(ProofError, match="longer than"):
        verify_inclusion_proof(b" " * (MAX_PROOF_BYTES + 1), KEY)


def test_the_longest_event_has_a_proof(tmp_path: Path) -> None:
    """An event as long as a trace can hold, and full of what JSON escapes, fits into a proof."""
    events = parse(lines_of(write_trace(tmp_path)))
    events[0]["payload"]["metadata"]["quotes"] = ""
    room = MAX_LINE_BYTES - len(reseal(events)[0])
    events[0]["payload"]["metadata"]["quotes"] = '"' * (room // 2)
    grown = Log([reseal(events)])
    proof = grown.proof(0, 0)
    assert 2 * MAX_LINE_BYTES - 100 < len(proof) < MAX_PROOF_BYTES
    assert verify_inclusion_proof(proof, KEY).sequence == 0


def sealed_anew(log: Log, session: int, change: Callable[[list[Document]], object]) -> Log:
    """What a forger has who rewrote a session and can make trees, but not sign."""
    events = parse(log.sessions[session])
    change(events)
    lines = [[line + b"\n" for line in known] for known in log.sessions]
    lines[session] = reseal(events)
    return Log(lines)


def test_parts_of_other_proofs(log: Log) -> None:
    """A part that is right elsewhere is refused, with a sentence that says what does not fit."""
    proof = log.proof(1, 3)
    parts, other = json.loads(proof), json.loads(log.proof(0, 3))
    neighbour, last = json.loads(log.proof(1, 4)), json.loads(log.proof(1, len(log.sessions[1]) - 1))
    forged = json.loads(sealed_anew(log, 1, lambda events: events[3]["payload"].update(x=1)).proof(1, 3))
    lying = log.entries[1]._replace(head_hash=HEX)
    for source, change, message in (
        (parts, {"event": other["event"]}, "the event is of session"),
        (parts, {"event": neighbour["event"]}, "sequence is 4, its place in the session's tree 3"),
        (parts, {"session": neighbour["session"]}, "sequence is 3, its place in the session's tree 4"),
        (parts, {"session": {**parts["session"], "size": 99}}, "a session of 99 events"),
        (
            parts,
            {"session": {**parts["session"], "path": neighbour["session"]["path"]}},
            "the event is not in the session",
        ),
        (parts, {"event": forged["event"]}, "the event is not in the session"),
        (parts, {"event": forged["event"], "session": forged["session"]}, "the event is not in the session"),
        (forged, {"head": parts["head"]}, "entry is not in the log"),
        (parts, {"ledger": {**parts["ledger"], "index": 0}}, "entry is not in the log"),
        (parts, {"ledger": {**parts["ledger"], "path": other["ledger"]["path"]}}, "entry is not in the log"),
        (last, {"ledger": {**last["ledger"], "entry": lying.pack().hex()}}, "the ledger's entry names another"),
        (parts, {"ledger": {**parts["ledger"], "entry": lying.pack().hex()}}, "entry is not in the log"),
        (parts, {"ledger": {**parts["ledger"], "size": 2}}, "a log of 2 entries, the head is of one of 3"),
        (parts, {"head": log.head(2).decode()}, "a log of 3 entries, the head is of one of 2"),
    ):
        with pytest.raises(ProofError, match=message):
            verify_inclusion_proof(json.dumps({**source, **change}).encode(), KEY)


def test_an_event_that_was_changed(log: Log) -> None:
    """An event that keeps its old hash is refused by what it now says, before any tree is looked at."""
    proof = changed(log.proof(1, 0), lambda document: document.update(event=document["event"].replace("bot", "bat")))
    with pytest.raises(ProofError, match="was changed: it has not the hash that it names"):
        verify_inclusion_proof(proof, KEY)


def test_an_event_of_another_implementation(log: Log) -> None:
    """Only our own exact form is proved: other spellings of an event could be hashed to the same bytes."""
    proof = changed(log.proof(1, 0), lambda document: document.update(event=document["event"].replace(":", ": ", 1)))
    with pytest.raises(ProofError, match="not an event in the exact form"):
        verify_inclusion_proof(proof, KEY)


def test_the_head_must_be_signed(log: Log) -> None:
    """A head that another key signed, or nobody, proves nothing, however well the trees fit."""
    for signer in (Signer("example.com/bot", b"x" * 32), Signer("example.com/other", bytes(range(32)))):
        proof = changed(log.proof(1, 3), put("head", value=log.head(signer=signer).decode()))
        with pytest.raises(NoteError, match=r"not signed by example\.com/bot"):
            verify_inclusion_proof(proof, KEY)
    unsigned = changed(log.proof(1, 3), lambda document: document.update(head=log.head().decode().partition("\n\n")[0]))
    with pytest.raises(NoteError, match="no signed note"):
        verify_inclusion_proof(unsigned, KEY)


def grown(count: int) -> Log:
    """A log of ``count`` entries."""
    log = Log([])
    for number in range(count):
        log.note(Entry(OTHER_ID, number + 1, HEX, bytes([number]) * 32))
    return log


def test_every_growth_is_proved() -> None:
    """Between any two heads of a log the proof verifies, from the empty one on, and gives both."""
    log = grown(9)
    for new in range(10):
        for old in range(new + 1):
            proof = consistency_document(log.head(old), log.head(new), log.ledger.consistency(old, new))
            found = verify_consistency_proof(proof, KEY)
            assert [head.size for head in found] == [old, new]
            assert [head.root for head in found] == [log.ledger.root(old), log.ledger.root(new)]


def test_what_is_no_growth() -> None:
    """A rewritten log, a shorter one, and a path that is not between these heads are refused."""
    log, other = grown(9), grown(3)
    other.note(Entry(OTHER_ID, 77, HEX, b"z" * 32))
    path = log.ledger.consistency(4, 9)
    for old, new, hashes, message in (
        (other.head(4), log.head(), path, "entries were changed or removed"),
        (log.head(5), log.head(), path, "entries were changed or removed"),
        (log.head(4), log.head(8), path, "entries were changed or removed"),
        (log.head(4), other.head(4), (), "entries were changed or removed"),
        (log.head(), log.head(4), path, "the old head is of 9 entries, the new one of only 4"),
    ):
        with pytest.raises(ProofError, match=message):
            verify_consistency_proof(consistency_document(old, new, hashes), KEY)
    stranger = Signer("example.com/bot", b"x" * 32)
    for old, new in ((log.head(4, stranger), log.head()), (log.head(4), log.head(signer=stranger))):
        with pytest.raises(NoteError, match="not signed by"):
            verify_consistency_proof(consistency_document(old, new, path), KEY)


def test_no_byte_of_a_growth_can_change() -> None:
    """A consistency proof with any byte changed is refused, or says the same in other white space."""
    log = grown(5)
    proof = consistency_document(log.head(3), log.head(5), log.ledger.consistency(3, 5))
    proven = verify_consistency_proof(proof, KEY)
    for place, byte in enumerate(proof):
        for other in (byte ^ 1, byte ^ 0x20, 32):
            try:
                found = verify_consistency_proof(proof[:place] + bytes([other]) + proof[place + 1 :], KEY)
            except (ProofError, NoteError):
                continue
            assert found == proven


def test_malformed_growths() -> None:
    """Fields missing, unknown or of another type, and proofs of the other kind, are refused."""
    log = grown(5)
    proof = consistency_document(log.head(3), log.head(5), log.ledger.consistency(3, 5))
    for change, message in (
        (drop("old"), "the keys kind, old, new, path"),
        (put("note", value=1), "and no others"),
        (put("kind", value="cra-inclusion/1"), "not a proof of the kind cra-consistency/1"),
        (put("old", value=None), "old is not a text"),
        (put("path", value=[HEX] * (MAX_PATH + 1)), "at most 128 hashes"),
        (put("path", value=[HEX.upper()]), "something else than 64 lower-case"),
    ):
        with pytest.raises(ProofError, match=message):
            verify_consistency_proof(changed(proof, change), KEY)
    with pytest.raises(ProofError, match="not a proof of the kind cra-inclusion/1"):
        verify_inclusion_proof(proof, KEY)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_hostile_documents(log: Log, data: st.DataObject) -> None:
    """Whatever stands in the place of a part gives one of the two promised errors."""
    proof = log.proof(1, 3)
    place = data.draw(
        st.sampled_from([("event",), ("session",), ("ledger",), ("head",), ("session", "path"), ("ledger", "size")])
    )
    hostile = data.draw(VALUES)
    with pytest.raises((ProofError, NoteError)):
        verify_inclusion_proof(changed(proof, put(*place, value=hostile)), KEY)
