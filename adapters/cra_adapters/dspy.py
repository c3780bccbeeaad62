"""DSPy: ``govern(module, runtime)`` governs the tools of ``ReAct``, ``ReActV2`` and ``RLM``; ``govern_tools`` those of
others. A module with tools in other places is refused.

The function of a ``dspy.Tool`` is what decides, on the parsed arguments that it gets: ``tool(...)``, ``tool.acall``,
``tool.func`` and ``ToolCall.execute`` of a governed tool all go through it. Callbacks would not do: what they raise is
swallowed, and the tool runs. A denial is raised as the refusal itself, which the modules give the model as the error
of its call. There is no pause: a call that needs a person is put to the runtime's approver, or the model is told to
wait.

Holes: the tools and functions that were given stay as they are, and calling those is not governed; nor is a function
that ``ToolCall.execute`` finds by itself, by its name, nor a tool that is put into a module later. ``CodeAct`` runs the
source of its tools in a sandbox and is refused. Modules tell nobody of unknown tools. DSPy gives tools no ids of calls,
and modules no names: say ``agent=``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from typing import Any, NoReturn, TypeVar, get_type_hints

import dspy
from dspy.utils.callback import BaseCallback
from pydantic import PrivateAttr

from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, govern_function, require

T = TypeVar("T", bound=dspy.Module)

FRAMEWORK = "dspy"

_OWN_TOOLS = {dspy.ReAct: "finish", dspy.ReActV2: "submit"}  # how a module is told of the end; they run nothing
_run: ContextVar[tuple[object, str] | None] = ContextVar("cra_dspy_run", default=None)


def govern(
    module: T,
    runtime: Runtime,
    actions: Mapping[str, str] | None = None,
    *,
    agent: str | None = None,
    goal: str | None = None,
) -> T:
    """Govern the tools of a module and of the modules in it, in place; the module is returned.

    Each of its calls is a run, whose session ends with it. A copy's calls are governed, but no runs of their own: DSPy
    copies no callbacks.

    Args:
        actions: tool names to action ids, before what the Atlas maps.
        agent: how policies and the trace name it.
        goal: the operator's sentence, recorded in the trace. Never a user's message.

    Raises:
        RuntimeError: when this version of DSPy lacks a seam that the gate stands on.
        TypeError: when a module runs its tools where they cannot be governed, or holds tools of another kind.
        ValueError: when there are no tools to be governed.
    """
    point = _point(runtime, actions, agent, goal)
    found = 0
    for _, inner in module.named_sub_modules():
        if isinstance(inner, getattr(dspy, "CodeAct", ())):  # which is to be removed in 3.5
            raise TypeError("CodeAct runs the source of its tools in a sandbox: they cannot be governed")
        tools = _tools_of(inner)
        own = {name for kind, name in _OWN_TOOLS.items() if isinstance(inner, kind)}
        for name, tool in tools.items():
            if name not in own:
                tools[name] = _Governed.of(tool, point, agent)
                found += 1
    if not found:
        raise ValueError(f"no tools were found in {type(module).__name__}; give it govern_tools(...)")
    module.callbacks = [*module.callbacks, _Runs(point)]
    return module


def _tools_of(module: dspy.Module) -> dict[str, Any]:
    """Where a module keeps its tools.

    Raises:
        TypeError: when it holds ungoverned ones where they cannot be replaced.
    """
    places = {"tools", "_user_tools"} if isinstance(module, dspy.RLM) else {"tools"}
    found: dict[str, Any] = {}
    for name, value in module.__dict__.items():
        if name in places and isinstance(value, dict):
            found = value
            continue
        held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        is_ungoverned = any(isinstance(item, dspy.Tool) and not isinstance(item, _Governed) for item in held)
        if is_ungoverned or (name == "tools" and value):
            raise TypeError(f"{type(module).__name__} holds tools in .{name}: give it what govern_tools(...) returns")
    return found


def govern_tools(
    tools: Iterable[Callable[..., Any] | dspy.Tool],
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    agent: str | None = None,
) -> list[dspy.Tool]:
    """Governed tools, for whatever runs them.

    Args:
        runtime: None leaves it to the session that is current at a call.
        agent: how policies and the trace name who calls them.

    Raises:
        RuntimeError: when this version of DSPy is too old.
        TypeError: when one is of a class that calls its function in a way of its own.
    """
    point = _point(runtime, actions, agent, None)
    return [_Governed.of(tool if isinstance(tool, dspy.Tool) else dspy.Tool(tool), point, agent) for tool in tools]


def _point(
    runtime: Runtime | None, actions: Mapping[str, str] | None, agent: str | None, goal: str | None
) -> EnforcementPoint:
    seams = ("__call__", "acall", "_validate_and_parse_args")
    require("dspy", "3.4", {dspy.Tool: seams, dspy.Module: ("named_sub_modules",), BaseCallback: ("on_module_start",)})
    return EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent, goal=goal)


class _Governed(dspy.Tool):
    """A tool whose function decides before it runs."""

    _inner: dspy.Tool = PrivateAttr()
    _call: Callable[[object], GovernedCall] = PrivateAttr()

    @classmethod
    def of(cls, tool: Any, point: EnforcementPoint, agent: str | None) -> _Governed:
        if not isinstance(tool, dspy.Tool):
            raise TypeError(f"{type(tool).__name__} is no dspy.Tool")
        inner = tool._inner if isinstance(tool, _Governed) else tool
        kind = type(inner)
        if any(getattr(kind, name) is not getattr(dspy.Tool, name) for name in ("__call__", "acall")):
            raise TypeError(f"{kind.__name__} calls its function in a way of its own, which would go past the decision")
        name, description, schema = _shown(inner)
        governed = point.tool(name, body=inner.func, description=description, schema=schema)

        def call(arguments: object) -> GovernedCall:
            return governed.call(arguments, agent=agent, run=_run_id(point))

        made = cls(_decided(inner.func, call), inner.name, inner.desc, inner.args, inner.arg_types, inner.arg_desc)
        made.has_kwargs = inner.has_kwargs
        made._inner = inner
        made._call = call
        return made

    def _validate_and_parse_args(self, **kwargs: Any) -> dict[str, Any]:
        try:
            return dict(self._inner._validate_and_parse_args(**kwargs))
        except Exception as error:  # whatever DSPy refuses the arguments with
            self._call(kwargs).reject(str(error))
            raise


def _decided(func: Callable[..., Any], call: Callable[[dict[str, object]], GovernedCall]) -> Callable[..., Any]:
    plain = func if inspect.isroutine(func) or inspect.iscoroutinefunction(func) else func.__call__  # type: ignore[operator]
    parameters = inspect.signature(plain).parameters.values()
    star = next((item.name for item in parameters if item.kind is item.VAR_POSITIONAL), None)

    def prepare(arguments: dict[str, object]) -> GovernedCall:
        return call({key: value for key, value in arguments.items() if key != star or value})

    made = govern_function(plain, prepare, _raise)
    made.__dict__.pop("__wrapped__", None)  # by which the function's source could be found and run elsewhere
    if inspect.isroutine(plain):
        made.__annotations__ = get_type_hints(plain)  # text among them means nothing outside the function's own module
    made.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    return made


def _raise(refusal: CallRefused) -> NoReturn:
    raise refusal


class _Runs(BaseCallback):  # type: ignore[misc]
    """Tells when a call of the module begins and ends. An inner call is part of the outer one."""

    def __init__(self, point: EnforcementPoint) -> None:
        self._point = point
        self._begun: dict[str, Token[tuple[object, str] | None]] = {}

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if _run_id(self._point) is None:
            self._begun[call_id] = _run.set((self._point, call_id))

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        token = self._begun.pop(call_id, None)
        if token is not None:
            _run.reset(token)
            self._point.end(call_id)


def _run_id(point: EnforcementPoint) -> str | None:
    found = _run.get()
    return found[1] if found is not None and found[0] is point else None


def _shown(tool: dspy.Tool) -> tuple[str, str, dict[str, Any] | None]:
    described = tool.format_as_litellm_function_call()["function"]
    return described["name"], described["description"] or "", described["parameters"]


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of a module, or of tools and functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    described = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        if isinstance(item, dspy.Module):
            for _, inner in item.named_sub_modules():
                own = {name for kind, name in _OWN_TOOLS.items() if isinstance(inner, kind)}
                described += [_shown(tool) for name, tool in _tools_of(inner).items() if name not in own]
        elif isinstance(item, dspy.Tool) or callable(item):
            described.append(_shown(item if isinstance(item, dspy.Tool) else dspy.Tool(item)))
        else:
            raise TypeError(f"{type(item).__name__} is no tool of DSPy; name a module, tools or functions")
    return described
