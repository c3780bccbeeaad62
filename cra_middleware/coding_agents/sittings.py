"""Which session of ours an agent's session is, over the many processes that its hooks are.

Beside the traces lies one small file an agent session: it is locked while a process has the session open, and holds
the id of ours. The lock is the kernel's, so it is gone with its process however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cra_middleware._ids import is_id
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.sessions.session import Session

FOLDER = ".cra"
"""Beside the traces; Atlases close it to agents."""
RETRY_SECONDS = 0.005
_ENDING = " ending"
_LONGEST = 100


class Sitting:
    """One agent session, locked."""

    def __init__(self, runtime: Runtime, agent: str, external_id: str, fd: int, path: Path) -> None:
        self._runtime = runtime
        self._agent = agent
        self._external_id = external_id
        self._fd = fd
        self._path = path

    def session(self) -> LocalSession:
        """Our session: gone on with, or begun when there is none that is still open.

        Raises:
            CRAError: when it cannot be gone on with, or begun.
        """
        known, is_ending = self._read()
        if known is not None:
            try:
                return _local(self._runtime.resume(known, keep=True, renew=False))
            except ChainBroken:
                if not is_ending:
                    raise
        goal = "(a coding agent's session)"
        session = _local(self._runtime.session(self._agent, goal, external_id=self._external_id[:255], keep=True))
        self._write(session.id)
        return session

    @property
    def is_known(self) -> bool:
        """Whether there is a session of ours, begun and not ended."""
        return self._read()[0] is not None

    def end(self, session: LocalSession) -> None:
        """Seal our session; what the agent does under the same id later is another of ours."""
        self._write(session.id + _ENDING)  # if this process dies before the seal, the next one goes on
        session.end()
        self._write("")

    def _read(self) -> tuple[str | None, bool]:
        text = os.pread(self._fd, _LONGEST, 0).decode("ascii", "replace")
        name = text.removesuffix(_ENDING)
        if text and not is_id(name):
            raise SinkError(f"{self._path} is damaged; look at it, then remove it to begin a new session")
        return name or None, text.endswith(_ENDING)

    def _write(self, text: str) -> None:
        try:
            os.ftruncate(self._fd, 0)
            if os.pwrite(self._fd, text.encode(), 0) != len(text):
                raise OSError(28, "only a part was written")
        except OSError as error:
            raise SinkError(f"{self._path} cannot be written: {error.strerror}") from error


@contextmanager
def sit_down(runtime: Runtime, trace: Path, agent: str, external_id: str, deadline_seconds: float) -> Iterator[Sitting]:
    """The agent session ``external_id``, for as long as no other process may touch it.

    Raises:
        SinkError: when its file cannot be used, or another process has it for ``deadline_seconds``.
    """
    name = hashlib.sha256(external_id.encode(errors="surrogatepass")).hexdigest()[:32]
    path = trace / FOLDER / f"{agent}-{name}.session"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SinkError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _lock(fd, path, deadline_seconds)
        yield Sitting(runtime, agent, external_id, fd, path)
    finally:
        os.close(fd)


def _local(session: Session) -> LocalSession:
    """A call can be handed over only where it is decided."""
    assert isinstance(session, LocalSession)
    return session


def _lock(fd: int, path: Path, deadline_seconds: float) -> None:
    until = time.monotonic() + deadline_seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise SinkError(f"another call of this session kept {path.name} busy for too long; try again") from None
            time.sleep(RETRY_SECONDS)
        except OSError as error:
            raise SinkError(f"{path} cannot be locked: {error.strerror}; use a local disk") from error
        else:
            return
