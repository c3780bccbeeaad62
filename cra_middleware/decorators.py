"""``@governed``: a function that is decided and recorded each time it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, ParamSpec, TypeVar, cast

from cra_middleware.calls.running import claim_decision
from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import NoActiveSession
from cra_middleware.interceptor import Flow, async_generator_function, run_generator
from cra_middleware.sessions.session import Session, current_session
from cra_middleware.signatures import Binder, describe, make_binder

P = ParamSpec("P")
R = TypeVar("R")


def governed(action_id: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function run only as the action ``action_id`` of the current session.

    Works on sync, async, generator and async-generator functions, methods, class and static methods; the
    signature and metadata stay. Below a framework's own decorator: ``@tool`` above, ``@governed`` below. A
    generator is decided when it is first asked for an item.

    Raises:
        TypeError: when it is put around something that is no function.
    """
    if not isinstance(action_id, str):
        raise TypeError('give the action\'s id: @governed("ticket.lookup")')

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        if isinstance(fn, (staticmethod, classmethod)):
            return cast("Callable[P, R]", type(fn)(_wrap(action_id, fn.__func__)))
        if not inspect.isroutine(fn):
            raise TypeError(
                f"@governed goes around a function, not around {type(fn).__name__}: put it below the framework's "
                "decorator (first @tool, then @governed, then def)"
            )
        return cast("Callable[P, R]", _wrap(action_id, fn))

    return decorate


# Any from here on: one wrapper for every signature. Its callers keep theirs through `governed`.
Prepare = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Session, ToolCall]]


def _wrap(action_id: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    name = describe(fn)
    bind = make_binder(fn, in_class=_is_in_class(fn))

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Session, ToolCall]:
        session = current_session()
        if session is None:
            raise NoActiveSession("no session is active; open one: with runtime.session(...):", action_id=action_id)
        return session, session.freeze(action_id, name, bind(args, kwargs))

    if inspect.iscoroutinefunction(fn):
        wrapper = _coroutine_function(fn, prepare, bind)
    elif inspect.isasyncgenfunction(fn):
        wrapper = _async_generator_function(fn, prepare)
    elif inspect.isgeneratorfunction(fn):
        wrapper = _generator_function(fn, prepare)
    else:
        wrapper = _function(fn, prepare, bind)
    wrapper.cra_action = action_id  # type: ignore[attr-defined]
    return wrapper


def _function(fn: Callable[..., Any], prepare: Prepare, bind: Binder) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if claim_decision(wrapper, lambda: bind(args, kwargs)):
            return fn(*args, **kwargs)
        session, call = prepare(args, kwargs)
        return session.run(call, lambda: fn(*args, **kwargs))

    return wrapper


def _coroutine_function(fn: Callable[..., Any], prepare: Prepare, bind: Binder) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if claim_decision(wrapper, lambda: bind(args, kwargs)):
            return await fn(*args, **kwargs)
        session, call = prepare(args, kwargs)
        return await session.arun(call, lambda: fn(*args, **kwargs))

    return wrapper


def _generator_function(fn: Callable[..., Any], prepare: Prepare) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        session, call = prepare(args, kwargs)
        return (yield from run_generator(session.flow(call, stream=True), lambda: fn(*args, **kwargs)))

    return wrapper


def _async_generator_function(fn: Callable[..., Any], prepare: Prepare) -> Callable[..., Any]:
    def start(*args: Any, **kwargs: Any) -> tuple[Flow, Callable[[], AsyncGenerator[Any, Any]]]:
        session, call = prepare(args, kwargs)
        return session.flow(call, stream=True), lambda: fn(*args, **kwargs)

    return functools.wraps(fn)(async_generator_function(start))


def _is_in_class(fn: Callable[..., Any]) -> bool:
    owner, dot, _ = getattr(fn, "__qualname__", "").rpartition(".")
    return bool(dot) and not owner.endswith("<locals>")
