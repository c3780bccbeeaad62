"""Agents, teams and toolkits, governed in place; a session ends with the run that it was opened for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from agno.agent import Agent
from agno.team import Team
from agno.tools import Function, Toolkit

from cra_adapters.agno.functions import describe_function, governed_entrypoint
from cra_middleware import Runtime
from cra_middleware.enforcement import EnforcementPoint, require

A = TypeVar("A", Agent, Team)
FRAMEWORK = "agno"
RUNS = ("run", "arun", "continue_run", "acontinue_run")
"""The ways to run an agent or a team."""


def govern_tools(
    tools: Sequence[Any],
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    agent_id: str | None = None,
    goal: str | None = None,
) -> list[Any]:
    """The same tools, governed: functions, ``Function``s, and toolkits (in place, those of MCP, too).

    Args:
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        agent_id: how policies and the trace name an agent without a ``name``.
        goal: the operator's sentence, recorded in the trace. Never a user's message.

    Raises:
        RuntimeError: when this version of Agno lacks something that the gate stands on.
    """
    return _all(tools, _point(runtime, actions, agent_id, goal))


def govern_agent(
    agent: A,
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    agent_id: str | None = None,
    goal: str | None = None,
) -> A:
    """The agent with its tools governed in place; a team with its own and those of all its members.

    Args are those of ``govern_tools``. Each agent's calls are in a session of its own, below the first one's,
    which ends with the run.

    Raises:
        RuntimeError: as for ``govern_tools``.
        TypeError: when a team's members are made by a function: govern them there.
    """
    point = _point(runtime, actions, agent_id, goal)
    _in_place(agent, point)
    for way in RUNS:
        setattr(agent, way, _ending(getattr(agent, way), point))
    return agent


def _point(
    runtime: Runtime | None, actions: Mapping[str, str] | None, agent_id: str | None, goal: str | None
) -> EnforcementPoint:
    require("agno", "3.1", {Function: ("_validate_callable", "process_entrypoint"), Toolkit: ("get_async_functions",)})
    return EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)


def _in_place(agent: Any, point: EnforcementPoint) -> None:
    if callable(agent.tools) and not isinstance(agent.tools, (list, tuple)):
        agent.tools = _factory(agent.tools, point)
    else:
        agent.tools = _all(agent.tools or [], point)
    if isinstance(agent, Team):
        if callable(agent.members):
            raise TypeError("the members of this team are made by a function: call govern_agent on them there")
        for member in agent.members:
            _in_place(member, point)


def _factory(factory: Callable[..., Any], point: EnforcementPoint) -> Callable[..., Any]:
    """A function that makes the tools of each run, whose tools are governed."""
    if inspect.iscoroutinefunction(factory):

        @functools.wraps(factory)
        async def asynchronous(*args: Any, **kwargs: Any) -> list[Any]:
            return _all(await factory(*args, **kwargs) or [], point)

        return asynchronous

    @functools.wraps(factory)
    def governed(*args: Any, **kwargs: Any) -> list[Any]:
        return _all(factory(*args, **kwargs) or [], point)

    return governed


def _all(tools: Sequence[Any], point: EnforcementPoint) -> list[Any]:
    return [_one(tool, point) for tool in tools]


def _one(tool: Any, point: EnforcementPoint) -> Any:
    if isinstance(tool, Toolkit):
        return _toolkit(tool, point)
    if isinstance(tool, Function):
        return _function(tool, point)
    if isinstance(tool, dict) or hasattr(tool, "cra_point"):  # a provider's own tool, or one of ours
        return tool
    return governed_entrypoint(tool, point, describe_function(Function.from_callable(tool)), validates=True)


def _function(tool: Function, point: EnforcementPoint) -> Function:
    entrypoint = tool.entrypoint
    if entrypoint is None or hasattr(entrypoint, "cra_point"):
        return tool
    body = getattr(entrypoint, "raw_function", entrypoint)  # what pydantic's validate_call is around
    validates = body is not entrypoint or not tool.skip_entrypoint_processing
    governed = governed_entrypoint(body, point, describe_function(tool), validates=validates)
    twin = tool.model_copy()
    twin.entrypoint, twin.cache_results = governed, False
    return twin


def _toolkit(toolkit: Toolkit, point: EnforcementPoint) -> Toolkit:
    """In place, and whenever it is asked for its functions: those of a server are known when it is connected."""
    if not hasattr(toolkit, "cra_point"):
        kind = type(toolkit)
        members = {"get_functions": _governed_functions("get_functions"), "cra_point": point}
        members["get_async_functions"] = _governed_functions("get_async_functions")
        toolkit.__class__ = type(f"Governed{kind.__name__}", (kind,), members)
    return toolkit


def _governed_functions(way: str) -> Callable[[Any], dict[str, Function]]:
    def functions(self: Any) -> dict[str, Function]:
        known = self.__dict__.setdefault("_cra_functions", {})
        found = {}
        for name, function in getattr(super(type(self), self), way)().items():
            if known.get((way, name), (None,))[0] is not function:
                known[way, name] = (function, _function(function, self.cra_point))
            found[name] = known[way, name][1]
        return found

    return functions


def _ending(way: Callable[..., Any], point: EnforcementPoint) -> Callable[..., Any]:
    """A way to run, after which the session of that run ends, also where it gives its events one by one."""

    def ended(result: Any) -> Any:
        point.end(getattr(result, "session_id", None))
        return result

    async def awaited(result: Any) -> Any:
        return ended(await result)

    def stepwise(events: Any) -> Iterator[Any]:
        last: Any = None
        try:
            for last in events:
                yield last
        finally:
            ended(last)

    async def astepwise(events: Any) -> AsyncIterator[Any]:
        last: Any = None
        try:
            async for last in events:
                yield last
        finally:
            ended(last)

    @functools.wraps(way)
    def governed(*args: Any, **kwargs: Any) -> Any:
        result = way(*args, **kwargs)
        if inspect.isawaitable(result):
            return awaited(result)
        if hasattr(result, "__aiter__"):
            return astepwise(result)
        return stepwise(result) if inspect.isgenerator(result) else ended(result)

    return governed
