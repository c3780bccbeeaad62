"""The contract's cases about calls that need a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cra_middleware.approvals.approval import Answer, Pending
from cra_middleware.testing.scenario import Outcome
from cra_middleware.testing.workbench import Workbench

LOOKUP = ("lookup", {"ticket_id": "T-1"})
PAY = ("pay", {"order_id": "O-1", "amount": 70.0})


def approver_missing(bench: Workbench) -> None:
    """Where nobody can be asked, the tool does not run, the model is told so, and the run goes on."""
    outcome = bench.run([PAY], [LOOKUP])
    bench.went_on(outcome)
    assert bench.bodies.ran == [LOOKUP]
    bench.was_told(outcome, "approval_required")


def approval_given(bench: Workbench) -> None:
    """After a person's yes the tool runs once."""
    asked: list[Pending] = []

    def approver(pending: Pending) -> Answer:
        asked.append(pending)
        return Answer(True, "ann")

    bench.runtime(approver=approver)
    outcome = bench.run([PAY])
    bench.went_on(outcome)
    assert bench.bodies.ran == [PAY]
    assert [(item.action_id, dict(item.arguments)) for item in asked] == [("refund.create", PAY[1])]


def approval_rejected(bench: Workbench) -> None:
    """After a person's no the tool does not run, and the model is told the reason."""
    bench.runtime(approver=lambda pending: Answer(False, "ann", "Not before Monday."))
    outcome = bench.run([PAY], [LOOKUP])
    bench.went_on(outcome)
    assert bench.bodies.ran == [LOOKUP]
    bench.was_told(outcome, "Not before Monday.")


def approver_raises(bench: Workbench) -> None:
    """An approver that fails has not said yes."""

    def approver(pending: Pending) -> Answer:
        raise RuntimeError("the chat is down")

    bench.runtime(approver=approver)
    bench.run([PAY])
    assert bench.bodies.ran == []


def changed_while_asked(bench: Workbench) -> None:
    """Whoever holds a call's arguments changes them while a person is asked: no body gets what nobody decided."""
    whole = {"ticket_id": "T-1", "people": ["ann"]}
    inside = {"ticket_id": "T-2", "people": ["ann"]}
    asked: list[Pending] = []

    def approver(pending: Pending) -> Answer:
        asked.append(pending)
        if pending.arguments["ticket_id"] == "T-1":
            whole.update(ticket_id="T-9", people=["eve"])
        else:
            inside["people"].append("eve")  # type: ignore[attr-defined]
        return Answer(True, "ann")

    bench.runtime(approver=approver)
    bench.run([("notify", whole)], [("notify", inside)])
    decided = [{"ticket_id": "T-1", "people": ["ann"]}, {"ticket_id": "T-2", "people": ["ann"]}]
    assert asked
    assert all(ran in decided for ran in bench.bodies.runs("notify")), bench.bodies.ran


def approval_used_once(bench: Workbench) -> None:
    """A yes that was given meanwhile lets the identical call run, once."""
    runtime = bench.runtime(approvals=True)
    with runtime.session("desk"):
        bench.run([PAY])
        assert bench.bodies.ran == []
        (waiting,) = runtime.approvals.list()
        runtime.approvals.approve(waiting.pending.approval_id, by="ann")
        bench.went_on(bench.run([PAY]))
        assert bench.bodies.ran == [PAY]
        bench.run([PAY])
        assert bench.bodies.ran == [PAY]


def _stop(bench: Workbench) -> Outcome:
    runtime = bench.runtime(approvals=True)
    task = bench.task([LOOKUP, PAY], pauses=True, run="thread-1")
    outcome = bench.subject.run(task)
    assert outcome.paused is not None, f"the run did not stop: {outcome}"
    assert bench.bodies.runs("pay") == []
    assert [item.pending.action_id for item in runtime.approvals.list()] == ["refund.create"]
    return outcome


def _go_on(bench: Workbench, paused: object, approved: bool | None) -> Outcome:
    outcome = bench.subject.resume(bench.task([LOOKUP, PAY], pauses=True, run="thread-1"), paused, approved)
    assert len(bench.bodies.runs("lookup")) == 1, "a call that had run already was run again"
    return outcome


def pause_approved(bench: Workbench) -> None:
    """A run that stopped for a person goes on with a yes given by the framework's own means; the tool runs once."""
    bench.went_on(_go_on(bench, _stop(bench).paused, True))
    assert bench.bodies.runs("pay") == [PAY[1]]


def pause_rejected(bench: Workbench) -> None:
    """With a no it goes on, and the tool has not run."""
    bench.went_on(_go_on(bench, _stop(bench).paused, False))
    assert bench.bodies.runs("pay") == []


def pause_over_restart(bench: Workbench) -> None:
    """A run that stopped is stored, answered through ``runtime.approvals``, and gone on with by another runtime."""
    paused = _stop(bench).paused
    runtime = bench.runtime(approvals=True)
    (waiting,) = runtime.approvals.list()
    runtime.approvals.approve(waiting.pending.approval_id, by="ann")
    bench.went_on(_go_on(bench, paused, None))
    assert bench.bodies.runs("pay") == [PAY[1]]


def pause_rejected_over_restart(bench: Workbench) -> None:
    """The same with a no."""
    paused = _stop(bench).paused
    runtime = bench.runtime(approvals=True)
    (waiting,) = runtime.approvals.list()
    runtime.approvals.reject(waiting.pending.approval_id, by="ann", reason="Not before Monday.")
    outcome = _go_on(bench, paused, None)
    assert bench.bodies.runs("pay") == []
    bench.was_told(outcome, "Not before Monday.")


def pause_with_an_approver(bench: Workbench) -> None:
    """Where the runtime has an approver, it is asked, and the run does not stop."""
    bench.runtime(approver=lambda pending: True)
    outcome = bench.subject.run(replace(bench.task([PAY]), pauses=True))
    bench.went_on(outcome)
    assert outcome.paused is None
    assert bench.bodies.ran == [PAY]


APPROVAL_CASES: Mapping[str, tuple[str | None, Callable[[Workbench], None]]] = {
    **{
        case.__name__: (None, case)
        for case in (
            approver_missing,
            approval_given,
            approval_rejected,
            approver_raises,
            changed_while_asked,
            approval_used_once,
        )
    },
    **{
        case.__name__: ("pause", case)
        for case in (
            pause_approved,
            pause_rejected,
            pause_over_restart,
            pause_rejected_over_restart,
            pause_with_an_approver,
        )
    },
}
