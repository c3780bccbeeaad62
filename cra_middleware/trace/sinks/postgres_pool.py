"""Some connections for the threads of one process, where nothing hangs on which of them is used."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cra_middleware._fork import tell_child
from cra_middleware.trace.sinks.postgres_link import PostgresLink

if TYPE_CHECKING:
    from cra_middleware._postgres import Connection


class PostgresPool(PostgresLink):
    """As a link; opens a connection when all are in use, up to ``most``, and then lets threads wait."""

    def __init__(self, conninfo: str, timeout_seconds: float, most: int) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            SinkError: when psycopg is not installed, or the database cannot be used.
            ValueError: when ``most`` is less than one.
        """
        if most < 1:
            raise ValueError("a pool has at least one connection")
        self._most = most
        self._idle: list[Connection] = []
        self._places = threading.BoundedSemaphore(most)
        self._inherited: list[Connection] = []  # of the parent process: letting go of one would end it there
        tell_child(self)
        super().__init__(conninfo, timeout_seconds)

    def forked(self) -> None:
        """In a forked child: connections of its own."""
        self._inherited += self._idle
        self._idle, self._places = [], threading.BoundedSemaphore(self._most)

    @contextmanager
    def statements(self) -> Iterator[Connection]:
        pid = os.getpid()
        with self._places:
            known: Connection | None = None
            try:
                known = self._take()
                yield known
            except self._psycopg.Error as error:
                told = self._told(error, known)
                if known is not None and known.closed:  # the others were lost with it, most likely
                    self.close()
                raise told from error
            finally:
                if known is not None and not known.closed and pid == os.getpid():
                    self._idle.append(known)

    def close(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take(self) -> Connection:
        with suppress(IndexError):
            while (known := self._idle.pop()).closed:
                pass
            return known
        return self._connect()
