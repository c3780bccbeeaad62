"""The contract's cases about single calls: what runs, what does not, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.decorators import governed
from cra_middleware.testing.workbench import Workbench

LOOKUP = ("lookup", {"ticket_id": "T-1"})
REMOVE = ("remove", {"ticket_id": "T-1"})


def allow(bench: Workbench) -> None:
    """An allowed call runs once, and its result comes through."""
    outcome = bench.run([LOOKUP])
    bench.went_on(outcome)
    assert bench.bodies.ran == [LOOKUP], outcome
    bench.was_told(outcome, "ticket T-1 is open")


def deny(bench: Workbench) -> None:
    """A denied tool runs zero times, the model is told the policy's reason, and the run goes on."""
    outcome = bench.run([REMOVE], [LOOKUP])
    bench.went_on(outcome)
    assert bench.bodies.ran == [LOOKUP]
    bench.was_told(outcome, "Close it instead.", "ticket T-1 is open")
    assert bench.evidence().denials("ticket.delete") == ["policy_denied"]


def parallel(bench: Workbench) -> None:
    """Of several calls in one turn, the denied one does not run, and the others do, once each."""
    outcome = bench.run([LOOKUP, REMOVE, ("lookup", {"ticket_id": "T-2"})])
    bench.went_on(outcome)
    assert sorted(str(ran) for ran in bench.bodies.ran) == sorted(
        str(ran) for ran in (LOOKUP, ("lookup", {"ticket_id": "T-2"}))
    )
    bench.was_told(outcome, "Close it instead.", "ticket T-1 is open", "ticket T-2 is open")


def default_argument(bench: Workbench) -> None:
    """What the model leaves out and the tool fills in is decided, too."""
    outcome = bench.run([("pay", {"order_id": "O-1"})])
    assert bench.bodies.ran == []
    bench.was_told(outcome, "Too much money.")


def coerced_argument(bench: Workbench) -> None:
    """What is decided is what the body gets, when the framework makes a number of a text."""
    bench.run([("pay", {"order_id": "O-1", "amount": "20"})], [("pay", {"order_id": "O-2", "amount": "700"})])
    assert [ran for ran in bench.bodies.runs("pay") if ran["order_id"] == "O-2"] == []


def renamed_argument(bench: Workbench) -> None:
    """An Atlas that calls an argument by another name decides on that one."""
    tools = {"lookup": {"action": "refund.create", "args": {"ticket_id": "order"}}}
    runtime = bench.runtime(adapters={"any": {"tools": tools}})
    outcome = bench.subject.run(replace(bench.task([LOOKUP]), runtime=runtime))
    assert bench.bodies.ran == []
    bench.was_told(outcome, "This order is closed.")


def invalid_arguments(bench: Workbench) -> None:
    """Arguments that the tool does not take run nothing, and that is recorded as invalid."""
    bench.run([("lookup", {"wrong": 1})])
    assert bench.bodies.ran == []
    assert bench.evidence().denials("ticket.get") == ["invalid_parameters"]


def unwritable_argument(bench: Workbench) -> None:
    """A lone surrogate, which no JSON can hold, runs nothing, or is recorded as what it is."""
    bench.run([("lookup", {"ticket_id": "T-\ud800"})])
    assert bench.bodies.ran in ([], [("lookup", {"ticket_id": "T-\ud800"})])


def unknown_tool(bench: Workbench) -> None:
    """A tool that is not there runs nothing, and the call is recorded."""
    bench.run([("nosuch", {"ticket_id": "T-1"})], [LOOKUP])
    assert bench.bodies.runs("remove") == []
    assert bench.evidence().denials("nosuch") == ["unknown_action"]


def undeclared_action(bench: Workbench) -> None:
    """A tool that stands for no declared action does not run."""
    runtime = bench.runtime(adapters={"any": {"tools": {}}})
    bench.subject.run(replace(bench.task([LOOKUP]), runtime=runtime))
    assert bench.bodies.ran == []
    assert bench.evidence().denials("lookup") == ["unknown_action"]


def tool_raises(bench: Workbench) -> None:
    """A tool's own exception comes out as it is or as the framework's error result, and is recorded."""
    outcome = bench.run([("broken", {"ticket_id": "T-1"})])
    assert bench.bodies.runs("broken")
    failed = bench.evidence().of("action.failed", "ticket.update")
    assert [payload["error_code"] for payload in failed] == ["TimeoutError"] * len(bench.bodies.runs("broken"))
    assert outcome.error is not None or any("slow" in text or "TimeoutError" in text for text in outcome.seen)


def resolver_raises(bench: Workbench) -> None:
    """A policy that breaks lets nothing run."""

    class Broken(MemoryCounters):
        def reserve(self, *args: object, **kwargs: object) -> NoReturn:
            raise RuntimeError("the counters are gone")

    bench.runtime(counters=Broken())
    bench.run([LOOKUP])
    assert bench.bodies.ran == []


def sink_fails(bench: Workbench) -> None:
    """Nothing runs that cannot be recorded."""
    with bench.runtime().session("desk"):
        bench.sink.failing = True
        bench.run([LOOKUP])
        bench.sink.failing = False
    assert bench.bodies.ran == []


def sink_fails_at_once(bench: Workbench) -> None:
    """Nothing runs where not even a session can be begun."""
    bench.runtime()
    bench.sink.failing = True
    bench.run([LOOKUP])
    assert bench.bodies.ran == []


def explicit_session(bench: Workbench) -> None:
    """Calls inside ``with runtime.session(...)`` belong to that session."""
    with bench.runtime().session("desk") as session:
        bench.run([LOOKUP])
    assert bench.bodies.ran == [LOOKUP]
    assert list(bench.evidence().sessions) == [session.id]


def ended_session(bench: Workbench) -> None:
    """A session that is over lets nothing run."""
    with bench.runtime().session("desk") as session:
        session.end()
        bench.run([LOOKUP])
    assert bench.bodies.ran == []


def governed_body(bench: Workbench) -> None:
    """A tool whose function is ``@governed`` as well is decided once a run."""
    task = bench.task([LOOKUP])
    outcome = bench.subject.run(replace(task, tools=[governed("ticket.get")(task.tools[0])]))
    assert bench.bodies.ran == [LOOKUP], outcome
    assert len(bench.evidence().of("action.requested")) == 1


CALL_CASES: Mapping[str, tuple[None, Callable[[Workbench], None]]] = {
    case.__name__: (None, case)
    for case in (
        allow,
        deny,
        parallel,
        default_argument,
        coerced_argument,
        renamed_argument,
        invalid_arguments,
        unwritable_argument,
        unknown_tool,
        undeclared_action,
        tool_raises,
        resolver_raises,
        sink_fails,
        sink_fails_at_once,
        explicit_session,
        ended_session,
        governed_body,
    )
}
