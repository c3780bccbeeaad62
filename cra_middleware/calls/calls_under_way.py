"""The calls of one session that are under way: how one is let in, and when the last of them has left."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from functools import partial

from cra_middleware._ids import new_id
from cra_middleware.calls.attempt import Attempt
from cra_middleware.calls.outcomes import Outcomes
from cra_middleware.calls.refusals import unavailable
from cra_middleware.calls.setting import Identity, Resolved, Setting
from cra_middleware.calls.under_way import UnderWay
from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import SessionEnded, SinkError
from cra_middleware.trace.payloads import render
from cra_middleware.trace.writer import ChainWriter, Draft

_logger = logging.getLogger("cra_middleware")
MAX_REFUSALS = 10_000
"""Refused calls of one session; an agent that goes on after them is in a loop, and is not heard any more."""


class CallsUnderWay:
    """Lets calls in until the session closes, or too many were refused."""

    def __init__(
        self,
        setting: Setting,
        identity: Identity,
        writer: ChainWriter,
        resolved: Callable[[int], Resolved],
        outcomes: Outcomes,
    ) -> None:
        """``resolved`` gives the resolution valid at a time."""
        self._setting = setting
        self._identity = identity
        self._subject = identity.subject
        self._writer = writer
        self._resolved = resolved
        self._outcomes = outcomes
        sidecar = setting.sidecar
        self._keep_personal = None if sidecar is None else partial(sidecar.keep, identity.data_subject)
        self._under_way: UnderWay[Attempt] = UnderWay(identity.session_id, lambda idle: idle())
        self._refused = itertools.count(1)
        self._is_silenced = False

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""
        return self._under_way.is_busy

    @property
    def is_closing(self) -> bool:
        """Whether no more calls are let in."""
        return self._under_way.is_closing

    def enter(self, call: ToolCall, stream: bool) -> Attempt:
        """Let a call in; its request is noted. Whoever asks calls ``leave`` in the end, whatever came of it.

        Raises:
            AuditUnavailable: when what it is decided under, or its personal values, cannot be kept.
            SessionEnded: when no more calls are let in.
        """
        now_us = self._writer.now_us()
        if self._is_silenced:
            reason = f"session {self._identity.session_id} had {MAX_REFUSALS} calls refused and takes no more"
            raise SessionEnded(reason, action_id=call.action_id)
        self._under_way.check(call)
        try:
            resolved = self._resolved(now_us)
        except SinkError as error:
            raise unavailable(call, error) from error
        span_id = new_id()
        attempt = Attempt(
            call,
            self._subject,
            resolved.epoch,
            span_id,
            resolved.span_id,
            new_id(),
            resolved.resolution_id,
            self._setting.observer.call(call, self._subject, span_id),
            now_us,
            stream,
            self._setting.options.full,
            self._keep_personal,
        )
        self._under_way.enter(attempt)
        try:
            attempt.request()
        except SinkError as error:
            attempt.operation.end("denied", "audit_unavailable", "personal values could not be kept")
            self.leave(attempt)
            raise unavailable(call, error) from error
        except BaseException as error:  # an interrupt, too, must not leave the session waiting for this call
            attempt.operation.end("denied", type(error).__name__)
            self.leave(attempt)
            raise
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """A call is over; the last one of a session that closes makes it idle."""
        self._under_way.leave(attempt)

    def count_refusal(self) -> None:
        """One more was refused; after ``MAX_REFUSALS`` no more are let in, and the trace says so."""
        if next(self._refused) != MAX_REFUSALS:
            return
        self._is_silenced = True
        message = f"{MAX_REFUSALS} calls of this session were refused; it takes no more"
        _logger.error("session %s: %s", self._identity.session_id, message)
        payload = render({"error_code": "too_many_refusals", "message": message})
        self._writer.owe(Draft(self._identity.span_id, None, "error.occurred", payload, self._writer.now_us()))

    def close(self, when_idle: Callable[[], None]) -> None:
        """Let no more calls in; call ``when_idle`` once, when no tool is running any more (perhaps at once).

        Streams that are open but between two items are recorded as failed, and give no more items.
        """
        self._under_way.close(when_idle, self._outcomes.abandon)
