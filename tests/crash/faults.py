"""Makes the n-th call of one function of ``os`` fail, or kill the process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

WHERE: dict[str, ModuleType] = {
    **dict.fromkeys(("open", "pwrite", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "mkdir"), os),
    "flock": fcntl,
}


class Fault:
    """What happens at one call."""

    def __init__(self, name: str, occurrence: int, what: str, folder: str) -> None:
        """``what`` is the name of an error, or ``KILL``; ``folder`` is the only place where calls count."""
        self.name = name
        self.left = occurrence
        self.what = what
        self._folder = folder
        self._lock = threading.Lock()

    @property
    def has_struck(self) -> bool:
        """Whether the call came."""
        return self.left <= 0

    @contextmanager
    def armed(self) -> Iterator[None]:
        """While it lasts, the call is waited for."""
        module = WHERE[self.name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, self.name, self._around(getattr(module, self.name)))
            yield

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_ours(args[0]):
                with self._lock:
                    self.left -= 1
                    strikes = self.left == 0
                if strikes:
                    self._strike(real, args)
            return real(*args, **kwargs)

        return call

    def _strike(self, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.what == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "SHORT":  # half of a write, and then no more
            real(args[0], args[1][: len(args[1]) // 2], args[2])
        number = getattr(errno, "ENOSPC" if self.what == "SHORT" else self.what)
        raise OSError(number, os.strerror(number))

    def _is_ours(self, target: object) -> bool:
        if isinstance(target, int):
            try:
                target = os.readlink(f"/proc/self/fd/{target}")
            except OSError:
                return False
        return str(target).startswith(self._folder)
