"""The decisions about one call: as it is asked for, again after a person's yes, and what takes an Allow back."""

from __future__ import annotations

import logging

from cra_middleware.calls.attempt import Attempt
from cra_middleware.calls.desk import OTHERS_ARE_ASKED, Granted
from cra_middleware.calls.places import Places
from cra_middleware.calls.setting import Setting
from cra_middleware.carp.call import Allow, Ask, Decision, Deny
from cra_middleware.carp.policy import Facts
from cra_middleware.policies import Epoch
from cra_middleware.trace.writer import ChainWriter

_logger = logging.getLogger("cra_middleware")


class Deciding:
    """Decides the calls of one session. Whatever breaks here denies."""

    def __init__(self, setting: Setting, facts: Facts, writer: ChainWriter, places: Places) -> None:
        """``writer`` gives the time that the trace will say."""
        self._setting = setting
        self._facts = facts
        self._writer = writer
        self._places = places

    def decide(self, attempt: Attempt) -> Decision:
        """Decide a call under the policies, and as of the time, that it was asked for."""
        return self._decide(attempt, attempt.epoch, attempt.requested_us, False)

    def decide_approved(self, attempt: Attempt, granted: Granted) -> Decision:
        """Decide again, as of now: a window must not be passed by waiting, nor a policy by changing it.

        Never an ``Ask``: what was approved is not asked about again.
        """
        epoch, now_us = self._setting.policies.epoch, self._writer.now_us()
        why = "the policies changed"
        if epoch.policy_digest == attempt.epoch.policy_digest:
            decision = self._decide(attempt, epoch, now_us, False)
            if not isinstance(decision, Ask):  # nobody needs to be asked any more
                return decision
            if granted.satisfies(decision):
                return self._decide(attempt, epoch, now_us, True)
            why = OTHERS_ARE_ASKED
        self._setting.desk.void(granted, why)
        deny = Deny("approval_expired", "default", f"{why}, since a person was asked; call again")
        attempt.operation.decided(deny)
        return deny

    def unless_changed(self, attempt: Attempt, decision: Allow) -> Allow | Deny:
        """The decision, unless the caller's objects are no longer what was decided."""
        if not attempt.call.changed():
            return decision
        self._places.release(decision.reservations)
        return self.changed(attempt, decision)

    def changed(self, attempt: Attempt, decision: Allow) -> Deny:
        """What becomes of a decision about arguments that are others now."""
        reason = "the arguments changed after they were decided"
        deny = Deny("arguments_changed", decision.policy_id or "default", reason)
        attempt.operation.decided(deny)
        return deny

    def unless_used(self, granted: Granted, decision: Allow) -> Allow | Deny:
        """The decision, unless the yes it stands on is gone; it is used up now."""
        deny = self._setting.desk.use(granted, self._writer.now_us())
        if deny is not None:
            self._places.release(decision.reservations)
        return deny or decision

    def _decide(self, attempt: Attempt, epoch: Epoch, now_us: int, approved: bool) -> Decision:
        try:
            decision = epoch.resolver.decide(attempt.call, self._facts, now_us, self._setting.counters, approved)
        except Exception as error:  # a policy or a counter store that breaks must deny, not pass
            _logger.exception("the policy decision failed; the call is denied")
            decision = Deny("policy_error", "default", f"the policies could not be evaluated ({type(error).__name__})")
        attempt.operation.decided(decision)
        return decision
