"""Telling the server how calls came out: in their order, again until it is heard, and never in a tool's way.

The tool has run by then. What cannot be told is logged, and stays ``outcome_unknown`` at the server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from cra_middleware._fork import tell_child
from cra_middleware.client.connection import Connection, segment
from cra_middleware.errors import RuntimeUnreachable, SinkError

MAX_WAITING = 1000
"""Outcomes of one session that wait to be told; beyond it the oldest is given up."""
_LATER = frozenset({"STORAGE_LOCKED", "IO_ERROR", "UNAVAILABLE", "RATE_LIMIT_EXCEEDED", "REQUEST_TIMEOUT"})
"""What a server says when it may take the same report later."""
_GRACE_SECONDS = 0.02
"""How long the session's next call may come first and tell it itself, in its own thread, which is faster."""
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0

_logger = logging.getLogger("cra_middleware")


class Outcome(NamedTuple):
    """How one call came out."""

    execution_id: str
    action_id: str
    body: dict[str, object]


class Outcomes:
    """Those of one session that the server has not heard of yet. Safe under threads."""

    def __init__(self, connection: Connection, worker: Worker, session_id: str) -> None:
        self._connection = connection
        self._worker = worker
        self._session_id = session_id
        self._lock = threading.Lock()
        self._waiting: deque[Outcome] = deque()
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: what the parent has to tell, the parent tells."""
        self._lock = threading.Lock()
        self._waiting = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, outcome: Outcome) -> None:
        """Tell it soon. Takes no lock: it may be called in a finaliser, in the middle of anything."""
        self._waiting.append(outcome)
        self._worker.soon(self.retold)

    def tell(self) -> None:
        """Tell what waits, here and now.

        Raises:
            RuntimeUnreachable: when the server does not answer; what was not told waits on.
        """
        if not self._waiting:
            return
        with self._lock:
            while self._waiting:
                self._tell(self._waiting[0])
                self._waiting.popleft()

    def retold(self) -> bool:
        """Tell what waits; False when it has to be tried again."""
        try:
            self.tell()
        except RuntimeUnreachable as error:
            _logger.warning("session %s: %d outcomes wait to be told: %s", self._session_id, len(self), error.reason)
            with self._lock:
                while len(self) > MAX_WAITING:
                    self._lost(self._waiting.popleft(), "too many wait")
            return False
        return True

    def told_or_kept(self) -> None:
        """As ``tell``, for one who waits for it.

        Raises:
            SinkError: when something waits on.
        """
        try:
            self.tell()
        except RuntimeUnreachable as error:
            message = f"{len(self)} outcomes are not told to the server yet ({error.reason})"
            raise SinkError(message, is_transient=True) from error

    def give_up(self) -> None:
        """Nobody will tell them any more."""
        with self._lock:
            while self._waiting:
                self._lost(self._waiting.popleft(), "the server was not to be reached")

    def _tell(self, outcome: Outcome) -> None:
        path = f"/v1/executions/{segment(outcome.execution_id)}/report"
        problem = self._connection.ask("POST", path, outcome.body).problem
        if problem is not None and (problem.recoverable or problem.code in _LATER):
            raise RuntimeUnreachable(problem.message or problem.code)
        if problem is not None:
            self._lost(outcome, problem.message or problem.code)

    def _lost(self, outcome: Outcome, why: str) -> None:
        _logger.error(
            "%s ran (%s), and the server does not know how it came out: %s",
            outcome.action_id,
            outcome.execution_id,
            why,
        )


Work = Callable[[], bool]
"""Something that waits for the network; False when it has to be tried again."""


class Worker:
    """One thread that does what nobody waits for. It begins when there is something."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()  # its put may be called in a finaliser
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: the thread is the parent's, and so is what it was to do."""
        self._queue = SimpleQueue()
        self._thread = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Be ready for what comes ``soon``."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._work, args=(self._queue,), name="cra-client", daemon=True
                    )
                    self._thread.start()

    def soon(self, work: Work) -> None:
        """Do ``work`` when there is time. Takes no lock."""
        self._queue.put(work)

    def close(self) -> None:
        """Do what is there, once, and stop."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            self._queue.put(None)
            thread.join(_LONGEST_PAUSE_SECONDS)

    def _work(self, queue: SimpleQueue[Work | None]) -> None:
        due: dict[Work, tuple[float, float]] = {}  # when, and after what pause
        while True:
            next_at = min((when for when, _ in due.values()), default=None)
            try:
                work = queue.get(timeout=None if next_at is None else max(0.0, next_at - time.monotonic()))
            except Empty:
                work = min(due, key=lambda item: due[item][0])
                pause = due[work][1]
                if _is_done(work):
                    del due[work]
                else:
                    due[work] = (time.monotonic() + pause, min(pause * 2, _LONGEST_PAUSE_SECONDS))
                continue
            if work is None:
                for work in due:
                    _is_done(work)
                return
            due.setdefault(work, (time.monotonic() + _GRACE_SECONDS, _PAUSE_SECONDS))


def _is_done(work: Work) -> bool:
    try:
        return work()
    except Exception:  # nothing that one session brings up may keep the others' from being told
        _logger.exception("something could not be told to the server")
        return True
