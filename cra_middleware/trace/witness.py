"""The copy of a trace that telemetry has: the hash and the sequence of every event, as spans carried them away.

Two forms are read: OTLP as JSON (what a collector's file exporter writes, one document a line, or one document in all)
and the SDK's own ``span.to_json()`` (one span after the other, or a list of them). Where a span does not say which
session an event belongs to, its hash does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cra_middleware.errors import TraceError

SESSION, SEQUENCE, HASH = "cra.session.id", "cra.trace.sequence", "cra.trace.event_hash"
MAX_BYTES = 1 << 30


class WitnessError(TraceError):
    """A copy cannot be read."""

    code = "witness_invalid"
    http_status = 422


class Seen(NamedTuple):
    """One event, as somebody else saw it."""

    session_id: str | None
    sequence: int
    event_hash: str


class Witness:
    """What somebody else saw, by session."""

    def __init__(self, seen: Iterator[Seen]) -> None:
        self._known: dict[str, dict[int, set[str]]] = {}
        self._loose: set[tuple[int, str]] = set()
        for event in seen:
            if event.session_id is None:
                self._loose.add((event.sequence, event.event_hash))
            else:
                self._known.setdefault(event.session_id, {}).setdefault(event.sequence, set()).add(event.event_hash)

    def sessions(self) -> set[str]:
        """Those it names."""
        return set(self._known)

    def of(self, session_id: str) -> Mapping[int, set[str]]:
        """The hashes it saw in a session, by sequence; more than one at a place means that there were two stories."""
        return self._known.get(session_id, {})

    def saw(self, sequence: int, event_hash: str) -> bool:
        """Whether it saw such an event, without knowing in which session."""
        return (sequence, event_hash) in self._loose


def read_witness(path: Path) -> Witness:
    """The copy in a file.

    Raises:
        WitnessError: when it cannot be read, or holds no event of a trace.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WitnessError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise WitnessError(f"{path} is larger than {MAX_BYTES} bytes; cut it into parts")
    try:
        text = data.decode()
        seen = [event for document in _documents(text) for event in _events(document)]
    except (ValueError, RecursionError) as error:
        raise WitnessError(f"{path} is not JSON as a collector or the OpenTelemetry SDK writes it: {error}") from error
    if not seen:
        raise WitnessError(f"{path} holds no event of a trace: no span event has {HASH}")
    return Witness(iter(seen))


def _documents(text: str) -> Iterator[object]:
    """The JSON documents in a text, one behind the other, with any white space between."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        value, place = decoder.raw_decode(text, place)
        yield value


def _events(value: object, session: str | None = None) -> Iterator[Seen]:
    """Every event of a trace in a document, wherever spans stand in it."""
    if isinstance(value, list):
        for item in value:
            yield from _events(item, session)
    elif isinstance(value, dict):
        attributes = _attributes(value.get("attributes"))
        name = attributes.get(SESSION)
        session = name if isinstance(name, str) else session
        sequence, event_hash = attributes.get(SEQUENCE), attributes.get(HASH)
        if isinstance(event_hash, str) and sequence is not None:
            place = int(str(sequence))
            if place < 0:
                raise ValueError(f"{place} is no place in a trace")
            yield Seen(session, place, event_hash)
        for key, item in value.items():
            if key != "attributes":
                yield from _events(item, session)


def _attributes(value: object) -> dict[str, object]:
    """Attributes as one mapping: OTLP writes a list of keys with typed values."""
    if isinstance(value, dict):
        return value
    found: dict[str, object] = {}
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict) and isinstance(item.get("value"), dict):
            found[str(item.get("key"))] = next(iter(item["value"].values()), None)
    return found
