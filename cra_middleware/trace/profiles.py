"""How each implementation's bytes are read: a strict grammar, one profile per chain.

    cra          ours: every line byte-exact, so a line is matched by one pattern and nothing else is a line
    cra-core     the Rust implementation: JSON says ``…Z``, the hash used ``+00:00`` with 0, 3, 6 or 9 digits;
                 ``parent_span_id`` may be left out
    appendix-b   the published pseudo-code: the timestamp as written, the payload with ``\\u`` escapes

The profile is chosen from what event 0 looks like, never by trying which hash fits.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Literal, NamedTuple

import orjson

from cra_middleware._ids import UUID_TEXT
from cra_middleware.trace.event import EVENT_TYPES, TRACE_VERSION, Event
from cra_middleware.trace.strict_json import NotJSONError, StrictJSONError, read_object

Profile = Literal["cra", "cra-core", "appendix-b"]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer line is malformed: it is not even read into memory."""

_ID = UUID_TEXT.pattern
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\+00:00"
# The payload is whatever stands between two fixed texts; that it is one JSON object, and the only way
# to read the line, is checked by parsing it on its own.
_LINE = re.compile(
    rf'\{{"trace_version":"1\.0","event_id":"({_ID})","trace_id":"({_ID})","span_id":"({_ID})",'
    rf'"parent_span_id":(?:null|"({_ID})"),"session_id":"({_ID})","sequence":(0|[1-9][0-9]{{0,15}}),'
    rf'"timestamp":"({_TIME})","event_type":"([a-z.]{{1,64}})","payload":(\{{.*\}}),'
    r'"event_hash":"([0-9a-f]{64})","previous_event_hash":"([0-9a-f]{64})"\}',
    re.DOTALL,
)
_HASH = re.compile(r"[0-9a-f]{64}")
_FOREIGN_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_REQUIRED = {
    *("trace_version", "event_id", "trace_id", "span_id", "session_id", "sequence", "timestamp"),
    *("event_type", "payload", "event_hash", "previous_event_hash"),
}


class MalformedError(ValueError):
    """A line is not an event of its profile; the message says why."""


class Read(NamedTuple):
    """An event as read, and the hash its bytes really have."""

    event: Event
    computed_hash: str


def choose(line: bytes) -> Profile:
    """The profile of a chain whose first line is ``line``."""
    if _LINE.fullmatch(line.decode(errors="replace")):
        return "cra"
    try:
        fields = _object(line)
    except MalformedError:
        return "cra"
    timestamp, payload = fields.get("timestamp"), fields.get("payload")
    metadata = payload.get("metadata") if isinstance(payload, dict) else None
    if isinstance(metadata, dict) and "canonicalization" in metadata:
        return "cra"  # only we write it, and it is hashed: other key order must not lead to laxer rules
    if isinstance(timestamp, str) and timestamp.endswith("Z") and "parent_span_id" not in fields:
        return "cra-core"
    if isinstance(timestamp, str) and list(fields) != _CRA_ORDER:
        return "appendix-b"
    return "cra" if not isinstance(timestamp, str) or timestamp.endswith("+00:00") else "appendix-b"


_CRA_ORDER = [
    *("trace_version", "event_id", "trace_id", "span_id", "parent_span_id", "session_id", "sequence"),
    *("timestamp", "event_type", "payload", "event_hash", "previous_event_hash"),
]


def read(line: bytes, profile: Profile) -> Read:
    """Parse one line, without its newline.

    Raises:
        MalformedError: when it is not an event in that profile.
    """
    return _read_cra(line) if profile == "cra" else _read_foreign(line, profile)


def _read_cra(line: bytes) -> Read:
    try:
        match = _LINE.fullmatch(line.decode())
    except UnicodeDecodeError as error:
        raise MalformedError(_why(line)) from error
    if match is None:
        raise MalformedError(_why(line))
    event_id, trace_id, span_id, parent, session_id, sequence, time, kind, text, event_hash, previous = match.groups()
    stored = text.encode()
    try:
        payload = orjson.loads(stored)
        canonical = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError) as error:  # TypeError: orjson's own encode error
        raise MalformedError("the payload is not JSON, or nested too deeply") from error
    if canonical != stored:
        raise MalformedError("the payload is not canonical JSON")
    _known(kind)
    if not _is_time(time[:19]):
        raise MalformedError("the timestamp is no time")
    if time[23:26] == "000":
        raise MalformedError("the timestamp ends in three zeros")
    head = f"1.0{event_id}{trace_id}{span_id}{parent or ''}{session_id}{sequence}{time}{kind}"
    computed = sha256(b"%b%b%b" % (head.encode(), stored, previous.encode())).hexdigest()
    event = Event(
        event_id, trace_id, span_id, parent, session_id, int(sequence), time, kind, payload, event_hash, previous
    )
    return Read(event, computed)


@lru_cache(maxsize=64)
def _is_time(text: str) -> bool:
    """Whether there is such a second; neighbouring events mostly share theirs."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _read_foreign(line: bytes, profile: Profile) -> Read:
    fields = _object(line)
    missing = _REQUIRED - fields.keys()
    unknown = fields.keys() - _REQUIRED - {"parent_span_id"}
    if missing or unknown:
        raise MalformedError(f"missing or unknown keys: {', '.join(sorted(missing | unknown))[:200]}")
    if fields["trace_version"] != TRACE_VERSION:
        raise MalformedError("trace_version is not 1.0")
    parent = _optional_id(fields.get("parent_span_id"))
    sequence, payload, time, kind = (fields[key] for key in ("sequence", "payload", "timestamp", "event_type"))
    if not isinstance(sequence, int) or isinstance(sequence, bool) or sequence < 0:
        raise MalformedError("sequence is not a natural number")
    if not isinstance(payload, dict):
        raise MalformedError("payload is not an object")
    if not isinstance(kind, str) or not isinstance(time, str):
        raise MalformedError("event_type or timestamp is not a string")
    if profile == "cra-core":
        _known(kind)
    ids = [_id(fields[key], key) for key in ("event_id", "trace_id", "span_id", "session_id")]
    event_hash, previous = (_hash(fields[key], key) for key in ("event_hash", "previous_event_hash"))
    try:
        payload_text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=profile == "appendix-b")
    except RecursionError as error:
        raise MalformedError("the payload is nested too deeply") from error
    text = "".join(
        (
            *("1.0", ids[0], ids[1], ids[2], parent or "", ids[3], str(sequence)),
            *(_rust_time(time) if profile == "cra-core" else _any_time(time), kind),
            *(payload_text, previous),
        )
    )
    event = Event(
        event_id=ids[0],
        trace_id=ids[1],
        span_id=ids[2],
        parent_span_id=parent,
        session_id=ids[3],
        sequence=sequence,
        timestamp=time,
        event_type=kind,
        payload=payload,
        event_hash=event_hash,
        previous_event_hash=previous,
    )
    try:
        return Read(event, sha256(text.encode()).hexdigest())
    except UnicodeEncodeError as error:
        raise MalformedError("the payload holds a lone surrogate") from error


def _object(line: bytes) -> dict[str, object]:
    try:
        return read_object(line)
    except NotJSONError as error:
        raise MalformedError(_why(line)) from error
    except StrictJSONError as error:
        raise MalformedError(str(error)) from error


def _why(line: bytes) -> str:
    if not line.strip(b"\0"):
        return "the line is empty" if not line else "the line is zeros: it was never written"
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    return "JSON, but not an event in the exact form of this profile"


def _known(kind: str) -> None:
    if kind not in EVENT_TYPES:
        raise MalformedError("event_type is not one of the protocol's")


def _id(value: object, key: str) -> str:
    if not isinstance(value, str) or not UUID_TEXT.fullmatch(value):
        raise MalformedError(f"{key} is no id")
    return value


def _optional_id(value: object) -> str | None:
    return None if value is None else _id(value, "parent_span_id")


def _hash(value: object, key: str) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise MalformedError(f"{key} is not 64 lower-case hex digits")
    return value


def _any_time(text: str) -> str:
    if not _FOREIGN_TIME.fullmatch(text):
        raise MalformedError("the timestamp is no time")
    return text


def _rust_time(text: str) -> str:
    """How chrono renders the instant ``text``: ``+00:00``, and 0, 3, 6 or 9 digits, trailing zero groups dropped."""
    match = _FOREIGN_TIME.fullmatch(text)
    if match is None or match[2] not in ("Z", "+00:00"):
        raise MalformedError("the timestamp is no UTC time")
    digits = (match[1] or "").ljust(9, "0")
    while digits and digits.endswith("000"):
        digits = digits[:-3]
    return text[:19] + (f".{digits}" if digits else "") + "+00:00"
