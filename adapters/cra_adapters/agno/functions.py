"""What Agno calls in the place of a tool's function: validated as Agno would, and then decided."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, get_type_hints

from agno.tools import Function
from agno.tools.function import FunctionCall
from agno.utils.schema import FRAMEWORK_INJECTED_PARAMS, IDENTITY_INJECTED_PARAMS, is_framework_typed
from pydantic import ValidationError

from cra_middleware import Answer, CallRefused, Pending
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, govern_function

BY = "confirmation"
"""Who is recorded to have answered, when a person confirmed a call by ``continue_run``."""
FC = "fc"
"""The parameter by which Agno gives a tool its own call."""

Described = tuple[str, str, dict[str, Any] | None]
"""A tool's name, description, and JSON Schema."""


@dataclass(slots=True)
class _Reached:
    """One call on its way to the body."""

    fc: FunctionCall | None
    is_decided: bool = False


_reached: ContextVar[_Reached] = ContextVar("cra_agno_call")


def governed_entrypoint(
    body: Callable[..., Any], point: EnforcementPoint, data: Described, *, validates: bool
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
        except BaseException as error:  # whatever ends the stream is its outcome
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
        except BaseException as error:  # whatever ends the stream is its outcome
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


def describe_function(tool: Function) -> Described:
    """As the model is shown it. Agno works that out at the start of a run, so it is done on a copy."""
    twin = tool.model_copy(deep=True)
    twin.process_entrypoint()
    return twin.name, twin.description or "", twin.parameters
