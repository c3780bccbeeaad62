"""No trace at all: for measuring, and for people who chose it."""

from __future__ import annotations

from collections.abc import Iterator

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import SessionLog, Torn


class NullLog:
    """Keeps nothing, and says so when asked for it."""

    durable_events = 0
    noted_durable: int | None = None
    witnessed_events = 0

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        pass  # that is what this sink is for

    def lines(self) -> Iterator[bytes]:
        return iter(())

    def set_aside(self, offset: int, /) -> Torn:
        raise SinkError("the null sink keeps nothing, so nothing can be set aside")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class NullSink:
    """Accepts every event and keeps none."""

    def create(self, session_id: str, /) -> SessionLog:
        return NullLog()

    def reopen(self, session_id: str, /) -> SessionLog:
        raise SinkError(f"the null sink kept nothing of session {session_id}")

    def session_ids(self) -> list[str]:
        return []

    def close(self) -> None:
        pass
