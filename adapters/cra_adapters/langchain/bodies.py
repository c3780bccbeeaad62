"""The body that a LangChain tool runs: which function it is, and what it gets from whom."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

from langchain.tools import InjectedState, InjectedStore, ToolRuntime
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId

from cra_middleware.enforcement import signature_of

_NOT_ARGUMENTS = ("run_manager", "callbacks")  # LangChain takes these names for itself
_INJECTED = (InjectedState, InjectedStore, InjectedToolCallId, ToolRuntime)


def declared_action(tool: BaseTool) -> str | None:
    """The action that an in-process tool names itself, in its metadata or by ``@governed``."""
    named = (tool.metadata or {}).get("cra_action")
    for is_async in (False, True):
        named = named or getattr(body_of(tool, is_async=is_async), "cra_action", None)
    return named if isinstance(named, str) else None


def body_of(tool: BaseTool, *, is_async: bool) -> Any:
    """The function that a tool will run."""
    own = getattr(tool, "coroutine", None) if is_async else None
    own = own or getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    if own is not None:
        return own
    return type(tool)._arun if is_async and type(tool)._arun is not BaseTool._arun else type(tool)._run


def arguments_of(
    tool: BaseTool, run: Callable[..., Any], body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What the body receives from the model, by name; its defaults and what is injected by name are left to the seam.

    LangChain puts its own objects under some names, so the body never gets what a model gives there.
    """
    shape = _shape(tool, run)
    lost = {"run_manager", config_name(shape)} & set(signature_of(shape).parameters)
    names = (parameter.name for parameter in _named_parameters(body))
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {key: value for key, value in given.items() if key not in lost and not isinstance(value, ToolRuntime)}


def injected_names(tool: BaseTool, body: Any) -> set[str]:
    """The parameters that the framework fills itself. A plain ``InjectedToolArg`` is none: a caller fills it."""
    hints = dict(_hints(body))
    if isinstance(tool.args_schema, type):
        hints |= _hints(tool.args_schema)
    names = {*_NOT_ARGUMENTS, config_name(body)}
    for name, hint in hints.items():
        marks = (hint, get_origin(hint), *get_args(hint))
        if any(
            isinstance(mark, _INJECTED) or (isinstance(mark, type) and issubclass(mark, _INJECTED)) for mark in marks
        ):
            names.add(name)
    return {name for name in names if name is not None}


def decided_parameters(tool: BaseTool, body: Any) -> dict[str, Any]:
    """The parameters of a body that decisions are about, in its order, each with its annotation, if it has one."""
    injected, hints = injected_names(tool, body), _hints(body)
    names = [one.name for one in _named_parameters(body) if one.kind is not one.VAR_POSITIONAL]
    return {name: hints.get(name, Any) for name in names if name not in injected}


def accepted(
    tool: BaseTool, run: Callable[..., Any], kwargs: dict[str, Any], config: RunnableConfig, run_manager: Any
) -> dict[str, Any]:
    """The arguments for the inner tool's own ``_run`` or ``_arun``: config and run manager where it takes them."""
    shape = _shape(tool, run)
    given = dict(kwargs)
    if "run_manager" in signature_of(shape).parameters:
        given["run_manager"] = run_manager
    name = config_name(shape)
    if name is not None:
        given[name] = config
    return given


def config_name(fn: Callable[..., Any]) -> str | None:
    """The parameter through which a function takes the ``RunnableConfig``; LangChain goes by its type."""
    return next((name for name, hint in _hints(fn).items() if hint is RunnableConfig), None)


def _shape(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    """Whose signature LangChain goes by: ``BaseTool._arun`` hands all it gets to ``_run``."""
    return tool._run if type(tool)._arun is BaseTool._arun else run


def _named_parameters(body: Any) -> list[inspect.Parameter]:
    return [
        parameter
        for parameter in signature_of(body).parameters.values()
        if parameter.name not in ("self", "cls") and parameter.kind is not parameter.VAR_KEYWORD
    ]


def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of, include_extras=True)
    except (NameError, TypeError):  # an annotation that cannot be resolved here: LangChain then injects nothing
        return {}
