"""A request for a call while this process answers it: whether another process has taken it over meanwhile.

Who answers a request holds it for a time. A process that was stopped for longer goes on as if nothing had been, so what
it decides must not be kept once another one's decision about the same request is in the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cra_middleware.errors import CRAError
from cra_middleware.trace.event import Event


class OvertakenError(CRAError):
    """Another process decides the same request; nothing was let run here."""


class HeldRequest:
    """One request, from before it is held until it is answered."""

    def __init__(self) -> None:
        self.is_overtaken = False
        """Another process wrote something of it since this one holds it, or since a moment before."""

    def check(self) -> None:
        """Asked before anything of it is kept.

        Raises:
            OvertakenError: when another process has decided it.
        """
        if self.is_overtaken:
            raise OvertakenError("another process decides this request")


class HeldRequests:
    """Those of one session."""

    def __init__(self) -> None:
        self._held: dict[HeldRequest, str] = {}

    @contextmanager
    def hold(self, request_key: str) -> Iterator[HeldRequest]:
        """While a request is answered here; to be entered before it is asked who holds it."""
        held = HeldRequest()
        self._held[held] = request_key
        try:
            yield held
        finally:
            del self._held[held]

    def heard(self, event: Event) -> None:
        """Another process wrote this. It is kept together with a decision, or a question, so both are there."""
        key = event.payload.get("request_key") if event.event_type == "action.requested" else None
        if key is None:
            return
        for held, held_key in self._held.copy().items():
            if held_key == key:
                held.is_overtaken = True
