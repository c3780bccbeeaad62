"""What other policies would have done to recorded traffic: every request and call decided again.

Sessions are replayed together, in the order of their events, so that limits which they share are counted as they
would have been. The clock is the recorded one: a call is decided as of its ``action.requested``, and again as of its
``action.approved`` when a person said yes. A call that would be allowed now counts as run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cra_middleware._clock import parse_us
from cra_middleware.atlas.manifest import RISK_TIERS, RiskTier
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, Target
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.messages import Request, Requester, Task
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.quota import Reservation
from cra_middleware.carp.recorded import Recorded, decide_recorded, recorded_arguments, recorded_facts
from cra_middleware.carp.resolve import Options, resolve
from cra_middleware.carp.resolver import Resolver
from cra_middleware.trace.event import Event
from cra_middleware.trace.redact import is_hidden

_NO_END = 2**62
Word = Literal["allow", "deny", "ask", "undecidable"]


class Verdict(NamedTuple):
    """What was, or would be, decided."""

    word: Word
    code: str | None = None
    policy_id: str | None = None
    reason: str | None = None

    def differs(self, other: Verdict) -> bool:
        """Whether the agent would have met something else."""
        return (self.word, self.code) != (other.word, other.code)


class Step(NamedTuple):
    """One recorded call, and what would become of it."""

    session_id: str
    sequence: int
    """Of its ``action.requested``."""
    timestamp: str
    agent_id: str
    action_id: str
    recorded: Verdict
    now: Verdict

    @property
    def is_changed(self) -> bool:
        """Whether it would be decided otherwise; what cannot be decided is not."""
        return self.now.word != "undecidable" and self.recorded.differs(self.now)


class Resolved(NamedTuple):
    """One recorded request, and what would be answered: decision type, actions allowed, actions denied."""

    session_id: str
    sequence: int
    recorded: tuple[str, int, int]
    now: tuple[str, int, int]


class Replay(NamedTuple):
    """All of it."""

    steps: tuple[Step, ...]
    requests: tuple[Resolved, ...]

    @property
    def changed(self) -> tuple[Step, ...]:
        """The calls that would be decided otherwise."""
        return tuple(step for step in self.steps if step.is_changed)

    @property
    def undecidable(self) -> tuple[Step, ...]:
        """The calls of which the trace does not hold enough."""
        return tuple(step for step in self.steps if step.now.word == "undecidable")

    @property
    def is_same(self) -> bool:
        """Whether surely nothing would change; a call that cannot be decided may."""
        return not self.changed and not self.undecidable and all(item.recorded == item.now for item in self.requests)


@dataclass(slots=True)
class _Session:
    facts: Facts
    trace_id: str
    knows_context: bool
    goal: str
    request: Event | None = None
    """The last one."""
    supposed: Facts | None = None
    """What that one was answered by."""


@dataclass(slots=True)
class _Call:
    """A recorded call while its events go by."""

    event: Event
    session: _Session
    recorded: Recorded
    action_id: str
    perhaps: tuple[str, ...]
    """What else it may have been, when the new Atlases' tool maps disagree; empty when it is known."""
    first: Decision | None
    lost: str
    was: Verdict | None = None
    asked: bool = False
    steps: list[Step] = field(default_factory=list)


def replay(sessions: Iterable[Sequence[Event]], resolver: Resolver) -> Replay:
    """Decide everything in ``sessions`` (each one whole chain) again under ``resolver``."""
    whole = [list(events) for events in sessions if events]
    knows = {events[0].session_id: any("parameters" in event.payload for event in events) for events in whole}
    merged = sorted(
        (event for events in whole for event in events), key=lambda event: (event.timestamp, event.sequence)
    )
    return _Replayer(resolver, knows).run(merged)


class _Replayer:
    def __init__(self, resolver: Resolver, knows: Mapping[str, bool]) -> None:
        self._resolver = resolver
        self._knows = knows
        # what was used at least, and at most: calls that cannot be decided may have run or not
        self._at_best = MemoryCounters()
        self._at_worst = MemoryCounters()
        self._sessions: dict[str, _Session] = {}
        self._calls: dict[tuple[str, str], _Call] = {}
        self._done: list[_Call] = []
        self._requests: list[Resolved] = []

    def run(self, events: Sequence[Event]) -> Replay:
        for event in events:
            session = self._sessions.get(event.session_id)
            if event.event_type == "session.started":
                self._sessions[event.session_id] = self._started(event)
            elif session is not None:
                self._next(event, session)
        steps = tuple(_step(call) for call in sorted(self._done, key=lambda call: call.event.timestamp))
        return Replay(steps, tuple(self._requests))

    def _next(self, event: Event, session: _Session) -> None:
        key = (event.session_id, event.span_id)
        call = self._calls.get(key)
        match event.event_type:
            case "carp.request.received":
                self._asked(event, session)
            case "carp.resolution.completed":
                self._answered(event, session)
            case "action.requested":
                self._calls[key] = call = self._requested(event, session)
                self._done.append(call)
            case "policy.evaluated" if call is not None and event.payload.get("effect") == "require_approval":
                call.was, call.asked = Verdict("ask", None, _text(event, "policy_id")), True
            case "action.approved" if call is not None:
                self._approved(event, call)
            case "action.denied" if call is not None:
                self._denied(event, call)

    def _started(self, event: Event) -> _Session:
        metadata = event.payload.get("metadata")
        extra = metadata if isinstance(metadata, dict) else {}
        parent = self._sessions.get(str(extra.get("parent_session_id")))
        root = parent.facts.root_session_id if parent is not None else event.session_id
        named = event.payload.get("atlas_ids")
        facts = Facts(str(event.payload.get("agent_id")), "low", {}, root, _names(named))
        knows = self._knows.get(event.session_id, False)
        return _Session(facts, event.trace_id, knows, str(event.payload.get("goal")))

    def _asked(self, event: Event, session: _Session) -> None:
        context = event.payload.get("context")
        given = event.payload.get("risk_tier", "low")
        tier: RiskTier = next((tier for tier in RISK_TIERS if tier == given), "critical")
        facts = session.facts._replace(risk_tier=tier)
        if isinstance(context, dict):
            facts = facts._replace(context=recorded_facts(context))
        if session.request is None:  # the session's own: calls are decided by its facts, and by no later request's
            session.facts = facts
            session.knows_context = session.knows_context and not (isinstance(context, dict) and is_hidden(context))
        session.supposed, session.request = facts, event

    def _answered(self, event: Event, session: _Session) -> None:
        facts = session.supposed
        if session.request is None or facts is None:
            return
        now_us = parse_us(session.request.timestamp)
        asked = Request(
            request_id=event.event_id,
            requester=Requester(agent_id=facts.agent_id, session_id=event.session_id),
            task=Task(goal=session.goal, risk_tier=facts.risk_tier),
        )
        resolution, _ = resolve(
            self._resolver,
            asked,
            facts._replace(atlas_ids=None),
            self._at_best,
            now_us,
            event.event_id,
            session.trace_id,
            Options("standard", False),
        )
        payload = event.payload
        was = (str(payload.get("decision_type")), _count(payload, "allowed_count"), _count(payload, "denied_count"))
        now = (resolution.decision.type, len(resolution.allowed_actions), len(resolution.denied_actions))
        self._requests.append(Resolved(event.session_id, session.request.sequence, was, now))

    def _requested(self, event: Event, session: _Session) -> _Call:
        recorded = recorded_arguments(event.payload.get("parameters"), _text(event, "parameters_hash"))
        action_id, recorded, perhaps = self._mapped(event, recorded)
        call = _Call(event, session, recorded, action_id, perhaps, None, "")
        call.first, call.lost = self._decide(call, parse_us(event.timestamp), approved=False)
        return call

    def _decide(self, call: _Call, now_us: int, approved: bool) -> tuple[Decision | None, str]:
        """The decision, when it is the same whatever became of the calls that could not be decided."""
        if call.perhaps:
            self._spend(call, now_us)
            return None, "the tool map of the framework that made the call, which the trace does not name"
        session = call.session
        found: list[Decision | None] = []
        lost = ""
        for counters in (self._at_best, self._at_worst):
            decision, lost = decide_recorded(
                self._resolver,
                call.action_id,
                call.recorded,
                session.facts._replace(atlas_ids=None),
                session.knows_context,
                now_us,
                counters,
                approved,
            )
            found.append(decision)
        best, worst = found
        if type(best) is type(worst) and best is not None:
            self._ran(self._at_best, best)
            self._ran(self._at_worst, worst)
            return best, ""
        for reservation in best.reservations if isinstance(best, Allow) else ():
            self._at_best.release(reservation)
        self._spend(call, now_us)
        return None, lost or "a limit that is shared with calls which cannot be decided"

    @staticmethod
    def _ran(counters: MemoryCounters, decision: Decision | None) -> None:
        for reservation in decision.reservations if isinstance(decision, Allow) else ():
            counters.commit(reservation)

    def _spend(self, call: _Call, now_us: int) -> None:
        """At worst, a call that cannot be decided has run, and has taken whatever it could."""
        facts = call.session.facts
        actions = [self._resolver.actions.get(name) for name in {call.action_id, *call.perhaps}]
        for rule in (rule for action in actions if action is not None for rule in action.limits):
            limit = None
            if rule.quota is not None:
                limit = rule.quota.limit(facts.agent_id, facts.root_session_id, None)
            if limit is not None:
                amount = limit.capacity if limit.kind == "budget" else 1
                taken = self._at_worst.reserve([limit._replace(amount=amount, capacity=_NO_END)], now_us)
                if isinstance(taken, Reservation):
                    self._at_worst.commit(taken)

    def _approved(self, event: Event, call: _Call) -> None:
        if call.was is None:
            person = "approval_id" in event.payload
            call.was = Verdict("ask" if person else "allow", None, _text(event, "policy_id") or None)
            call.asked = person
        if isinstance(call.first, Ask) and call.asked:  # the person's yes counts under other policies, too
            self._decide(call, parse_us(event.timestamp), approved=True)

    def _denied(self, event: Event, call: _Call) -> None:
        code = _text(event, "code")
        if call.was is not None or code == "session_ended":
            return
        if code == "arguments_changed":
            call.was = Verdict("allow")
        elif code.startswith("approval_"):
            call.was = Verdict("ask", None, _text(event, "policy_id"))
        else:
            call.was = Verdict("deny", code, _text(event, "policy_id"), _text(event, "reason"))

    def _mapped(self, event: Event, recorded: Recorded) -> tuple[str, Recorded, tuple[str, ...]]:
        """A tool that was observed without an Atlas has its own name for an action id. What it stands for is what
        the new Atlases say, and what else it may be when that depends on the framework, which no trace names."""
        name = _text(event, "action_id")
        if name in self._resolver.actions:
            return name, recorded, ()
        sections = {section for atlas in self._resolver.atlases for section in atlas.manifest.adapters}
        if "tool_call_id" not in event.payload:  # perhaps no framework's
            sections.add("any")
        targets = [self._resolver.mapped(name, section) or Target(name) for section in sorted(sections)]
        first, *others = targets or [Target(name)]
        if any(other != first for other in others):
            return name, recorded, tuple(target.action_id for target in targets)
        names = first.renames
        renamed = {names.get(key, key): value for key, value in recorded.arguments.items()}
        unknown = recorded.unknown and {names.get(key, key) for key in recorded.unknown}
        return first.action_id, Recorded(renamed, unknown), ()


def _step(call: _Call) -> Step:
    event = call.event
    return Step(
        event.session_id,
        event.sequence,
        event.timestamp,
        call.session.facts.agent_id,
        _text(event, "action_id"),
        call.was or Verdict("undecidable", None, None, "the trace ends before it was decided"),
        _now(call),
    )


def _now(call: _Call) -> Verdict:
    match call.first:
        case None:
            return Verdict("undecidable", None, None, call.lost)
        case Allow():
            return Verdict("allow", None, call.first.policy_id)
        case Ask():
            return Verdict("ask", None, call.first.policy_id, call.first.reason)
        case Deny():
            return Verdict("deny", call.first.code, call.first.policy_id, call.first.reason)


def _names(value: object) -> tuple[str, ...] | None:
    return tuple(str(name) for name in value) if isinstance(value, list) else None


def _text(event: Event, key: str) -> str:
    value = event.payload.get(key)
    return value if isinstance(value, str) else ""


def _count(payload: Mapping[str, object], key: str) -> int:
    value = payload.get(key)
    return value if isinstance(value, int) else -1
