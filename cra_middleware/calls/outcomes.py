"""How the calls of one session came out: recorded, counted and ended, at once or where a lock may be taken again."""

from __future__ import annotations

import itertools
from collections import deque

from cra_middleware.calls.attempt import Attempt, LostOutcomeError
from cra_middleware.calls.keeping import Recorder
from cra_middleware.calls.places import Places, Taken
from cra_middleware.calls.refusals import class_words
from cra_middleware.interceptor import Closed, Raised, Returned
from cra_middleware.observer import Operation, Outcome
from cra_middleware.trace.writer import ChainWriter


class Outcomes:
    """Of tools that were let run."""

    def __init__(self, writer: ChainWriter, recorder: Recorder, places: Places, actions: int) -> None:
        """``actions`` is how many tools ran in earlier processes."""
        self._writer = writer
        self._recorder = recorder
        self._places = places
        self._ran = itertools.count(actions)
        self._late: deque[tuple[Operation, tuple[Outcome, str | None], Taken]] = deque()

    def record(self, attempt: Attempt, outcome: Returned | Raised, duration_ms: int, taken: Taken) -> None:
        """The tool returned or raised."""
        self._places.commit(taken)
        if attempt.over:
            return
        next(self._ran)
        operation, error = attempt.operation, outcome.error if isinstance(outcome, Raised) else None
        self._recorder.keep_outcome(attempt, attempt.outcome(outcome, duration_ms, self._writer.now_us()))
        if error is None:
            operation.end("executed")
        else:
            operation.end("failed", *class_words(error))

    def close_stream(self, attempt: Attempt, outcome: Closed, duration_ms: int, taken: Taken) -> None:
        """The consumer of a stream went away. It may do so in a finaliser, in the middle of anything: no lock may be
        taken there, so what is to be done is owed, and done with the next write."""
        if not attempt.over:
            next(self._ran)
            self._writer.owe(attempt.outcome(outcome, duration_ms, self._writer.now_us()))
        self._late.append((attempt.operation, ("executed", None), taken))

    def lose(self, attempt: Attempt, taken: Taken) -> None:
        """The driver was dropped, perhaps by a finaliser: the tool may have run, and nobody will say."""
        next(self._ran)
        self._writer.owe(attempt.outcome(Raised(LostOutcomeError()), 0, self._writer.now_us()))
        self._late.append((attempt.operation, ("failed", LostOutcomeError.__name__), taken))

    def abandon(self, attempt: Attempt) -> None:
        """A stream that its session does not wait for."""
        next(self._ran)
        self._writer.owe(attempt.abandon(self._writer.now_us()))

    def settle_late(self) -> None:
        """End the calls that ended where no lock could be taken."""
        while self._late:
            operation, outcome, taken = self._late.popleft()
            self._places.commit(taken)
            operation.end(*outcome)

    def count(self) -> None:
        """One more tool ran, in another process."""
        next(self._ran)

    def actions_run(self) -> int:
        """How many tools ran; to be asked once, at the end."""
        return next(self._ran)
