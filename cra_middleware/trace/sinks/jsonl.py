"""One file a session, ``<session_id>.trace.jsonl``, written through.

``append`` is one ``pwrite`` on the caller: the line is in the page cache when it returns, so it survives the
death of the process (measured by ``tests/trace/test_jsonl.py`` with kill -9). One background thread makes it
survive the death of the machine: ``fdatasync`` at most ``sync_interval_seconds`` behind. Files are locked
with ``flock`` while open, so a second writer gets an error instead of a forked chain.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cra_middleware._ids import is_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.sink import SessionLog, Torn

SUFFIX = ".trace.jsonl"
QUARANTINE = ".torn"
_logger = logging.getLogger("cra_middleware.trace")


class JsonlSink:
    """A folder of trace files."""

    def __init__(self, folder: str | Path, sync_interval_seconds: float = 0.01) -> None:
        self._folder = Path(folder)
        self._syncer = _Syncer(sync_interval_seconds)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(f"the trace folder {self._folder} cannot be made", error) from error

    def create(self, session_id: str, /) -> SessionLog:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        log = self._open(session_id, flags)
        _sync_folder(self._folder)
        return log

    def reopen(self, session_id: str, /) -> SessionLog:
        return self._open(session_id, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def session_ids(self) -> list[str]:
        names = (file.name.removesuffix(SUFFIX) for file in self._folder.glob(f"*{SUFFIX}"))
        return sorted(name for name in names if is_id(name))

    def close(self) -> None:
        self._syncer.stop()

    def _open(self, session_id: str, flags: int) -> SessionLog:
        if not is_id(session_id):
            raise SinkError("a session id must be a lower-case UUID before it can name a file")
        path = self._folder / f"{session_id}{SUFFIX}"
        try:
            fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise SinkError(f"{path} is already there; resume the session instead") from error
        except FileNotFoundError as error:
            raise SinkError(f"there is no {path}") from error
        except OSError as error:
            raise _failed(f"{path} cannot be opened", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise SinkError(f"{path} has another writer: one process writes a session at a time") from error
        return JsonlLog(path, fd, self._syncer)


class JsonlLog:
    """One open trace file. The offset that ``append`` is given is the truth; the file follows it."""

    def __init__(self, path: Path, fd: int, syncer: _Syncer) -> None:
        self.path = path
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._pid = os.getpid()
        self._syncer = syncer
        self._guard = threading.Lock()  # between fdatasync in the background and close
        self._failure: str | None = None
        self._synced = True

    def append(self, offset: int, data: bytes, /) -> None:
        if self._failure is not None or os.getpid() != self._pid:
            raise SinkError(self._failure or f"{self.path} belongs to the parent process; open a session of your own")
        if offset != self._size:
            self._cut(offset)
        try:
            written = os.pwrite(self._fd, data, offset)
        except OSError as error:
            self._cut(offset)
            raise _failed(f"{self.path} cannot be written", error) from error
        except BaseException:  # an interrupt between the bytes and our note of them: take them back
            self._cut(offset)
            raise
        if written != len(data):
            self._cut(offset)
            raise _failed(f"{self.path} took only part of an event", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._size = offset + written
        if self._synced:
            self._synced = False
            self._syncer.add(self)

    def lines(self) -> Iterator[bytes]:
        return read_lines(self.path)

    def set_aside(self, offset: int, /) -> Torn:
        torn = self.path.with_name(f"{self.path.name}.{offset}{QUARANTINE}")
        total, hasher = 0, sha256()
        try:
            out = os.open(torn, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(out, "wb") as target:
                while piece := os.pread(self._fd, 1 << 20, offset + total):
                    target.write(piece)
                    hasher.update(piece)
                    total += len(piece)
                target.flush()
                os.fsync(target.fileno())
            _sync_folder(self.path.parent)  # the copy is safe before the original is cut
            os.ftruncate(self._fd, offset)
            os.fsync(self._fd)
        except OSError as error:
            raise _failed(f"the torn end of {self.path} cannot be moved to {torn.name}", error) from error
        self._size = offset
        return Torn(total, hasher.hexdigest())

    def flush(self) -> None:
        with self._guard:
            self._synced = True
            if self._fd < 0 or self._failure is not None:
                return
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                # After a failed fsync the kernel may have dropped the pages: a second one would lie.
                self._failure = f"{self.path} is not durable any more: {error.strerror}; open a new session"
                raise SinkError(self._failure) from error

    def close(self) -> None:
        if os.getpid() == self._pid:
            self.flush()
        with self._guard:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                self._failure = f"{self.path} is closed"

    def _cut(self, offset: int) -> None:
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            self._failure = f"{self.path} holds part of an event that cannot be removed: {error.strerror}"
            raise SinkError(self._failure) from error
        self._size = offset


class _Syncer:
    """One thread that makes every log of a sink durable, a moment behind its writer."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self._wake = threading.Event()
        self._waiting: list[JsonlLog] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, log: JsonlLog) -> None:
        self._waiting.append(log)
        if self._thread is None:
            self._start()
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cra-trace-sync", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not (self._stopped and not self._waiting):
            self._wake.wait()
            self._wake.clear()
            logs, self._waiting = self._waiting, []
            for log in logs:
                try:
                    log.flush()
                except SinkError as error:
                    _logger.error("%s", error)
            if not self._stopped:
                time.sleep(self._interval)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a trace file, split on the newline byte only.

    A line longer than ``MAX_LINE_BYTES`` comes as its first part, one byte too long, and the rest is passed
    over: no file can make a reader take up more memory than that.

    Raises:
        SinkError: when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                yield line
                while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES + 1)
                    if len(line) <= MAX_LINE_BYTES:
                        break
    except OSError as error:
        raise _failed(f"{path} cannot be read", error) from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failed(what: str, error: OSError) -> SinkError:
    hints = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EACCES: "check who may write there",
        errno.EROFS: "the file system is read-only",
    }
    hint = hints.get(error.errno or 0)
    return SinkError(f"{what}: {error.strerror or error}" + (f" ({hint})" if hint else ""))
