"""Who is told what has become durable."""

from __future__ import annotations

from typing import Protocol


class Follower(Protocol):
    """Hears what has become durable: whoever signs heads about it."""

    def durable(self, session_id: str, events: int, new: int, /) -> None:
        """A session has ``events`` events on the disk, ``new`` of them since the last time. Never raises."""
        ...

    def ended(self, session_id: str, /) -> None:
        """This process writes nothing more to a session. Never raises."""
        ...
