"""Where telemetry looks on. An observer may drop what it likes; it never decides, blocks or raises."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

from cra_middleware.carp.call import Decision, ToolCall
from cra_middleware.carp.messages import Resolution
from cra_middleware.trace.event import Sealed
from cra_middleware.trace.let_run import LetRun

Outcome = Literal["executed", "failed", "denied", "pending_approval"]
Owner = Literal["ours", "person", "tool", "nobody"]
"""Whose time it is while a call goes on. It begins as ours; nobody's is what a call waits for its end to be noted."""


class Subject(NamedTuple):
    """Whose call it is."""

    session_id: str
    trace_id: str
    agent_id: str


class Operation(Protocol):
    """One call, or one resolution, while it goes on."""

    @property
    def is_recording(self) -> bool:
        """Whether there is anything to make current while the tool runs."""
        ...

    @property
    def traceparent(self) -> str | None:
        """W3C ``traceparent`` of the operation's span; None when nothing is recorded."""
        ...

    def running(self) -> AbstractContextManager[object] | None:
        """Makes the operation current, so that what the tool does nests below it. May be entered many times."""
        ...

    def seen(self, events: Sequence[Sealed], /) -> None:
        """Events of this operation that the trace has kept."""
        ...

    def decided(self, decision: Decision, /) -> None:
        """What was decided."""
        ...

    def resolved(self, resolution: Resolution, /) -> None:
        """What was resolved."""
        ...

    def turn(self, whose: Owner, /) -> None:
        """Whose time it is from now on. Takes no lock: it may be called in a finaliser."""
        ...

    def end(self, outcome: Outcome | None, error_type: str | None = None, description: str | None = None, /) -> None:
        """It is over."""
        ...


class Observer(Protocol):
    """Looks on at one runtime."""

    def call(self, call: ToolCall, subject: Subject, span_id: str, /) -> Operation:
        """A call begins; ``span_id`` is its TRACE span, not an OpenTelemetry one."""
        ...

    def resolution(self, subject: Subject, span_id: str, /) -> Operation:
        """A resolution begins."""
        ...

    def session(self, subject: Subject, events: Sequence[Sealed], /) -> None:
        """Events of a session that are no call's and no resolution's, or that nobody waited for."""
        ...

    def ran(self, call: LetRun, duration_ms: int, error_type: str | None, /) -> None:
        """A call that was let run as one of another process's ran in this one."""
        ...

    def missed(self, events: int, /) -> None:
        """So many events were not kept, and never will be."""
        ...


class Unobserved:
    """The operation, and the observer, of a runtime that nobody looks on at."""

    is_recording = False
    traceparent: str | None = None

    def call(self, call: ToolCall, subject: Subject, span_id: str, /) -> Operation:
        return self

    def resolution(self, subject: Subject, span_id: str, /) -> Operation:
        return self

    def session(self, subject: Subject, events: Sequence[Sealed], /) -> None:
        return None

    def ran(self, call: LetRun, duration_ms: int, error_type: str | None, /) -> None:
        return None

    def missed(self, events: int, /) -> None:
        return None

    def running(self) -> AbstractContextManager[object] | None:
        return None

    def turn(self, whose: Owner, /) -> None:
        return None

    def seen(self, events: Sequence[Sealed], /) -> None:
        return None

    def decided(self, decision: Decision, /) -> None:
        return None

    def resolved(self, resolution: Resolution, /) -> None:
        return None

    def end(self, outcome: Outcome | None, error_type: str | None = None, description: str | None = None, /) -> None:
        return None
