"""A ledger in a folder of traces, for the processes of one machine. ``book`` says what lies there."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cra_middleware import presence
from cra_middleware._ids import new_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.ledger.book import FOLDER, LedgerBook, read_book, read_head, read_inbox_file
from cra_middleware.trace.ledger.folder_lines import FolderLines
from cra_middleware.trace.ledger.place import Asked
from cra_middleware.trace.storage.files import (
    failed,
    let_go,
    make_folder,
    move_tail,
    quarantine,
    replace_file,
    sync_data,
    sync_folder,
)

_logger = logging.getLogger("cra_middleware.trace")


class FolderPlace:
    """The ledger of a folder of traces."""

    remedy = "a new folder"

    def __init__(self, traces: Path) -> None:
        """Make it when it is not there; the folder of traces is.

        Raises:
            SinkError: when it cannot be made.
        """
        self._traces = traces
        self._folder = traces / FOLDER
        try:
            make_folder(self._folder / "inbox")
        except OSError as error:
            raise failed(f"the ledger in {self._folder} cannot be made", error) from error

    @property
    def name(self) -> str:
        return f"the ledger in {self._folder}"

    def lines(self, session_id: str, /) -> FolderLines:
        return FolderLines(self._traces, session_id)

    def ask(self, entries: Sequence[Entry], /) -> str:
        name = new_id()
        try:
            replace_file(self._folder / "inbox" / name, b"".join(entry.pack() for entry in entries))
        except OSError as error:
            raise failed(f"{self.name} cannot be written", error) from error
        return name

    def is_waiting(self, names: Collection[str], /) -> bool:
        return any(presence.exists(self._folder / "inbox" / name) for name in names)

    def head(self) -> bytes | None:
        return read_head(self._traces)

    def take(self) -> FolderHold | None:
        lock = take_lock(self._folder)
        if lock is None:
            return None
        try:
            return FolderHold(self._traces, lock)
        except BaseException:  # whatever it was, the ledger must not stay locked
            os.close(lock)
            raise

    def close(self) -> None:
        pass  # what is open is the owner's


class FolderHold:
    """The lock of a folder's ledger, and its files."""

    def __init__(self, traces: Path, lock: int) -> None:
        """Take over a ledger whose lock is held as ``lock``.

        Raises:
            SinkError: when it cannot be read or opened.
        """
        self._folder = traces / FOLDER
        self._lock = lock
        self._last: dict[str, Entry] = {}
        self._unread: set[str] = set()  # in the inbox, and said so
        self._book = read_book(traces) or LedgerBook(b"")
        self._head = read_head(traces)
        self._entries = _open(self._folder / "entries", os.O_RDWR | os.O_CREAT)

    def head(self) -> bytes | None:
        return self._head

    def entries(self, signed: int, /) -> Iterator[Entry]:
        for place in range(len(self._book)):
            try:
                entry = self._book.entry(place)
            except ValueError:
                if place < signed:
                    raise
                return
            yield entry

    def accept(self, entry: Entry, /) -> None:
        self._last[entry.session_id] = entry

    def last_about(self, session_id: str, /) -> Entry | None:
        return self._last.get(session_id)

    def begin(self, size: int, /) -> None:
        """Their name is on the disk, too, before a head is about them."""
        self._book = LedgerBook(b"")
        path, end = self._folder / "entries", size * ENTRY_BYTES
        try:
            surplus = os.fstat(self._entries).st_size - end
            if surplus > 0:
                move_tail(self._entries, end, quarantine(path, end))
                _logger.warning("%d bytes at the end of %s did not count yet; they were set aside", surplus, path)
            sync_folder(self._folder)
        except OSError as error:
            raise failed(f"{path} cannot be taken over", error) from error

    def asked(self) -> list[Asked]:
        try:
            names = sorted(name for name in os.listdir(self._folder / "inbox") if not name.startswith("."))
        except OSError as error:
            raise self._cannot_write(error) from error
        return [asked for name in names if (asked := self._read_asked(name)) is not None]

    def note(self, before: int, entries: Sequence[Entry], head: bytes, /) -> None:
        place = before * ENTRY_BYTES
        data = b"".join(entry.pack() for entry in entries)
        try:
            os.ftruncate(self._entries, place)  # what a failed try left behind
            if os.pwrite(self._entries, data, place) != len(data):
                raise OSError("the disk is full")
            sync_data(self._entries)
            replace_file(self._folder / "head", head)
        except OSError as error:
            raise self._cannot_write(error) from error

    def done(self, names: Sequence[str], /) -> None:
        try:
            for name in names:
                os.unlink(self._folder / "inbox" / name)
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self, *, is_forked: bool = False) -> None:
        if not is_forked:
            with suppress(OSError):  # closing unlocks as well, where no child holds a copy
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        let_go(self._lock)
        let_go(self._entries)

    def _read_asked(self, name: str) -> Asked | None:
        """What a file of the inbox asks for; None when it cannot be read: it stays, and nobody else waits for it."""
        try:
            data = read_inbox_file(self._folder / "inbox" / name)
        except SinkError as error:
            if name not in self._unread:
                self._unread.add(name)
                _logger.error("not noted in the ledger: %s", error)
            return None
        try:
            return Asked(name, Entry.unpack_all(data))
        except ValueError as error:
            _logger.error("not noted in the ledger: %r in %s holds something else (%s)", name, self._folder, error)
            return Asked(name, ())

    def _cannot_write(self, error: OSError) -> SinkError:
        return failed(f"the ledger in {self._folder} cannot be written", error)


def take_lock(folder: Path) -> int | None:
    """The lock of the ledger in ``folder``, or None when another process has it.

    Raises:
        SinkError: when the folder cannot be used.
    """
    fd = _open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise failed(f"{folder / 'lock'} cannot be locked", error) from error
    return fd


def _open(path: Path, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise failed(f"{path} cannot be opened", error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SinkError(f"{path} is not a plain file; move it away")
    return fd
