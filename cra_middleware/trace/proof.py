"""Proofs that stand alone: of one event without the rest of its session, and of a log that only grew.

    {"kind": "cra-inclusion/1", "event": "<the exact line, without its newline>",
     "session": {"index": 3, "size": 12, "path": ["<64 hex digits>", ...]},
     "ledger": {"index": 0, "size": 5, "entry": "<176 hex digits>", "path": [...]},
     "head": "<a signed note>"}

    {"kind": "cra-consistency/1", "old": "<a signed note>", "new": "<a signed note>", "path": [...]}

The event's hash leads up its session's tree to the root in the ledger's entry, the entry up the ledger's tree to the
root in the head, and the head is signed. Who holds the public key needs nothing else to believe the event.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cra_middleware.errors import TraceError
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.event import Event
from cra_middleware.trace.note import MAX_NOTE_BYTES, Checkpoint, VerifierKey, open_note
from cra_middleware.trace.profiles import MAX_LINE_BYTES, MalformedError, read
from cra_middleware.trace.strict_json import StrictJSONError, read_object
from cra_middleware.trace.tree import verify_consistency, verify_inclusion

INCLUSION = "cra-inclusion/1"
CONSISTENCY = "cra-consistency/1"
MAX_PATH = 128
"""Hashes in a path; a tree of 2^63 leaves needs no more than 64."""
MAX_PROOF_BYTES = 2 * (MAX_LINE_BYTES + 2 * MAX_NOTE_BYTES) + 65_536
"""A longer proof is refused unread. In JSON every letter of an event or a note may need an escape."""
_HASH = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(r"[0-9a-f]{176}")


class ProofError(TraceError):
    """A proof is malformed, or does not prove what it says."""

    code = "proof_invalid"
    http_status = 422


@dataclass(frozen=True, slots=True)
class Place:
    """Where a leaf stands in a tree of ``size`` leaves, and its path to the root."""

    index: int
    size: int
    path: Sequence[bytes]


class ProvenEvent(NamedTuple):
    """An event that was in the log when ``head`` was signed."""

    event: Event
    session_id: str
    sequence: int
    head: Checkpoint


class ProvenGrowth(NamedTuple):
    """Two heads of one log: all that ``old`` holds is in ``new``, unchanged and in the same place."""

    old: Checkpoint
    new: Checkpoint


def inclusion_document(line: bytes, session: Place, entry: Entry, ledger: Place, head: bytes) -> bytes:
    """The proof of one event.

    Args:
        line: the event as it stands in its trace, without the newline.
        session: the event's place in its session's tree, as large as ``entry`` says.
        entry: the ledger's entry about that session.
        ledger: the entry's place in the ledger's tree, as large as ``head`` says.
        head: the signed note.
    """
    entry_place = {"index": ledger.index, "size": ledger.size, "entry": entry.pack().hex(), "path": _hex(ledger.path)}
    return _document(
        {
            "kind": INCLUSION,
            "event": line.decode(),
            "session": {"index": session.index, "size": session.size, "path": _hex(session.path)},
            "ledger": entry_place,
            "head": head.decode(),
        }
    )


def consistency_document(old: bytes, new: bytes, path: Sequence[bytes]) -> bytes:
    """The proof that the log whose head is the signed note ``new`` begins with that of ``old``."""
    return _document({"kind": CONSISTENCY, "old": old.decode(), "new": new.decode(), "path": _hex(path)})


def verify_inclusion_proof(proof: bytes, key: VerifierKey) -> ProvenEvent:
    """The event that ``proof`` shows to be in the log of ``key``.

    Raises:
        NoteError: when the head is malformed, or not signed by ``key``.
        ProofError: when the rest is malformed, or the event does not lead up to that head.
    """
    fields = _fields(_read(proof, INCLUSION), "the proof", "kind", "event", "session", "ledger", "head")
    session = _fields(fields["session"], "session", "index", "size", "path")
    ledger = _fields(fields["ledger"], "ledger", "index", "size", "path", "entry")
    event = _event(fields["event"])
    in_session, in_ledger = _place(session, "session"), _place(ledger, "ledger")
    entry = _entry(ledger["entry"])
    head = open_note(_bytes(fields["head"], "head"), key)
    _check_session(event, in_session, entry)
    if in_ledger.size != head.size:
        raise ProofError(f"the proof is for a log of {in_ledger.size} entries, the head is of one of {head.size}")
    if not verify_inclusion(entry.leaf(), in_ledger.index, in_ledger.size, in_ledger.path, head.root):
        raise ProofError("the ledger's entry is not in the log that the head was signed for")
    return ProvenEvent(event, event.session_id, event.sequence, head)


def verify_consistency_proof(proof: bytes, key: VerifierKey) -> ProvenGrowth:
    """The two heads of the log of ``key`` between which ``proof`` shows that it only grew.

    Raises:
        NoteError: when a head is malformed, or not signed by ``key``.
        ProofError: when the rest is malformed, or the new head does not begin with the old one.
    """
    fields = _fields(_read(proof, CONSISTENCY), "the proof", "kind", "old", "new", "path")
    path = _path(fields["path"], "the proof")
    old, new = (open_note(_bytes(fields[name], name), key) for name in ("old", "new"))
    if old.size > new.size:
        raise ProofError(f"the old head is of {old.size} entries, the new one of only {new.size}")
    if not verify_consistency(old.size, new.size, path, old.root, new.root):
        raise ProofError("the new head is not of a log that begins with the old one: entries were changed or removed")
    return ProvenGrowth(old, new)


def _check_session(event: Event, place: Place, entry: Entry) -> None:
    if event.session_id != entry.session_id:
        raise ProofError(f"the event is of session {event.session_id}, the ledger's entry of {entry.session_id}")
    if event.sequence != place.index:
        raise ProofError(f"the event's sequence is {event.sequence}, its place in the session's tree {place.index}")
    if place.size != entry.size:
        raise ProofError(f"the proof is for a session of {place.size} events, the ledger's entry of {entry.size}")
    if not verify_inclusion(event_leaf(event.event_hash), place.index, place.size, place.path, entry.root):
        raise ProofError("the event is not in the session that the ledger's entry is about")
    if place.index == place.size - 1 and event.event_hash != entry.head_hash:
        raise ProofError("the event is the session's last, but the ledger's entry names another")


def _event(value: object) -> Event:
    line = _bytes(value, "event")
    if len(line) > MAX_LINE_BYTES:
        raise ProofError(f"the proof's event is longer than {MAX_LINE_BYTES} bytes")
    try:
        found = read(line, "cra")
    except MalformedError as error:
        raise ProofError(f"the proof's event cannot be read: {error}") from error
    if found.computed_hash != found.event.event_hash:
        raise ProofError("the proof's event was changed: it has not the hash that it names")
    return found.event


def _entry(value: object) -> Entry:
    if not isinstance(value, str) or not _ENTRY.fullmatch(value):
        raise ProofError("the proof's ledger.entry is not 176 lower-case hex digits")
    try:
        return Entry.unpack(bytes.fromhex(value))
    except ValueError as error:
        raise ProofError(f"the proof's ledger.entry is none: {error}") from error


def _place(fields: dict[str, object], name: str) -> Place:
    index, size = fields["index"], fields["size"]
    if type(index) is not int or type(size) is not int or not 0 <= index < size:  # a bool is an int, too
        raise ProofError(f"the proof's {name}.index is no place in a tree of {name}.size leaves")
    return Place(index, size, _path(fields["path"], name))


def _path(value: object, name: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MAX_PATH:
        raise ProofError(f"the path of {name} is not a list of at most {MAX_PATH} hashes")
    if not all(isinstance(item, str) and _HASH.fullmatch(item) for item in value):
        raise ProofError(f"the path of {name} holds something else than 64 lower-case hex digits")
    return tuple(map(bytes.fromhex, value))


def _read(proof: bytes, kind: str) -> dict[str, object]:
    if len(proof) > MAX_PROOF_BYTES:
        raise ProofError(f"the proof is longer than {MAX_PROOF_BYTES} bytes")
    try:
        fields = read_object(proof)
    except StrictJSONError as error:
        raise ProofError(f"the proof cannot be read: {error}") from error
    if fields.get("kind") != kind:
        raise ProofError(f"this is not a proof of the kind {kind}")
    return fields


def _fields(value: object, name: str, *keys: str) -> dict[str, object]:
    if not isinstance(value, dict) or value.keys() != set(keys):
        raise ProofError(f"{name} is not an object with the keys {', '.join(keys)} and no others")
    return value


def _bytes(value: object, name: str) -> bytes:
    if not isinstance(value, str):
        raise ProofError(f"the proof's {name} is not a text")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ProofError(f"the proof's {name} holds half a character") from error


def _hex(path: Sequence[bytes]) -> list[str]:
    return [item.hex() for item in path]


def _document(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"
