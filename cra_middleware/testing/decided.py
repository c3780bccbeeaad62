"""What was decided in a test, and what would be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.resolver import Resolver
from cra_middleware.policy_tests import Case, Told, run_case
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import read
from cra_middleware.trace.sinks.memory import MemorySink


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
