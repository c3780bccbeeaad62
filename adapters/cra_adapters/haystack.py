"""Haystack: ``govern_agent(agent, runtime)``, or ``govern_tools(tools, runtime)`` for tools that are invoked otherwise.

A tool is decided around its ``function`` and ``async_function``, after every hook, on the arguments that these get:
values from the ``State`` are in them, the ``State`` itself and a streaming callback are not; the tool of a component is
decided on what the component gets. Tools are governed in place, those of toolsets as they appear, those that are given
to a single run (``agent.run(tools=...)``) before they are called. A refused call is a ``ToolInvocationError``: the
model sees it as a failed result, or the run raises it, as ``raise_on_tool_invocation_failure`` says.

Haystack asks a person in place (``ConfirmationHook``), it does not pause: a call that needs a person goes to the
runtime's approver, or the model is told to wait.

Holes: an agent has no name here but the one you give, and a tool is not told the id of its call; a subclass of ``Tool``
that overrides ``invoke`` is not accepted; a governed tool cannot be stored (``to_dict``), as it would come back without
its gate; components of a pipeline that are no tools are not decided; tools that a provider runs on its own servers
never come by.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, get_args, get_type_hints
from uuid import uuid4

from haystack.components.agents import Agent, State
from haystack.tools.component_tool import ComponentTool
from haystack.tools.tool import Tool
from haystack.tools.toolset import Toolset

from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, govern_function, require

FRAMEWORK = "haystack"
_CALLBACK = "streaming_callback"

_runs: ContextVar[tuple[str, ...]] = ContextVar("cra_haystack_runs", default=())
"""The runs of agents that are going on here, the innermost last."""


def govern_tools(
    tools: Sequence[Tool | Toolset] | Toolset,
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    agent: str | None = None,
    goal: str | None = None,
) -> Any:
    """The tools, governed in place. Those that are governed already stay as they are.

    Args:
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        agent: how policies and the trace name the agent that these are for.
        goal: the operator's sentence, recorded in the trace. Never a user's message.

    Raises:
        RuntimeError: when this version of Haystack lacks something that the gate stands on.
        TypeError: when something is no tool, or one that runs otherwise than by its function.
    """
    gate = _Gate(runtime, actions, agent, goal)
    if isinstance(tools, Toolset):
        return gate.toolset(tools)
    return [gate.toolset(item) if isinstance(item, Toolset) else gate.tool(item) for item in tools]


def govern_agent(
    agent: Agent,
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    name: str | None = None,
    goal: str | None = None,
) -> Agent:
    """The agent, governed in place: its tools, those of its toolsets, and those that a single run is given.

    Args are those of ``govern_tools``; ``name`` is the agent's. Each run has a session of its own, which ends with it.

    Raises:
        RuntimeError: as for ``govern_tools``.
        TypeError: as for ``govern_tools``.
    """
    gate = _Gate(runtime, actions, name, goal)
    tools: Any = agent.tools or []
    for item in [tools] if isinstance(tools, Toolset) else tools:
        _ = gate.toolset(item) if isinstance(item, Toolset) else gate.tool(item)
    agent.hooks = {
        **agent.hooks,
        "before_run": [_Hook(gate.begin), *agent.hooks.get("before_run", [])],
        "before_tool": [*agent.hooks.get("before_tool", []), _Hook(gate.before_tool)],
        "after_run": [*agent.hooks.get("after_run", []), _Hook(gate.end)],
    }
    return agent


class _Gate:
    """Decides the calls of an agent's tools."""

    def __init__(
        self, runtime: Runtime | None, actions: Mapping[str, str] | None, agent: str | None, goal: str | None
    ) -> None:
        require(
            "haystack-ai",
            "3.4",
            {
                Tool: ("invoke", "invoke_async"),
                ComponentTool: ("_convert_param",),
                Toolset: ("__iter__", "get_selectable_tools"),
            },
        )
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent, goal=goal)
        self._agent = agent

    def begin(self, state: Any) -> None:
        _runs.set((*_runs.get(), uuid4().hex))

    def end(self, state: Any) -> None:
        *others, run = _runs.get() or ("",)
        _runs.set(tuple(others))
        self._point.end(run)

    def before_tool(self, state: Any) -> None:
        """Tools of this one run are governed; calls of tools that are not there reach none, and are recorded here."""
        known = {tool.name: self.tool(tool) for tool in state.data.get("tools") or []}
        for call in state.data["messages"][-1].tool_calls:
            if call.tool_name not in known:
                tool = self._point.tool(call.tool_name)
                try:
                    tool.missing(call.arguments, call_id=call.id, agent=self._agent, run=_run())
                except CallRefused as refusal:
                    self._point.caught(refusal)

    def tool(self, tool: Tool) -> Tool:
        if not isinstance(tool, Tool):
            raise TypeError(f"{type(tool).__name__} is no Haystack tool")
        if hasattr(tool, "cra_gate"):
            return tool
        kind = type(tool)
        if any(_overrides(kind, way) for way in ("invoke", "invoke_async")):
            raise TypeError(f"{kind.__name__} overrides Tool.invoke, so that its function is not all that runs")
        for way in ("function", "async_function"):
            body = getattr(tool, way)
            if body is not None:
                setattr(tool, way, govern_function(body, self._prepared(tool, body), _raised))
        tool.__class__ = type(f"Governed{kind.__name__}", (kind,), {"cra_gate": self, "to_dict": _not_stored})
        return tool

    def toolset(self, toolset: Toolset) -> Toolset:
        """Governed as it is asked for its tools: those of a server are known when it is connected."""
        if hasattr(toolset, "cra_gate"):
            return toolset
        gate, kind = self, type(toolset)

        class Governed(kind):  # type: ignore[misc,valid-type]
            cra_gate = gate
            to_dict = _not_stored

            def __iter__(self) -> Iterator[Tool]:
                return map(gate.tool, super().__iter__())

            def __getitem__(self, index: int) -> Tool:
                return gate.tool(super().__getitem__(index))

            def get_selectable_tools(self) -> list[Tool]:
                return [gate.tool(tool) for tool in super().get_selectable_tools()]

            def spawn(self, *args: Any, **kwargs: Any) -> Toolset:
                return gate.toolset(super().spawn(*args, **kwargs))

        Governed.__name__ = Governed.__qualname__ = f"Governed{kind.__name__}"
        toolset.__class__ = Governed
        return toolset

    def _prepared(self, tool: Tool, body: Callable[..., Any]) -> Callable[[dict[str, object]], GovernedCall]:
        governed = self._point.tool(
            tool.name,
            body=None if isinstance(tool, ComponentTool) else body,
            description=tool.description,
            schema=tool.parameters,
            origin=type(_component(tool) or tool).__name__,
            without=_injected(body),
        )

        def prepare(arguments: dict[str, object]) -> GovernedCall:
            if isinstance(tool, ComponentTool):
                return self._of_component(governed, tool, arguments)
            return governed.call(arguments, agent=self._agent, run=_run())

        return prepare

    def _of_component(self, governed: GovernedTool, tool: ComponentTool, arguments: dict[str, object]) -> GovernedCall:
        """What the component gets: converted to the types of its inputs, with its defaults."""
        sockets = _component(tool).__haystack_input__._sockets_dict
        got = {name: socket.default_value for name, socket in sockets.items() if not socket.is_mandatory}
        try:
            for name, value in arguments.items():
                got[name] = tool._convert_param(value, sockets[name].type)
        except Exception as error:  # a conversion may raise anything: refused
            raise governed.call(arguments, agent=self._agent, run=_run()).reject(
                f"the framework refused the arguments ({type(error).__name__}: {error})"
            ) from error
        hidden = {name for name, socket in sockets.items() if name == _CALLBACK or _is_state(socket.type)}
        shown = {name: value for name, value in got.items() if name not in hidden}
        return governed.call(shown, agent=self._agent, run=_run())


class _Hook:
    """A hook that does the same in sync and in async runs."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        self._act = act

    def run(self, state: State) -> None:
        self._act(state)

    async def run_async(self, state: State) -> None:
        self._act(state)

    def to_dict(self) -> dict[str, Any]:
        return _not_stored(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> _Hook:
        return _not_stored(cls)


def _not_stored(governed: object, *args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError(
        "what is governed cannot be stored, as it would come back without its gate: govern it afterwards"
    )


def _raised(refusal: CallRefused) -> NoReturn:
    raise refusal


def _run() -> str | None:
    return _runs.get()[-1] if _runs.get() else None


def _overrides(kind: type[Tool], name: str) -> bool:
    return inspect.getattr_static(kind, name) is not inspect.getattr_static(Tool, name)


def _component(tool: Tool) -> Any:
    return getattr(tool, "_component", None)


def _is_state(hint: Any) -> bool:
    return hint is State or any(_is_state(part) for part in get_args(hint))


def _injected(body: Callable[..., Any]) -> set[str]:
    """The parameters that the agent fills itself."""
    try:
        hints = get_type_hints(body)
    except Exception:  # noqa: BLE001  foreign annotations, which Haystack cannot resolve either
        hints = {}
    return {_CALLBACK, *(name for name, hint in hints.items() if _is_state(hint))}


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of an agent, of a toolset, or of tools.

    Raises:
        TypeError: when something in it is none of these.
    """
    several: Any = (found.tools or []) if isinstance(found, Agent) else found
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for item in several if isinstance(several, (list, tuple, Toolset)) else [several]:
        if isinstance(item, Toolset):
            described += describe_tools(item)
        elif isinstance(item, Tool):
            described.append((item.name, item.description, item.parameters))
        else:
            raise TypeError(f"{type(item).__name__} is no Haystack tool; name an agent, toolsets or tools")
    return described
