"""A folder of trace files, one a session: ``<session_id>.trace.jsonl``, and later segments of long ones.

``append`` is one ``pwrite`` on the caller: the line is in the page cache when it returns, so it survives the
death of the process. One background thread makes it survive the death of the machine: ``fdatasync`` at most
``sync_interval_seconds`` behind. Files are locked with ``flock`` while open, so a second writer gets an error
instead of a forked chain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cra_middleware import presence
from cra_middleware._ids import is_id
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.ledger.backlog import Backlog, backlog_in
from cra_middleware.trace.ledger.book import read_book
from cra_middleware.trace.ledger.folder import FolderPlace
from cra_middleware.trace.ledger.folder_lines import folder_tree
from cra_middleware.trace.ledger.follower import LedgerFollower
from cra_middleware.trace.note import Signer
from cra_middleware.trace.pruned import Pruned, PrunedError, pruned_file, read_pruned
from cra_middleware.trace.query import select
from cra_middleware.trace.sink import Health, Query, SessionLog, room
from cra_middleware.trace.sinks.jsonl_log import JsonlLog
from cra_middleware.trace.storage.files import failed, make_folder
from cra_middleware.trace.storage.segments import (
    Rotation,
    Segment,
    durable_events,
    read_segments,
    segment,
    segments_in,
    segments_of,
)
from cra_middleware.trace.storage.syncer import Syncer

SEGMENT_BYTES = 256 * 1024 * 1024
"""A session goes on in a new file when its file would grow beyond this."""
SEGMENT_SECONDS = 24 * 3600.0
"""Or when it has been written for so long."""


class JsonlSink:
    """A folder of trace files."""

    def __init__(
        self,
        folder: str | Path,
        sync_interval_seconds: float = 0.01,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
        signer: Signer | None = None,
        on_head: Callable[[str], object] | None = None,
    ) -> None:
        """Make the folder when it is not there.

        Args:
            folder: where the files are.
            sync_interval_seconds: how long an event may be in the operating system's hands only.
            segment_bytes: the size at which a session goes on in a new file.
            segment_seconds: the age at which it does.
            signer: signs heads over what has become durable, in the folder's ``ledger``.
            on_head: hears of each head that this process signs.

        Raises:
            ChainBroken: when the folder's ledger was changed since it was signed.
            SinkError: when the folder cannot be made, or its ledger cannot be used.
        """
        self._folder = Path(folder).absolute()  # a later chdir changes nothing
        self._syncer = Syncer(sync_interval_seconds)
        self._rotation = Rotation(segment_bytes, segment_seconds)
        try:
            make_folder(self._folder)
        except OSError as error:
            raise failed(f"the trace folder {self._folder} cannot be made", error) from error
        self._follower = None if signer is None else LedgerFollower(FolderPlace(self._folder), signer, on_head)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder

    def create(self, session_id: str, /) -> SessionLog:
        _check_id(session_id)
        if self._follower is not None:
            self._follower.check()
        self._check_pruned(session_id)
        return self._open([segment(self._folder, session_id, 0)], 0, is_new=True)

    def reopen(self, session_id: str, /) -> SessionLog:
        _check_id(session_id)
        files = segments_of(self._folder, session_id)
        if not files:
            self._check_pruned(session_id)
            files = [segment(self._folder, session_id, 0)]
        log = self._open(files, durable_events(self._folder, session_id), is_new=False)
        if segments_of(self._folder, session_id) != files:  # another writer went on before this one had the lock
            log.close()
            raise SinkError(f"{files[-1].path} has another writer: one process writes a session at a time")
        try:
            self._check_signed(session_id)
        except BaseException:  # whatever it was, the log must not stay locked
            log.close()
            raise
        return log

    def session_ids(self) -> list[str]:
        return list(segments_in(self._folder))

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        _check_id(session_id)
        files = segments_of(self._folder, session_id)
        if not files:
            self._check_pruned(session_id)
            raise SinkError(f"{self._folder} holds no session {session_id}")
        return read_segments(files)

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        return select(self.lines(session_id), query)

    def count(self, session_id: str, /) -> int:
        _check_id(session_id)
        return sum(line.endswith(b"\n") for line in read_segments(segments_of(self._folder, session_id)))

    def health(self) -> Health:
        if self._follower is not None and self._follower.alarm is not None:
            return Health(False, self._follower.alarm)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            return Health(False, f"{self._folder} cannot be written; check who may write there")
        try:
            space = os.statvfs(self._folder)
        except OSError as error:
            return Health(False, f"{self._folder} cannot be looked at: {error.strerror}")
        return room(self._folder, space.f_bavail * space.f_frsize)

    def backlog(self) -> Backlog | None:
        """What waits for a signed head, from all processes that write here; None where this one signs none.

        Raises:
            SinkError: when it cannot be read.
        """
        return None if self._follower is None else backlog_in(self._folder).and_also(self._follower.backlog())

    def read_pruned(self, session_id: str, /) -> Pruned | None:
        """What is kept of a session's first events, where they were pruned.

        Raises:
            SinkError: when it cannot be read.
        """
        _check_id(session_id)
        return read_pruned(self._folder, session_id)

    def close(self) -> None:
        self._syncer.stop()
        if self._follower is not None:
            self._follower.close()

    def _check_pruned(self, session_id: str) -> None:
        path = pruned_file(self._folder, session_id)
        try:
            is_pruned = presence.exists(path)
        except OSError as error:
            raise failed(f"{path} cannot be looked at", error) from error
        if is_pruned:
            raise PrunedError(session_id)

    def _check_signed(self, session_id: str) -> None:
        """Damage below a signed head is no crash's."""
        book = read_book(self._folder)
        try:
            entry = None if book is None else book.last_about(session_id)
        except ValueError as error:
            raise ChainBroken(f"the ledger in {self._folder} holds something else than entries ({error})") from error
        if entry is None:
            return
        tree = folder_tree(self._folder, session_id)
        tree.grow(entry.size)
        if tree.entry() != entry:
            raise ChainBroken(
                f"session {session_id} is not what the ledger says of its first {entry.size} events: it was changed. "
                "It is left as it is; look at it with `cra trace verify`"
            )

    def _open(self, files: list[Segment], durable: int | None, *, is_new: bool) -> JsonlLog:
        return JsonlLog(files, durable, self._syncer, self._rotation, self._follower, is_new=is_new)


def _check_id(session_id: str) -> None:
    if not is_id(session_id):
        raise SinkError("a session id must be a lower-case UUID before it can name a file")
