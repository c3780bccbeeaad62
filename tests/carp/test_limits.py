"""Rate limits and budgets through a runtime: what a call costs, and whom a count is shared with."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime, Session
from cra_middleware.errors import BudgetExceeded, CallRefused, RateLimitExceeded
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest, policies


def budget(**parameters: Any) -> dict[str, Any]:
    return {"policy_id": "b", "type": "budget", "actions": ["refund.*"], "parameters": {"max_cost": 100, **parameters}}


def rate(**parameters: Any) -> dict[str, Any]:
    return {"policy_id": "l", "type": "rate_limit", "parameters": {"max_calls": 1, "window_seconds": 60, **parameters}}


def made(*entries: dict[str, Any], **options: Any) -> Runtime:
    options.setdefault("clock", FrozenClock(NOON))
    return Runtime(Atlas.from_dict(manifest(policies=policies(*entries))), **options)


def pay(session: Session, amount: Any = 1, action: str = "refund.create") -> str:
    """``ran``, or why not and for how long."""
    ran: list[Any] = []
    try:
        session.call(action, lambda amount: ran.append(amount), amount)
    except CallRefused as refused:
        assert ran == []
        wait = "" if refused.retry_after_seconds is None else f" {refused.retry_after_seconds:g}"
        return f"{refused.code} {refused.policy_id}{wait}"
    assert ran == [amount]
    return "ran"


@pytest.mark.parametrize(
    ("parameters", "costs", "amounts", "last"),
    [
        ({"cost": 40}, {}, [1, 1], "budget_exceeded b"),
        ({"cost": 33.4}, {}, [1, 1], "budget_exceeded b"),
        ({"cost_parameter": "amount"}, {}, [60, 40], "budget_exceeded b"),
        ({"cost_parameter": "amount"}, {}, [99.999999, Decimal("0.000001")], "budget_exceeded b"),
        ({"cost_function": "tokens"}, {"tokens": lambda arguments: 50}, [1, 1], "budget_exceeded b"),
    ],
)
def test_three_ways_to_cost(parameters: dict[str, Any], costs: dict[str, Any], amounts: list[Any], last: str) -> None:
    """A constant, an argument, a function; the sum is exact, and what is refused costs nothing."""
    with made(budget(**parameters), costs=costs) as runtime, runtime.session() as session:
        assert [pay(session, amount) for amount in amounts] == ["ran"] * len(amounts)
        assert pay(session, 50) == last


@pytest.mark.parametrize("amount", [-1, "5", None, True, float("nan"), float("inf"), [5], object(), 10**30])
def test_costs_that_cannot_be_read_refuse(amount: Any) -> None:
    """Missing, negative, no number: nothing runs, and nothing is taken."""
    with made(budget(cost_parameter="amount")) as runtime, runtime.session() as session:
        assert pay(session, amount).startswith("budget_exceeded b")
        with pytest.raises(BudgetExceeded, match="cannot be read"):
            session.call("refund.create", lambda: None)
        assert pay(session, 100) == "ran"


@pytest.mark.parametrize(
    ("amount", "verdict"), [(None, "budget_exceeded b"), (1e9, "budget_exceeded b"), (5, "approval_required")]
)
def test_a_person_is_not_asked_in_vain(amount: Any, verdict: str) -> None:
    """A cost that is missing, or more than all there is, is refused at once: no yes could make the call allowed."""
    ask = {"policy_id": "ask", "type": "require_approval"}
    with made(budget(cost_parameter="amount"), ask) as runtime, runtime.session() as session:
        assert pay(session, amount).startswith(verdict)
        assert len(runtime.approvals.list()) == (1 if amount == 5 else 0)


def test_a_function_that_fails_refuses() -> None:
    """And one that is not there is told when the runtime is made."""
    with made(budget(cost_function="f"), costs={"f": lambda arguments: arguments["no"]}) as runtime:
        assert pay(runtime.session()).startswith("budget_exceeded")
    with pytest.raises(ValueError, match=r"give Runtime\(costs=\{'f': function\}\)"):
        made(budget(cost_function="f"))


def test_a_budget_without_a_window_is_a_sessions() -> None:
    """Child sessions spend from it, too; another session has its own."""
    with made(budget(cost=60)) as runtime:
        with runtime.session() as session:
            with runtime.session() as child:
                assert pay(child) == "ran"
            assert pay(session) == "budget_exceeded b"
        with runtime.session() as other:
            assert pay(other) == "ran"


def test_a_budget_of_a_day() -> None:
    """It starts anew a day after its first call; ``retry_after_seconds`` says when."""
    clock = FrozenClock(NOON)
    with made(budget(cost=100, window_seconds=86_400, scope="global"), clock=clock) as runtime:
        assert pay(runtime.session("a")) == "ran"
        clock.advance(86_399)
        assert pay(runtime.session("b")) == "budget_exceeded b 1"
        clock.advance(1)
        assert pay(runtime.session("b")) == "ran"


@pytest.mark.parametrize(
    ("scope", "shared"),
    [
        (None, "same, same agent in another session"),
        ("action", "same, same agent in another session, another agent, child"),
        ("agent", "same, same agent in another session, another action"),
        ("session", "same, another action, child"),
        ("global", "same, same agent in another session, another agent, another action, child"),
    ],
)
def test_scopes(scope: str | None, shared: str) -> None:
    """Who else finds the one call used up."""
    parameters = {} if scope is None else {"scope": scope}

    def second(who: str, runtime: Runtime, first: Session) -> str:
        if who == "child":
            with first, runtime.session("b") as child:
                return pay(child, action="ticket.get")
        if who == "same agent in another session":
            return pay(runtime.session("a"), action="ticket.get")
        if who == "another agent":
            return pay(runtime.session("b"), action="ticket.get")
        return pay(first, action="refund.create" if who == "another action" else "ticket.get")

    for who in ("same", "same agent in another session", "another agent", "another action", "child"):
        with made(rate(**parameters)) as runtime:
            first = runtime.session("a")
            assert pay(first, action="ticket.get") == "ran"
            assert (second(who, runtime, first) != "ran") is (who in shared.split(", ")), who


def test_sliding_and_fixed() -> None:
    """A fixed window lets twice as many through at its edge; a sliding one does not."""
    for algorithm, ran in (("fixed", 4), ("sliding", 2)):
        clock = FrozenClock(NOON)
        with made(rate(max_calls=2, algorithm=algorithm), clock=clock) as runtime, runtime.session() as session:
            found = [pay(session)]
            clock.advance(59)
            found.append(pay(session))
            clock.advance(1)
            found += [pay(session), pay(session)]
        if algorithm == "sliding":
            assert found == ["ran", "ran", "ran", "rate_limit_exceeded l 59"]
        else:
            assert found.count("ran") == ran


def test_a_refused_call_consumes_nothing_of_any_limit() -> None:
    """Neither of the limit that refused it, nor of those that did not."""
    wide = {"policy_id": "w", "type": "rate_limit", "parameters": {"max_calls": 3, "window_seconds": 3600}}
    clock = FrozenClock(NOON)
    with made(wide, rate(), clock=clock) as runtime, runtime.session() as session:
        for _ in range(2):
            assert pay(session) == "ran"
            for _ in range(5):
                assert pay(session) == "rate_limit_exceeded l 60"
            clock.advance(60)
        assert pay(session) == "ran"
        assert pay(session) == "rate_limit_exceeded w 3480"
        clock.advance(3470)
        assert pay(session) == "rate_limit_exceeded w 10"


def test_how_long_to_wait_for_all_of_them() -> None:
    """Two limits are full: the time until both have room, whichever is named."""
    short = {"policy_id": "s", "type": "rate_limit", "parameters": {"max_calls": 1, "window_seconds": 10}}
    with made(short, rate()) as runtime, runtime.session() as session:
        assert pay(session) == "ran"
        assert pay(session) == "rate_limit_exceeded s 60"


def test_a_tool_that_fails_has_consumed() -> None:
    """It ran."""

    def fails(amount: int) -> None:
        raise TimeoutError

    with made(rate()) as runtime, runtime.session() as session:
        with suppress(TimeoutError):
            session.call("refund.create", fails, 1)
        with pytest.raises(RateLimitExceeded):
            session.call("refund.create", fails, 1)


def test_looking_takes_nothing() -> None:
    """Resolving and explaining never change a count; a full one is said."""
    with made(rate()) as runtime, runtime.session() as session:
        for _ in range(3):
            assert "refund.create" in {item.action_id for item in session.resolve().allowed_actions}
            runtime.explain("refund.create", {"amount": 1})
        assert pay(session) == "ran"
        assert "refund.create" in {item.action_id for item in session.resolve().denied_actions}
        assert runtime.explain("refund.create", {"amount": 1}).phase == "rate_limit"


def test_two_runtimes_count_in_one_file(tmp_path: Path) -> None:
    """As two processes would."""
    with made(rate(), counters=tmp_path / "c.db") as one, made(rate(), counters=tmp_path / "c.db") as two:
        assert pay(one.session("a")) == "ran"
        assert pay(two.session("a")).startswith("rate_limit_exceeded")


def test_what_a_resolution_says() -> None:
    """Budgets are constraints, with their numbers."""
    with made(budget(cost_parameter="amount", window_seconds=60)) as runtime, runtime.session() as session:
        (found,) = [item for item in session.resolution.constraints if item.type == "budget"]
    assert (found.parameters["max_cost"], found.parameters["cost_parameter"]) == (100, "amount")
