"""Agno: ``govern_agent(agent, runtime)``, or ``Agent(tools=govern_tools(tools, runtime))``.

A tool is decided around its function, behind every ``tool_hook`` and ``pre_hook``, on the validated arguments that it
gets; what the framework injects (``agent``, ``run_context``, ``fc``, media) is no argument of the call. It is the same
in sync and async runs, which hooks are not: Agno skips an async one in a sync run, and the tool runs. A refused call is
a failed one, with the reason, and the run goes on. Answers are not cached: a cached one would come without a decision.

A tool with ``requires_confirmation`` pauses the run, as ever; a call that a person confirmed (``continue_run``, in
another process with a ``db``, too) answers a policy that wants one. Other calls that need a person are told to wait.

Holes: tools that the framework makes itself (memory, knowledge, session state, delegation to members) are not decided,
the members' own tools are; a call of a tool that is not there reaches no tool and is not recorded; a confirmation that
is refused is known to Agno only; tools that are added later (``add_tool``) are not governed; tools that a provider runs
on its own servers never come by. Nothing tells of a run's end: a session is that of Agno's ``session_id`` and ends with
the runtime, or is yours (``with runtime.session(...)``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, get_type_hints

from agno.agent import Agent
from agno.team import Team
from agno.tools import Function, Toolkit
from agno.tools.function import FunctionCall
from agno.utils.schema import FRAMEWORK_INJECTED_PARAMS, IDENTITY_INJECTED_PARAMS, is_framework_typed
from pydantic import ValidationError

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, govern_function, require

A = TypeVar("A", Agent, Team)
FRAMEWORK = "agno"
BY = "confirmation"
"""Who is recorded to have answered, when a person confirmed a call by ``continue_run``."""
FC = "fc"
"""The parameter by which Agno gives a tool its own call."""

_Described = tuple[str, str, dict[str, Any] | None]


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

    Args are those of ``govern_tools``. Each agent's calls are in a session of its own, below the first one's.

    Raises:
        RuntimeError: as for ``govern_tools``.
        TypeError: when a team's members are made by a function: govern them there.
    """
    _in_place(agent, _point(runtime, actions, agent_id, goal))
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
    return _entrypoint(tool, point, _described(Function.from_callable(tool)), validates=True)


def _function(tool: Function, point: EnforcementPoint) -> Function:
    entrypoint = tool.entrypoint
    if entrypoint is None or hasattr(entrypoint, "cra_point"):
        return tool
    body = getattr(entrypoint, "raw_function", entrypoint)  # what pydantic's validate_call is around
    validates = body is not entrypoint or not tool.skip_entrypoint_processing
    governed = _entrypoint(body, point, _described(tool), validates=validates)
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


@dataclass(slots=True)
class _Reached:
    """One call on its way to the body."""

    fc: FunctionCall | None
    is_decided: bool = False


_reached: ContextVar[_Reached] = ContextVar("cra_agno_call")


def _entrypoint(
    body: Callable[..., Any], point: EnforcementPoint, data: _Described, *, validates: bool
) -> Callable[..., Any]:
    """What Agno calls in place of ``body``: it validates the arguments as Agno would, and then decides."""
    name, description, schema = data
    without = _injected(body, schema or {})
    tool = point.tool(name, body=body, description=description, schema=schema, without=without)
    prepare = functools.partial(_prepare, tool)
    if inspect.isasyncgenfunction(body):  # its arguments come as they are
        return _looking_like(body, _streaming(body, prepare), point)
    governed = _generating(body, prepare) if inspect.isgeneratorfunction(body) else govern_function(body, prepare, _say)
    inner = Function._validate_callable(governed) if validates else governed
    is_own = FC in inspect.signature(body).parameters

    @contextmanager
    def reaching(fc: Any, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        reached = _Reached(fc if isinstance(fc, FunctionCall) else None)
        token = _reached.set(reached)
        try:
            yield {**kwargs, FC: fc} if is_own else kwargs
        except ValidationError as error:
            if reached.is_decided:  # it is the body's own
                raise
            raise prepare(kwargs).reject(str(error)) from error
        finally:
            _reached.reset(token)

    if inspect.iscoroutinefunction(body):

        async def asynchronous(*args: Any, fc: Any = None, **kwargs: Any) -> Any:
            with reaching(fc, kwargs) as given:
                return await inner(*args, **given)

        return _looking_like(body, asynchronous, point)

    def outer(*args: Any, fc: Any = None, **kwargs: Any) -> Any:
        with reaching(fc, kwargs) as given:
            return inner(*args, **given)

    return _looking_like(body, outer, point)


def _prepare(tool: GovernedTool, arguments: object) -> GovernedCall:
    reached = _reached.get(None) or _Reached(None)
    reached.is_decided = True
    if reached.fc is None:
        return tool.call(arguments)
    function = reached.fc.function
    who = function._agent or function._team
    run = getattr(function._run_context, "session_id", None)
    approver = _confirmed if function.requires_confirmation else None
    agent = getattr(who, "name", None) or getattr(who, "id", None)
    return tool.call(arguments, call_id=reached.fc.call_id, agent=agent, run=run, approver=approver)


def _confirmed(pending: Pending) -> Answer:
    """A call of a tool with ``requires_confirmation`` comes here only when a person has confirmed it."""
    return Answer(True, BY)


def _generating(body: Callable[..., Any], prepare: Callable[[object], GovernedCall]) -> Callable[..., Any]:
    """A generator function, decided when it is called, and recorded when it is through."""

    def items(call: GovernedCall, args: Any, kwargs: Any) -> Iterator[Any]:
        running = call.begin()
        try:
            yield from body(*args, **kwargs)
        except BaseException as error:
            running.raised(error)
            raise
        running.returned()

    @functools.wraps(body)
    def generating(*args: Any, **kwargs: Any) -> Iterator[Any]:
        return items(prepare(_bound(body, args, kwargs)), args, kwargs)

    return generating


def _streaming(body: Callable[..., Any], prepare: Callable[[object], GovernedCall]) -> Callable[..., Any]:
    """As ``_generating``, for an async one."""
    is_own = FC in inspect.signature(body).parameters

    async def streaming(*args: Any, fc: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        given = {**kwargs, FC: fc} if is_own else kwargs
        token = _reached.set(_Reached(fc if isinstance(fc, FunctionCall) else None))
        try:
            call = prepare(_bound(body, args, given))
        finally:
            _reached.reset(token)
        running = await call.abegin()
        try:
            async for item in body(*args, **given):
                yield item
        except BaseException as error:
            running.raised(error)
            raise
        running.returned()

    return streaming


def _bound(body: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(body).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _say(refusal: CallRefused) -> NoReturn:
    raise refusal


def _looking_like(body: Callable[..., Any], outer: Callable[..., Any], point: EnforcementPoint) -> Callable[..., Any]:
    """``outer`` with the signature and the hints of ``body``, by which Agno injects, and with ``fc``."""
    functools.update_wrapper(outer, body)
    signature = inspect.signature(body)
    parameters = list(signature.parameters.values())
    if FC not in signature.parameters:
        last = [item for item in parameters if item.kind is item.VAR_KEYWORD]
        own = inspect.Parameter(FC, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=FunctionCall)
        parameters = [*(item for item in parameters if item not in last), own, *last]
        outer.__annotations__ = {**_hints(body), FC: FunctionCall}
    outer.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    outer._wrapped_for_validation = True  # type: ignore[attr-defined]  # it has been, inside
    outer.cra_point = point  # type: ignore[attr-defined]
    return outer


def _hints(body: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(body, include_extras=True)
    except Exception:  # noqa: BLE001  foreign annotations, which Agno cannot resolve either
        return dict(getattr(body, "__annotations__", {}))


def _injected(body: Callable[..., Any], schema: Mapping[str, Any]) -> set[str]:
    """The parameters that Agno fills itself: by name, where the model is not shown one of that name, and by type."""
    shown = schema.get("properties")
    named = {*FRAMEWORK_INJECTED_PARAMS, FC} - set(shown if isinstance(shown, dict) else ())
    named |= {*IDENTITY_INJECTED_PARAMS}
    hints = _hints(body)
    return {
        name
        for name in inspect.signature(body).parameters
        if name in named or is_framework_typed(hints.get(name)) or hints.get(name) is FunctionCall
    }


def _described(tool: Function) -> _Described:
    """As the model is shown it. Agno works that out at the start of a run, so it is done on a copy."""
    twin = tool.model_copy(deep=True)
    twin.process_entrypoint()
    return twin.name, twin.description or "", twin.parameters


def describe_tools(found: Any) -> list[_Described]:
    """Name, description and JSON Schema of each tool of an agent, of a team with its members, of toolkits or functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    if isinstance(found, (Agent, Team)):
        own = describe_tools(found.tools if isinstance(found.tools, list) else [])
        members = found.members if isinstance(found, Team) and isinstance(found.members, list) else []
        return own + [item for member in members for item in describe_tools(member)]
    described: list[_Described] = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        if isinstance(item, Toolkit):
            described += [_described(function) for function in item.get_async_functions().values()]
        elif isinstance(item, Function):
            described.append(_described(item))
        elif callable(item):
            described.append(_described(Function.from_callable(item)))
        else:
            raise TypeError(f"{type(item).__name__} is no Agno tool; name an agent, a team, toolkits or functions")
    return described
