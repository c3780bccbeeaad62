"""What waits for a signed head, and for how long. Asked for by health: it costs the same, however much waits."""

from __future__ import annotations

import os
import stat
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from cra_middleware.trace.entry import ENTRY_BYTES
from cra_middleware.trace.ledger.book import FOLDER
from cra_middleware.trace.storage.files import failed

LATE_SECONDS = 60.0
"""An entry waits a second or two; one that waits longer than this is late."""
COUNTED = 10_000
"""So many pieces of an inbox are looked at; where there are more, only that is said, and heads are late."""


class Backlog(NamedTuple):
    """Entries of sessions that no head covers yet."""

    entries: int = 0
    seconds: float = 0.0
    """How long the oldest of those that were looked at waits."""
    is_more: bool = False
    """Whether there are more than were counted."""

    @property
    def is_late(self) -> bool:
        """Whether heads are further behind than they should ever be."""
        return self.is_more or self.seconds > LATE_SECONDS

    def and_also(self, other: Backlog) -> Backlog:
        """Both together."""
        return Backlog(self.entries + other.entries, max(self.seconds, other.seconds), self.is_more or other.is_more)

    def __str__(self) -> str:
        if not self.entries:
            return "no session waits for a signed head"
        count = f"at least {self.entries}" if self.is_more else str(self.entries)
        return f"entries of sessions that wait for a signed head: {count}, the oldest for {self.seconds:.0f} s"


@runtime_checkable
class TellsBacklog(Protocol):
    """A sink whose sessions heads may be signed over."""

    def backlog(self) -> Backlog | None:
        """What waits for a head, from all processes; None where this one signs none.

        Raises:
            SinkError: when it cannot be read.
        """
        ...


def backlog_in(traces: Path) -> Backlog:
    """What lies in the inbox of a folder's ledger.

    Raises:
        SinkError: when it cannot be read.
    """
    pieces, entries, now = 0, 0, time.time()
    oldest = now
    try:
        with os.scandir(traces / FOLDER / "inbox") as found:
            for item in islice((item for item in found if not item.name.startswith(".")), COUNTED + 1):
                try:
                    known = item.stat(follow_symlinks=False)
                except FileNotFoundError:  # noted just now
                    continue
                pieces += 1
                entries += max(1, known.st_size // ENTRY_BYTES if stat.S_ISREG(known.st_mode) else 1)
                oldest = min(oldest, known.st_mtime)
    except OSError as error:
        raise failed(f"the ledger in {traces / FOLDER} cannot be read", error) from error
    return Backlog(entries, now - oldest, pieces > COUNTED)
