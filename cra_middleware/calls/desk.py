"""The path of a question: kept, asked, answered, and used once.

A call that needs a person becomes a pending approval, bound to its session, agent, action, arguments and the
policies in force. An identical call finds it again, also in another process with the same store. The yes is used up
together with the places in the limits: an approval that then meets a limit stands.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from typing import NamedTuple

from cra_middleware._ids import new_id
from cra_middleware.approvals.approval import (
    Answer,
    Approval,
    ApprovalError,
    ApprovalStore,
    Approver,
    HearsOfEnds,
    Pending,
)
from cra_middleware.calls.attempt import Attempt
from cra_middleware.calls.held_request import OvertakenError
from cra_middleware.carp.call import Ask, Deny, ToolCall
from cra_middleware.errors import ApprovalRequired
from cra_middleware.interceptor import AskApproval, Interrupted, Suspended, Unanswered, Wait
from cra_middleware.observer import Subject
from cra_middleware.policies import Epoch

DEFAULT_EXPIRY_SECONDS = 86_400
OTHERS_ARE_ASKED = "other people are asked by now"
MAX_PENDING = 32
"""Questions that one session may have open at once."""

_logger = logging.getLogger("cra_middleware.approvals.approval")
_SECOND_US = 1_000_000


class Granted(NamedTuple):
    """A yes that has not been used yet."""

    pending: Pending
    by: str

    @property
    def approval_id(self) -> str:
        """Which question it answers."""
        return self.pending.approval_id

    def satisfies(self, ask: Ask) -> bool:
        """Whether everybody who is asked now was asked then: the time may have brought others in."""
        return _covers(self.pending, ask)


class Refused(NamedTuple):
    """No yes; ``error`` comes out when it is given, else what the denial says."""

    deny: Deny
    approval_id: str | None
    error: BaseException | None = None
    is_suspended: bool = False
    """The run stops here, and the question stays open: that is no denial."""


Notify = Callable[[Pending], object | Awaitable[object]]
"""Hears of each new question; whatever it returns or raises changes nothing."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where the questions of one runtime lie."""

    store: ApprovalStore
    approver: Approver | None
    notify: Notify | None

    def settle(
        self,
        attempt: Attempt,
        ask: Ask,
        now_us: Callable[[], int],
        keep: Callable[[], Generator[Wait, object, None]],
        approver: Approver | None,
    ) -> Generator[AskApproval | Wait, object, Granted | Refused]:
        """Find or ask for a yes to ``attempt``; ``keep`` writes down that a person has to approve.

        Raises:
            ApprovalRequired: when nobody is there to ask; the question stays open.
        """
        if b'"cra:opaque:' in attempt.call.text:
            reason = "an argument is an object that cannot be written down, so nobody can approve it"
            return Refused(_no(ask, reason), None)
        asked = self.approver or approver
        try:
            known = self._known(attempt, ask, now_us())
            if known is not None and known.state == "rejected" and asked is not None and not hasattr(asked, "suspends"):
                known = None  # whoever said no is there to be asked again; a run is not stopped twice for one question
            if known is not None and known.state == "approved":
                return Granted(known.pending, known.by or "approver")
            if known is not None and known.state == "rejected":
                return _rejected(ask, known.pending.approval_id, known.by, known.reason)
            pending = known.pending if known is not None else self._opened(attempt, ask, now_us())
        except ApprovalError as error:
            return Refused(Deny("policy_error", ask.policy_id, f"approvals cannot be kept: {error}"), None)
        if pending is None:
            reason = f"{MAX_PENDING} calls of this session wait for a person already; wait for an answer"
            return Refused(_no(ask, reason), None)
        attempt.ask(ask)
        try:
            yield from keep()
        except OvertakenError as error:
            if known is None:  # nobody waits for the answer
                self.void(Granted(pending, ""), str(error))
            raise
        if known is None:
            self._tell(pending)
        if asked is None:
            attempt.operation.end("pending_approval")
            raise _unanswered(attempt, ask, pending.approval_id)
        try:
            others = len(self.store.listed("pending", pending.session_id)) - 1
        except ApprovalError as error:
            return Refused(Deny("policy_error", ask.policy_id, f"approvals cannot be kept: {error}"), None)
        # the approver is shown the values themselves, which the store may not keep
        shown = replace(pending, arguments=attempt.shown_arguments(), others_pending=others)
        attempt.operation.turn("person")
        reply = yield AskApproval(shown, asked)
        attempt.operation.turn("ours")
        if known is None and hasattr(asked, "suspends") and isinstance(reply, Answer):
            # it was to suspend: what it gave back at once is the answer to an earlier question, and this one must not
            # be there when the same is given once more
            self.void(Granted(pending, reply.by), "the answer was given to another question")
            return Refused(_no(ask, "the answer was given to another question; ask again"), pending.approval_id)
        return self._answered(ask, pending, reply, now_us())

    def would_wait(self, call: ToolCall, subject: Subject, ask: Ask, epoch: Epoch, now_us: int) -> bool:
        """Whether a question about ``call`` would be left for a person, because nobody is there or has answered it."""
        if self.approver is not None:
            return False
        try:
            known = self.store.find(subject.session_id, call.action_id, _binding(call, subject, epoch))
        except ApprovalError:  # the call itself is refused for it
            return False
        if known is None or known.state == "pending" or known.pending.agent_id != subject.agent_id:
            return True
        return why_void(known.pending, ask, epoch.policy_digest, now_us) is not None

    def use(self, granted: Granted, now_us: int) -> Deny | None:
        """Use a yes up; why it cannot be, when it cannot."""
        try:
            if self.store.consume(granted.approval_id, now_us):
                return None
        except ApprovalError as error:
            return Deny("policy_error", "default", f"approvals cannot be kept: {error}")
        return Deny("approval_expired", "default", "the approval has expired, or another call has used it")

    def give_back(self, granted: Granted) -> None:
        """The call did not run after all."""
        try:
            self.store.give_back(granted.approval_id)
        except ApprovalError as error:
            _logger.error("approval %s is lost: %s", granted.approval_id, error)

    def void(self, granted: Granted, reason: str) -> None:
        """A yes that counts no more."""
        try:
            self.store.expire(granted.approval_id, reason)
        except ApprovalError as error:
            _logger.error("approval %s could not be closed: %s", granted.approval_id, error)

    def close(self, session_id: str) -> None:
        """A session has ended: what was asked for it counts no more."""
        try:
            for approval in self.store.listed(None, session_id):
                if approval.state in ("pending", "approved"):
                    self.store.expire(approval.pending.approval_id, "the session ended")
            if isinstance(self.store, HearsOfEnds):
                self.store.session_ended(session_id)
        except Exception as error:  # noqa: BLE001  a foreign store: the session is sealed all the same
            _logger.error("questions of session %s stay open: %s", session_id, error)

    def is_asking(self, session_id: str) -> bool:
        """Whether a question of this session is open, or answered with a yes that is not used up."""
        try:
            return any(item.state in ("pending", "approved") for item in self.store.listed(None, session_id))
        except ApprovalError as error:
            _logger.error("open questions of session %s cannot be read: %s", session_id, error)
            return False

    def _known(self, attempt: Attempt, ask: Ask, now_us: int) -> Approval | None:
        """What became of the same question before, if it still counts."""
        call, subject = attempt.call, attempt.subject
        known = self.store.find(subject.session_id, call.action_id, _binding(call, subject, attempt.epoch))
        if known is None or known.pending.agent_id != subject.agent_id:
            return None
        why = why_void(known.pending, ask, attempt.epoch.policy_digest, now_us)
        if why is None:
            return known
        self.store.expire(known.pending.approval_id, why)
        return None

    def _opened(self, attempt: Attempt, ask: Ask, now_us: int) -> Pending | None:
        call, subject = attempt.call, attempt.subject
        pending = Pending(
            approval_id=new_id(),
            session_id=subject.session_id,
            agent_id=subject.agent_id,
            action_id=call.action_id,
            tool_name=call.tool_name,
            arguments=attempt.recorded_arguments(),
            policy_id=ask.policy_id,
            reason=ask.reason,
            arguments_digest=_binding(call, subject, attempt.epoch),
            policy_digest=attempt.epoch.policy_digest,
            requested_us=now_us,
            expires_us=now_us + (ask.expires_seconds or DEFAULT_EXPIRY_SECONDS) * _SECOND_US,
            approvers=ask.approvers,
            also_needed=ask.also_needed,
            tool_call_id=call.tool_call_id,
        )
        return pending if self.store.add(pending, MAX_PENDING) else None

    def _answered(self, ask: Ask, pending: Pending, reply: object, now_us: int) -> Granted | Refused:
        name = pending.approval_id
        if isinstance(reply, Suspended):
            return Refused(_no(ask, "the run waits for a person"), name, reply.error, True)
        if isinstance(reply, Interrupted):
            return Refused(_no(ask, "the question was interrupted"), name, reply.error)
        if isinstance(reply, Unanswered):  # the question stays open
            return Refused(_no(ask, reply.reason), name)
        assert isinstance(reply, Answer)
        try:
            current = self.store.get(name)
            if current is None or current.state == "pending":
                current = self.store.answer(name, reply, now_us)
        except ApprovalError as error:
            late = now_us >= pending.expires_us
            return Refused(Deny("approval_expired" if late else "approval_rejected", ask.policy_id, str(error)), name)
        if current.state == "approved":
            return Granted(current.pending, current.by or "approver")
        return _rejected(ask, name, current.by, current.reason)

    def _tell(self, pending: Pending) -> None:
        if self.notify is not None:  # not a daemon: the interpreter waits for the message to go out
            threading.Thread(target=_notify, args=(self.notify, pending), name="cra-notify").start()


def why_void(pending: Pending, ask: Ask, policy_digest: str, now_us: int) -> str | None:
    """Why a question, and any answer to it, counts no more for what is asked now; None while it does."""
    if pending.policy_digest != policy_digest:
        return "the policies changed"
    if now_us >= pending.expires_us:
        return "nobody answered in time"
    return None if _covers(pending, ask) else OTHERS_ARE_ASKED


def _notify(notify: Notify, pending: Pending) -> None:
    try:
        reply = notify(pending)
        if inspect.isawaitable(reply):

            async def wait() -> None:
                await reply

            asyncio.run(wait())
    except Exception as error:  # noqa: BLE001  foreign code: a message that was not heard leaves the question open
        _logger.error("nobody was told of approval %s: %s", pending.approval_id, type(error).__name__)


def _binding(call: ToolCall, subject: Subject, epoch: Epoch) -> str:
    """What a question is bound to: the digest of the arguments.

    Where some are hidden, whoever reads the store could try values out against it, so it is one that costs each try a
    twentieth of a second and 16 MiB, for this session alone (scrypt, RFC 7914).
    """
    redactor = epoch.redactor
    if redactor is None or redactor.redacted(call.action_id, call.text) == call.text:
        return call.digest
    salt = f"{subject.session_id} {call.action_id}".encode()
    return hashlib.scrypt(call.text, salt=salt, n=2**14, r=8, p=1, dklen=32).hex()


def _covers(pending: Pending, ask: Ask) -> bool:
    """Whether a question was put to all whose yes ``ask`` wants."""
    asked = {frozenset(names) for names in (pending.approvers, *pending.also_needed)}
    return all(frozenset(names) in asked for names in (ask.approvers, *ask.also_needed) if names)


def _rejected(ask: Ask, approval_id: str, by: str | None, reason: str | None) -> Refused:
    return Refused(_no(ask, reason or f"{by or 'the approver'} did not approve"), approval_id)


def _no(ask: Ask, reason: str) -> Deny:
    return Deny("approval_rejected", ask.policy_id, reason)


def _unanswered(attempt: Attempt, ask: Ask, approval_id: str) -> ApprovalRequired:
    reason = f"a person has to approve it first: {ask.reason}"
    return ApprovalRequired(reason, action_id=attempt.call.action_id, policy_id=ask.policy_id, approval_id=approval_id)
