"""CrewAI: ``govern(crew, runtime)``, or of an agent, before it is kicked off; ``govern_tools`` for tools elsewhere.

Not a hook but the tools themselves decide: CrewAI swallows what a hook raises and runs the tool. Each agent works with
governed copies of whatever tools it is about to get, those that a crew adds (delegation, memory, MCP) included. Each
decides on the validated arguments, last before its ``_run``. Native function calling, the text protocol, ``run`` and
``invoke`` of such a copy go through it. A hook is there as well, as a net: it stops a tool of a governed agent that is
no such copy. Results are never cached, for a cached one comes back without a decision.

A denial is a ``ToolFailure``: told to the model, never the task's answer; ``ToolFailurePolicy.RAISE`` lets it end the
run. There is no pause: a call that needs a person is put to the runtime's approver, or the model is told to wait.

Holes: the user's own tool objects are left as they are, and ``run`` on them is not governed. Agents of other classes
than ``Agent``, and crews that a kickoff would restore from a checkpoint, are refused. In the text protocol CrewAI tells
nobody of unknown tools. It gives no ids of calls.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar
from uuid import uuid4

from crewai import Agent, Crew
from crewai.hooks import get_before_tool_call_hooks, register_before_tool_call_hook
from crewai.tools.base_tool import BaseTool, Tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.tools.tool_failure import ToolFailure, ToolFailureReason
from crewai.utilities.string_utils import sanitize_tool_name
from pydantic import PrivateAttr

from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, govern_function, require

T = TypeVar("T", Crew, Agent)

FRAMEWORK = "crewai"

_MARK = "_cra_governor"  # on what is governed
_INNER = "_cra_inner"  # on a governed copy: the tool it was made of
_run: ContextVar[tuple[object, str] | None] = ContextVar("cra_crewai_run", default=None)


def govern(
    target: T,
    runtime: Runtime,
    actions: Mapping[str, str] | None = None,
    *,
    goal: str | None = None,
    hide_denied: bool = True,
    inject_context: bool = True,
) -> T:
    """Govern every tool call of a crew or an agent, which is returned.

    Args:
        actions: tool names, as the model is shown them (``delegate_work_to_coworker``), to action ids, before what the
            Atlas maps.
        goal: the operator's sentence, recorded in the trace. Never a user's message.
        hide_denied: tools that no call could be allowed to use are not shown to the model.
        inject_context: the Atlas's documents are added to the prompt.

    Raises:
        RuntimeError: when this version of CrewAI lacks a seam that the gate stands on, or another governor governs it.
        TypeError: when it is no ``Crew`` and no ``Agent``, or an agent of the crew is none.
    """
    _require()
    governor = _Governor(EnforcementPoint(runtime, FRAMEWORK, actions=actions, goal=goal), hide_denied, inject_context)
    if isinstance(target, Crew):
        governor.crew(target)
    else:
        governor.agent(target)
    return target


def govern_tools(
    tools: Iterable[BaseTool], runtime: Runtime | None = None, actions: Mapping[str, str] | None = None
) -> list[BaseTool]:
    """Governed copies of tools, for whatever runs them: a flow, another framework, your own loop.

    Args:
        runtime: None leaves it to the session that is current at a call.

    Raises:
        RuntimeError: when this version of CrewAI is too old.
        TypeError: when something in it is no ``BaseTool``, or cannot be governed.
    """
    _require()
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions)
    return [_governed(tool, point, None) for tool in tools]


def _require() -> None:
    require(
        "crewai",
        "1.15.22",
        {
            Agent: (
                "_add_skill_loader_tool",
                "_build_execution_prompt",
                "kickoff",
                "akickoff",
                "kickoff_async",
                "copy",
            ),
            Crew: ("_create_manager_agent", "kickoff", "akickoff", "copy"),
            BaseTool: ("run", "arun", "_run", "_arun", "_validate_kwargs", "to_structured_tool"),
            CrewStructuredTool: ("invoke", "ainvoke", "_parse_args"),
        },
    )


class _Governor:
    """What is done to a crew and its agents. Methods are replaced on the objects: copies of them are governed, too."""

    def __init__(self, point: EnforcementPoint, hide_denied: bool, inject_context: bool) -> None:
        self._point = point
        self._hide_denied = hide_denied
        self._inject_context = inject_context
        if _stop_ungoverned not in get_before_tool_call_hooks():
            register_before_tool_call_hook(_stop_ungoverned)

    def crew(self, crew: Crew) -> None:
        if self._is_new(crew):
            manager = crew._create_manager_agent

            def create_manager_agent() -> None:
                manager()
                self.agent(crew.manager_agent)

            self._replace(crew, "_create_manager_agent", create_manager_agent)
            self._replace(crew, "copy", self._copied(crew.copy, self.crew))
            for name in ("kickoff", "akickoff"):
                self._replace(crew, name, self._as_run(crew, name, lambda: self._cover(crew)))
        self._cover(crew)

    def agent(self, agent: Any) -> None:
        if not isinstance(agent, Agent):
            raise TypeError(f"{type(agent).__name__} is no Agent of CrewAI: give it tools by govern_tools")
        if not self._is_new(agent):
            return
        add, prompt = agent._add_skill_loader_tool, agent._build_execution_prompt

        def last_tools(tools: list[BaseTool], task: Any = None) -> list[BaseTool]:
            found = [_governed(tool, self._point, agent) for tool in add(tools, task=task)]
            if not self._hide_denied:
                return found
            session = self._point.session(run=_run_id(self._point), agent=agent.role)
            return [tool for tool in found if self._point.tool(sanitize_tool_name(tool.name)).is_shown(session)]

        def build_prompt(tools: list[BaseTool]) -> Any:
            made, *others = prompt(tools)
            text = self._point.session(run=_run_id(self._point), agent=agent.role).context_text
            field = "system" if getattr(made, "system", "") else "prompt"
            if text:
                made = made.model_copy(update={field: f"{getattr(made, field)}\n\n{text}"})
            return (made, *others)

        self._replace(agent, "_add_skill_loader_tool", last_tools)
        if self._inject_context:
            self._replace(agent, "_build_execution_prompt", build_prompt)
        self._replace(agent, "copy", self._copied(agent.copy, self.agent))
        for name in ("kickoff", "akickoff", "kickoff_async"):
            self._replace(agent, name, self._as_run(agent, name, lambda: None))
        agent.tools = [_governed(tool, self._point, agent) for tool in agent.tools or []]

    def _cover(self, crew: Crew) -> None:
        for agent in [*crew.agents, crew.manager_agent, *(task.agent for task in crew.tasks)]:
            if agent is not None:
                self.agent(agent)

    def _is_new(self, target: Any) -> bool:
        known = target.__dict__.get(_MARK)
        if known not in (None, self):
            raise RuntimeError(f"this {type(target).__name__} is governed already, by another governor")
        self._replace(target, _MARK, self)
        return known is None

    def _replace(self, target: object, name: str, value: object) -> None:
        object.__setattr__(target, name, value)  # pydantic would look for a field of that name

    def _copied(self, copy: Callable[[], Any], govern_it: Callable[[Any], None]) -> Callable[[], Any]:
        def governed_copy() -> Any:
            made = copy()
            govern_it(made)
            return made

        return governed_copy

    def _as_run(self, owner: Any, name: str, prepare: Callable[[], None]) -> Callable[..., Any]:
        """A kickoff as one run, whose session ends with it. In an outer run, and before a stream begins, it is none."""
        kickoff = getattr(owner, name)

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[object, str] | None:
            bound = inspect.signature(kickoff).bind(*args, **kwargs).arguments
            if getattr(bound.get("from_checkpoint"), "restore_from", None) is not None:
                raise RuntimeError("what is restored is another crew: restore it, govern it, and kick it off")
            prepare()
            if _run_id(self._point) is not None or getattr(owner, "stream", False):
                return None
            return (self._point, uuid4().hex)

        async def finished(run: tuple[object, str], result: Any) -> Any:
            token = _run.set(run)
            try:
                return await result
            finally:
                _run.reset(token)
                self._point.end(run[1])

        def kicked_off(*args: Any, **kwargs: Any) -> Any:
            run = begin(args, kwargs)
            if run is None:
                return kickoff(*args, **kwargs)
            token = _run.set(run)
            result = None
            try:
                result = kickoff(*args, **kwargs)
            finally:
                _run.reset(token)
                if not inspect.isawaitable(result):
                    self._point.end(run[1])
            return finished(run, result) if inspect.isawaitable(result) else result

        return kicked_off


def _run_id(point: EnforcementPoint) -> str | None:
    found = _run.get()
    return found[1] if found is not None and found[0] is point else None


def _governed(tool: Any, point: EnforcementPoint, agent: Agent | None) -> BaseTool:
    """A copy of ``tool`` that decides before its body; of a governed one, a copy of what is inside."""
    if not isinstance(tool, BaseTool):
        raise TypeError(f"{type(tool).__name__} is no tool of CrewAI")
    inner: BaseTool = tool.__dict__.get(_INNER, tool)
    kind = Tool if isinstance(inner, Tool) else BaseTool
    for name in ("run", "arun", "to_structured_tool", "_validate_kwargs"):
        if getattr(type(inner), name) is not getattr(kind, name) or name in inner.__dict__:
            raise TypeError(f"{type(inner).__name__} has a {name} of its own, which would go past its _run")
    gate = _Gate(inner, point, agent)
    copy = inner.model_copy()
    replaced: dict[str, object] = {
        _INNER: inner,
        "cache_function": _never,
        "_validate_kwargs": gate.validate,
        "to_structured_tool": lambda: _structured(copy, gate),
    }
    if isinstance(inner, Tool):
        replaced["func"] = replaced["_run"] = gate.decided(inner.func)
    else:
        replaced["_run"] = gate.decided(inner._run)
        if type(inner)._arun is not BaseTool._arun:
            replaced["_arun"] = gate.decided(inner._arun)
    for name, value in replaced.items():
        object.__setattr__(copy, name, value)
    return copy


class _Gate:
    """The decision about one agent's calls of one tool."""

    def __init__(self, inner: BaseTool, point: EnforcementPoint, agent: Agent | None) -> None:
        self._inner = inner
        self._point = point
        self._agent = agent
        name, description, schema = _shown(inner)
        body = inner.func if isinstance(inner, Tool) else inner._run
        self._tool: GovernedTool = point.tool(name, body=body, description=description, schema=schema)
        parameters = inspect.signature(body).parameters.values()
        self._star = next((item.name for item in parameters if item.kind is item.VAR_POSITIONAL), None)

    def decided(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return govern_function(fn, self._call, _failure)

    def validate(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._inner._validate_kwargs(kwargs))
        except ValueError as error:
            self._call(kwargs).reject(str(error))
            raise

    def invalid(self, arguments: object, error: ValueError) -> ToolFailure:
        try:
            self._call(arguments).reject(str(error))
        except CallRefused as refusal:
            return _failure(refusal)
        return ToolFailure(message=str(error), reason=ToolFailureReason.INVALID_INPUT, retryable=True)

    def _call(self, arguments: object) -> GovernedCall:
        if isinstance(arguments, dict) and arguments.get(self._star) == []:  # *args, which an agent never gives
            arguments = {key: value for key, value in arguments.items() if key != self._star}
        agent = None if self._agent is None else self._agent.role
        return self._tool.call(arguments, agent=agent, run=_run_id(self._point))


class _Structured(CrewStructuredTool):
    """What the text protocol calls. Bad arguments are recorded, once; the caller's context reaches the tool."""

    _gate: _Gate = PrivateAttr()

    def invoke(self, input: Any, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        try:
            self._parse_args(input)
        except ValueError as error:
            return self._gate.invalid(input, error)
        return super().invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if not inspect.iscoroutinefunction(self.func):
            return await asyncio.to_thread(self.invoke, input, config, **kwargs)
        try:
            self._parse_args(input)
        except ValueError as error:
            return self._gate.invalid(input, error)
        return await super().ainvoke(input, config, **kwargs)


def _structured(tool: BaseTool, gate: _Gate) -> CrewStructuredTool:
    plain = type(tool).to_structured_tool(tool)
    made = _Structured(**{name: getattr(plain, name) for name in CrewStructuredTool.model_fields})
    made._original_tool = tool
    made._gate = gate
    return made


def _stop_ungoverned(context: Any) -> bool | None:
    """The net: in what is governed, a tool that is no governed copy does not run; one that is not there is recorded."""
    try:
        marks = [getattr(one, "__dict__", {}).get(_MARK) for one in (context.agent, context.crew)]
        governor = marks[0] or marks[1]
        if governor is None or isinstance(context.tool, _Structured):
            return None
        point: EnforcementPoint = governor._point
        point.tool(context.tool_name).missing(
            context.tool_input, call_id=None, agent=context.agent.role, run=_run_id(point)
        )
    except Exception:  # noqa: BLE001  what a hook raises is swallowed here, and the tool would run
        return False
    return None if context.tool is None else False


def _never(arguments: Any = None, result: Any = None) -> bool:
    """A cached result would come back without a decision, and to another agent, too."""
    return False


def _failure(refusal: CallRefused) -> ToolFailure:
    return ToolFailure(message=str(refusal), retryable=refusal.recoverable)


def _shown(tool: BaseTool) -> tuple[str, str, dict[str, Any] | None]:
    schema = None if tool.args_schema is None else tool.args_schema.model_json_schema()
    return sanitize_tool_name(tool.name), tool.description, schema


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of a crew's agents, of an agent, or of tools.

    Raises:
        TypeError: when something in it is none of these.
    """
    described = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        agents = item.agents if isinstance(item, Crew) else [item] if isinstance(item, Agent) else []
        for tool in [tool for agent in agents for tool in agent.tools or []] if agents else [item]:
            if not isinstance(tool, BaseTool):
                raise TypeError(f"{type(tool).__name__} is no tool of CrewAI; name a crew, an agent or tools")
            described.append(_shown(tool))
    return described
