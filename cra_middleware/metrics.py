"""The numbers: what of calls, traces and questions is counted, and how long calls take.

Needs OpenTelemetry, as ``spans`` does and nothing else in the core; loaded only where somebody listens.

Counts are kept here and told when a reader collects: an SDK takes several times as long for each addition as all of
them take here. Every attribute has few values: never a session's, a user's or an agent's name, and of the names of
tools and errors, which anybody may choose, only the first ``MAX_NAMES``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from cra_middleware._fork import tell_child
from cra_middleware.carp.call import Allow, Decision, Deny
from cra_middleware.carp.messages import Resolution
from cra_middleware.observer import Operation, Outcome, Owner
from cra_middleware.spans import MAX_TEXT, clean, short_name, unnested
from cra_middleware.trace.event import Sealed

MAX_NAMES = 200
"""Names of tools, and of errors, that one provider is told of; all others are ``OTHER``."""
OTHER = "_OTHER"
"""What the conventions call an error without a name of its own."""
TOOL_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""The boundaries that the GenAI conventions want for ``gen_ai.execute_tool.duration``."""
OVERHEAD_SECONDS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
"""From a call that is decided in this process, in memory, to one whose server hardly answers."""
UNREACHABLE = "runtime_unreachable"
"""The one decision about a call that a server's client makes by itself."""
_SECOND_NS = 1_000_000_000

_logger = logging.getLogger("cra_middleware.telemetry")


class Waiting:
    """The questions of one runtime that wait for a person."""

    def __init__(self, place: Hashable, count: Callable[[], int]) -> None:
        """Runtimes with the same ``place`` have the same questions, which are counted once."""
        self.place = place
        self.count = count


class Names:
    """The first so many different names; whatever comes after them is ``OTHER``."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def fit(self, text: str) -> str:
        """``text``, fit for an attribute."""
        text = text[:MAX_TEXT]
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= MAX_NAMES:
                return OTHER
            known = self._known.setdefault(text, clean(text) or OTHER)
        return known


class Instruments:
    """The instruments of one provider, made once, and what they have counted."""

    def __init__(self, meter: Meter) -> None:
        self._lock = threading.RLock()  # a finaliser in the middle of counting may make a call, too
        self._decisions: Counter[tuple[str, str | None]] = Counter()
        self._events: Counter[str] = Counter()
        self._dropped = 0
        self._waiting: WeakSet[Waiting] = WeakSet()
        self._tools = Names()
        self._errors = Names()
        self._codes = Names()
        self._has_failed = False
        tell_child(self)
        self._duration = meter.create_histogram(
            "gen_ai.execute_tool.duration",
            unit="s",
            description="The duration of a single tool execution.",
            explicit_bucket_boundaries_advisory=TOOL_SECONDS,
        )
        self._overhead = meter.create_histogram(
            "cra.call.overhead",
            unit="s",
            description="What governing a call took: neither the tool's own time, nor that of a person who was asked.",
            explicit_bucket_boundaries_advisory=OVERHEAD_SECONDS,
        )
        meter.create_observable_counter(
            "cra.decisions", [self._tell_decisions], unit="{decision}", description="Calls that were decided."
        )
        meter.create_observable_counter(
            "cra.trace.events", [self._tell_events], unit="{event}", description="Events that the trace has kept."
        )
        meter.create_observable_counter(
            "cra.trace.dropped",
            [self._tell_dropped],
            unit="{event}",
            description="Events that the trace could not keep, and whose calls were let run all the same.",
        )
        meter.create_observable_gauge(
            "cra.approvals.pending",
            [self._tell_waiting],
            unit="{approval}",
            description="Calls that wait for a person.",
        )

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.RLock()

    def watch(self, waiting: Waiting) -> None:
        """Tell of these questions, too, for as long as somebody holds ``waiting``."""
        with self._lock:
            self._waiting.add(waiting)

    def kept(self, events: Sequence[Sealed]) -> None:
        """The trace has kept these."""
        with self._lock:
            for event in events:
                self._events[event.event_type] += 1

    def missed(self, events: int) -> None:
        """The trace has not kept so many."""
        with self._lock:
            self._dropped += events

    def decided(self, verdict: str, code: str | None) -> None:
        """A call was decided; ``code`` says why it was denied."""
        with self._lock:
            self._decisions[verdict, None if code is None else self._codes.fit(code)] += 1

    def took(self, overhead_ns: int, verdict: str) -> None:
        """Governing a call took so long."""
        self._quietly(lambda: self._overhead.record(overhead_ns / _SECOND_NS, {"cra.decision": verdict}))

    def ran(self, tool_name: str, duration_ns: int, error_type: str | None) -> None:
        """A tool ran."""
        attributes = {"gen_ai.tool.name": self._tools.fit(short_name(tool_name)), "gen_ai.tool.type": "function"}
        if error_type is not None:
            attributes["error.type"] = self._errors.fit(error_type)
        self._quietly(lambda: self._duration.record(duration_ns / _SECOND_NS, attributes))

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            unnested(work)
        except Exception:  # telemetry is a copy: it may be lost, a call may not
            if not self._has_failed:  # said once: it will be so for every call
                self._has_failed = True
                _logger.exception("a measurement could not be told")

    def _tell_decisions(self, options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            counts = list(self._decisions.items())
        for (verdict, code), count in counts:
            yield Observation(count, {"cra.decision": verdict} | ({} if code is None else {"cra.decision.code": code}))

    def _tell_events(self, options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            counts = list(self._events.items())
        for event_type, count in counts:
            yield Observation(count, {"cra.trace.event_type": event_type})

    def _tell_dropped(self, options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._dropped)

    def _tell_waiting(self, options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            asked = {waiting.place: waiting for waiting in self._waiting}
        if not asked:
            return
        try:
            count = sum(waiting.count() for waiting in asked.values())
        except Exception as error:  # noqa: BLE001  a store may be foreign code, or away: what is not known is not told
            _logger.warning("how many calls wait for a person cannot be told: %s", error)
            return
        yield Observation(count)


class Measured:
    """An operation whose events are counted; all else is that of the one it stands around."""

    def __init__(self, inner: Operation, instruments: Instruments) -> None:
        self._inner = inner
        self._instruments = instruments
        self.is_recording = inner.is_recording
        self.traceparent = inner.traceparent

    def running(self) -> AbstractContextManager[object] | None:
        return self._inner.running()

    def seen(self, events: Sequence[Sealed], /) -> None:
        self._instruments.kept(events)
        self._inner.seen(events)

    def decided(self, decision: Decision, /) -> None:
        self._inner.decided(decision)

    def resolved(self, resolution: Resolution, /) -> None:
        self._inner.resolved(resolution)

    def turn(self, whose: Owner, /) -> None:
        self._inner.turn(whose)

    def end(self, outcome: Outcome | None, error_type: str | None = None, description: str | None = None, /) -> None:
        self._inner.end(outcome, error_type, description)


class MeasuredCall(Measured):
    """One call: how it was decided, and whose time it took."""

    def __init__(self, inner: Operation, instruments: Instruments, tool_name: str, decides: bool) -> None:
        """``decides`` says that it is decided in this process: a decision is counted where it is made."""
        super().__init__(inner, instruments)
        self._tool_name = tool_name
        self._decides = decides
        self._is_allowed = False
        self._has_run = False
        self._is_over = False
        self._spent: dict[Owner, int] = {"ours": 0, "person": 0, "tool": 0, "nobody": 0}
        self._whose: Owner = "ours"
        self._since_ns = time.monotonic_ns()

    def decided(self, decision: Decision, /) -> None:
        self._is_allowed = isinstance(decision, Allow)
        if isinstance(decision, Deny) and decision.code == UNREACHABLE:
            self._decides = True
        self._inner.decided(decision)

    def turn(self, whose: Owner, /) -> None:
        now_ns = time.monotonic_ns()
        self._spent[self._whose] += now_ns - self._since_ns
        self._whose, self._since_ns = whose, now_ns
        self._has_run = self._has_run or whose == "tool"

    def end(self, outcome: Outcome | None, error_type: str | None = None, description: str | None = None, /) -> None:
        if not self._is_over:
            self._is_over = True
            self.turn("nobody")  # what an exporter takes to see the span's end is not the call's
            self._tell(outcome, error_type)
        self._inner.end(outcome, error_type, description)

    def _tell(self, outcome: Outcome | None, error_type: str | None) -> None:
        if outcome == "denied":
            verdict = "deny"
        elif outcome == "pending_approval":
            verdict = "require_approval"
        elif outcome is not None or (self._decides and self._is_allowed):  # or: let run in another process
            verdict = "allow"
        else:  # another operation goes on with it
            return
        if self._decides:
            self._instruments.decided(verdict, error_type or OTHER if verdict == "deny" else None)
        self._instruments.took(self._spent["ours"], verdict)
        if self._has_run and outcome in ("executed", "failed"):
            self._instruments.ran(self._tool_name, self._spent["tool"], error_type)


class _Made:
    """The instruments of each provider that is still there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    def of(self, provider: MeterProvider, make: Callable[[], Meter]) -> Instruments:
        with self._lock:
            try:
                known = self._known.get(provider)
            except TypeError:  # one that cannot be known again: each runtime has its own
                return Instruments(make())
            if known is None:
                known = self._known[provider] = Instruments(make())
            return known


_made = _Made()


def instruments_of(provider: MeterProvider, make: Callable[[], Meter]) -> Instruments:
    """Those of ``provider``, made with ``make`` where it is met for the first time."""
    return _made.of(provider, make)
