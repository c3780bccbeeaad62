"""One session in the spool of an ``HttpSink``: what was written, and how much of it the other side has."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.query import place_of
from cra_middleware.trace.sinks.http_client import Batch
from cra_middleware.trace.storage.files import failed, without_links
from cra_middleware.trace.storage.segments import DURABLE, read_segments, segments_of, sizes_before_last

SENT = ".sent"
_NOTE = re.compile(rb"(\d{20}) (\d{20})\n", re.ASCII)


class Reach(NamedTuple):
    """A place between two events."""

    events: int
    offset: int


class Outbox:
    """Bytes are read back from the spool's files; only the two ends are kept in memory."""

    def __init__(self, folder: Path, session_id: str) -> None:
        """What the spool's files say.

        Raises:
            SinkError: when they cannot be read.
        """
        self.session_id = session_id
        self._folder = folder
        self._note_path = folder / f"{session_id}{SENT}"
        self.changed = threading.Condition()
        whole = [len(line) for line in self.lines() if line.endswith(b"\n")]
        self.written = Reach(len(whole), sum(whole))
        self.sent = min(self._read_note(), self.written)
        self.failure: str | None = None
        self.stalls = 0
        """How often the other side answered without getting on."""
        self._floor: Reach | None = None  # the lowest place of a cut since the last batch was begun

    @property
    def waiting_bytes(self) -> int:
        """How much the other side does not have yet."""
        return max(0, self.written.offset - self.sent.offset)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to send."""
        return self.failure is None and self.waiting_bytes > 0

    def lines(self) -> Iterator[bytes]:
        """Every line in the spool."""
        return read_segments(segments_of(self._folder, self.session_id))

    def cut(self, reach: Reach) -> None:
        """What lies behind ``reach`` is taken back; to be called before the files change."""
        with self.changed:
            if reach >= self.written:
                return
            self.written = reach
            self._floor = reach if self._floor is None else min(reach, self._floor)
            if reach < self.sent:
                self._set_sent(reach)

    def extend(self, reach: Reach) -> None:
        """The files hold events up to ``reach``."""
        with self.changed:
            self.written = reach

    def next_batch(self, most: int) -> Batch | None:
        """Whole lines that the other side does not have: about ``most`` bytes, but at least one.

        Raises:
            SinkError: when the spool cannot be read.
        """
        with self.changed:
            self._floor = None
            sent, written = self.sent, self.written
        data = self._read(sent.offset, min(most, written.offset - sent.offset))
        if b"\n" not in data:
            data = self._read(sent.offset, min(MAX_LINE_BYTES + 1, written.offset - sent.offset))
            data = data[: data.find(b"\n") + 1]
        data = data[: data.rfind(b"\n") + 1]
        with self.changed:
            is_stale = self._floor is not None  # the files changed while they were read
        return Batch(self.session_id, sent.offset, sent.events, data) if data and not is_stale else None

    def confirm(self, events: int, batch: Batch) -> None:
        """The other side holds ``events`` events."""
        offset = batch.offset + len(batch.data) if events == batch.events else self._offset_of(events)
        with self.changed:
            self.stalls = 0 if events > batch.first else self.stalls + 1
            reach = Reach(events, offset)
            self._set_sent(reach if self._floor is None else min(reach, self._floor))
            self.changed.notify_all()

    def fail(self, reason: str) -> None:
        """Nothing more is sent, and nothing more is taken."""
        with self.changed:
            self.failure = reason
            self.changed.notify_all()

    def wait_until_sent(self, seconds: float) -> None:
        """Until nothing waits, or nothing more will be sent, or the time is over."""
        with self.changed:
            self.changed.wait_for(lambda: not self.is_waiting, seconds)

    def is_done(self) -> bool:
        """Whether the other side has all of a session that was ended."""
        if self.written.events == 0 or self.waiting_bytes:
            return False
        *_, last = self.lines()
        place = place_of(last)
        return place is not None and place.event_type == "session.ended"

    def remove(self) -> None:
        """Delete the files of a session that is done."""
        for path in [*(known.path for known in segments_of(self._folder, self.session_id)), self._note_path]:
            with suppress(OSError):  # it is looked for again at the next start
                path.unlink(missing_ok=True)
        with suppress(OSError):
            (self._folder / f"{self.session_id}{DURABLE}").unlink(missing_ok=True)

    def _set_sent(self, reach: Reach) -> None:
        self.sent = reach
        with suppress(OSError):  # an older note makes us send again what the other side has
            fd = os.open(self._note_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(fd, b"%020d %020d\n" % reach, 0)
            finally:
                os.close(fd)

    def _read_note(self) -> Reach:
        try:
            with open(self._note_path, "rb", opener=without_links) as file:
                match = _NOTE.fullmatch(file.read(64))
        except OSError:
            return Reach(0, 0)
        if match is None:
            return Reach(0, 0)
        noted = Reach(int(match[1]), int(match[2]))
        return noted if self._offset_of(noted.events) == noted.offset else Reach(0, 0)

    def _offset_of(self, events: int) -> int:
        return sum(len(line) for line in islice(self.lines(), events))

    def _read(self, offset: int, most: int) -> bytes:
        files = segments_of(self._folder, self.session_id)
        try:
            for known, size in zip(files, [*sizes_before_last(files), None], strict=False):
                if size is not None and offset >= size:
                    offset -= size
                    continue
                fd = without_links(str(known.path), os.O_RDONLY)
                try:
                    return os.pread(fd, most if size is None else min(most, size - offset), offset)
                finally:
                    os.close(fd)
        except OSError as error:
            raise failed(f"the spool {self._folder} cannot be read", error) from error
        return b""
