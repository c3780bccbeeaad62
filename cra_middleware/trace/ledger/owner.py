"""The owner of a ledger: notes what processes want noted, and signs the tree of it.

Order of things: the events are on the disk before anybody asks for an entry; the entries are on the disk before they
are signed; the head is on the disk before it is told to anybody. What does not extend what was signed before is never
signed: a session that shrank or was rewritten is refused, and a ledger that does not extend its own head stops.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.ledger.book import FOLDER, Book, read_book, read_head, read_inbox_file
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import Checkpoint, NoteError, Signer, open_note, read_note
from cra_middleware.trace.sinks.files import failed, let_go, move_tail, quarantine, replace_file, sync_data, sync_folder
from cra_middleware.trace.tree import Frontier

TreeOf = Callable[[str], SessionTree]
"""The tree of a session; the same object every time."""

_logger = logging.getLogger("cra_middleware.trace")


class Owner:
    """Holds the lock of a ledger, and what the ledger says."""

    def __init__(self, traces: Path, lock: int, signer: Signer, tree_of: TreeOf) -> None:
        """Read the ledger, whose lock is held as ``lock``.

        Raises:
            ChainBroken: when its entries do not extend its last signed head.
            SinkError: when it cannot be read.
        """
        self._folder = traces / FOLDER
        self._lock = lock
        self._signer = signer
        self._tree_of = tree_of
        self._tree = Frontier()
        self._last: dict[str, Entry] = {}
        self._unread: set[str] = set()  # in the inbox, and said so
        book = read_book(traces) or Book(b"")
        try:
            self._head = self._check_head(read_head(traces), book)
            for place in range(self._head):
                self._add(book.entry(place))
        except (ValueError, NoteError) as error:
            raise self._broken(str(error)) from error
        self._add_unsigned(book)
        self._entries = _open(self._folder / "entries", os.O_RDWR | os.O_CREAT)
        try:
            self._tidy()
        except BaseException:  # whatever it was, the ledger must not stay open
            os.close(self._entries)
            raise

    def work(self) -> bytes | None:
        """Note what lies in the inbox, and sign; the new head, or None when there was nothing to note.

        Raises:
            SinkError: when it cannot be written; what lies in the inbox stays there.
        """
        try:
            names = sorted(name for name in os.listdir(self._folder / "inbox") if not name.startswith("."))
            wanted: dict[str, Entry] = {}
            asked: dict[str, list[Entry]] = {}
            for name in names:
                found = self._read_wanted(name)
                if found is not None:
                    asked[name] = found
                    wanted.update((entry.session_id, entry) for entry in found)
            later: set[str] = set()
            head = self._note([entry for entry in wanted.values() if self._is_due(entry, later)])
            for name, entries in asked.items():
                if not any(entry.session_id in later for entry in entries):
                    os.unlink(self._folder / "inbox" / name)
        except OSError as error:
            raise failed(f"the ledger in {self._folder} cannot be written", error) from error
        return head

    def close(self, *, is_forked: bool = False) -> None:
        """Let go of the ledger. A forked child only closes its copies: the lock stays its parent's."""
        if not is_forked:
            with suppress(OSError):  # closing unlocks as well, where no child holds a copy
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        let_go(self._lock)
        let_go(self._entries)

    def _note(self, entries: list[Entry]) -> bytes | None:
        if not entries and self._tree.size == self._head:
            return None
        before = self._tree.size * ENTRY_BYTES
        data = b"".join(entry.pack() for entry in entries)
        os.ftruncate(self._entries, before)  # what a failed try left behind
        if os.pwrite(self._entries, data, before) != len(data):
            raise OSError("the disk is full")
        sync_data(self._entries)
        for entry in entries:
            self._add(entry)
        checkpoint = Checkpoint(self._signer.name, self._tree.size, self._tree.root())
        head = self._signer.sign(checkpoint.text())
        replace_file(self._folder / "head", head)
        self._head = checkpoint.size
        return head

    def _add(self, entry: Entry) -> None:
        self._tree.append(entry.leaf())
        self._last[entry.session_id] = entry

    def _add_unsigned(self, book: Book) -> None:
        """Take over what was noted and not signed. A crash may have spoiled it: what is wrong is noted again."""
        for place in range(self._head, len(book)):
            try:
                entry = book.entry(place)
            except ValueError:
                return
            if not self._is_due(entry, set()):
                return
            self._add(entry)

    def _tidy(self) -> None:
        """Move what does not count out of the entries; their name is on the disk before a head is about them."""
        path, end = self._folder / "entries", self._tree.size * ENTRY_BYTES
        try:
            surplus = os.fstat(self._entries).st_size - end
            if surplus > 0:
                move_tail(self._entries, end, quarantine(path, end))
                _logger.warning("%d bytes at the end of %s did not count yet; they were set aside", surplus, path)
            sync_folder(self._folder)
        except OSError as error:
            raise failed(f"{path} cannot be taken over", error) from error

    def _is_due(self, entry: Entry, later: set[str]) -> bool:
        """Whether an entry can be noted now; a session that cannot be read now is put into ``later``."""
        try:
            return self._is_next(entry)
        except SinkError as error:
            _logger.error("not noted in the ledger yet: %s", error)
            later.add(entry.session_id)
            return False

    def _is_next(self, entry: Entry) -> bool:
        """Whether an entry says more than the last one about its session, and says what the files say.

        Raises:
            SinkError: when they cannot be read.
        """
        last = self._last.get(entry.session_id)
        if entry == last:
            return False
        try:
            if last is not None and entry.size <= last.size:
                raise ChainBroken(f"session {entry.session_id} had {last.size} events, and now {entry.size}")
            tree = self._tree_of(entry.session_id)
            if last is not None and tree.size <= last.size:
                tree.grow(last.size)
                if tree.entry() != last:
                    raise ChainBroken(f"session {entry.session_id} was changed since its first {last.size} events")
            tree.grow(entry.size)
            if tree.entry() != entry:
                raise ChainBroken(f"session {entry.session_id} is not what its writer says it is")
        except ChainBroken as error:
            _logger.error("not noted in the ledger, and not signed: %s", error)
            return False
        return True

    def _read_wanted(self, name: str) -> list[Entry] | None:
        """What a file of the inbox asks for; None when it cannot be read: it stays, and nobody else waits for it."""
        try:
            data = read_inbox_file(self._folder / "inbox" / name)
        except SinkError as error:
            if name not in self._unread:
                self._unread.add(name)
                _logger.error("not noted in the ledger: %s", error)
            return None
        try:
            return [Entry.unpack(data[place : place + ENTRY_BYTES]) for place in range(0, len(data), ENTRY_BYTES)]
        except ValueError as error:
            _logger.error("not noted in the ledger: %r in %s holds something else (%s)", name, self._folder, error)
            return []

    def _check_head(self, note: bytes | None, book: Book) -> int:
        """How many entries the last head is about."""
        if note is None:
            return 0
        head, keys = read_note(note)
        if (self._signer.name, self._signer.key_id) in keys:
            open_note(note, self._signer.verifier)
        else:
            _logger.warning("the last head of %s was signed by another key, of %r", self._folder, head.origin)
        if head.size > len(book) or book.leaves(head.size).root() != head.root:
            raise ValueError(f"its last head is about {head.size} entries that are not there")
        return head.size

    def _broken(self, why: str) -> ChainBroken:
        return ChainBroken(
            f"the ledger in {self._folder} was changed ({why}): it is not signed any more. Look at the traces with "
            "`cra trace verify`, move them away, and begin a new folder"
        )


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
