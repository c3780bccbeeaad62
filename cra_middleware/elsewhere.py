"""Calls that are decided here and run in another process: let run now, told of later, perhaps by yet another one."""

from __future__ import annotations

from collections.abc import Sequence

from cra_middleware.attempt import Attempt, told
from cra_middleware.keeping import Recorder
from cra_middleware.trace.let_run import LetRun
from cra_middleware.trace.writer import ChainWriter

ELSEWHERE = object()
"""What a flow is told instead of a tool's value, when another process runs the tool."""


class Elsewhere:
    """The calls of one session whose outcome nobody has told yet."""

    def __init__(self, writer: ChainWriter, recorder: Recorder, untold: Sequence[LetRun]) -> None:
        self._writer = writer
        self._recorder = recorder
        self._untold = {call.execution_id: call for call in untold}

    @property
    def calls(self) -> tuple[LetRun, ...]:
        """Those open, the oldest first."""
        return tuple(self._untold.values())

    def add(self, attempt: Attempt) -> None:
        """One that was let run, and whose decision is kept."""
        self._untold[attempt.execution_id] = attempt.let_run(self._writer.now_us())

    def tell(self, call: LetRun, by: str, error: tuple[str, str] | None, duration_ms: int | None) -> None:
        """Record the outcome of one.

        Raises:
            SinkError: when it cannot be kept; the call stays open.
            ValueError: when no such call is open.
        """
        if self._untold.pop(call.execution_id, None) is None:
            raise ValueError(f"no call with the execution id {call.execution_id} waits for its outcome")
        now_us = self._writer.now_us()
        took_ms = max(0, (now_us - call.approved_us) // 1000) if duration_ms is None else duration_ms
        try:
            self._recorder.keep_now(told(call, by, error, took_ms, now_us))
        except BaseException:
            self._untold[call.execution_id] = call
            raise
