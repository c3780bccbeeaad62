"""Comparing two traces of what should be the same run.

    ignored    ids, timestamps, hashes of events; a change of the clock or of the process
    minor      durations, token counts, an added optional key
    major      a removed key, changed text or values, the set of documents that were injected
    breaking   the sequence of events; decision, result, effect, action, policy, code, counts; which events belong
               to one call

An id is ignored as such, but two events that share one in A must share one in B. Events are aligned, so that one
that was added or removed is one difference.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from cra_middleware.trace.event import Event

Significance = Literal["ignored", "minor", "major", "breaking"]
Likeness = Literal["identical", "semantically_equivalent", "different", "incompatible"]

_IDS = frozenset(
    (
        *("event_id", "trace_id", "span_id", "parent_span_id", "session_id", "resolution_id", "request_id"),
        *("execution_id", "approval_id", "tool_call_id", "traceparent", "parent_session_id", "external_id"),
        "request_key",
    )
)
_CLOCK = frozenset(("timestamp", "event_hash", "previous_event_hash"))
_MINOR = frozenset(("duration_ms", "token_count"))
_BREAKING = frozenset(
    (
        *("event_type", "sequence", "decision_type", "result", "effect", "action_id", "policy_id", "code"),
        *("violation_type", "allowed_count", "denied_count", "context_block_count", "action_count", "event_count"),
        *("operation", "error_code", "item_count"),
    )
)
_RELATED = ("span_id", "execution_id", "approval_id")
"""Ids by which events belong together."""
_MISSING = object()


class Change(NamedTuple):
    """One difference."""

    pointer: str
    """RFC 6901, into the list of A's events (of B's, for what only B has)."""
    significance: Significance
    what: Literal["added", "removed", "changed"]
    before: object = None
    after: object = None


class Difference(NamedTuple):
    """All of them, and what they come to."""

    changes: tuple[Change, ...]

    @property
    def likeness(self) -> Likeness:
        """The verdict."""
        found = {change.significance for change in self.changes}
        if "breaking" in found:
            return "incompatible"
        if "major" in found:
            return "different"
        return "semantically_equivalent" if found else "identical"


def diff(a: Sequence[Event], b: Sequence[Event]) -> Difference:
    """How ``b`` differs from ``a``; both are whole chains."""
    return Difference(tuple(_changes(a, b)))


def _changes(a: Sequence[Event], b: Sequence[Event]) -> Iterator[Change]:
    left, right = _without_context(a), _without_context(b)
    yield from _context(a, b)
    keys = [[_key(event) for _, event in side] for side in (left, right)]
    names = [_names(event for _, event in side) for side in (left, right)]
    matcher = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False)
    for tag, begin, end, other_begin, other_end in matcher.get_opcodes():
        if tag == "equal":
            for (place, one), (_, other) in zip(left[begin:end], right[other_begin:other_end], strict=True):
                yield from _event(f"/{place}", one, other)
                for key in _RELATED:
                    ours, theirs = names[0].get(_id(one, key)), names[1].get(_id(other, key))
                    if ours != theirs and _same_length(a, b):
                        yield Change(f"/{place}/{key}", "breaking", "changed", "another call", "another call")
            continue
        for place, event in left[begin:end]:
            yield Change(f"/{place}", "breaking", "removed", _short(event))
        for place, event in right[other_begin:other_end]:
            yield Change(f"/{place}", "breaking", "added", None, _short(event))


def _same_length(a: Sequence[Event], b: Sequence[Event]) -> bool:
    # with an event more or fewer, the numbers of the ids behind it say nothing new
    return len(a) == len(b)


def _key(event: Event) -> tuple[str, object]:
    return event.event_type, event.payload.get("action_id")


def _short(event: Event) -> str:
    action = event.payload.get("action_id")
    return f"{event.event_type} {action}" if isinstance(action, str) else event.event_type


def _without_context(events: Sequence[Event]) -> list[tuple[int, Event]]:
    return [(place, event) for place, event in enumerate(events) if event.event_type != "context.injected"]


def _context(a: Sequence[Event], b: Sequence[Event]) -> Iterator[Change]:
    """Documents are compared as a set, by block; what is said about one is compared like any event."""
    sides: list[dict[tuple[object, int], tuple[int, Event]]] = []
    for events in (a, b):
        seen: dict[tuple[object, int], tuple[int, Event]] = {}
        for place, event in enumerate(events):
            if event.event_type == "context.injected":
                name, again = event.payload.get("block_id"), 0
                while (name, again) in seen:
                    again += 1
                seen[name, again] = (place, event)
        sides.append(seen)
    for key, (place, event) in sides[0].items():
        other = sides[1].get(key)
        if other is None:
            yield Change(f"/{place}", "major", "removed", event.payload.get("block_id"))
        else:
            yield from _event(f"/{place}", event, other[1])
    for key, (place, event) in sides[1].items():
        if key not in sides[0]:
            yield Change(f"/{place}", "major", "added", None, event.payload.get("block_id"))


def _names(events: Iterator[Event]) -> dict[object, int]:
    """A number for each id, in the order in which they first occur."""
    numbers: dict[object, int] = {}
    for event in events:
        for key in _RELATED:
            value = _id(event, key)
            if value is not None:
                numbers.setdefault(value, len(numbers))
    return numbers


def _id(event: Event, key: str) -> object:
    value = event.span_id if key == "span_id" else event.payload.get(key)
    return value if isinstance(value, str) else None


def _event(pointer: str, one: Event, other: Event) -> Iterator[Change]:
    for key in ("event_id", "trace_id", "span_id", "parent_span_id", "session_id", "timestamp", "event_hash"):
        before, after = getattr(one, key), getattr(other, key)
        if before != after:
            yield Change(f"{pointer}/{key}", "ignored", "changed", before, after)
    for change in _mapping(f"{pointer}/payload", one.payload, other.payload):
        is_value = one.event_type == "action.executed" and change.pointer == f"{pointer}/payload/result"
        yield change._replace(significance="major") if is_value else change  # what the tool gave, not a verdict


def _mapping(pointer: str, one: Mapping[str, object], other: Mapping[str, object]) -> Iterator[Change]:
    for key in (*one, *(key for key in other if key not in one)):
        before, after = one.get(key, _MISSING), other.get(key, _MISSING)
        place = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
        if before is _MISSING:
            yield Change(place, _of(key, "minor"), "added", None, after)
        elif after is _MISSING:
            yield Change(place, _of(key, "major"), "removed", before)
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from _mapping(place, before, after)
        elif before != after or type(before) is not type(after):
            yield Change(place, _of(key, "major"), "changed", before, after)
    if list(one) != list(other) and set(one) == set(other):
        yield Change(pointer, "minor", "changed", "another order of keys", None)


def _of(key: str, otherwise: Significance) -> Significance:
    if key in _IDS or key in _CLOCK:
        return "ignored"
    if key in _MINOR:
        return "minor"
    return "breaking" if key in _BREAKING else otherwise
