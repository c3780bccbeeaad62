"""Threads for what everybody may ask, and must be told while all others wait for a store that says nothing.

They hold up nobody: neither each other, nor the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
MOST = 64
"""How many may wait at once; who comes then is told at once that nothing was heard."""


class Lobby:
    """A thread for each who asks, as long as there is room."""

    def __init__(self, most: int = MOST) -> None:
        self._room = threading.BoundedSemaphore(most)

    async def ask(self, work: Callable[[], T], seconds: float) -> T:
        """What ``work`` gives.

        Raises:
            TimeoutError: when it does not within ``seconds``, or too many wait; it may still be going on.
        """
        if not self._room.acquire(blocking=False):
            raise TimeoutError("too many wait")
        told: Future[T] = Future()
        told.set_running_or_notify_cancel()  # it cannot be taken back, only be left alone
        threading.Thread(target=self._do, args=(told, work), name="cra-lobby", daemon=True).start()
        return await asyncio.wait_for(asyncio.wrap_future(told), seconds)

    def _do(self, told: Future[T], work: Callable[[], T]) -> None:
        try:
            told.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised where it was asked for
            told.set_exception(error)
        finally:
            self._room.release()
