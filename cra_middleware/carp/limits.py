"""Rate limits and budgets before it is known who calls: whom a count is shared with, and what a call costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from cra_middleware.atlas.manifest import (
    Action,
    BudgetParameters,
    Parameters,
    Policy,
    RateLimitParameters,
    Scope,
)
from cra_middleware.carp.matchers import Arguments
from cra_middleware.carp.quota import Limit, cost_millionths

SECOND_US = 1_000_000
CostFunctions = Mapping[str, Callable[[Arguments], object]]
"""By name: from a call's arguments to its cost, a number of the budget's unit."""
Cost = Callable[[Arguments], int | None]
"""What a call takes; None: it cannot be read."""


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit, for any caller."""

    atlas_id: str
    rule_id: str
    action_id: str
    kind: Literal["rate_limit", "budget"]
    capacity: int
    window_us: int | None
    is_sliding: bool
    scope: Scope | None
    reason: str
    cost: Cost

    def limit(self, agent_id: str, root_session_id: str, arguments: Arguments | None) -> Limit | None:
        """What this call takes from which count; None when its cost cannot be read.

        Before the arguments are known a call takes the least there is.
        """
        amount = 1 if arguments is None else self.cost(arguments)
        if amount is None:
            return None
        who = {
            None: (agent_id, self.action_id),
            "action": (self.action_id,),
            "agent": (agent_id,),
            "session": (root_session_id,),
            "global": (),
        }[self.scope]
        if self.window_us is None:  # a budget that never starts anew lasts as long as its session
            who = (root_session_id,) if self.scope in (None, "session") else (*who, root_session_id)
        key = (self.atlas_id, self.rule_id, self.scope or "", *who)
        return Limit(key, self.capacity, self.window_us, amount, self.rule_id, self.reason, self.is_sliding, self.kind)


def own_quota(action: Action, atlas_id: str, rule_id: str) -> Quota | None:
    """The action's own limit: fixed windows, per agent."""
    limit = action.rate_limit
    if limit is None:
        return None
    reason = f"{action.action_id} may run {limit.max_calls} times in {limit.window_seconds} s"
    window_us = limit.window_seconds * SECOND_US
    return Quota(
        atlas_id, rule_id, action.action_id, "rate_limit", limit.max_calls, window_us, False, None, reason, _one
    )


def policy_quota(
    policy: Policy, parameters: Parameters, action_id: str, atlas_id: str, reason: str, costs: CostFunctions
) -> Quota | None:
    """The count that a rate limit or a budget keeps; None for other policies.

    Raises:
        ValueError: when a budget names a cost function that ``costs`` does not have.
    """
    name = policy.policy_id
    if isinstance(parameters, RateLimitParameters):
        capacity, window_us = parameters.max_calls, parameters.window_seconds * SECOND_US
        sliding = parameters.algorithm == "sliding"
        scope = parameters.scope
        return Quota(atlas_id, name, action_id, "rate_limit", capacity, window_us, sliding, scope, reason, _one)
    if isinstance(parameters, BudgetParameters):
        most = cost_millionths(parameters.max_cost)
        assert most is not None  # the manifest takes only what can be counted
        window = None if parameters.window_seconds is None else parameters.window_seconds * SECOND_US
        sliding = parameters.algorithm == "sliding" and window is not None
        cost = _cost(parameters, name, costs)
        return Quota(atlas_id, name, action_id, "budget", most, window, sliding, parameters.scope, reason, cost)
    return None


def _one(arguments: Arguments) -> int:
    return 1


def _cost(parameters: BudgetParameters, policy_id: str, costs: CostFunctions) -> Cost:
    if parameters.cost_function is not None:
        function = costs.get(parameters.cost_function)
        if function is None:
            name = parameters.cost_function
            raise ValueError(f"budget {policy_id} counts by {name!r}: give Runtime(costs={{{name!r}: function}})")
        return _computed(function)
    if parameters.cost_parameter is not None:
        name = parameters.cost_parameter
        return lambda arguments: cost_millionths(arguments.get(name))
    constant = cost_millionths(parameters.cost)
    return lambda arguments: constant


def _computed(function: Callable[[Arguments], object]) -> Cost:
    def cost(arguments: Arguments) -> int | None:
        try:
            return cost_millionths(function(arguments))
        except Exception:  # noqa: BLE001  foreign code: a cost it cannot tell is no cost
            return None

    return cost
