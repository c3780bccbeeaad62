"""Which process writes a session: a name in the store, and a locked file that says that its owner still lives.

The lock is the kernel's (``flock``), so it is gone with its process however that ends, and no id of a process that
was used again keeps a session closed. Whoever finds a name without a lock may take the session over.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from contextlib import suppress
from pathlib import Path

from cra_middleware._ids import is_id, new_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.storage.files import failed, without_links

_SUFFIX = ".writer"
_claims: weakref.WeakSet[Claims] = weakref.WeakSet()


class Claims:
    """The sign of life of one writer beside a file; a forked child gets one of its own."""

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._pid = 0
        self._fd = -1
        self._name = ""
        _claims.add(self)

    def name(self) -> str:
        """This process's name, with its sign of life in place.

        Raises:
            SinkError: when the lock file cannot be made.
        """
        if self._pid != os.getpid():
            self._sweep()
            name = new_id()
            self._fd = self._lock(self._path(name))
            self._pid, self._name = os.getpid(), name
        return self._name

    def is_alive(self, name: str) -> bool:
        """Whether the process of that name still lives; of one that does not, the traces are removed."""
        if name == self._name:
            return True
        if not is_id(name):
            return False
        try:
            fd = without_links(str(self._path(name)), os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:  # nothing says that it is dead
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            with suppress(OSError):
                os.unlink(self._path(name))
            return False
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give the name up."""
        if self._fd < 0 or self._pid != os.getpid():
            return
        with suppress(OSError):
            os.unlink(self._path(self._name))
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # forked children may still hold copies of the descriptor
        os.close(self._fd)
        self._fd, self._pid, self._name = -1, 0, ""

    def let_go(self) -> None:
        """In a forked child: the name is the parent's, and a copy of the descriptor must not outlive the parent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._pid, self._name = -1, 0, ""

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        begin = f"{self._beside.name}."
        with suppress(OSError):
            for entry in os.listdir(self._beside.parent):
                if entry.startswith(begin) and entry.endswith(_SUFFIX):
                    self.is_alive(entry.removeprefix(begin).removesuffix(_SUFFIX))

    def _path(self, name: str) -> Path:
        return self._beside.with_name(f"{self._beside.name}.{name}{_SUFFIX}")

    def _lock(self, path: Path) -> int:
        new = path.with_suffix(".new")  # it has its name only once it is locked, so that nobody takes it for dead
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise failed(f"{path} cannot be made", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(new, path)
        except OSError as error:
            os.close(fd)
            raise SinkError(f"{path} cannot be locked: {error.strerror}; use a local disk") from error
        return fd


def _after_fork() -> None:
    for claims in list(_claims):
        claims.let_go()


os.register_at_fork(after_in_child=_after_fork)
