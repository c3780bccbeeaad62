"""Calls that are decided here and run in another process: let run now, told of later, perhaps by yet another one."""

from __future__ import annotations

from collections.abc import Sequence

from cra_middleware.calls.attempt import Attempt, told
from cra_middleware.calls.keeping import Recorder
from cra_middleware.trace.event import Event, Sealed
from cra_middleware.trace.let_run import LetRun, Told, Untold
from cra_middleware.trace.writer import ChainWriter

ELSEWHERE = object()
"""What a flow is told instead of a tool's value, when another process runs the tool."""


class Elsewhere:
    """The calls of one session whose outcome nobody has told yet."""

    def __init__(self, writer: ChainWriter, recorder: Recorder, untold: Untold) -> None:
        self._writer = writer
        self._recorder = recorder
        self._untold = untold
        self._telling: dict[str, bool] = {}  # and whether another process was faster
        self._tellers: set[object] = set()

    @property
    def calls(self) -> tuple[LetRun, ...]:
        """Those open, the oldest first."""
        return self._untold.calls

    @property
    def is_told_of(self) -> bool:
        """Whether somebody tells of a call at this moment."""
        return bool(self._tellers)

    def has(self, execution_id: str) -> bool:
        """Whether a call is one of them."""
        return self._untold.find(execution_id) is not None

    def add(self, attempt: Attempt) -> LetRun:
        """One that was let run, and whose decision is kept."""
        call = attempt.let_run(self._writer.now_us())
        self._untold.put(call)
        return call

    def heard(self, event: Event) -> None:
        """Another process wrote this into the session's log."""
        self._untold.add(event)
        if event.event_type in ("action.executed", "action.failed"):
            name = str(event.payload.get("execution_id"))
            if name in self._telling:
                self._telling[name] = True

    def tell(self, call: LetRun, outcome: Told) -> Sequence[Sealed]:
        """Record the outcome of one; the events that are kept with it.

        Raises:
            SinkError: when it cannot be kept; the call stays open.
            ValueError: when no such call is open.
        """
        teller = object()
        self._tellers.add(teller)  # before it is taken, so that no end of the session comes between
        try:
            return self._tell(call, outcome)
        finally:
            self._tellers.discard(teller)

    def _tell(self, call: LetRun, outcome: Told) -> Sequence[Sealed]:
        name = call.execution_id
        if not self._untold.take(name):
            raise _closed(name)
        now_us = self._writer.now_us()
        if outcome.duration_ms is None:
            outcome = outcome._replace(duration_ms=max(0, (now_us - call.approved_us) // 1000))
        self._telling[name] = False

        def is_open() -> None:
            if self._telling[name]:
                raise _closed(name)

        try:
            return self._recorder.keep_now(told(call, outcome, now_us), only_if=is_open)
        except BaseException:  # interrupted, too: the call stays open
            if not self._telling[name]:
                self._untold.put(call)
            raise
        finally:
            del self._telling[name]


def _closed(execution_id: str) -> ValueError:
    return ValueError(f"no call with the execution id {execution_id} waits for its outcome")
