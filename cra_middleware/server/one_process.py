"""The places that belong to one server process, locked for as long as it lives.

The lock is the kernel's (``flock``), so it is gone with its process however that ends. Commands that read and write
beside a running server do not take it, and need not.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cra_middleware.errors import CRAError
from cra_middleware.sinks_by_name import SQLITE, is_folder

LOCK = "server.lock"
"""The name of the locked file, or what follows on that of a SQLite file."""


class InUseError(CRAError):
    """Another server runs at this place."""


def locks_of(trace: str, state: Path) -> list[Path]:
    """The files that a server locks which writes to ``trace`` and keeps its own files in ``state``."""
    found = [state / LOCK]
    if trace.startswith(SQLITE):
        file = Path(trace.removeprefix(SQLITE)).resolve()  # one file is one place, by whatever link it is named
        found.append(file.with_name(f"{file.name}.{LOCK}"))
    elif is_folder(trace):
        found.append(Path(trace) / LOCK)
    return found


@contextmanager
def only_process(files: Sequence[Path]) -> Iterator[None]:
    """Be the one server at these places until this is left.

    Raises:
        InUseError: when another one is, or it cannot be known.
    """
    with ExitStack() as held:
        for file in files:
            held.callback(os.close, _locked(file))
        yield


def _locked(file: Path) -> int:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InUseError(f"{file} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise InUseError(f"{file} cannot be locked: {error.strerror}") from error
        raise InUseError(
            f"another server runs here, and holds {file}: stop it first, or give this one places of its own; "
            "servers that work as one share --store postgresql://…"
        ) from None
    return fd
