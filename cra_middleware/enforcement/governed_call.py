"""One call of a framework's tool: run around its body, begun and ended in two places, or rejected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from cra_middleware.approvals.approval import Approver
from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import CallRefused
from cra_middleware.open_call import OpenCall
from cra_middleware.sessions.session import Session

T = TypeVar("T")

_running: ContextVar[GovernedCall | None] = ContextVar("cra_running", default=None)


def running_call() -> GovernedCall | None:
    """The call whose tool is running here: what is called now is called from inside of it."""
    return _running.get()


@dataclass(frozen=True, slots=True, eq=False)
class GovernedCall:
    """One call, with the session that governs it."""

    session: Session
    call: ToolCall
    body: object = None
    approver: Approver | None = None
    agent: str | None = None

    def run(self, tool: Callable[[], T]) -> T:
        """Run ``tool`` once, or not at all.

        Raises:
            CallRefused: when it did not run.
        """

        def inside() -> T:
            with self._inside():
                return tool()

        return self.session.run(self.call, inside, self.body, self.approver)

    async def arun(self, tool: Callable[[], Awaitable[T]]) -> T:
        """As ``run``, for what has to be awaited."""

        async def inside() -> T:
            with self._inside():
                return await tool()

        return await self.session.arun(self.call, inside, self.body, self.approver)

    def begin(self) -> OpenCall:
        """Authorise the call; say later how it came out.

        Raises:
            CallRefused: when the tool must not run.
        """
        return self.session.begin(self.call, self.approver)

    async def abegin(self) -> OpenCall:
        """As ``begin``, on an event loop."""
        return await self.session.abegin(self.call, self.approver)

    def reject(self, reason: str) -> CallRefused:
        """Record that the framework itself refused the arguments, and return the refusal.

        Raises:
            CallRefused: when it cannot be recorded.
        """
        return self.session.reject(self.call, reason)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)
