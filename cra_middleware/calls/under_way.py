"""Which calls of a session are under way, wherever they are decided: how one is let in, and when the last has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import SessionEnded
from cra_middleware.observer import Operation


class Call(Protocol):
    """A call on its way; each is one of its own, however alike they are."""

    is_stream: bool
    is_running: bool
    """The tool has been let run."""
    is_inside: bool
    """One of a stream's steps is being taken."""

    @property
    def call(self) -> ToolCall:
        """What was asked for."""
        ...

    @property
    def operation(self) -> Operation:
        """Who looks on."""
        ...


_Call = TypeVar("_Call", bound=Call)


class UnderWay(Generic[_Call]):
    """Lets calls in until it is closed. Safe under threads, and takes no lock: a finaliser may leave."""

    def __init__(self, session_id: str, tell_idle: Callable[[Callable[[], None]], None]) -> None:
        """``tell_idle`` does what is to be done when the last call leaves a session that closes."""
        self._session_id = session_id
        self._tell_idle = tell_idle
        self._inside: dict[int, _Call] = {}
        self._when_idle: Callable[[], None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._inside)

    @property
    def is_closing(self) -> bool:
        """Whether no more calls are let in."""
        return self._when_idle is not None

    def check(self, call: ToolCall) -> None:
        """Whether another call would be let in.

        Raises:
            SessionEnded: when it would not.
        """
        if self._when_idle is not None:
            raise SessionEnded(f"session {self._session_id} is over; start a new one", action_id=call.action_id)

    def enter(self, attempt: _Call) -> None:
        """Let a call in. Whoever asks calls ``leave`` in the end, whatever came of it.

        Raises:
            SessionEnded: when no more calls are let in.
        """
        self._inside[id(attempt)] = attempt
        try:
            self.check(attempt.call)  # asked after registering, so that an end misses no call
        except SessionEnded:
            attempt.operation.end("denied", "session_ended")
            self.leave(attempt)
            raise

    def leave(self, attempt: _Call) -> None:
        """A call is over."""
        if self._inside.pop(id(attempt), None) is not None and not self._inside and self._when_idle is not None:
            self._tell_idle(self._when_idle)

    def close(self, when_idle: Callable[[], None], abandon: Callable[[_Call], None]) -> None:
        """Let no more calls in; call ``when_idle`` once, when none is under way any more (perhaps at once).

        ``abandon`` is told of streams that are open but between two items: they are over, and give no more items.
        """
        self._when_idle = when_idle
        for attempt in list(self._inside.values()):
            between = attempt.is_stream and attempt.is_running and not attempt.is_inside
            if between and self._inside.pop(id(attempt), None) is not None:
                abandon(attempt)
        if not self._inside:
            when_idle()
