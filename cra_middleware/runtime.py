"""The runtime: puts Atlases, resolver, sink, approver and telemetry together, and opens sessions."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from opentelemetry.trace import TracerProvider

from cra_middleware._canonical import canonical, digest
from cra_middleware._clock import Clock, SystemClock
from cra_middleware._ids import is_id, new_id
from cra_middleware.approvals import Approver
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import RISK_TIERS, RiskTier, ToolTarget
from cra_middleware.call_flow import Identity, Setting
from cra_middleware.carp.call import Target
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.policy import RANK, Facts
from cra_middleware.carp.quota import Counters, MemoryCounters
from cra_middleware.carp.resolve import Options, TraceLevel
from cra_middleware.carp.resolver import DefaultDecision, Resolver
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.session import Session, current_session
from cra_middleware.telemetry import Telemetry
from cra_middleware.trace.chain import RECOVERED
from cra_middleware.trace.recovery import Reopened, reopen
from cra_middleware.trace.sink import Sink
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from cra_middleware.trace.writer import ChainWriter

CANONICALIZATION = "cra-1"
"""The rules of ``_canonical``; recorded in every ``session.started``."""
MAX_OPEN_KEPT = 256
"""Sessions kept per thread that may be open at once; beyond it the one unused longest is detached."""

_logger = logging.getLogger("cra_middleware")
_logger.addHandler(logging.NullHandler())


class AtlasWarning(UserWarning):
    """Something in an Atlas that is perhaps not what its writer meant."""


class Runtime:
    """Decides, runs and records tool calls under one set of Atlases."""

    def __init__(
        self,
        atlas: str | Path | Atlas | Sequence[str | Path | Atlas],
        *,
        trace: str | Path | Sink | None = None,
        approver: Approver | None = None,
        default_decision: DefaultDecision = "deny",
        record: Literal["hash", "full"] = "hash",
        trace_level: TraceLevel = "standard",
        tracer_provider: TracerProvider | None = None,
        counters: Counters | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Load the Atlases and open the sink.

        Args:
            atlas: a folder, a file, a loaded ``Atlas``, or several of them.
            trace: a folder for trace files, or a ``Sink``; without it, traces are kept in memory.
            approver: asks a person; without one, a call that needs approval raises ``ApprovalRequired``.
            default_decision: what happens to a declared action that no policy allows or denies.
            record: ``hash`` keeps values out of the trace; ``full`` writes arguments and results into it.
            trace_level: ``verbose`` also records the policies that did not restrict anything.
            tracer_provider: where spans go; without it, OpenTelemetry's global provider.
            counters: where rate limits are counted; without it, in this process.
            clock: for tests.

        Raises:
            AtlasError: when an Atlas has errors; it carries every finding.
            SinkError: when the trace folder cannot be used.
            ValueError: when an option has an unknown value, or two Atlases collide.
        """
        if record not in ("hash", "full"):
            raise ValueError(f"record must be 'hash' or 'full', not {record!r}")
        if trace_level not in ("standard", "verbose"):
            raise ValueError(f"trace_level must be 'standard' or 'verbose', not {trace_level!r}")
        several = [atlas] if isinstance(atlas, (str, Path, Atlas)) else list(atlas)
        self.atlases = tuple(item if isinstance(item, Atlas) else Atlas.load(item) for item in several)
        for item in self.atlases:
            for finding in item.findings:
                if finding.code in ("W003", "W004", "W005", "W007"):
                    warnings.warn(str(finding), AtlasWarning, stacklevel=2)
        self._clock: Clock = clock or SystemClock()
        resolver = Resolver(self.atlases, default_decision)
        risk_tiers = {name: compiled.action.risk_tier for name, compiled in resolver.actions.items()}
        self._setting = Setting(
            resolver=resolver,
            counters=counters or MemoryCounters(),
            clock=self._clock,
            approver=approver,
            observer=Telemetry(tracer_provider, risk_tiers),
            options=Options(level=trace_level, full=record == "full"),
        )
        self._sink: Sink = _sink(trace)
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}
        self._kept: dict[str, Session] = {}

    @property
    def resolver(self) -> Resolver:
        """The policy decision point."""
        return self._setting.resolver

    @property
    def policy_digest(self) -> str:
        """SHA-256 over the policies of every Atlas; recorded when a session starts."""
        return digest(canonical([atlas.policy_digest for atlas in self.atlases]))

    def session(
        self,
        agent_id: str = "agent",
        goal: str = "(no goal given)",
        risk_tier: RiskTier = "low",
        context: Mapping[str, object] | None = None,
        *,
        atlas_ids: Sequence[str] | None = None,
        external_id: str | None = None,
        subject: str | None = None,
        keep: bool = False,
    ) -> Session:
        """Open a session; ``with`` ends it. Opened while another of this runtime is current, it is that one's child.

        Args:
            agent_id: who acts; policies may name it.
            goal: the operator's sentence. It is recorded as it is, so never put a user's message there.
            risk_tier: of this task; the higher of it and an action's own tier counts.
            context: facts that ``context_matches`` conditions look at.
            atlas_ids: only these of the loaded Atlases.
            external_id: what the session is called elsewhere (a thread id).
            subject: on whose behalf.
            keep: ``close()`` detaches the session instead of ending it.

        Raises:
            SinkError: when the trace cannot be begun.
            ValueError: when an argument is not usable, or changes a fact of the parent.
        """
        parent = current_session()
        if parent is not None and (not parent.is_open or parent.id not in self._open):
            parent = None
        session_id = new_id()
        facts = _facts(session_id, agent_id, risk_tier, context or {}, atlas_ids, parent)
        extra = {"external_id": external_id, "subject": subject, "parent_session_id": parent.id if parent else None}
        return self._start(session_id, goal, facts, extra, atlas_ids, None, keep, parent)

    def resolve(self, request: Request | Mapping[str, object]) -> Resolution:
        """Answer a whole CARP request, in the session it names; one that is not open yet is started.

        Raises:
            ValueError: when the request is malformed (``pydantic.ValidationError``), names an Atlas that is not
                loaded, or speaks for another agent than the session's.
            SinkError: when it cannot be recorded.
        """
        asked = request if isinstance(request, Request) else Request.model_validate(request)
        requester, task = asked.requester, asked.task
        missing = set(asked.atlas_ids or ()) - {atlas.manifest.atlas_id for atlas in self.atlases}
        if missing:
            raise ValueError(f"not loaded: {', '.join(sorted(missing))}")
        session = self._open.get(requester.session_id)
        if session is not None:
            if session.facts.agent_id != requester.agent_id:
                raise ValueError(f"session {session.id} belongs to another agent than {requester.agent_id!r}")
            return session.resolve(asked)
        facts = _facts(requester.session_id, requester.agent_id, task.risk_tier, asked.context, asked.atlas_ids, None)
        extra = {"parent_session_id": requester.parent_session_id}
        return self._start(requester.session_id, task.goal, facts, extra, None, asked, False, None).resolution

    def resume(self, session_id: str, *, context: Mapping[str, object] | None = None, keep: bool = False) -> Session:
        """Go on with a detached session: its chain is verified again, a torn end is set aside and recorded.

        With the default ``record="hash"`` a trace does not hold the session's context facts; give them again.

        Raises:
            ChainBroken: when the session was ended, or its trace was changed.
            SinkError: when there is no such session, or another writer has it.
        """
        with self._lock:
            known = self._open.get(session_id)
        if known is not None:
            if known.is_open:
                return known
            if not known.is_closed:
                raise ChainBroken(f"session {session_id} is being closed: a tool of it still runs")
        if not is_id(session_id):
            raise SinkError("a session id is a lower-case UUID")
        log = self._sink.reopen(session_id)
        try:
            found = reopen(log, session_id)
            identity = _identity_of(found, context)
            writer = ChainWriter(log, self._clock, session_id, identity.trace_id, found.end)
            session = Session(self._setting, identity, writer, log, found.actions)
            self._note_differences(session, found)
            session.resolve()
        except BaseException:  # whatever it was, the log must not stay locked
            log.close()
            raise
        self._remember(session, keep)
        return session

    def find(self, session_id: str) -> Session | None:
        """The open session with this id."""
        session = self._open.get(session_id)
        return session if session is not None and session.is_open else None

    def target_for(
        self,
        tool_name: str,
        framework: str,
        *,
        actions: Mapping[str, str] | None = None,
        declared: str | None = None,
    ) -> Target:
        """What a tool stands for. Nothing is guessed from the form of a name.

        In this order: ``actions``, an adapter's explicit mapping; the Atlases' ``adapters.<framework>.tools``, then
        ``adapters.any.tools``; ``declared``, the tool's own metadata; a name equal to a declared action id. When
        nothing is found, the tool's name itself, which no Atlas declares, so that the call is denied and recorded.
        """
        if actions is not None and tool_name in actions:
            return Target(actions[tool_name])
        for section in (framework, "any"):
            for atlas in self.atlases:
                adapter = atlas.manifest.adapters.get(section)
                target = adapter.tools.get(tool_name) if adapter is not None else None
                if target is not None:
                    return Target(target.action, target.args) if isinstance(target, ToolTarget) else Target(target)
        return Target(declared or tool_name)

    def argument_policies(self) -> tuple[str, ...]:
        """The policies that only a call's arguments can decide; what a tool is shown must be what they are shown."""
        rules = (rule for action in self.resolver.actions.values() for rule in action.rules if rule.on_arguments)
        return tuple(dict.fromkeys(rule.policy_id for rule in rules))

    def close(self, *, end: bool = False) -> None:
        """End the sessions this runtime opened, detach the kept ones (``end=True`` ends those too), close the sink."""
        with self._lock:
            sessions = list(self._open.values())
        for session in reversed(sessions):
            if session.id in self._kept and not end:
                session.detach()
            else:
                session.end()
        self._open.clear()
        self._kept.clear()
        self._sink.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(
        self,
        session_id: str,
        goal: str,
        facts: Facts,
        extra: Mapping[str, str | None],
        atlas_ids: Sequence[str] | None,
        request: Request | None,
        keep: bool,
        parent: Session | None,
    ) -> Session:
        if not 0 < len(goal) <= 10_000:
            raise ValueError("goal must have 1 to 10,000 characters")
        _check_text("goal", goal)
        log = self._sink.create(session_id)
        try:
            identity = Identity(session_id, new_id(), new_id(), goal, facts)
            writer = ChainWriter(log, self._clock, session_id, identity.trace_id)
            session = Session(self._setting, identity, writer, log)
            metadata = {
                "policy_digest": self.policy_digest,
                "mode": "enforce",
                "default_decision": self.resolver.default_decision,
                "canonicalization": CANONICALIZATION,
                **{key: value for key, value in extra.items() if value is not None},
            }
            named = None if atlas_ids is None else list(atlas_ids)
            session.start({"agent_id": facts.agent_id, "goal": goal, "atlas_ids": named, "metadata": metadata})
            session.resolve(request)
        except BaseException:  # whatever it was, the log must not stay locked
            log.close()
            raise
        if parent is not None:
            parent.adopt(session)
        self._remember(session, keep)
        return session

    def _note_differences(self, session: Session, found: Reopened) -> None:
        if found.torn is not None:
            message = "a torn end was moved to a quarantine; the chain goes on behind the last whole event"
            session.note(RECOVERED, message, bytes=found.torn.size, sha256=found.torn.sha256)
            _logger.warning("session %s: %d torn bytes were set aside", session.id, found.torn.size)
        metadata = found.first.payload.get("metadata")
        before = metadata.get("policy_digest") if isinstance(metadata, dict) else None
        if before != self.policy_digest:
            session.note("policy_changed", f"resumed under the policies {self.policy_digest}")

    def _remember(self, session: Session, keep: bool) -> None:
        with self._lock:
            self._open = {key: known for key, known in self._open.items() if known.is_open}
            self._open[session.id] = session
            self._kept = {key: known for key, known in self._kept.items() if known.is_open}
            if keep:
                self._kept[session.id] = session
            idle = [known for known in self._kept.values() if not known.is_busy and known is not session]
            surplus = idle[: max(0, len(self._kept) - MAX_OPEN_KEPT)]
        for known in surplus:
            known.detach()


def _sink(trace: str | Path | Sink | None) -> Sink:
    if trace is None:
        return MemorySink()
    return JsonlSink(trace) if isinstance(trace, (str, Path)) else trace


def _facts(
    session_id: str,
    agent_id: str,
    risk_tier: RiskTier,
    context: Mapping[str, object],
    atlas_ids: Sequence[str] | None,
    parent: Session | None,
) -> Facts:
    """A session's facts; below a parent the tier is the higher of both, and facts are only added."""
    if risk_tier not in RISK_TIERS:
        raise ValueError(f"risk_tier must be one of {', '.join(RISK_TIERS)}, not {risk_tier!r}")
    if not isinstance(agent_id, str) or not 0 < len(agent_id) <= 255:
        raise ValueError("agent_id must have 1 to 255 characters")
    _check_text("agent_id", agent_id)
    names = None if atlas_ids is None else tuple(atlas_ids)
    if parent is None:
        return Facts(agent_id, risk_tier, dict(context), session_id, names)
    above = parent.facts
    changed = [key for key, value in context.items() if key in above.context and above.context[key] != value]
    if changed:
        raise ValueError(f"a nested session may add facts, not change its parent's: {', '.join(sorted(changed))}")
    tier = max(risk_tier, above.risk_tier, key=RANK.__getitem__)
    return Facts(agent_id, tier, {**above.context, **context}, above.root_session_id, names or above.atlas_ids)


def _check_text(name: str, text: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds a lone surrogate, which no message can carry")


def _identity_of(found: Reopened, context: Mapping[str, object] | None) -> Identity:
    first, payload = found.first, found.first.payload
    asked = found.request.payload if found.request is not None else {}
    recorded = asked.get("context")
    facts_given = {**(recorded if isinstance(recorded, dict) else {}), **(context or {})}
    named = payload.get("atlas_ids") or asked.get("atlas_ids")
    tier = next((known for known in RISK_TIERS if known == asked.get("risk_tier", "low")), None)
    if tier is None:
        raise ChainBroken(f"session {first.session_id} was begun under a risk tier that does not exist")
    facts = Facts(
        agent_id=str(payload["agent_id"]),
        risk_tier=tier,
        context=facts_given,
        root_session_id=first.session_id,
        atlas_ids=tuple(str(name) for name in named) if isinstance(named, list) else None,
    )
    return Identity(first.session_id, first.trace_id, first.span_id, str(payload["goal"]), facts)
