"""Where events go: the contract of a sink, in words.

A ``Sink`` keeps an event or raises ``SinkError``; there is no third outcome. An observer (telemetry) may drop
what it likes, and never raises into a call. *Kept* means that the event survives the death of this process (a
``BufferedSink`` says what it promises instead); *durable*, that it survives the death of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from cra_middleware.errors import SinkError


class Torn(NamedTuple):
    """Bytes that were moved out of a log, never deleted."""

    size: int
    sha256: str


class SessionLog(Protocol):
    """One session's lines. One writer at a time; the caller holds a lock around ``append``."""

    @property
    def durable_events(self) -> int:
        """How many events, from the first, survive the death of the machine."""
        ...

    @property
    def noted_durable(self) -> int | None:
        """How many events were known to be durable when the log was opened; None when nobody noted it.

        What is damaged among them was damaged by somebody: a crash can spoil only what comes behind.
        """
        ...

    @property
    def witnessed_events(self) -> int:
        """How many events, from the first, a copy elsewhere has confirmed; 0 where there is no copy."""
        ...

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        """Keep ``data`` (whole lines) at byte ``offset``, the end of what the caller knows to be kept.

        Bytes beyond ``offset`` are left over from a write whose outcome the caller never learned; they are
        dropped first. ``events`` is how many events the log holds once ``data`` is kept. Never waits for the disk.

        Raises:
            SinkError: when it was not kept. Then nothing of it is in the log. ``is_transient`` says whether the
                same write may go through a moment later.
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
        """Wait until everything appended so far is durable. Any thread may call it, and they share one wait.

        Raises:
            SinkError: when the storage says that it is not.
        """
        ...

    def close(self) -> None:
        """Make durable and let go of the log; another writer may open it then."""
        ...


class MovedError(SinkError):
    """Another writer's events stand where these were to go: nothing was kept; read on from there."""


@runtime_checkable
class SharedLog(SessionLog, Protocol):
    """A log that several processes write at once. ``append`` raises ``MovedError`` instead of cutting anything off."""

    def lines_from(self, offset: int, /) -> Iterator[bytes]:
        """Every line from byte ``offset`` on.

        Raises:
            SinkError: when they cannot be read.
        """
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
        """Make everything durable and let go of it."""
        ...


class Query(NamedTuple):
    """Which events of a session; all of them by default."""

    event_type: str | None = None
    since_sequence: int = 0
    """The first sequence that counts."""
    last: int | None = None
    """Only so many, from the end."""


LEAST_BYTES = 1 << 20
"""With no more room than this a store counts as one that cannot be used."""


class Health(NamedTuple):
    """Whether a store can be used."""

    ok: bool
    detail: str
    """A sentence for a person."""


def room(place: object, free: int) -> Health:
    """How a store at ``place`` is that could be written to, with ``free`` bytes left there."""
    if free <= LEAST_BYTES:
        return Health(False, f"{place} has no room: {free >> 10} KiB are free, and {LEAST_BYTES >> 10} are wanted")
    return Health(True, f"{place} can be written; {free >> 20} MiB are free")


class TraceStore(Sink, Protocol):
    """A sink that can be asked about what it holds, without being anybody's writer."""

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        """Every line of a session as it stands there, with its newline.

        Raises:
            SinkError: when there is no such session, or it cannot be read.
        """
        ...

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        """The lines that ``query`` asks for, in their order.

        Raises:
            SinkError: as ``lines``.
        """
        ...

    def count(self, session_id: str, /) -> int:
        """How many events it holds of a session; 0 when it does not know it.

        Raises:
            SinkError: when it cannot be read.
        """
        ...

    def health(self) -> Health:
        """Whether events can be kept there now; never raises."""
        ...
