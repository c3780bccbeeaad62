"""What an agent may do at this moment: the resolution that its calls are made under, and when it is made anew."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cra_middleware._canonical import canonical
from cra_middleware._clock import parse_us
from cra_middleware._fork import tell_child
from cra_middleware._ids import new_id
from cra_middleware.calls.keeping import Recorder
from cra_middleware.calls.setting import Identity, Resolved, Setting
from cra_middleware.carp.messages import Request, Requester, Task
from cra_middleware.carp.policy import RANK, Facts
from cra_middleware.carp.resolve import resolve
from cra_middleware.policies import Epoch
from cra_middleware.trace.event import Event
from cra_middleware.trace.recovery import POLICY_CHANGED
from cra_middleware.trace.redact import FACTS
from cra_middleware.trace.writer import ChainWriter, Draft


class Standing:
    """One session's resolution."""

    def __init__(
        self,
        setting: Setting,
        identity: Identity,
        writer: ChainWriter,
        recorder: Recorder,
        note: Callable[[str, str], None],
    ) -> None:
        """``note`` records something about the session itself."""
        self._setting = setting
        self._identity = identity
        self._writer = writer
        self._recorder = recorder
        self._note = note
        self._lock = threading.RLock()  # never held while a tool runs
        self._resolved: Resolved | None = None
        tell_child(self)

    def forked(self) -> None:
        """In a forked child, where nobody lets go of the lock that another thread held."""
        self._lock = threading.RLock()

    def at(self, now_us: int) -> Resolved:
        """The resolution, renewed when it has expired or other policies are in force.

        Raises:
            SinkError: when a new one cannot be recorded.
        """
        resolved = self._resolved
        if resolved is not None and self._is_valid(resolved, now_us):
            return resolved
        with self._lock:
            resolved = self._resolved
            return resolved if resolved is not None and self._is_valid(resolved, now_us) else self.renew(None)

    def go_on(self, recorded: Event) -> None:
        """Take up the resolution that an earlier process recorded, until it expires; the policies are the same."""
        epoch, facts = self._setting.policies.epoch, self._identity.facts
        made_us, seconds = parse_us(recorded.timestamp), recorded.payload["ttl_seconds"]
        resolution, _ = resolve(
            epoch.resolver,
            self._own_request(),
            facts,
            self._setting.counters,
            made_us,
            str(recorded.payload["resolution_id"]),
            self._identity.trace_id,
            self._setting.options,
            None,
        )
        expires_us = made_us + min(int(str(seconds)), resolution.ttl_seconds) * 1_000_000
        self._resolved = Resolved(resolution, resolution.resolution_id, recorded.span_id, expires_us, epoch)

    def renew(self, request: Request | None, first: Draft | None = None) -> Resolved:
        """Answer ``request``, or a plain one of the session's own; ``first`` is the session's first event.

        Raises:
            SinkError: when it cannot be recorded; the earlier resolution stays.
        """
        with self._lock:
            span_id, identity, setting = new_id(), self._identity, self._setting
            epoch, before = setting.policies.epoch, self._resolved
            if before is not None and before.epoch.policy_digest != epoch.policy_digest:
                self._note(POLICY_CHANGED, f"goes on under the policies {epoch.policy_digest}")
            now_us = self._writer.now_us()
            operation = setting.observer.resolution(identity.subject, span_id)
            facts = identity.facts
            if request is not None:  # a request may add facts, and speak of a higher risk
                tier = max(request.task.risk_tier, facts.risk_tier, key=RANK.__getitem__)
                facts = facts._replace(context={**request.context, **facts.context}, risk_tier=tier)
            try:
                resolution, records = resolve(
                    epoch.resolver,
                    request or self._own_request(),
                    facts,
                    setting.counters,
                    now_us,
                    new_id(),
                    identity.trace_id,
                    setting.options,
                    self._recorded_facts(facts, epoch),
                )
                entries = (Draft(span_id, identity.span_id, kind, payload, now_us) for kind, payload in records)
                if first is None:
                    operation.seen(self._recorder.keep_now(*entries))
                else:  # a session whose beginning cannot be kept is not begun, whatever the operator allows later
                    begun, *sealed = self._writer.write(first, *entries)
                    setting.observer.session(identity.subject, (begun,))
                    operation.seen(sealed)
                operation.resolved(resolution)
            finally:
                operation.end(None)
            expires_us = now_us + resolution.ttl_seconds * 1_000_000
            resolved = Resolved(resolution, resolution.resolution_id, span_id, expires_us, epoch)
            self._resolved = resolved
            return resolved

    def _is_valid(self, resolved: Resolved, now_us: int) -> bool:
        return now_us < resolved.expires_us and resolved.epoch is self._setting.policies.epoch

    def _recorded_facts(self, facts: Facts, epoch: Epoch) -> bytes | None:
        """What may be recorded of the session's facts; nothing, when values are not recorded."""
        setting = self._setting
        if not setting.options.full or not facts.context:
            return None
        text = canonical(dict(facts.context))
        if epoch.redactor is None:
            return text
        shown = epoch.redactor.shown(FACTS, text)
        if shown.commitments and setting.sidecar is not None:
            setting.sidecar.keep(self._identity.data_subject, shown.commitments)
        return shown.text

    def _own_request(self) -> Request:
        facts, identity = self._identity.facts, self._identity
        return Request(
            request_id=new_id(),
            requester=Requester(agent_id=facts.agent_id, session_id=identity.session_id),
            task=Task(goal=identity.goal, risk_tier=facts.risk_tier),
            atlas_ids=facts.atlas_ids,
        )
