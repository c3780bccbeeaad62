"""The tree of one session, grown from its files as they stand on the disk: what is signed is what is there."""

from __future__ import annotations

import re
from pathlib import Path

from cra_middleware.errors import ChainBroken
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.event import GENESIS
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.sinks.files import failed, without_links
from cra_middleware.trace.sinks.segments import segments_of
from cra_middleware.trace.tree import Frontier

_END = re.compile(rb'"event_hash":"([0-9a-f]{64})","previous_event_hash":"([0-9a-f]{64})"}\n')
_END_BYTES = 14 + 64 + 25 + 64 + 3


class SessionTree:
    """Grows event by event, and remembers where it stopped reading."""

    def __init__(self, folder: Path, session_id: str) -> None:
        self._folder = folder
        self._session_id = session_id
        self._frontier = Frontier()
        self._head_hash = GENESIS
        self._path: Path | None = None
        self._offset = 0

    @property
    def size(self) -> int:
        """How many events it has."""
        return self._frontier.size

    def entry(self) -> Entry:
        """What the ledger is told about it."""
        return Entry(self._session_id, self.size, self._head_hash, self._frontier.root())

    def grow(self, size: int) -> None:
        """Read on until it has ``size`` events.

        Raises:
            ChainBroken: when the files have fewer, or do not go on from what was read before.
            SinkError: when they cannot be read.
        """
        while self.size < size:
            before = self.size
            self._read(size)
            if self.size == before:
                raise ChainBroken(f"session {self._session_id} has {before} events where {size} were written")

    def _read(self, size: int) -> None:
        """Read what the current file has, and open the one that begins where it ends."""
        files = {known.first: known for known in segments_of(self._folder, self._session_id)}
        following = files.get(self.size)
        if following is not None and following.path != self._path:
            self._path, self._offset = following.path, 0
        if self._path is None:
            return
        # A file counts up to where the next one begins.
        limit = min((first for first in files if first > self.size), default=size)
        try:
            with open(self._path, "rb", opener=without_links) as file:
                file.seek(self._offset)
                while self.size < min(size, limit):
                    line = file.readline(MAX_LINE_BYTES + 1)
                    if not line.endswith(b"\n"):
                        return
                    self._add(line)
                    self._offset += len(line)
        except OSError as error:
            raise failed(f"{self._path} cannot be read", error) from error

    def _add(self, line: bytes) -> None:
        match = _END.fullmatch(line[-_END_BYTES:])
        if match is None or match[2].decode() != self._head_hash:
            raise ChainBroken(f"session {self._session_id} does not go on from event {self.size}: it was changed")
        self._head_hash = match[1].decode()
        self._frontier.append(event_leaf(self._head_hash))
