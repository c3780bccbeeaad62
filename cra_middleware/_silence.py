"""A connection to PostgreSQL on which silence ends: who works long is told from who is gone without a word.

Either way nothing is heard, and keepalives prove nothing: a kernel answers them whose processes are all stopped. So
after a while the server is asked over another connection, and where it does not say that it is still at it, this one
is given up. What was asked of it may have been done, as when a connection breaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg

if TYPE_CHECKING:
    from psycopg.abc import PQGen

_Result = TypeVar("_Result")
_MOST = 10
"""For how many times its seconds a statement may be silent though the server says that it is at it: a disk may hang."""


class SilentError(psycopg.OperationalError):
    """Nothing was heard of the server; the connection is closed."""


class HeardConnection(psycopg.Connection[tuple[object, ...]]):
    """Nobody waits on it without limit."""

    seconds = 5.0
    """For how long nothing may be heard before the server is asked."""
    is_at_it: Callable[[], bool] | None = None
    """Asks the server, over another connection, whether it still does what it was told over this one."""
    is_long = False
    """Whether what it is told may take as long as it takes, as long as the server is at it."""

    def wait(self, gen: PQGen[_Result], *terms: Any, **more: Any) -> _Result:
        """Drive ``gen``, which waits for the server: psycopg does so here for whatever it asks.

        Raises:
            SilentError: when nothing is heard for too long.
        """
        return super().wait(self._heard(gen), *terms, **more)

    def _heard(self, work: PQGen[_Result]) -> PQGen[_Result]:
        try:
            wanted = next(work)
            while True:
                ready = (yield wanted) or (yield from self._silence(wanted))
                wanted = work.send(ready)
        except StopIteration as end:
            return cast("_Result", end.value)

    def _silence(self, wanted: Any) -> PQGen[Any]:
        """Until something is heard; psycopg comes by ten times a second."""
        began = asked = time.monotonic()
        while not (ready := (yield wanted)):
            now = time.monotonic()
            if now - asked < self.seconds:
                continue
            if now - began < (inf if self.is_long else _MOST * self.seconds) and self._says_it_is_at_it():
                asked = time.monotonic()
            elif ready := (yield wanted):  # the answer came while it was asked for
                break
            else:
                self.pgconn.finish()
                raise SilentError(f"it has said nothing for {now - began:.0f} seconds")
        return ready

    def _says_it_is_at_it(self) -> bool:
        return self.is_at_it is not None and self.is_at_it()
