"""A forger's tools: real traces, and rewrites of them that know the hash rule. Uses none of the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import ActionDenied
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest

Event = dict[str, Any]
GENESIS = "0" * 64
KEYS = (
    *("trace_version", "event_id", "trace_id", "span_id", "parent_span_id", "session_id", "sequence"),
    *("timestamp", "event_type", "payload", "event_hash", "previous_event_hash"),
)


def broken_tool() -> None:
    raise RuntimeError("no such ticket")


def write_trace(folder: Path, calls: int = 1, goal: str = "Answer ticket 42") -> Path:
    """A sealed trace of one session, in which ``calls`` times a tool ran, one failed and one was refused."""
    clock = FrozenClock(NOON)
    with Runtime(Atlas.from_dict(manifest()), trace=folder, clock=clock) as runtime:
        with runtime.session(agent_id="bot", goal=goal) as session:
            for number in range(calls):
                clock.advance(0.0123)
                session.call("ticket.get", lambda n: {"id": n}, number)
                try:
                    session.call("ticket.update", broken_tool)
                except RuntimeError:
                    clock.advance(1)
                try:
                    session.call("ticket.delete", broken_tool)
                except ActionDenied:
                    clock.advance(1)
        return folder / f"{session.id}.trace.jsonl"


def lines_of(path: Path) -> list[bytes]:
    """The lines, each with its newline."""
    return path.read_bytes().splitlines(keepends=True)


def parse(lines: Iterable[bytes]) -> list[Event]:
    return [json.loads(line) for line in lines]


def compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_of(event: Event, payload: str | None = None) -> str:
    """The hash rule, written from the contract."""
    text = "".join(
        (
            *(event["trace_version"], event["event_id"], event["trace_id"], event["span_id"]),
            *(event["parent_span_id"] or "", event["session_id"], str(event["sequence"]), event["timestamp"]),
            *(event["event_type"], payload or compact(event["payload"]), event["previous_event_hash"]),
        )
    )
    return sha256(text.encode()).hexdigest()


def line_of(event: Event, payload: str | None = None) -> bytes:
    """The one line that stands for ``event``."""
    parts = []
    for key in KEYS:
        text = payload if key == "payload" and payload is not None else compact(event[key])
        parts.append(f'"{key}":{text}')
    return ("{" + ",".join(parts) + "}\n").encode()


def reseal(events: Iterable[Event], *, renumber: bool = True) -> list[bytes]:
    """Lines of a whole chain with these events: every link and hash is right again."""
    previous, lines = GENESIS, []
    for number, event in enumerate(events):
        whole = {**event, "previous_event_hash": previous}
        if renumber:
            whole["sequence"] = number
        whole["event_hash"] = previous = hash_of(whole)
        lines.append(line_of(whole))
    return lines


def rewrite(lines: list[bytes], change: Callable[[list[Event]], object], *, renumber: bool = True) -> list[bytes]:
    """The trace after ``change`` edited its list of events, resealed."""
    events = parse(lines)
    change(events)
    return reseal(events, renumber=renumber)
