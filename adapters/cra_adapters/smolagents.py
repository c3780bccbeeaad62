"""smolagents: ``govern_agent(agent, runtime)`` governs a ``ToolCallingAgent`` or a ``CodeAgent``, and whom it manages.

Each tool is replaced by one that decides around the original's ``forward``, on the arguments that it gets, and from
which nothing leads to the original: code that a model writes can reach what hangs on a tool (``type(tool).mro()``). A
managed agent is called like a tool and decided as one of its name; its own calls are in a session below.
``final_answer`` is left alone.

A refused call gives a ``ToolCallingAgent`` the text ``Error: ...``, as an exception would hide the results of the calls
beside it, which ran; in a ``CodeAgent`` it raises ``CallRefused``, which ends the piece of code with the reason.

Nothing here can pause: a call that needs a person goes to the runtime's approver, or the model is told to wait.

Holes: smolagents runs a ``CodeAgent``'s code in this process, which is no sandbox: what the code may import, what
``Tool.from_code`` and the like run, and the ``additional_functions`` of the executor are no tools and not decided.
Executors elsewhere (E2B, Docker, Modal) want a tool's source, which a governed one does not give: such an agent fails
before it runs. A tool is not told the id of its call. In a program, a name that is no tool is not recorded. Tools that
are added later are not governed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

from smolagents import CodeAgent, MultiStepAgent, Tool
from smolagents.default_tools import FinalAnswerTool
from smolagents.models import get_tool_json_schema
from smolagents.utils import AgentToolCallError

from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, govern_function, require

A = TypeVar("A", bound=MultiStepAgent)
FRAMEWORK = "smolagents"


def govern_tools(
    tools: Sequence[Tool],
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    agent_id: str | None = None,
    goal: str | None = None,
    raises: bool = False,
) -> list[Tool]:
    """Tools in place of these, governed. Those that are governed already stay as they are.

    Args:
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        agent_id: how policies and the trace name the agent.
        goal: the operator's sentence, recorded in the trace. Never a user's message.
        raises: whether a refused call raises ``CallRefused``; else it gives the text ``Error: ...``.

    Raises:
        RuntimeError: when this version of smolagents lacks something that the gate stands on.
    """
    gate = _Gate(_point(runtime, actions, agent_id, goal), None, raises=raises)
    return [gate.tool(tool) for tool in tools]


def govern_agent(
    agent: A,
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    agent_id: str | None = None,
    goal: str | None = None,
) -> A:
    """The agent, governed in place, with its tools and the agents that it manages.

    Args are those of ``govern_tools``; ``agent_id`` is for an agent without a ``name``. Each run has a session of its
    own, which ends with it.

    Raises:
        RuntimeError: as for ``govern_tools``.
    """
    _in_place(agent, _point(runtime, actions, agent_id, goal))
    return agent


def _point(
    runtime: Runtime | None, actions: Mapping[str, str] | None, agent_id: str | None, goal: str | None
) -> EnforcementPoint:
    require("smolagents", "1.26", {Tool: ("forward", "setup", "__call__"), MultiStepAgent: ("run",)})
    return EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)


def _in_place(agent: MultiStepAgent, point: EnforcementPoint) -> None:
    if hasattr(agent, "cra_is_governed"):
        return
    agent.cra_is_governed = True
    is_code = isinstance(agent, CodeAgent)
    gate = _Gate(point, agent.name, raises=is_code)
    agent.tools = {name: gate.tool(tool) for name, tool in agent.tools.items()}
    for managed in agent.managed_agents.values():
        _in_place(managed, point)
    agent.managed_agents = {name: gate.managed(managed) for name, managed in agent.managed_agents.items()}
    agent.run = gate.running(agent.run, is_code=is_code)
    if hasattr(agent, "execute_tool_call"):
        agent.execute_tool_call = gate.executing(agent.execute_tool_call, agent)


class _Gate:
    """Decides the calls of one agent, which runs once at a time."""

    def __init__(self, point: EnforcementPoint, agent: str | None, *, raises: bool) -> None:
        self._point = point
        self._agent = agent
        self._raises = raises
        self._run: str | None = None
        self._context: Context | None = None

    def tool(self, raw: Any) -> Any:
        if type(raw) is FinalAnswerTool or hasattr(raw, "cra_is_governed"):
            return raw
        return _tool_like(raw, self._decided(raw, _body(raw), raw.forward))

    def managed(self, agent: Any) -> Any:
        """What is called like the agent, and gives no way to it."""

        def body(task: str, additional_args: dict[str, Any] | None = None, **more: Any) -> Any:
            given = more if additional_args is None else {"additional_args": additional_args, **more}
            return agent(task, **given)

        decided = self._decided(agent, body, None)

        class ManagedAgent:
            cra_is_governed = True
            name, description, output_type = agent.name, agent.description, agent.output_type
            inputs = dict(agent.inputs)  # noqa: RUF012  each class has its own

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return decided(*args, **kwargs)

            def to_dict(self) -> NoReturn:
                _not_stored()

        return ManagedAgent()

    def running(self, run: Callable[..., Any], *, is_code: bool) -> Callable[..., Any]:
        """``run`` with a session of its own, also where it gives its steps one by one."""

        def began() -> None:
            self._run = uuid4().hex
            self._context = copy_context() if is_code else None  # code runs in a thread that knows of no session

        def ended() -> None:
            self._point.end(self._run)
            self._run = self._context = None

        def stepwise(steps: Any) -> Iterator[Any]:
            began()
            try:
                yield from steps
            finally:
                ended()

        def governed(*args: Any, **kwargs: Any) -> Any:
            began()
            try:
                result = run(*args, **kwargs)
            finally:
                ended()
            return stepwise(result) if inspect.isgenerator(result) else result

        return governed

    def executing(self, execute: Callable[..., Any], agent: MultiStepAgent) -> Callable[..., Any]:
        """Calls of tools that are not there, and arguments that smolagents refuses, reach no tool: recorded here."""

        def executed(tool_name: str, arguments: Any) -> Any:
            tool = self._point.tool(tool_name)
            if tool_name not in agent.tools and tool_name not in agent.managed_agents:
                tool.missing(arguments, call_id=None, agent=self._agent, run=self._run)
            try:
                return execute(tool_name, arguments)
            except AgentToolCallError as error:
                self._call(tool, arguments).reject(str(error))
                raise

        return executed

    def _call(self, tool: GovernedTool, arguments: object) -> GovernedCall:
        return tool.call(arguments, agent=self._agent, run=self._run)

    def _decided(
        self, described: Any, body: Callable[..., Any], shown: Callable[..., Any] | None
    ) -> Callable[..., Any]:
        """``body``, decided; ``shown`` is the function that the trace names."""
        tool = self._point.tool(
            described.name,
            body=shown,
            description=described.description,
            schema=_parameters(described),
            origin="managed_agent",
            without=("self",),
        )

        def refused(refusal: CallRefused) -> str:
            if self._raises:
                raise refusal
            return f"Error: {refusal}"

        governed = govern_function(body, lambda arguments: self._call(tool, arguments), refused)

        def decided(*args: Any, **kwargs: Any) -> Any:
            return governed(*args, **kwargs) if self._context is None else self._inside(governed, args, kwargs)

        return decided

    def _inside(self, governed: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        assert self._context is not None
        return self._context.copy().run(governed, *args, **kwargs)


def _body(raw: Any) -> Callable[..., Any]:
    """What runs when a tool is called, with the parameters of its ``forward``."""
    own_call = inspect.getattr_static(type(raw), "__call__") is not inspect.getattr_static(Tool, "__call__")

    def body(*args: Any, **kwargs: Any) -> Any:
        if own_call:
            return raw(*args, **kwargs)
        if not raw.is_initialized:
            raw.setup()
        return raw.forward(*args, **kwargs)

    signature = inspect.signature(raw.forward)
    parameters = [item for item in signature.parameters.values() if item.name != "self"]  # @tool leaves it in
    body.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return body


def _tool_like(raw: Any, decided: Callable[..., Any]) -> Tool:
    """A tool that a model is told of as of ``raw``, and from which no attribute leads to it."""

    class GovernedTool(Tool):  # type: ignore[misc,unused-ignore]
        cra_is_governed = True
        skip_forward_signature_validation = True
        name, description, output_type = raw.name, raw.description, raw.output_type
        inputs = {key: dict(value) for key, value in raw.inputs.items()}  # noqa: RUF012  each class has its own
        output_schema = getattr(raw, "output_schema", None)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return decided(*args, **kwargs)

        def to_dict(self) -> NoReturn:
            _not_stored()

    return GovernedTool()


def _not_stored() -> NoReturn:
    raise RuntimeError("a governed tool gives no source, for it would run elsewhere without its gate")


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of an agent, of the agents it manages, or of tools.

    Raises:
        TypeError: when something in it is none of these.
    """
    if isinstance(found, MultiStepAgent):
        managed = found.managed_agents.values()
        own = [(item.name, item.description, _parameters(item)) for item in (*found.tools.values(), *managed)]
        return [item for item in own if item[0] != "final_answer"] + [
            item for agent in managed if isinstance(agent, MultiStepAgent) for item in describe_tools(agent)
        ]
    several = found if isinstance(found, (list, tuple)) else [found]
    for item in several:
        if not isinstance(item, Tool):
            raise TypeError(f"{type(item).__name__} is no smolagents tool; name an agent or tools")
    return [(item.name, item.description, _parameters(item)) for item in several]


def _parameters(tool: Any) -> dict[str, Any]:
    schema: dict[str, Any] = get_tool_json_schema(tool)["function"]["parameters"]
    return schema
