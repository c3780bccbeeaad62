"""While a tool runs: its session is current, its span too, and the decision about it can be claimed by the tool itself.

An adapter decides a call and runs a function that may be ``@governed`` as well; the function claims the decision that
was made about this very run, instead of having it decided twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import SessionEnded
from cra_middleware.interceptor import RunTool
from cra_middleware.observer import Operation

CURRENT: ContextVar[object] = ContextVar("cra_session", default=None)
"""The session of this thread or task."""
ABANDONED = "session_ended"
"""The ``error_code`` of a stream that was still open when its session ended."""
ABANDONED_MESSAGE = "the session ended while the stream was open"
_claim: ContextVar[_Claim | None] = ContextVar("cra_claim", default=None)
_BARE = RunTool(None)


@dataclass(slots=True, eq=False)
class _Claim:
    """One run of one function that an adapter around it has decided already."""

    body: object
    call: ToolCall
    taken: bool = False


def claim_decision(body: object, bind: Callable[[], Mapping[str, object]]) -> bool:
    """Whether the adapter that is running ``body`` has decided this very run; true once a run.

    ``bind`` tells the arguments that ``body`` is called with: they must be those that were decided (what the
    framework injects beside them does not count).
    """
    claim = _claim.get()
    if claim is None or claim.taken or claim.body is not body:
        return False
    call, given = claim.call, bind()
    names = [name for name in given if name in call.arguments]
    same = ToolCall.freeze(call.action_id, call.tool_name, {name: given[name] for name in names})
    if same.digest != call.digest:
        return False
    claim.taken = True
    return True


class Runs(Protocol):
    """A call that may run, wherever it was decided."""

    is_stream: bool
    over: bool
    """Nothing may follow."""
    is_inside: bool
    """One of its steps is being taken."""

    @property
    def call(self) -> ToolCall:
        """What was decided."""
        ...

    @property
    def operation(self) -> Operation:
        """Who looks on."""
        ...


class Running:
    """While the tool runs: its session is current, its span too, and its adapter's decision can be claimed."""

    __slots__ = ("_attempt", "_body", "_claimed", "_entered", "_own", "_session", "_span")

    def __init__(self, attempt: Runs, body: object, session: object) -> None:
        self._attempt = attempt
        self._body = body
        self._session = session

    def __enter__(self) -> None:
        if self._attempt.over:
            raise SessionEnded(ABANDONED_MESSAGE, action_id=self._attempt.call.action_id)
        self._entered = CURRENT.set(self._session)
        self._attempt.is_inside = True
        self._own = None if self._body is None else _Claim(self._body, self._attempt.call)
        self._claimed = _claim.set(self._own)
        self._span = self._attempt.operation.running()
        if self._span is not None:
            self._span.__enter__()

    def __exit__(self, *error: object) -> None:
        self._attempt.is_inside = False
        if self._own is not None:
            self._own.taken = True  # a copy of this context may live on
        with suppress(ValueError):  # left in another context than it was entered in: nothing to put back there
            if self._span is not None:
                self._span.__exit__(None, None, None)
            _claim.reset(self._claimed)
            CURRENT.reset(self._entered)


def running(attempt: Runs, body: object, session: object) -> RunTool:
    """The wish to run the tool of a call; ``body`` is the governed function inside it, which can claim the decision.

    Where nobody could tell the difference, the tool runs as it is: entering a scope would cost more than deciding.
    """
    is_bare = body is None and not attempt.is_stream and not attempt.operation.is_recording
    # a run around this one that could be claimed must not reach into this one
    if is_bare and CURRENT.get() is session and _claim.get() is None:
        return _BARE
    return RunTool(partial(Running, attempt, body, session))
