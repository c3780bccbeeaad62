"""Where events go: the contract of a sink, in words.

A ``Sink`` keeps an event or raises ``SinkError``; there is no third outcome. An observer (telemetry) may drop
what it likes, and never raises into a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Torn(NamedTuple):
    """Bytes that were moved out of a log, never deleted."""

    size: int
    sha256: str


class SessionLog(Protocol):
    """One session's lines. One writer at a time; the caller holds a lock around ``append``."""

    def append(self, offset: int, data: bytes, /) -> None:
        """Keep ``data`` (whole lines) at byte ``offset``, the end of what the caller knows to be kept.

        Bytes beyond ``offset`` are left over from a write whose outcome the caller never learned; they are
        dropped first. When this returns, the data survives the death of this process.

        Raises:
            SinkError: when it was not kept. Then nothing of it is in the log.
        """
        ...

    def lines(self) -> Iterator[bytes]:
        """Every line from the first, with its newline; a torn last line comes without one."""
        ...

    def set_aside(self, offset: int, /) -> Torn:
        """Move everything from byte ``offset`` on to a quarantine, and say what lies there.

        That includes what an earlier attempt moved from the same place: as long as nothing was appended there,
        nobody has recorded it. A size of 0 means that there is nothing to record.

        Raises:
            SinkError: when it could not be moved; the log is then unchanged.
        """
        ...

    def flush(self) -> None:
        """Wait until everything appended is durable.

        Raises:
            SinkError: when the storage says that it is not.
        """
        ...

    def close(self) -> None:
        """Make durable and let go of the log; another writer may open it then."""
        ...


class Sink(Protocol):
    """A place that holds the logs of many sessions."""

    def create(self, session_id: str, /) -> SessionLog:
        """A new, empty log.

        Raises:
            SinkError: when there is one already, or the place cannot be written.
        """
        ...

    def reopen(self, session_id: str, /) -> SessionLog:
        """The log of an earlier session, to be continued.

        Raises:
            SinkError: when there is none, or another writer has it.
        """
        ...

    def session_ids(self) -> list[str]:
        """The sessions it holds, oldest id first."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...
