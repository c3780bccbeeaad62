"""One open session file: written through, made durable behind, moved to a new file when its disk fails.

Two locks, always taken in this order: ``_guard`` lets one thread at a time wait for the disk, and whoever waited for
it usually finds that its own events went along (group commit); ``_turn`` is held for the moments in which the file or
the note of its end changes, never while waiting.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from cra_middleware._fork import tell_child
from cra_middleware.errors import SinkError
from cra_middleware.trace.query import is_end
from cra_middleware.trace.sink import Torn
from cra_middleware.trace.storage.files import (
    failed,
    let_go,
    move_tail,
    open_locked,
    open_note,
    quarantine,
    remove_new,
    sum_of,
    sync_data,
    sync_files,
    sync_folder,
    write_locked,
)
from cra_middleware.trace.storage.following import Follower
from cra_middleware.trace.storage.segments import (
    DURABLE,
    Rotation,
    Segment,
    durable_text,
    read_segments,
    remove_behind,
    segment,
    segments_of,
    sizes_before_last,
)
from cra_middleware.trace.storage.syncer import Syncer

_logger = logging.getLogger("cra_middleware.trace")


class _File(NamedTuple):
    """An open segment."""

    segment: Segment
    fd: int
    begins: int
    """The offset of its first byte in the whole log."""
    opened: float
    """By the monotonic clock, in seconds."""


class JsonlLog:
    """The offset that ``append`` is given is the truth; the file follows it."""

    witnessed_events = 0

    def __init__(
        self,
        files: list[Segment],
        durable: int | None,
        syncer: Syncer,
        rotation: Rotation,
        follower: Follower | None,
        *,
        is_new: bool,
    ) -> None:
        """Lock and open the last of a session's files.

        Args:
            files: in order; the first is made when ``is_new``.
            durable: how many events are known to be on the disk; None when nobody noted it.

        Raises:
            SinkError: when a file cannot be used, or another writer has it.
        """
        self._folder, self._session_id = files[0].path.parent, files[0].session_id
        self._note_path = self._folder / f"{self._session_id}{DURABLE}"
        self.noted_durable = durable
        self._pid = os.getpid()
        self._syncer = syncer
        self._rotation = rotation
        self._follower = follower
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        fd = open_locked(files[-1].path, is_new=is_new)
        try:
            # An empty note says that nothing is durable: a new file's name reaches the disk with it, and where an
            # older one has none, none is made before it says more.
            self._note = -1 if durable is None and not is_new else open_note(self._note_path)
            begins = sum(sizes_before_last(files))
            self._end = begins + os.fstat(fd).st_size
        except BaseException:  # whatever it was, the file must not stay locked
            if is_new:
                remove_new(files[-1].path)
            os.close(fd)
            raise
        self._file = _File(files[-1], fd, begins, time.monotonic())
        self._events = self.durable_events = durable or 0
        self._unsynced: list[bytes] = []  # what was kept since the last time that the disk confirmed
        self._retired: list[_File] = []
        self._folder_is_stale = True
        self._lowest_cut: tuple[int, int] | None = None  # since the disk was asked: its place, and the events before it
        self._is_uncertain = False  # whether there may be bytes behind the end, of a write that was interrupted
        self._is_queued = False
        self._is_unused = is_new  # a session that could not be begun leaves no file
        self._last = b""
        self._failure: str | None = None
        """Why nothing can be written any more."""
        self._disk_failure: str | None = None
        """Why nothing can be written until the session has a new file."""
        tell_child(self)

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._file.segment.path

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self._check_process()
        with self._turn:
            self._check()
            if self._is_uncertain or offset != self._end:
                self._cut(offset, events - data.count(b"\n"))
            if data:
                if self._is_due(len(data)):
                    self._rotate()
                self._is_uncertain = True
                self._write(offset, data)
                self._last, self._is_unused = data, False
                self._unsynced.append(data)
                self._end, self._events = offset + len(data), events
                self._is_uncertain = False
            if not self._is_queued:
                self._queue()

    def lines(self) -> Iterator[bytes]:
        return read_segments(segments_of(self._folder, self._session_id))

    def set_aside(self, offset: int, /) -> Torn:
        self._check_process()
        with self._guard, self._turn:
            self._check()
            try:
                torn = self._move_behind(offset)
                self._end = offset
                self._sync_all()
                return sum_of(torn)
            except OSError as error:
                raise failed(f"the torn end of {self.path} cannot be moved to a quarantine", error) from error

    def flush(self) -> None:
        self._check_process()
        wanted = self._events
        with self._guard:
            self._is_queued = False
            if self._is_closed() or (self.durable_events >= wanted and not self._retired):
                return
            if self._disk_failure is None:
                self._try_to_sync()
            if self._disk_failure is not None:
                self._move_to_new_file(self._disk_failure)

    def close(self) -> None:
        if os.getpid() != self._pid:
            # A forked copy. The guard may be held by a thread that does not exist here, and the lock on the file
            # stays with the parent, so this descriptor is all there is to let go of.
            self._let_go()
            return
        try:
            if not self._is_closed():
                with self._turn:
                    if self._is_uncertain:
                        self._cut(self._end, self._events)
                self.flush()
        finally:
            with self._guard:
                is_sealed = self.durable_events == self._events and is_end(self._last)
                if not self._is_closed():
                    with suppress(OSError):  # a note that stays says nothing wrong, and closing unlocks as well
                        if is_sealed or self._is_unused:
                            self._note_path.unlink(missing_ok=True)
                        if self._is_unused:
                            os.unlink(self.path)
                        fcntl.flock(self._file.fd, fcntl.LOCK_UN)  # forked children may hold copies of the descriptor
                    if self._follower is not None:
                        self._follower.ended(self._session_id)
                self._let_go()

    def _is_closed(self) -> bool:
        return self._file.fd < 0

    def forked(self) -> None:
        """In a forked child: the parent's file is the parent's, and its lock must go when that one dies."""
        self._let_go()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:  # asked before any lock is taken: one may be held by a thread of the parent's
            raise SinkError(f"{self.path} belongs to the parent process; open a session of your own")

    def _check(self) -> None:
        if self._disk_failure is not None:
            if not self._is_queued:
                self._queue()
            raise SinkError(f"{self._disk_failure}; it is being moved to a new file", is_transient=True)
        if self._failure is not None:
            raise SinkError(self._failure)

    def _queue(self) -> None:
        self._is_queued = True
        self._syncer.add(self)

    def _let_go(self) -> None:
        descriptors = [file.fd for file in (self._file, *self._retired)] + [self._note]
        self._file, self._retired, self._note = self._file._replace(fd=-1), [], -1
        for fd in descriptors:
            if fd >= 0:
                let_go(fd)
        self._failure, self._disk_failure = self._failure or f"{self.path} is closed", None

    def _write(self, offset: int, data: bytes) -> None:
        file = self._file
        try:
            written = os.pwrite(file.fd, data, offset - file.begins)
        except OSError as error:
            self._cut(offset, self._events)
            raise failed(f"{self.path} cannot be written", error) from error
        except BaseException:  # an interrupt: its caller counts the event as not kept
            with suppress(SinkError):  # then the log is failed for good, and the interrupt still matters more
                self._cut(offset, self._events)
            raise
        if written != len(data):
            self._cut(offset, self._events)
            reason = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise failed(f"{self.path} took only part of an event", reason)

    def _cut(self, offset: int, events: int) -> None:
        """Drop what lies behind ``offset``, which is the end of event ``events``."""
        file = self._file
        if events < self.durable_events:  # the note may not promise what is dropped now
            self._note_durable(events)
        if self._lowest_cut is None or offset < self._lowest_cut[0]:
            self._lowest_cut = (offset, events)
        try:
            os.ftruncate(file.fd, offset - file.begins)
        except OSError as error:
            self._failure = f"{self.path} holds part of an event that cannot be removed: {error.strerror}"
            raise SinkError(self._failure) from error
        surplus = self._end - offset
        if surplus > 0 and self._unsynced:
            kept = b"".join(self._unsynced)
            self._unsynced = [kept[: max(0, len(kept) - surplus)]]
        self._end, self._events = offset, events
        self._is_uncertain = False

    def _is_due(self, more: int) -> bool:
        file, rotation = self._file, self._rotation
        size = self._end - file.begins
        if size == 0:
            return False
        return size + more > rotation.max_bytes or time.monotonic() - file.opened > rotation.max_age_seconds

    def _rotate(self) -> None:
        known = segment(self._folder, self._session_id, self._events)
        try:
            fd = open_locked(known.path, is_new=True)
        except SinkError as error:  # the old file is still good
            _logger.error("session %s stays in its file: %s", self._session_id, error)
            return
        self._retired.append(self._file)
        self._file = _File(known, fd, self._end, time.monotonic())
        self._folder_is_stale = True

    def _try_to_sync(self) -> None:
        with self._turn:
            file, retired, lines, events = self._file, self._retired, self._unsynced, self._events
            end, self._lowest_cut = self._end, None
            if self._is_uncertain:  # the caller may take back what it wrote last: nobody may count it yet
                raise SinkError(f"{self.path} is not durable: a write was interrupted", is_transient=True)
            self._retired, self._unsynced = [], []
            is_stale, self._folder_is_stale = self._folder_is_stale, False
        try:
            for old in retired:
                sync_data(old.fd)
            if is_stale:
                sync_folder(self._folder)
            sync_data(file.fd)
        except OSError as error:
            with self._turn:
                kept, _ = self._not_cut(lines, events, end)
                self._retired, self._unsynced = retired + self._retired, [kept, *self._unsynced]
                self._folder_is_stale = True
                # after a failed fsync the kernel may have dropped the pages: a second one would lie
                self._disk_failure = f"{self.path} is not durable any more: {error.strerror}"
            return
        for old in retired:
            let_go(old.fd)
        with self._turn:
            _, events = self._not_cut([], events, end)
            new = self._note_durable(events)
        self._tell(events, new)

    def _not_cut(self, lines: list[bytes], events: int, end: int) -> tuple[bytes, int]:
        """What is left of ``lines``, which ended at ``end`` when the disk was asked, and of ``events``."""
        whole = b"".join(lines)
        if self._lowest_cut is None or self._lowest_cut[0] >= end:
            return whole, events
        offset, events = self._lowest_cut
        return whole[: max(0, len(whole) - (end - offset))], events

    def _sync_all(self) -> None:
        """Make durable what an earlier process left: it may have died before it did."""
        sync_files(known.path for known in segments_of(self._folder, self._session_id))
        sync_folder(self._folder)
        self._folder_is_stale = False
        self._events = sum(1 for _ in self.lines())
        self._tell(self._events, self._note_durable(self._events))

    def _note_durable(self, events: int) -> int:
        """Note what is durable. The note may be lost with the machine's power; then it says less than is true."""
        new, self.durable_events = events - self.durable_events, events
        with suppress(OSError, SinkError):  # an older note says less, and is true
            if self._note < 0:
                self._note = open_note(self._note_path)
            os.pwrite(self._note, durable_text(events), 0)
        return new

    def _tell(self, events: int, new: int) -> None:
        if self._follower is not None and new > 0:
            self._follower.durable(self._session_id, events, new)

    def _move_to_new_file(self, why: str) -> None:
        """Go on in a new file from the last event that is durable. Nothing is appended meanwhile.

        Raises:
            SinkError: when there can be none; the next flush tries again.
        """
        with self._turn:  # a write that had begun is over now, and no other begins
            old, lines, retired = self._file, b"".join(self._unsynced), self._retired
        known = segment(self._folder, self._session_id, self.durable_events)
        try:
            fd = write_locked(known.path, lines)
            try:
                remove_behind(known)
            except BaseException:  # the new file must not stay locked
                os.close(fd)
                raise
        except (OSError, SinkError) as error:
            raise SinkError(f"{why}; a new file cannot be opened: {error}", is_transient=True) from error
        _logger.error("%s; session %s goes on in %s", why, self._session_id, known.path)
        file = _File(known, fd, self._end - len(lines), time.monotonic())
        for gone in (*retired, old):
            with suppress(OSError):  # what cannot be cut does not count: the new file begins before it
                if gone.begins < file.begins:
                    os.ftruncate(gone.fd, file.begins - gone.begins)
            let_go(gone.fd)
        with self._turn:
            self._file, self._unsynced, self._retired = file, [], []
            self._disk_failure = None
            new = self._note_durable(self._events)
        self._tell(self.durable_events, new)

    def _move_behind(self, offset: int) -> list[Path]:
        """Move everything behind ``offset`` to quarantines, the last file first, and open the file that it is in.

        A file that begins just there is moved, too: what its name says of its first event may not hold.
        """
        files = segments_of(self._folder, self._session_id)
        begins = list(accumulate(sizes_before_last(files), initial=0))
        place = max((number for number, begin in enumerate(begins) if begin < offset), default=0)
        aside = quarantine(files[place].path, offset - begins[place])
        while len(files) > place + 1:
            last = files.pop()
            fd = open_locked(files[-1].path, is_new=False)
            try:
                move_tail(self._file.fd, 0, aside.with_name(f"{aside.name}.{last.first}"))
                os.unlink(last.path)
            except BaseException:  # whatever it was, the file must not stay locked
                os.close(fd)
                raise
            let_go(self._file.fd)
            self._file = _File(files[-1], fd, begins[len(files) - 1], time.monotonic())
        move_tail(self._file.fd, offset - begins[place], aside)
        return [aside, *sorted(self._folder.glob(f"{aside.name}.*"), key=lambda path: int(path.suffix[1:]))]
