"""For tests of governed code: a clock that stands still, a sink that fails when told to, what was decided."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from cra_middleware._clock import parse_us
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.resolver import Resolver
from cra_middleware.errors import SinkError
from cra_middleware.policy_tests import Case, Told, read_case_file, run_case
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import read
from cra_middleware.trace.sink import SessionLog, Sink, Torn
from cra_middleware.trace.sinks.memory import MemorySink

__all__ = ["FailingSink", "FrozenClock", "MemorySink", "RecordedCalls", "decide_case", "read_case_file"]


class FrozenClock:
    """Stands at one instant until it is moved."""

    def __init__(self, iso: str) -> None:
        """Start at an ISO 8601 time with an offset.

        Raises:
            ValueError: when ``iso`` is no such time.
        """
        self._us = parse_us(iso)
        self._monotonic_ns = 0

    def wall_us(self) -> int:
        return self._us

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        """Move on; a negative number is a wall clock that was set back."""
        self._us += round(seconds * 1_000_000)
        self._monotonic_ns += max(0, round(seconds * 1_000_000_000))


class FailingSink:
    """Keeps events in memory, and raises ``SinkError`` while ``failing`` is true."""

    def __init__(self, inner: Sink | None = None) -> None:
        self.failing = False
        self._inner: Sink = inner or MemorySink()

    def create(self, session_id: str, /) -> SessionLog:
        self._check()
        return _FailingLog(self, self._inner.create(session_id))

    def reopen(self, session_id: str, /) -> SessionLog:
        self._check()
        return _FailingLog(self, self._inner.reopen(session_id))

    def session_ids(self) -> list[str]:
        return self._inner.session_ids()

    def close(self) -> None:
        self._inner.close()

    def _check(self) -> None:
        if self.failing:
            raise SinkError("the sink was told to fail")


class _FailingLog:
    def __init__(self, sink: FailingSink, inner: SessionLog) -> None:
        self._sink = sink
        self._inner = inner

    @property
    def durable_events(self) -> int:
        return self._inner.durable_events

    @property
    def noted_durable(self) -> int | None:
        return self._inner.noted_durable

    @property
    def witnessed_events(self) -> int:
        return self._inner.witnessed_events

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._sink._check()
        self._inner.append(offset, data, events)

    def lines(self) -> Iterator[bytes]:
        return self._inner.lines()

    def set_aside(self, offset: int, /) -> Torn:
        self._sink._check()
        return self._inner.set_aside(offset)

    def flush(self) -> None:
        self._sink._check()
        self._inner.flush()

    def close(self) -> None:
        self._inner.close()


class RecordedCalls:
    """What was decided in the sessions of one runtime: ``Runtime(..., trace=sink)`` with a ``MemorySink``."""

    def __init__(self, sink: MemorySink) -> None:
        self._sink = sink

    def all(self, action: str) -> list[str]:
        """What became of each call of ``action``: ``allow``, ``ask``, or a denial's code; in order."""
        found: list[str] = []
        for session_id in self._sink.session_ids():
            events = [read(line.rstrip(b"\n"), "cra").event for line in self._sink.lines(session_id)]
            spans = {event.span_id for event in events if event.event_type == "action.requested"}
            found += [
                word
                for event in events
                if event.span_id in spans and event.payload.get("action_id") == action
                for word in _decided(event)
            ]
        return found

    def assert_allowed(self, action: str) -> None:
        """At least one call of ``action`` was let run."""
        self._assert(action, "allow", "allow" in self.all(action))

    def assert_denied(self, action: str, code: str | None = None) -> None:
        """At least one call of ``action`` was denied, with ``code`` where it is given, and none was let run."""
        found = self.all(action)
        denied = [word for word in found if word not in ("allow", "ask")]
        good = "allow" not in found and (code in denied if code is not None else bool(denied))
        self._assert(action, code or "a denial, and no run", good)

    def assert_asked(self, action: str) -> None:
        """At least one call of ``action`` waited for a person."""
        self._assert(action, "ask", "ask" in self.all(action))

    def _assert(self, action: str, wanted: str, good: bool) -> None:
        if not good:
            found = ", ".join(self.all(action)) or "it was not called"
            raise AssertionError(f"{action}: wanted {wanted}; what happened: {found}")


def _decided(event: Event) -> Iterator[str]:
    if event.event_type == "action.approved":
        yield "allow"
    elif event.event_type == "action.denied":
        yield str(event.payload.get("code"))
    elif event.payload.get("effect") == "require_approval":
        yield "ask"


def decide_case(case: Case, atlas: str | Path, project: str = ".") -> Told:
    """Decide one case of an Atlas's own tests.

    Raises:
        AtlasError: when the Atlas has errors.
    """
    return run_case(case, _resolver(str(atlas), project), project)


@lru_cache(maxsize=8)
def _resolver(atlas: str, project: str) -> Resolver:
    return Resolver([Atlas.load(atlas)], project=project)
