"""The runtime, as users meet it: puts Atlases, resolver, sink, approver, telemetry and its sessions together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from cra_middleware._clock import Clock, SystemClock
from cra_middleware.approvals.answering import Approvals
from cra_middleware.approvals.approval import ApprovalError, ApprovalStore, Approver
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import RiskTier
from cra_middleware.calls.desk import Desk, Notify
from cra_middleware.calls.keeping import Keeping
from cra_middleware.calls.setting import Setting
from cra_middleware.carp.call import Target, ToolCall
from cra_middleware.carp.explain import Explanation, explain
from cra_middleware.carp.limits import CostFunctions
from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.carp.quota import Counters
from cra_middleware.carp.resolve import Options, TraceLevel
from cra_middleware.carp.resolver import DefaultDecision, Resolver
from cra_middleware.carp.tool_map import ToolMap
from cra_middleware.connecting import Connecting
from cra_middleware.errors import AtlasError
from cra_middleware.leaving import exit_on_sigterm, forget, leave_at_exit
from cra_middleware.observing import Loudspeaker
from cra_middleware.policies import AtlasSource, InForce, LoadTerms, begin_epoch, load_atlases
from cra_middleware.sessions.admission import Opening, facts_of
from cra_middleware.sessions.local_sessions import LocalSessions
from cra_middleware.sessions.opening import Opener
from cra_middleware.sessions.runtime_sessions import RuntimeSessions
from cra_middleware.sessions.session import Session
from cra_middleware.sinks_by_name import sink_for
from cra_middleware.stores import Stores
from cra_middleware.telemetry import Telemetry
from cra_middleware.trace.sink import Sink

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

_logger = logging.getLogger("cra_middleware")
_logger.addHandler(logging.NullHandler())


class Runtime(Connecting):
    """Decides, runs and records tool calls under one set of Atlases."""

    def __init__(
        self,
        atlas: AtlasSource | Sequence[AtlasSource],
        *,
        trace: str | Path | Sink | None = None,
        approver: Approver | None = None,
        approvals: ApprovalStore | str | Path | None = None,
        notify: Notify | None = None,
        mode: Literal["enforce", "observe"] = "enforce",
        default_decision: DefaultDecision = "deny",
        baseline: AtlasSource | None = None,
        project: str | Path | None = None,
        costs: CostFunctions | None = None,
        counters: Counters | str | Path | None = None,
        redact: Sequence[str] = (),
        personal: Sequence[str] = (),
        sidecar: str | Path | None = None,
        record: Literal["hash", "full"] = "hash",
        trace_level: TraceLevel = "standard",
        durability: Literal["write_through", "sync"] = "write_through",
        signing_key: str | Path | None = None,
        audit_deadline_seconds: float = 1.0,
        on_audit_failure: Literal["refuse", "allow"] = "refuse",
        handle_sigterm: bool = False,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Load the Atlases and open the sink.

        Args:
            atlas: a folder, a file, a loaded ``Atlas``, or several of them.
            trace: a folder for trace files, ``sqlite:FILE``, ``postgresql://…``, or a ``Sink``; without it, traces are
                kept in memory.
            approver: asks a person; without one, a call that needs approval raises ``ApprovalRequired`` and waits
                in ``approvals``.
            approvals: a file (SQLite) or ``postgresql://…`` that keeps open questions over a restart and for
                ``cra approvals``, or a store; without it, they are kept in memory.
            notify: hears of each new question, in a thread of its own (a webhook).
            mode: ``observe`` enforces nothing but the schemas of arguments, and records and prints what would have
                been refused.
            default_decision: what happens to a declared action that no policy allows or denies.
            baseline: an Atlas whose policies are about every action; the others may only be stricter.
            project: the folder that ``$PROJECT`` in an Atlas stands for.
            costs: what a budget's ``cost_function`` names: from a call's arguments to a number.
            counters: a file (SQLite) that several processes count in, ``redis://…`` for several machines, or a store;
                without it, each counts by itself.
            redact: values that are never recorded, beside what the Atlases name: ``*.email`` (an argument),
                ``ticket.reply#/customer/email`` (a place in arguments and results), ``pattern:email`` (a form).
            personal: arguments and places, as for ``redact``: with ``record="full"`` the trace holds commitments to
                them, and ``sidecar`` the values, until ``cra trace erase``.
            sidecar: a file (SQLite) for personal values.
            record: ``hash`` keeps values out of the trace; ``full`` writes arguments and results into it.
            trace_level: ``verbose`` also records the policies that did not restrict anything.
            durability: ``sync`` waits until a decision is on the disk before its tool runs; by default it is there
                some milliseconds later.
            signing_key: a file of ``cra keys generate``, or ``env:NAME``: heads over the trace folder, or over the
                PostgreSQL database, are signed with it, every second and at the end of each session.
            audit_deadline_seconds: how long a decision that cannot be kept (a full disk) is tried again.
            on_audit_failure: ``allow`` lets calls run although they cannot be recorded; the trace says how many
                events are missing once it can be kept again.
            handle_sigterm: let SIGTERM leave the program as ``sys.exit`` does, so that files are flushed.
            tracer_provider: where spans go; without it, OpenTelemetry's global provider.
            meter_provider: where metrics go; without it, OpenTelemetry's global provider.
            clock: for tests.

        Raises:
            AtlasError: when an Atlas has errors; it carries every finding.
            SinkError: when the trace folder cannot be used.
            ChainBroken: when the ledger of the traces was changed since it was signed.
            CRAError: when the signing key, or what ``approvals``, ``counters`` or ``sidecar`` names, cannot be used.
            ValueError: when an option has an unknown value, two Atlases collide, a policy needs ``project`` or
                ``costs``, or personal values need ``sidecar``.
        """
        for name, value, known in (
            ("record", record, ("hash", "full")),
            ("trace_level", trace_level, ("standard", "verbose")),
            ("mode", mode, ("enforce", "observe")),
            ("durability", durability, ("write_through", "sync")),
            ("on_audit_failure", on_audit_failure, ("refuse", "allow")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, not {value!r}")
        self._clock: Clock = clock or SystemClock()
        self._terms = LoadTerms(
            default_decision=default_decision,
            baseline=None if baseline is None else load_atlases(baseline)[0],
            project=None if project is None else str(project),
            costs=dict(costs or {}),
            is_observing=mode == "observe",
            redact=tuple(redact),
            personal=tuple(personal),
            can_keep=record == "hash" or sidecar is not None,
        )
        self._policies = InForce(begin_epoch(load_atlases(atlas), self._terms))
        self._stores = Stores(approvals, counters, sidecar)
        self._approvals = Approvals(self._stores.approvals, self._clock)
        self._telemetry = Telemetry(
            tracer_provider,
            meter_provider,
            lambda action_id: self._policies.epoch.risk_tier(action_id),
            waiting=(self._stores.place, self._approvals.waiting),
        )
        self._setting = Setting(
            policies=self._policies,
            counters=self._stores.counters,
            clock=self._clock,
            desk=Desk(self._stores.approvals, approver, notify),
            observer=self._telemetry,
            options=Options(level=trace_level, full=record == "full"),
            keeping=Keeping(durability, audit_deadline_seconds, on_audit_failure),
            sidecar=self._stores.sidecar,
            on_shadow=Loudspeaker() if self._terms.is_observing else None,
        )
        self._sink: Sink = sink_for(trace, signing_key)
        self._sessions: RuntimeSessions[Session] = LocalSessions(Opener(self._setting, self._sink))
        self._telemetry.begin()
        if handle_sigterm:
            exit_on_sigterm()
        if on_audit_failure == "allow":
            _logger.warning("calls that cannot be recorded are let run (on_audit_failure='allow')")
        leave_at_exit(self)

    @property
    def atlases(self) -> tuple[Atlas, ...]:
        """Those in force."""
        return self._policies.epoch.atlases

    @property
    def resolver(self) -> Resolver:
        """The policy decision point."""
        return self._policies.epoch.resolver

    @property
    def policy_digest(self) -> str:
        """SHA-256 over the policies of every Atlas; recorded when a session starts."""
        return self._policies.epoch.policy_digest

    @property
    def approvals(self) -> Approvals:
        """The questions that wait for a person."""
        return self._approvals

    def reload(self, atlas: AtlasSource | Sequence[AtlasSource]) -> None:
        """Put other policies in force, at once and for every session; open questions under the old ones are void.

        Raises:
            AtlasError: when an Atlas has errors; the old policies stay in force.
            ValueError: as when a runtime is made; the old policies stay in force.
        """
        try:
            epoch = begin_epoch(load_atlases(atlas), self._terms)
        except (AtlasError, ValueError) as error:
            _logger.error("the new Atlas is not used, the old one stays in force: %s", error)
            raise
        self._policies.epoch = epoch
        try:
            self._approvals.void(self._sessions.ids(), epoch.policy_digest)
        except ApprovalError as error:  # they count no more all the same: the policies' digest is another
            _logger.error("open questions could not be closed: %s", error)

    def explain(
        self,
        action: str,
        arguments: Mapping[str, object] | None = None,
        *,
        agent_id: str = "agent",
        risk_tier: RiskTier = "low",
        context: Mapping[str, object] | None = None,
    ) -> Explanation:
        """What would be decided about one call now, by which policies, and what would have to change.

        Nothing runs, counts or is recorded.

        Raises:
            ValueError: when an argument is not usable.
        """
        facts = facts_of("", agent_id, risk_tier, context or {}, None, None)
        call = ToolCall.freeze(action, "explain", arguments or {})
        return explain(self.resolver, call, facts, self._clock.wall_us(), self._setting.counters)

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
        parent: Session | None = None,
        keep: bool = False,
        session_id: str | None = None,
        metadata: Mapping[str, object] | None = None,
        request: Request | None = None,
    ) -> Session:
        """Open a session; ``with`` ends it. Opened while another of this runtime is current, it is that one's child.

        Args:
            agent_id: who acts; policies may name it.
            goal: the operator's sentence. It is recorded as it is, so never put a user's message there.
            risk_tier: of this task; the higher of it and an action's own tier counts.
            context: facts that ``context_matches`` conditions look at.
            atlas_ids: only these of the loaded Atlases.
            external_id: what the session is called elsewhere (a thread id).
            subject: on whose behalf; its personal values are kept under this name. It is recorded as it is, so let it
                be an id of yours and no name. A child acts for the same as its parent, if nothing else is said.
            parent: whose child it is, when that is not the current session.
            keep: ``close()`` detaches the session instead of ending it.
            session_id: a UUID that nobody has used; made here by default.
            metadata: more to be recorded with its first event.
            request: what it begins by asking, instead of a plain resolution; its id, its parent, its facts and its
                Atlases are the session's, and it speaks of the same agent and goal.

        Raises:
            CallRefused: when the server of a runtime at one does not answer, or does not let its key in.
            SessionEnded: when the parent ends meanwhile.
            SinkError: when the trace cannot be begun, or the runtime is closed.
            ValueError: when an argument is not usable, changes a fact of the parent, or is not what ``request`` says.
        """
        parent_id = None if parent is None else parent.id
        told = (external_id, subject, parent_id, session_id, metadata or {}, request)
        return self._sessions.begin(Opening(agent_id, goal, risk_tier, context or {}, atlas_ids, *told), keep)

    def resolve(self, request: Request | Mapping[str, object]) -> Resolution:
        """Answer a whole CARP request, in the session it names; one that is not open yet is started.

        Raises:
            CallRefused: when the server of a runtime at one does not answer.
            ValueError: when the request is malformed (``pydantic.ValidationError``), names an Atlas that is not
                loaded, or a parent that is not open, or speaks for another agent than the session's.
            SinkError: when it cannot be recorded.
        """
        asked = request if isinstance(request, Request) else Request.model_validate(request)
        return self._sessions.answer(asked)

    def resume(
        self, session_id: str, *, context: Mapping[str, object] | None = None, keep: bool = False, renew: bool = True
    ) -> Session:
        """Go on with a detached session: its chain is verified again, a torn end is set aside and recorded.

        Without ``renew`` its last resolution counts on while it is valid. With the default ``record="hash"`` a trace
        does not hold the session's context facts; give them again.

        Raises:
            CallRefused: when the server of a runtime at one, where the facts are, does not answer.
            ChainBroken: when the session was ended, or its trace was changed.
            SinkError: when there is no such session (of this key's), or another writer has it.
        """
        return self._sessions.resume(session_id, context, keep, renew)

    def find(self, session_id: str) -> Session | None:
        """The open session with this id."""
        return self._sessions.find(session_id)

    def target_for(
        self,
        tool_name: str,
        framework: str,
        *,
        actions: Mapping[str, str] | None = None,
        declared: str | None = None,
        server: str | None = None,
    ) -> Target:
        """What a tool stands for. Nothing is guessed from the form of a name.

        In this order: ``actions``, an adapter's explicit mapping; the Atlases' ``adapters.<framework>.tools``, then
        ``adapters.any.tools``; ``declared``, the tool's own metadata; a name equal to a declared action id. When
        nothing is found, the tool's name itself, which no Atlas declares, so that the call is denied and recorded.
        A key ``server/tool`` comes before ``tool`` where the operator named the ``server`` that a tool is on.

        Raises:
            CallRefused: when nothing was heard of a server's Atlases for over a minute.
        """
        return self._tools_now.target_for(tool_name, framework, declared, actions, server)

    def argument_policies(self) -> tuple[str, ...]:
        """The policies that only a call's arguments can decide; what a tool is shown must be what they are shown.

        Raises:
            CallRefused: as ``target_for``.
        """
        return self._tools_now.argument_policies

    def close(self, *, end: bool = False) -> None:
        """End the sessions this runtime opened, detach the kept ones (``end=True`` ends those too), close the sink.

        A session in which a person is being asked is kept, too, where the questions outlive this process.
        """
        self._sessions.close(end, can_wait=self._stores.outlive)
        self._let_go()

    def detach(self) -> None:
        """Let go of every session without sealing it, and close the sink; done by itself when the interpreter exits."""
        self._sessions.detach()
        self._let_go()

    @property
    def _tools_now(self) -> ToolMap:
        return self._policies.epoch

    def _let_go(self) -> None:
        forget(self)
        self._telemetry.close()
        self._sink.close()
        self._stores.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
