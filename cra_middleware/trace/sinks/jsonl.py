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
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cra_middleware._ids import is_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.sink import SessionLog, Torn

SUFFIX = ".trace.jsonl"
QUARANTINE = ".torn"
_MAX_PASSED_OVER = 1 << 30
_logger = logging.getLogger("cra_middleware.trace")


class JsonlSink:
    """A folder of trace files."""

    def __init__(self, folder: str | Path, sync_interval_seconds: float = 0.01) -> None:
        self._folder = Path(folder).absolute()  # a later chdir changes nothing
        self._syncer = _Syncer(sync_interval_seconds)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(f"the trace folder {self._folder} cannot be made", error) from error

    def create(self, session_id: str, /) -> SessionLog:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        log = self._open(session_id, flags)
        try:
            _sync_folder(self._folder)
        except OSError as error:
            log.close()
            raise _failed(f"the trace folder {self._folder} cannot be made durable", error) from error
        return log

    def reopen(self, session_id: str, /) -> SessionLog:
        return self._open(session_id, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def session_ids(self) -> list[str]:
        names = (file.name.removesuffix(SUFFIX) for file in self._folder.glob(f"*{SUFFIX}"))
        return sorted(name for name in names if is_id(name))

    def close(self) -> None:
        self._syncer.stop()

    def _open(self, session_id: str, flags: int) -> JsonlLog:
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
        except BlockingIOError as error:
            os.close(fd)
            raise SinkError(f"{path} has another writer: one process writes a session at a time") from error
        except OSError as error:
            os.close(fd)
            raise _failed(f"{path} cannot be locked", error) from error
        return JsonlLog(path, fd, self._syncer)


class JsonlLog:
    """One open trace file. The offset that ``append`` is given is the truth; the file follows it."""

    def __init__(self, path: Path, fd: int, syncer: _Syncer) -> None:
        self.path = path
        self._fd = fd
        self._end = os.fstat(fd).st_size
        self._uncertain = False  # whether there may be bytes behind the end, of a write that was interrupted
        self._pid = os.getpid()
        self._syncer = syncer
        self._guard = threading.Lock()  # between fdatasync in the background and close
        self._failure: str | None = None
        self._synced = True

    def append(self, offset: int, data: bytes, /) -> None:
        self._check()
        if self._uncertain or offset != self._end:
            self._cut(offset)
        self._uncertain = True
        try:
            written = os.pwrite(self._fd, data, offset)
        except OSError as error:
            self._cut(offset)
            raise _failed(f"{self.path} cannot be written", error) from error
        except BaseException:  # an interrupt: its caller counts the event as not kept
            with suppress(SinkError):  # then the log is failed for good, and the interrupt still matters more
                self._cut(offset)
            raise
        if written != len(data):
            self._cut(offset)
            raise _failed(f"{self.path} took only part of an event", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._end = offset + written
        self._uncertain = False
        if self._synced:
            self._synced = False
            self._syncer.add(self)

    def lines(self) -> Iterator[bytes]:
        return read_lines(self.path)

    def set_aside(self, offset: int, /) -> Torn:
        self._check()
        torn = self.path.with_name(f"{self.path.name}.{offset}{QUARANTINE}")
        try:
            if os.fstat(self._fd).st_size > offset:
                self._move(offset, torn)
            self._end = offset
            return _sum(torn)
        except OSError as error:
            raise _failed(f"the torn end of {self.path} cannot be moved to {torn.name}", error) from error

    def flush(self) -> None:
        with self._guard:
            self._synced = True
            if self._fd < 0 or self._failure is not None:
                return
            try:
                _data_sync(self._fd)
            except OSError as error:
                # After a failed fsync the kernel may have dropped the pages: a second one would lie.
                self._failure = f"{self.path} is not durable any more: {error.strerror}; open a new session"
                raise SinkError(self._failure) from error

    def close(self) -> None:
        if os.getpid() != self._pid:
            # A forked copy. The guard may be held by a thread that does not exist here, and the lock on the file
            # stays with the parent, so this descriptor is all there is to let go of.
            self._let_go()
            return
        try:
            if self._uncertain and self._fd >= 0:
                self._cut(self._end)
            self.flush()
        finally:
            with self._guard:
                if self._fd >= 0:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)  # forked children still hold copies of the descriptor
                self._let_go()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SinkError(f"{self.path} belongs to the parent process; open a session of your own")
        if self._failure is not None:
            raise SinkError(self._failure)

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        self._failure = self._failure or f"{self.path} is closed"
        if fd >= 0:
            os.close(fd)

    def _cut(self, offset: int) -> None:
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            self._failure = f"{self.path} holds part of an event that cannot be removed: {error.strerror}"
            raise SinkError(self._failure) from error
        self._end = offset
        self._uncertain = False

    def _move(self, offset: int, torn: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(torn, flags, 0o600), "ab", buffering=0) as target:
            before, place = target.tell(), offset
            try:
                while piece := os.pread(self._fd, 1 << 20, place):
                    place += target.write(piece)
                os.fsync(target.fileno())
                _sync_folder(self.path.parent)  # the copy is safe before the original is cut
                os.ftruncate(self._fd, offset)
            except OSError:  # nothing was moved; a second attempt starts afresh
                target.truncate(before)
                raise
        os.fsync(self._fd)


class _Syncer:
    """One thread that makes every log of a sink durable, a moment behind its writer."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self._stopped = False
        self._begin()

    def add(self, log: JsonlLog) -> None:
        if os.getpid() != self._pid:
            self._begin()  # a forked child has neither the thread nor the parent's logs
        self._waiting.append(log)
        if self._thread is None:
            self._start()
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        if os.getpid() != self._pid:
            return
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def _begin(self) -> None:
        self._wake = threading.Event()
        self._waiting: deque[JsonlLog] = deque()  # a writer may append while the thread takes out
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cra-trace-sync", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not (self._stopped and not self._waiting):
            self._wake.wait()
            self._wake.clear()
            for _ in range(len(self._waiting)):
                try:
                    self._waiting.popleft().flush()
                except SinkError as error:
                    _logger.error("%s", error)
            if not self._stopped:
                time.sleep(self._interval)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a trace file, split on the newline byte only.

    A line longer than ``MAX_LINE_BYTES`` comes as its first part, one byte too long, and the rest is passed
    over: no file can make a reader take up more memory than that. A line without an end (a device) ends it all.

    Raises:
        SinkError: when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                whole = len(line) <= MAX_LINE_BYTES or line.endswith(b"\n")
                yield line
                passed_over = 0
                while not whole:
                    rest = file.readline(1 << 20)
                    whole = not rest or rest.endswith(b"\n")
                    passed_over += len(rest)
                    if passed_over > _MAX_PASSED_OVER:
                        return
    except OSError as error:
        raise _failed(f"{path} cannot be read", error) from error


def _sum(file: Path) -> Torn:
    total, hasher = 0, sha256()
    with suppress(FileNotFoundError), open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as source:
        while piece := source.read(1 << 20):
            hasher.update(piece)
            total += len(piece)
    return Torn(total, hasher.hexdigest())


def _data_sync(fd: int) -> None:
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS has no fdatasync


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
