"""The interpreter's exit: what is open then is flushed and let go of, so that a later process can go on with it."""

from __future__ import annotations

import atexit
import logging
import signal
import sys
import weakref
from types import FrameType
from typing import Protocol

from cra_middleware.errors import CRAError

_logger = logging.getLogger("cra_middleware")


class Leaver(Protocol):
    """Something that has sessions open."""

    def detach(self) -> None:
        """Let go of them, unsealed."""
        ...


_open: weakref.WeakSet[Leaver] = weakref.WeakSet()


def leave_at_exit(runtime: Leaver) -> None:
    """Detach what ``runtime`` has open when the interpreter exits."""
    _open.add(runtime)


def forget(runtime: Leaver) -> None:
    """It was closed."""
    _open.discard(runtime)


def exit_on_sigterm() -> None:
    """Let SIGTERM leave the program as ``sys.exit`` does, so that sessions end and files are flushed.

    The handler itself touches nothing: it may come in the middle of any event's writing.

    Raises:
        ValueError: outside the main thread, or when the program has a handler of its own.
    """
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, _on_sigterm):
        raise ValueError("SIGTERM has a handler already; let that one call runtime.close() and sys.exit()")
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@atexit.register
def _leave() -> None:
    for runtime in list(_open):
        try:
            runtime.detach()
        except CRAError as error:
            _logger.error("a runtime could not be closed at exit: %s", error)
