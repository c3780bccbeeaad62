"""The life of a session: open, closing while its calls come to an end, closed; and those below it, which end first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeVar

from cra_middleware._fork import tell_child


class Below(Protocol):
    """A session below another one."""

    @property
    def is_open(self) -> bool: ...


S = TypeVar("S", bound=Below)


class Life(Generic[S]):
    """Safe under threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Around the end; never held while a tool runs."""
        self._state: Literal["open", "closing", "closed"] = "open"
        self._finish: Callable[[], None] | None = None
        self._is_finishing = False
        self._below: list[S] = []
        tell_child(self)

    def forked(self) -> None:
        """In a forked child, where nobody lets go of the lock that another thread held."""
        self.lock = threading.RLock()

    @property
    def is_open(self) -> bool:
        """Whether calls are accepted."""
        return self._state == "open"

    @property
    def is_closed(self) -> bool:
        """Whether everything of it is done."""
        return self._state == "closed"

    @property
    def below(self) -> list[S]:
        """The open sessions below it."""
        return [child for child in self._below if child.is_open]

    def adopt(self, child: S) -> bool:
        """Know of a session below; False when it is too late for that."""
        with self.lock:
            if not self.is_open:
                return False
            self._below = [*self.below, child]
            return True

    def begin_to_close(
        self, finish: Callable[[], None], first: Callable[[S], None] | None
    ) -> Callable[[], None] | None:
        """Accept no more calls, once ``first`` has closed every session below; what is to be done when none runs.

        That is ``finish``, or that of somebody who came before; None once it was done. So whoever closes a session
        again goes on where another was interrupted.
        """
        while True:
            with self.lock:
                if not self.is_open:
                    return None if self.is_closed else self._finish
                below = self.below
                if first is None or not below:
                    self._state, self._finish = "closing", finish
                    return finish
            for child in below:
                first(child)

    def finish(self, last: Callable[[], None], before: Callable[[], None] | None = None) -> None:
        """Do what is ``last``, whatever becomes of what is done ``before``: once, or until nobody interrupts it."""
        with self.lock:
            if self.is_closed or self._is_finishing:
                return
            self._is_finishing = True
            try:
                try:
                    if before is not None:
                        before()
                finally:
                    last()
                    self._state = "closed"
            finally:
                self._is_finishing = False
